"""Structures that a trained model itself visits: what its own dynamics needs to be right about."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from ase import Atoms

from egnn_md import load_model

from .molecule import SYMBOLS, has_right_bonds, is_left_handed_amino_acid
from .sampling import Run, force_field_trajectory
from .structures import CENTRES, tag
from .swarm import Swarm, model_evaluator

BIAS = 0.25  # eV
TIMESTEP = 2.0  # fs, with hydrogens of 4 u
STEPS_BEFORE = 100
STEPS_BETWEEN = 25
FRAMES = 6
TEMPERATURES = (300.0, 500.0)


def visited_structures(model: str | Path, copies: int = 24, rounds: int = 6, seed: int = 500_000) -> Iterator[Atoms]:
    """Langevin runs of ``model``, each held near a point of the plane; ``FRAMES`` snapshots of each.

    A round runs ``copies`` molecules, every other one at 500 K. A copy whose bonds have broken is not given.

    Args:
        model: name or path of a potential.
        copies: molecules a round; 24 and 6 rounds hold one on every point of the 12 x 12 grid.
        rounds: number of rounds.
        seed: of everything.
    """
    evaluator = model_evaluator(load_model(model))
    grid = [(phi, psi) for phi in CENTRES for psi in CENTRES]
    np.random.default_rng(seed).shuffle(grid)
    for number in range(rounds):
        points = [grid[(number * copies + index) % len(grid)] for index in range(copies)]
        runs = [
            Run(
                TEMPERATURES[(number + index) % len(TEMPERATURES)],
                point,
                {"phi": point[0], "psi": point[1]},
                seed=seed + 1000 * number + 2 * index,
            )
            for index, point in enumerate(points)
        ]
        starts = [next(force_field_trajectory(run, 1, 0.1, 0.15)).positions for run in runs]
        temperatures = np.array([run.temperature for run in runs])
        swarm = Swarm(
            evaluator, np.array(starts), temperatures, np.array(points), BIAS, TIMESTEP, heavy_hydrogens=True,
            seed=seed + number,
        )  # fmt: skip
        swarm.run(STEPS_BEFORE)
        for _ in range(FRAMES):
            swarm.run(STEPS_BETWEEN)
            for run, positions in zip(runs, swarm.positions, strict=True):
                if has_right_bonds(positions) and is_left_handed_amino_acid(positions):
                    yield tag(Atoms("".join(SYMBOLS), positions), "visited", run)
