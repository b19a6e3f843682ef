"""What a committee costs on 64 waters, and what its spread costs on top: processor time of one thread.

The members are the shipped model with slightly changed weights: only time counts. EGNN_MD_SHORT=1 is a toy run.
"""

from __future__ import annotations

import copy
import os
import statistics
import time
from collections.abc import Callable
from importlib.resources import files

import ase.io
import torch
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

from egnn_md import load_model, make_committee
from egnn_md.models import Potential
from egnn_md.simulation.spread import SpreadEvaluator
from egnn_md_ase import FastEGNNCalculator

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
MEMBERS, STEPS = (2, 1) if SHORT else (4, 30)


def members() -> list[Potential]:
    """Copies of the water model that differ in the third digit."""
    water = load_model(os.environ.get("EGNN_MD_MODEL", "water"))
    found, generator = [copy.deepcopy(water) for _ in range(MEMBERS)], torch.Generator().manual_seed(0)
    for weight in (weight for member in found for weight in member.parameters()):
        weight.data *= 1 + 1e-3 * torch.randn(weight.shape, generator=generator)
    return found


def milliseconds(work: Callable[[], object], times: int) -> float:
    """Median processor time of ``work``, which is warmed up first: a busy machine disturbs it least."""
    spent = []
    for _ in range(times + 2):
        begun = time.process_time()
        work()
        spent.append(1000 * (time.process_time() - begun))
    return statistics.median(spent[2:])


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)  # the choice of this script: processor time of one thread is the same on a busy machine
    parts = members()
    committee = make_committee(parts)
    box = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
    assert isinstance(box, Atoms)

    def step(model: Potential, every: int) -> float:
        atoms = box.copy()
        atoms.calc = FastEGNNCalculator(model, uncertainty_interval=every)
        dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
        return milliseconds(lambda: dynamics.run(1), STEPS)

    one, mean, both = step(parts[0], 0), step(committee, 0), step(committee, 1)
    spread = SpreadEvaluator(committee, box.numbers, box.pbc)
    look = milliseconds(lambda: spread(box.positions, box.cell.array), STEPS)
    far = 20 * MEMBERS
    rows = [
        ("a step of one member", one, ""),
        ("a step of the mean, no spread", mean, f"{mean / one:.2f} of one member"),
        ("a step of the mean with its spread", both, f"{100 * (both / mean - 1):+.1f} % of the mean"),
        ("a look at the spread by itself", look, f"{look / mean:.2f} steps of the mean"),
        ("the mean, a look every 20 steps", mean + look / 20, f"{5 * look / mean:+.1f} % of the mean"),
        (f"one drives, a look every {far} steps", one + look / far, f"{100 * look / far / one:+.1f} % of one member"),
    ]
    print(f"{len(box)} atoms, {MEMBERS} members, medians of {STEPS}")
    for name, cost, text in rows:
        print(f"{name:40s} {cost:7.1f} ms  {text}")


if __name__ == "__main__":
    main()
