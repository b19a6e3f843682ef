"""The training and test structures of the water model, each set made by one seeded command."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from ase import Atoms

from .sampling import BoxRun, closest_contact, cluster, force_field_trajectory, rattled, strained

TEMPERATURES = (280.0, 300.0, 320.0, 350.0, 400.0, 450.0, 500.0, 600.0)
SHAPES = ("cubic", "cubic", "orthorhombic", "triclinic")
MINIMUM_CONTACT = 0.6  # Å; below it the reference method's SCF is not to be trusted


def _tag(atoms: Atoms, kind: str, run: BoxRun) -> Atoms:
    atoms.info.update(kind=kind, temperature=run.temperature, density=run.density, seed=run.seed)
    return atoms


def training_boxes(runs: int = 150, frames: int = 7, seed: int = 20261121) -> Iterator[Atoms]:
    """Boxes of 27 to 32 waters, 280 to 600 K, 0.9 to 1.1 g/cm³; every third rattled, every fourth strained."""
    rng = np.random.default_rng(seed)
    for number in range(runs):
        run = BoxRun(
            molecules=int(rng.integers(27, 33)),
            temperature=TEMPERATURES[number % len(TEMPERATURES)],
            density=float(rng.uniform(0.9, 1.1)),
            shape=SHAPES[int(rng.integers(len(SHAPES)))],
            seed=seed + 100 * number,
        )
        for index, atoms in enumerate(force_field_trajectory(run, frames)):
            kind = "box"
            if index % 3 == 1:
                atoms, kind = rattled(atoms, float(rng.uniform(0.01, 0.05)), rng), "rattled"
            elif index % 4 == 3:
                atoms, kind = strained(atoms, 0.025, rng), "strained"
            if closest_contact(atoms) >= MINIMUM_CONTACT:
                yield _tag(atoms, kind, run)


def training_clusters(
    runs: int = 24, frames: int = 16, per_frame: int = 4, seed: int = 20263333
) -> Iterator[Atoms]:
    """Open droplets of 1 to 40 waters cut from boxes, every second one rattled.

    Two of three are large (20 to 40 waters): their inner molecules see a full neighbour shell, and an open
    droplet costs the reference method far less than a periodic box of its size.
    """
    rng = np.random.default_rng(seed)
    for number in range(runs):
        run = BoxRun(
            molecules=80,
            temperature=TEMPERATURES[number % len(TEMPERATURES)],
            density=float(rng.uniform(0.9, 1.1)),
            seed=seed + 100 * number,
        )
        trajectory = force_field_trajectory(run, frames, stride_ps=0.5, equilibration_ps=2.0)
        for index, atoms in enumerate(frame for frame in trajectory for _ in range(per_frame)):
            if index % 3:
                size = int(rng.integers(20, 41))
            else:
                size = int(np.exp(rng.uniform(0, np.log(20.99))))
            drop = cluster(atoms, size, rng)
            if index % 2:
                drop = rattled(drop, float(rng.uniform(0.01, 0.06)), rng)
            if closest_contact(drop) >= MINIMUM_CONTACT:
                yield _tag(drop, "cluster", run)


def test_boxes(frames: int = 8, molecules: int = 60, seed: int = 77) -> Iterator[Atoms]:
    """Held-out boxes of 60 waters at 300 and 400 K from unperturbed flexible TIP3P-FB, 1 g/cm³."""
    for number, temperature in enumerate((300.0, 400.0)):
        run = BoxRun(molecules, temperature, 0.997, perturb_force_field=False, seed=seed + 100 * number)
        for atoms in force_field_trajectory(run, frames, stride_ps=3.0, equilibration_ps=10.0):
            yield _tag(atoms, "test", run)
