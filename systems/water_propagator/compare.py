"""Propagators of water beside the potential that they learned from, on one page.

``python -m egnn_md_systems.water_propagator.compare DATA --output DIR`` takes the test part of a data set made by
``generate`` as the potential's own dynamics, rolls every propagator out from frames of it, and writes
``compare.html``, ``compare.png``, ``compare.json`` and the table ``compare.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.data.trajectories import TrajectorySet, open_trajectories
from egnn_md.errors import InputError
from egnn_md.rollout.guards import RolloutError
from egnn_md.rollout.state import State
from egnn_md.simulation.mechanics import remove_drift

from .measure import Measures, Run, bonds_of, cut_where_broken, measure

FS_PER_NS = 1e6
SECONDS_PER_DAY = 86400.0
SPEED_ROUNDS = 5  # the ways take turns; the median of the rounds counts
SPEED_SECONDS = 3.0  # a round
POTENTIAL = "potential"


def reference_runs(data: TrajectorySet, stride: int = 2) -> list[Run]:
    """The potential's own dynamics: every ``stride``-th frame of every trajectory."""
    runs = []
    for trajectory in data:
        if trajectory.velocities is None or trajectory.cell is None:
            raise InputError(f"trajectory {trajectory.name!r} needs velocities and a cell to be compared")
        cell = np.asarray(trajectory.cell)
        positions = np.asarray(trajectory.positions[:], dtype=np.float64)[::stride]
        runs.append(
            Run(
                positions=positions,
                velocities=np.asarray(trajectory.velocities[:], dtype=np.float64)[::stride],
                interval=stride * data.metadata.frame_interval,
                species=trajectory.species,
                cell=cell,
                bonds=bonds_of(positions[0], trajectory.species, cell),
            )
        )
    return runs


def start_frames(data: TrajectorySet, starts: int) -> list[tuple[int, int]]:
    """(trajectory, frame) of starts that are as far apart as the data allow."""
    each = -(-starts // len(data))
    found = [(i, round(k * (len(t) - 1) / each)) for k in range(each) for i, t in enumerate(data)]
    return found[:starts]


def rollouts(
    model: Any,
    data: TrajectorySet,
    starts: Sequence[tuple[int, int]],
    duration: float,
    *,
    remove_momentum: bool = False,
) -> list[Run]:
    """Roll out all starts together for ``duration`` fs; each is cut where it broke.

    With ``remove_momentum`` the centre of mass is put back after every stride, and its velocity taken out: the
    forces of a closed system cannot move it, which the network does not know.
    """
    from egnn_md.rollout import Stepper, state_at

    states = [state_at(data, model.config, trajectory=i, frame=f) for i, f in starts]
    stepper = Stepper(model, states)
    frames = [[state] for state in stepper.states]
    for _ in range(round(duration / model.config.stride)):
        active = stepper.active
        if not active:
            break
        try:
            stepper.step()
        except RolloutError:  # of a single start, whose failure is recorded
            break
        for index in active:
            if stepper.failures[index] is None:
                if remove_momentum:
                    stepper.adopt(index, **_at_rest(frames[index][-1], stepper.states[index]))
                frames[index].append(stepper.states[index])
    runs = []
    for state, kept, failure in zip(states, frames, stepper.failures, strict=True):
        cell = np.asarray(state.cell)
        run = Run(
            positions=np.stack([frame.positions for frame in kept]),
            velocities=np.stack([frame.velocities for frame in kept]),
            interval=model.config.stride,
            species=state.species,
            cell=cell,
            bonds=bonds_of(state.positions, state.species, cell),
        )
        cut = cut_where_broken(run)
        if cut.failure is None and failure is not None:
            cut = replace(cut, failure=str(failure))
        runs.append(cut)
    return runs


def _at_rest(before: State, after: State) -> dict[str, Any]:
    """Positions and velocities of ``after`` with the centre of mass where it was, and at rest."""
    from ase.data import atomic_masses

    masses = np.asarray(atomic_masses[after.species])
    moved = masses @ (after.positions - before.positions) / masses.sum()
    return {"positions": after.positions - moved, "velocities": remove_drift(masses, after.velocities)}


def speeds(potential: str, models: dict[str, Any], data: TrajectorySet) -> dict[str, float]:
    """ns/day of every way on one torch thread, side by side: they take turns, and the median round counts.

    The potential runs as OpenMM on the CPU platform with a step of 0.5 fs, both as ``PythonForce`` and as
    ``TorchForce``; the faster one counts.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        ways = {name: _propagator_way(model, data) for name, model in models.items()}
        for implementation in ("python", "torch"):
            ways[f"{POTENTIAL} {implementation}"] = _potential_way(potential, implementation, data)
        rounds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(SPEED_ROUNDS):
            for name, (advance, femtoseconds) in ways.items():
                rounds[name].append(_rate(advance, femtoseconds))
    finally:
        torch.set_num_threads(before)
    found = {name: statistics.median(values) for name, values in rounds.items()}
    found[POTENTIAL] = max(found.pop(f"{POTENTIAL} python"), found.pop(f"{POTENTIAL} torch"))
    return found


def _rate(advance: Callable[[], None], femtoseconds: float) -> float:
    advance()
    count, start = 0, time.perf_counter()
    while time.perf_counter() - start < SPEED_SECONDS:
        advance()
        count += 1
    return count * femtoseconds / (time.perf_counter() - start) * SECONDS_PER_DAY / FS_PER_NS


def _propagator_way(model: Any, data: TrajectorySet) -> tuple[Callable[[], None], float]:
    from egnn_md.rollout import Stepper, state_at

    start = state_at(data, model.config)
    stepper = Stepper(model, start)

    def advance() -> None:
        if stepper.states[0].step >= 20:  # always near real water: a broken box has other neighbours
            stepper.adopt(positions=start.positions, velocities=start.velocities, step=0)
        stepper.step()

    return advance, float(model.config.stride)


def _potential_way(potential: str, implementation: str, data: TrajectorySet) -> tuple[Callable[[], None], float]:
    from ase import Atoms

    from .generate import TIMESTEP, Dynamics

    first = data[0]
    atoms = Atoms(first.species, np.asarray(first.positions[0], dtype=np.float64), cell=first.cell, pbc=True)
    dynamics = Dynamics(atoms, potential, 300.0, 1, implementation=implementation)
    dynamics.equilibrate(0, lambda _: None)
    return lambda: dynamics.advance(1), TIMESTEP


def compare(
    directory: Path,
    output: Path,
    *,
    models: Sequence[str],
    potential: str = "water",
    starts: int = 6,
    duration: float = 1500.0,
    timing: bool = True,
    remove_momentum: bool = False,
    command: str = "",
) -> list[Measures]:
    """Measure everything and write the page.

    Args:
        directory: data set of ``generate``.
        output: directory.
        models: names or files of propagators.
        potential: name or file of the potential that they learned from.
        starts: of each propagator.
        duration: fs of every rollout.
        timing: measure speeds.
        remove_momentum: hold the centre of mass of every rollout still.
        command: for the page.

    Raises:
        InputError: a model that is no propagator, of other units, or a data set without test part.
    """
    from rich.console import Console

    from egnn_md.checkpoint import load_model
    from egnn_md.models.propagator import FastEGNNPropagator

    from .page import write_page

    console = Console(stderr=True)
    data = open_trajectories(directory, "test")
    loaded: dict[str, Any] = {}
    for name in models:
        model = load_model(name)
        if not isinstance(model, FastEGNNPropagator):
            raise InputError(f"{name} is a {type(model).__name__}, not a propagator")
        loaded[Path(name).stem] = model
    teacher = load_model(potential)
    console.print("the potential's own dynamics")
    found = [measure(POTENTIAL, reference_runs(data), teacher)]
    frames = start_frames(data, starts)
    for name, model in loaded.items():
        console.print(f"{name}: {len(frames)} rollouts of {duration:g} fs")
        found.append(measure(name, rollouts(model, data, frames, duration, remove_momentum=remove_momentum), teacher))
    ns_per_day: dict[str, float] = {}
    if timing:
        console.print("speeds")
        ns_per_day = speeds(potential, loaded, data)
    output.mkdir(parents=True, exist_ok=True)
    text = write_page(output, found, ns_per_day, duration=duration, command=command)
    console.print(text, highlight=False, markup=False, soft_wrap=True)
    return found


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="directory of the data set")
    parser.add_argument("--output", type=Path, default=Path("runs/water_propagator"))
    parser.add_argument("--models", nargs="+", default=["water-2fs", "water-4fs", "water-8fs"])
    parser.add_argument("--potential", default="water")
    parser.add_argument("--starts", type=int, default=6, help="rollouts of each propagator")
    parser.add_argument("--duration", type=float, default=1500.0, help="fs of a rollout")
    parser.add_argument("--remove-momentum", action="store_true", help="hold the centre of mass of rollouts still")
    parser.add_argument("--no-timing", action="store_true", help="leave the speeds out")
    options = parser.parse_args()
    command = (
        f"python -m egnn_md_systems.water_propagator.compare DATA --starts {options.starts} "
        f"--duration {options.duration:g}" + (" --remove-momentum" if options.remove_momentum else "")
    )
    compare(
        options.data,
        options.output,
        models=options.models,
        potential=options.potential,
        starts=options.starts,
        duration=options.duration,
        timing=not options.no_timing,
        remove_momentum=options.remove_momentum,
        command=command,
    )


if __name__ == "__main__":
    main()
