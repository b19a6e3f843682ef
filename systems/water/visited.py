"""Structures that a trained model itself visits: what its own dynamics needs to be right about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms, units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from egnn_md.errors import EgnnMdError

from .sampling import BoxRun, closest_contact, cluster, force_field_trajectory
from .structures import MINIMUM_CONTACT, SHAPES

TEMPERATURES = (300.0, 350.0, 400.0, 500.0, 600.0)
STEPS_BETWEEN = 150
BROKEN_FORCE = 60.0  # eV/Å; a step beyond it has left what any water does


def visited_structures(
    model: str | Path, runs: int = 40, frames: int = 5, clusters_per_run: int = 3, seed: int = 20264444
) -> Iterator[Atoms]:
    """Boxes (and droplets cut from them) on Langevin runs of ``model``, started from force-field boxes.

    A run that breaks (contact, force) ends there; the frame before is still given, because just that frame
    is where the model is wrong.

    Args:
        model: name or path of a potential.
        runs: independent boxes of 27 to 32 waters, 300 to 600 K, 0.9 to 1.1 g/cm³.
        frames: snapshots a run, ``STEPS_BETWEEN`` steps of 0.5 fs apart.
        clusters_per_run: open droplets cut from the last box.
        seed: of everything.
    """
    from egnn_md_ase import FastEGNNCalculator

    rng = np.random.default_rng(seed)
    for number in range(runs):
        run = BoxRun(
            molecules=int(rng.integers(27, 33)),
            temperature=TEMPERATURES[number % len(TEMPERATURES)],
            density=float(rng.uniform(0.9, 1.1)),
            shape=SHAPES[int(rng.integers(len(SHAPES)))],
            seed=seed + 100 * number,
        )
        atoms = next(force_field_trajectory(run, 1, stride_ps=0.5, equilibration_ps=1.5))
        atoms.calc = FastEGNNCalculator(model)
        MaxwellBoltzmannDistribution(atoms, temperature_K=run.temperature, rng=rng)
        dynamics = Langevin(
            atoms, 0.5 * units.fs, temperature_K=run.temperature, friction=0.02 / units.fs, rng=rng
        )
        last = None
        for _ in range(frames):
            try:
                dynamics.run(STEPS_BETWEEN)
                broken = np.abs(atoms.get_forces()).max() > BROKEN_FORCE
            except EgnnMdError:
                broken = True
            if broken or closest_contact(atoms) < MINIMUM_CONTACT:
                break
            last = _bare(atoms, run, "visited")
            yield last
        if last is not None:
            for _ in range(clusters_per_run):
                drop = cluster(last, int(rng.integers(6, 25)), rng)
                if closest_contact(drop) >= MINIMUM_CONTACT:
                    yield _bare(drop, run, "visited-cluster")


def _bare(atoms: Atoms, run: BoxRun, kind: str) -> Atoms:
    out = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    out.info.update(kind=kind, temperature=run.temperature, density=run.density, seed=run.seed)
    return out
