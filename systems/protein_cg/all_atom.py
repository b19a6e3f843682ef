"""The all-atom reference: chignolin in implicit water, its positions and forces written side by side.

ff14SB (Maier et al. 2015, J. Chem. Theory Comput. 11, 3696) with the generalised Born model OBC2 (Onufriev,
Bashford and Case 2004, Proteins 55, 383). OBC2 is put in as OpenMM's ``GBSAOBCForce``, not as the
``CustomGBForce`` of ``implicit/obc2.xml``: the same equations and parameters, four times as fast on a CPU.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import h5py
import numpy as np
import typer

from egnn_md.errors import InputError, SimulationError
from egnn_md.units import KJ_PER_MOL_PER_EV

from .shapes import superposed_rmsd

STRUCTURE = Path(__file__).resolve().parent / "chignolin.pdb"
FORCE_FIELD = "amber14/protein.ff14SB.xml"
TEMPERATURE = 300.0  #: K, of the simulation and therefore of the coarse-grained free energy
TIMESTEP = 4.0  # fs, with hydrogens of 3 Da and their bonds constrained
FRICTION = 1.0  # 1/ps
HYDROGEN_MASS = 3.0  # Da
STRIDE = 10  # steps between frames, 0.04 ps: the noise of the forces is forgotten long before the chain moves
CHUNK = 125  # frames between two checkpoints


@dataclass(frozen=True)
class AllAtom:
    """An OpenMM system with its topology and a start.

    Attributes:
        topology: OpenMM ``Topology`` with hydrogens at pH 7.
        system: OpenMM ``System``.
        positions: Å, (atoms, 3).
    """

    topology: Any
    system: Any
    positions: np.ndarray


def build(path: str | Path = STRUCTURE) -> AllAtom:
    """Chignolin with hydrogens, ff14SB and OBC2, bonds to hydrogen constrained.

    Raises:
        InputError: the file is unreadable.
    """
    import openmm
    from openmm import app, unit
    from openmm.app.internal.customgbforces import GBSAOBC2Force

    try:
        pdb = app.PDBFile(str(path))
    except Exception as error:  # OpenMM's reader raises whatever it stumbles over
        raise InputError(f"{path} cannot be read as PDB: {type(error).__name__}: {error}") from error
    field = app.ForceField(FORCE_FIELD)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    if not any(atom.element.symbol == "H" for atom in pdb.topology.atoms()):
        modeller.addHydrogens(field, pH=7.0)
    system = field.createSystem(
        modeller.topology,
        nonbondedMethod=app.NoCutoff,
        constraints=app.HBonds,
        hydrogenMass=HYDROGEN_MASS * unit.dalton,
    )
    nonbonded = next(force for force in system.getForces() if isinstance(force, openmm.NonbondedForce))
    born = openmm.GBSAOBCForce()
    for index, (radius, screen) in enumerate(GBSAOBC2Force.getStandardParameters(modeller.topology)):
        born.addParticle(nonbonded.getParticleParameters(index)[0], radius, screen)
    system.addForce(born)
    return AllAtom(modeller.topology, system, np.array(modeller.positions.value_in_unit(unit.angstrom)))


def simulate(
    output: str | Path, run: int, length_ps: float, equilibration_ps: float = 20.0, say: Callable[[str], None] = print
) -> Path:
    """One Langevin run to ``output/run-<run>.h5``; a second call goes on after the last checkpoint.

    The file holds ``time`` (frames,) in ps, ``positions`` (frames, atoms, 3) in Å and ``forces`` in eV/Å, the last
    two in float32, the forces without those of the constraints, as OpenMM gives them.
    """
    import openmm
    from openmm import app, unit

    output = Path(output)
    output.mkdir(parents=True, exist_ok=True)
    path, checkpoint = output / f"run-{run}.h5", output / f"run-{run}.checkpoint"
    structure = output / "all_atom.pdb"
    if not structure.exists():  # hydrogens are placed with random numbers: one structure for all runs
        made = build()
        with structure.open("w") as stream:
            app.PDBFile.writeFile(made.topology, made.positions * unit.angstrom, stream)
    made = build(structure)
    integrator = openmm.LangevinMiddleIntegrator(TEMPERATURE, FRICTION, TIMESTEP * 1e-3)
    integrator.setRandomNumberSeed(run)
    context = openmm.Context(made.system, integrator, openmm.Platform.getPlatformByName("CPU"), {"Threads": "1"})
    shape = made.positions.shape
    if checkpoint.exists():
        context.loadCheckpoint(checkpoint.read_bytes())
    else:
        context.setPositions(made.positions * 0.1)
        openmm.LocalEnergyMinimizer.minimize(context, maxIterations=500)
        context.setVelocitiesToTemperature(TEMPERATURE, run)
        integrator.step(round(equilibration_ps * 1000 / TIMESTEP))
        context.setTime(0.0)
        with h5py.File(path, "w") as file:
            for name in ("positions", "forces"):
                file.create_dataset(name, (0, *shape), "f4", maxshape=(None, *shape), chunks=(100, *shape))
            file.create_dataset("time", (0,), "f8", maxshape=(None,))
    with h5py.File(path, "r") as file:  # it may hold frames that came after the checkpoint
        done = int((file["time"][:] < context.getTime()._value + 1e-6).sum())
    frame_ps = STRIDE * TIMESTEP * 1e-3
    alpha = alphas(made.topology)
    newest = time.perf_counter()
    while (left := round((length_ps - context.getTime()._value) / frame_ps)) > 0:
        count = min(CHUNK, left)
        positions, forces = np.empty((2, count, *shape), np.float32)
        times = np.empty(count)
        for frame in range(count):
            integrator.step(STRIDE)
            state = context.getState(getPositions=True, getForces=True)
            positions[frame] = 10.0 * state.getPositions(asNumpy=True)._value
            forces[frame] = state.getForces(asNumpy=True)._value / (10.0 * KJ_PER_MOL_PER_EV)
            times[frame] = state.getTime()._value
        if not (np.isfinite(positions).all() and np.isfinite(forces).all()):
            raise SimulationError(f"run {run} blew up after frame {done}; delete {path} and take another seed")
        with h5py.File(path, "r+") as file:
            for name, values in (("positions", positions), ("forces", forces), ("time", times)):
                file[name].resize(done + count, axis=0)
                file[name][done:] = values
        done += count
        temporary = checkpoint.with_suffix(".new")
        temporary.write_bytes(context.createCheckpoint())
        os.replace(temporary, checkpoint)
        now = time.perf_counter()
        rmsd = superposed_rmsd(positions[-1:][:, alpha], made.positions[alpha])[0]
        say(
            f"run {run}: {times[-1]:.0f} ps, {count * frame_ps * 1e-3 * 86400 / (now - newest):.0f} ns/day, "
            f"CA-RMSD to the structure {rmsd:.2f} Å"
        )
        newest = now
    return path


def alphas(topology: Any) -> np.ndarray:
    """Indices of the C-alpha atoms of an OpenMM topology."""
    return np.array([atom.index for atom in topology.atoms() if atom.name == "CA"])


def main(
    output: Annotated[Path, typer.Option(help="folder of the trajectories")] = Path("runs/protein_cg"),
    runs: Annotated[int, typer.Option(help="independent runs, one after the other")] = 3,
    length: Annotated[float, typer.Option(help="ps of each run")] = 1000.0,
) -> None:
    """Simulate chignolin with all its atoms; a second call goes on where the first was stopped."""
    for run in range(1, runs + 1):
        simulate(output, run, length, say=lambda line: typer.echo(line))


if __name__ == "__main__":
    typer.run(main)
