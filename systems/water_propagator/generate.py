"""Trajectories to learn from: ``python -m egnn_md_systems.water_propagator.generate OUTPUT``.

Constant-energy dynamics of periodic boxes of liquid water by a trained potential (``water`` by default), from
independent starts: flexible TIP3P-FB hands over a liquid, Langevin dynamics by the potential itself brings it to
its temperature, then velocity Verlet runs and frames are stored. Positions and velocities of a frame belong to
the same time, which OpenMM's own Verlet integrator would not give. Complete trajectories are skipped, so a
command that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, TrajectoryWriter
from egnn_md.errors import SimulationError
from egnn_md.simulation.mechanics import kinetic_energy, remove_drift, temperature

if TYPE_CHECKING:
    from ase import Atoms

DENSITY = 0.997  # g/cm³, water at 298 K and 1 bar
TIMESTEP = 0.5  # fs
WRITE_EVERY = 2  # steps, so a frame every fs
LANGEVIN_FRICTION = 20.0  # 1/ps: 0.5 ps of it is ten relaxation times of the kinetic energy
MAXIMUM_TEMPERATURE = 1500.0  # K; above it a run has exploded
STRETCH = 50  # steps between two looks of the guard while equilibrating


@dataclass(frozen=True)
class Run:
    """One trajectory: where it belongs, its temperature in K and its seed."""

    part: str
    name: str
    temperature: float
    seed: int


def plan(train: int = 8, valid: int = 1, test: int = 3, seed: int = 20270) -> list[Run]:
    """The trajectories in the order in which they are made, so that one that is cut off has every part.

    Training covers 280 to 340 K; validation and test are at 300 K.
    """
    temperatures = (300.0, 320.0, 280.0, 340.0, 310.0, 290.0, 330.0, 300.0)
    runs = {
        "train": [
            Run("train", f"{i:05d}", temperatures[i % len(temperatures)], seed + 10 * i) for i in range(train)
        ],
        "valid": [Run("valid", f"{i:05d}", 300.0, seed + 10_000 + 10 * i) for i in range(valid)],
        "test": [Run("test", f"{i:05d}", 300.0, seed + 20_000 + 10 * i) for i in range(test)],
    }
    ordered: list[Run] = []
    pattern = ("train", "train", "valid", "test")
    turn = 0
    while any(runs.values()):
        part = pattern[turn % len(pattern)]
        turn += 1
        if runs[part]:
            ordered.append(runs[part].pop(0))
    return ordered


def metadata_of(model: str, molecules: int) -> TrajectoryMetadata:
    """Description of the data set."""
    return TrajectoryMetadata.model_validate(
        {
            "system": "water",
            "units": {"length": "angstrom", "time": "femtosecond"},
            "dt": TIMESTEP,
            "write_every": WRITE_EVERY,
            "periodic_boundary_conditions": [True, True, True],
            "type_names": {"1": "H", "8": "O"},
            "potential": model,
            "molecules": molecules,
            "density": DENSITY,
            "integrator": "velocity Verlet",
        }
    )


def start_box(molecules: int, temperature: float, seed: int) -> Atoms:
    """Cubic box of liquid water (O, H, H, …) after 5 ps of flexible TIP3P-FB."""
    from egnn_md_systems.water.sampling import BoxRun, force_field_trajectory

    run = BoxRun(molecules, temperature, DENSITY, perturb_force_field=False, seed=seed)
    (atoms,) = force_field_trajectory(run, frames=1, stride_ps=1.0, equilibration_ps=4.0)
    return atoms


class Dynamics:
    """A box under the potential: Langevin dynamics first, then velocity Verlet with the same forces.

    Args:
        atoms: waters, periodic.
        model: potential, its name or its file.
        temperature: K.
        seed: of the first velocities and the thermostat.
        implementation: of the force, ``python`` or ``torch``.
    """

    def __init__(
        self, atoms: Atoms, model: Any, temperature: float, seed: int, *, implementation: str = "python"
    ) -> None:
        from egnn_md_openmm.dependencies import import_openmm
        from egnn_md_openmm.engine import velocity_verlet
        from egnn_md_openmm.system import create_system
        from egnn_md_systems.water.make_structures import pdb_text

        openmm = import_openmm()
        from openmm import app, unit

        topology = app.PDBFile(io.StringIO(pdb_text(atoms))).topology
        topology.setPeriodicBoxVectors(atoms.cell.array * 0.1 * unit.nanometer)
        # PythonForce beats TorchForce on one thread here (44 against 57 ms a step with 32 molecules)
        self.system = create_system(
            topology, model, implementation=implementation, periodic=True, dtype="float32", remove_cm_motion=False
        )
        self.masses = atoms.get_masses()
        self._unit = unit
        self._make: Callable[[Any], Any] = lambda integrator: openmm.Context(
            self.system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"}
        )
        self._langevin = openmm.LangevinMiddleIntegrator(temperature, LANGEVIN_FRICTION, TIMESTEP / 1000)
        self._langevin.setRandomNumberSeed(seed + 1)
        self._verlet = velocity_verlet(TIMESTEP / 1000)
        self.context = self._make(self._langevin)
        self.context.setPositions(atoms.positions * 0.1)
        self.context.setVelocitiesToTemperature(temperature, seed + 2)

    def state(self) -> tuple[np.ndarray, np.ndarray]:
        """Unwrapped positions (N, 3) in Å and velocities (N, 3) in Å/fs.

        Raises:
            SimulationError: not finite, or far too hot.
        """
        unit = self._unit
        state = self.context.getState(positions=True, velocities=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        velocities = state.getVelocities(asNumpy=True).value_in_unit(unit.angstrom / unit.femtosecond)
        hot = temperature_of(np.asarray(velocities), self.masses)
        if not np.isfinite(positions).all() or not hot < MAXIMUM_TEMPERATURE:
            raise SimulationError(f"the box has {hot:.0f} K; the potential does not hold this start: take another seed")
        return np.asarray(positions), np.asarray(velocities)

    def equilibrate(self, steps: int, progress: Callable[[int], None]) -> None:
        """Langevin dynamics, then the momentum is taken out and velocity Verlet takes over."""
        for _ in range(0, steps, STRETCH):
            self._langevin.step(STRETCH)
            self.state()
            progress(STRETCH)
        positions, velocities = self.state()
        velocities = remove_drift(self.masses, velocities)
        self.context = self._make(self._verlet)
        self.context.setPositions(positions * 0.1)
        self.context.setVelocities(velocities * 100.0)  # Å/fs to nm/ps

    def advance(self, steps: int) -> None:
        """Velocity Verlet steps."""
        self._verlet.step(steps)

    def frames(self, count: int, progress: Callable[[int], None]) -> tuple[np.ndarray, np.ndarray]:
        """``count`` frames, the first after one interval: positions and velocities (count, N, 3), float32."""
        shape = (count, len(self.masses), 3)
        positions, velocities = np.empty(shape, np.float32), np.empty(shape, np.float32)
        for frame in range(count):
            self.advance(WRITE_EVERY)
            positions[frame], velocities[frame] = self.state()
            progress(WRITE_EVERY)
        return positions, velocities


def temperature_of(velocities: np.ndarray, masses: np.ndarray) -> float:
    """Kinetic temperature in K of velocities (N, 3) in Å/fs and masses (N,) in u, with 3 N - 3 degrees of freedom."""
    return temperature(kinetic_energy(masses, velocities), 3 * len(masses) - 3)


def generate(
    output: Path,
    *,
    model: str = "water",
    molecules: int = 32,
    frames: int = 2000,
    equilibration: int = 1000,
    runs: list[Run] | None = None,
) -> None:
    """Write the data set; trajectories that are complete are left alone.

    Args:
        output: directory.
        model: name or file of the potential.
        molecules: a box.
        frames: a trajectory, 1 fs apart.
        equilibration: steps of 0.5 fs before the first frame.
        runs: what to make; the standard plan if None.

    Raises:
        InputError: ``output`` holds another data set.
        SimulationError: the dynamics ran away.
    """
    metadata = metadata_of(model, molecules)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    chosen = plan() if runs is None else runs
    with Progress(*columns) as progress:
        total = progress.add_task("trajectories", total=len(chosen))
        for run in chosen:
            with TrajectoryWriter(output / f"{run.part}.h5", metadata) as writer:
                complete = run.name in writer.names
            if not complete:
                task = progress.add_task(
                    f"{run.part}/{run.name} {run.temperature:.0f} K", total=equilibration + WRITE_EVERY * frames
                )
                trajectory = _simulate(run, model, molecules, frames, equilibration, partial(progress.advance, task))
                with TrajectoryWriter(output / f"{run.part}.h5", metadata) as writer:
                    writer.add(trajectory, run.name)
                progress.remove_task(task)
                progress.console.print(f"{run.part}/{run.name}: {_summary(trajectory)}")
            progress.advance(total)


def _simulate(
    run: Run, model: str, molecules: int, frames: int, equilibration: int, advance: Callable[[int], None]
) -> Trajectory:
    atoms = start_box(molecules, run.temperature, run.seed)
    dynamics = Dynamics(atoms, model, run.temperature, run.seed)
    dynamics.equilibrate(equilibration, advance)
    positions, velocities = dynamics.frames(frames, advance)
    species, cell = atoms.numbers.astype(np.int64), atoms.cell.array.copy()
    return Trajectory(positions, species, velocities, cell=cell, name=run.name)


def _summary(trajectory: Trajectory) -> str:
    from ase.data import atomic_masses

    masses = atomic_masses[trajectory.species]
    hot = [temperature_of(trajectory.velocities[t], masses) for t in range(0, len(trajectory), 10)]
    edges = np.linalg.norm(np.asarray(trajectory.cell), axis=1)
    return f"{len(trajectory)} frames, {np.mean(hot):.0f} K, cell {edges.round(3)} Å"


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path, help="directory of the data set")
    parser.add_argument("--model", default="water", help="name or file of the potential")
    parser.add_argument("--molecules", type=int, default=32)
    parser.add_argument("--frames", type=int, default=2000, help="a trajectory, 1 fs apart")
    parser.add_argument("--equilibration", type=int, default=1000, help="steps of 0.5 fs before the first frame")
    parser.add_argument("--train", type=int, default=8, help="trajectories")
    parser.add_argument("--valid", type=int, default=1)
    parser.add_argument("--test", type=int, default=3)
    options = parser.parse_args()
    generate(
        options.output,
        model=options.model,
        molecules=options.molecules,
        frames=options.frames,
        equilibration=options.equilibration,
        runs=plan(options.train, options.valid, options.test),
    )


if __name__ == "__main__":
    main()
