"""The training and test structures, each set made by one seeded command."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms

from .molecule import C7AX, C7EQ, PHI, PSI, dihedral
from .sampling import Run, force_field_trajectory

OTHER_FIELDS = ("amber99sbildn.xml", "amber96.xml", "amber03.xml", "amber10.xml")
CENTRES = tuple(float(angle) for angle in range(-165, 180, 30))
TEMPERATURES = (300.0, 500.0, 700.0)
#: Where plain runs start: the two C7 minima, C5, alpha-R, alpha-L and beta2.
STARTS = (C7EQ, C7AX, (-150.0, 155.0), (-70.0, -40.0), (55.0, 45.0), (-135.0, 25.0))
TEST_SEED = 910_000


def tag(atoms: Atoms, kind: str, run: Run) -> Atoms:
    """Centre the molecule and note in ``info`` where it came from."""
    atoms.positions -= atoms.positions.mean(0)
    phi, psi = dihedral(atoms.positions, PHI), dihedral(atoms.positions, PSI)
    atoms.info.update(kind=kind, temperature=run.temperature, seed=run.seed)
    atoms.info.update(phi=round(float(phi), 1), psi=round(float(psi), 1))
    return atoms


def plain_structures(seed: int = 100_000) -> Iterator[Atoms]:
    """Unbiased dynamics: ff14SB at 300, 500 and 700 K, ff14SB with perturbed bonds, other Amber force fields."""
    number = 0
    for temperature, runs, frames in ((300.0, 60, 15), (500.0, 60, 15), (700.0, 30, 12)):
        for index in range(runs):
            number += 1
            run = Run(temperature, STARTS[index % len(STARTS)], seed=seed + 10 * number)
            for atoms in force_field_trajectory(run, frames):
                yield tag(atoms, "plain", run)
    for temperature in (300.0, 500.0):
        for index in range(36):
            number += 1
            run = Run(temperature, STARTS[index % len(STARTS)], perturb=True, seed=seed + 10 * number)
            for atoms in force_field_trajectory(run, 10):
                yield tag(atoms, "perturbed", run)
        for index in range(24):
            number += 1
            field = OTHER_FIELDS[index % len(OTHER_FIELDS)]
            run = Run(temperature, STARTS[index % len(STARTS)], force_field=field, seed=seed + 10 * number)
            for atoms in force_field_trajectory(run, 10):
                yield tag(atoms, "other-field", run)


def grid_structures(frames: int = 5, seed: int = 200_000) -> Iterator[Atoms]:
    """Perturbed ff14SB held near each of 12 x 12 points of the plane, at three temperatures.

    Every fourth snapshot is rattled: normal displacements of 0.02 to 0.06 Å on every atom.
    """
    number = 0
    for temperature in TEMPERATURES:
        for phi in CENTRES:
            for psi in CENTRES:
                number += 1
                run = Run(temperature, (phi, psi), {"phi": phi, "psi": psi}, perturb=True, seed=seed + 10 * number)
                rng = np.random.default_rng(run.seed + 1)
                for index, atoms in enumerate(force_field_trajectory(run, frames, 1.0, 2.0)):
                    kind = "grid"
                    if index % 4 == 3:
                        kind = "grid-rattled"
                        atoms.positions += rng.normal(scale=rng.uniform(0.02, 0.06), size=(len(atoms), 3))
                    yield tag(atoms, kind, run)


def stiff_structures(frames: int = 3, seed: int = 600_000) -> Iterator[Atoms]:
    """The same points held so stiffly that the barriers and clashes of the plane cannot push the molecule away."""
    rng = np.random.default_rng(seed)
    points = [(phi, psi) for phi in CENTRES for psi in CENTRES]
    for number, index in enumerate(rng.permutation(len(points))):
        phi, psi = points[index] + rng.uniform(-10.0, 10.0, 2)
        bias = {"phi": float(phi), "psi": float(psi)}
        run = Run((300.0, 500.0)[number % 2], (phi, psi), bias, strength=300.0, perturb=True, seed=seed + 10 * number)
        for atoms in force_field_trajectory(run, frames, 0.2, 0.4):
            yield tag(atoms, "stiff", run)


def omega_structures(frames: int = 5, seed: int = 300_000) -> Iterator[Atoms]:
    """One of the peptide bonds turned to each of 12 points, from trans over the barrier to cis."""
    number = 0
    for name in ("omega1", "omega2"):
        for centre in CENTRES:
            for start in (C7EQ, C7AX):
                number += 1
                run = Run(500.0, start, {name: centre}, strength=150.0, perturb=True, seed=seed + 10 * number)
                for atoms in force_field_trajectory(run, frames, 1.0, 2.0):
                    yield tag(atoms, name, run)


def test_structures(runs: int = 10, frames: int = 20, seed: int = TEST_SEED) -> Iterator[Atoms]:
    """Held out: plain ff14SB, 200 structures at 300 K and 200 at 500 K, from runs of their own."""
    for temperature in (300.0, 500.0):
        for index in range(runs):
            run = Run(temperature, STARTS[index % len(STARTS)], seed=seed + 10 * index + int(temperature))
            for atoms in force_field_trajectory(run, frames, 3.0, 10.0):
                yield tag(atoms, "test", run)
