"""Pair distribution functions by mdtraj."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np

from egnn_md.report.load import LoadedRun

BIN = 0.04  # Å
LARGEST = 10.0  # Å
MAX_ELEMENTS = 3
MAX_DISTANCES = 60_000_000  # over all pairs and frames
CHUNK = 5_000_000


@dataclass(frozen=True)
class PairFunction:
    """g(r) of a pair of elements, or, in an open system, the distribution of distances (1/Å).

    Attributes:
        name: ``O-H``.
        r: (B,) bin centres, Å.
        g: (B,) values.
        bonded: Å up to which the peak of atoms of one molecule reaches; 0 if there is none.
        frames: how many frames went in.
        normalised: True for g(r).
    """

    name: str
    r: np.ndarray
    g: np.ndarray
    bonded: float
    frames: int
    normalised: bool

    @property
    def peak(self) -> tuple[float, float] | None:
        """(r, g) of the highest value beyond the atoms of one molecule; None where nothing is."""
        outside = self.r > self.bonded
        if not outside.any() or self.g[outside].max() <= 0:
            return None
        best = int(np.argmax(np.where(outside, self.g, -1)))
        return float(self.r[best]), float(self.g[best])


def largest_distance(cells: np.ndarray | None) -> float:
    """Å up to which nearest images tell the whole story: half the smallest height of any cell, at most 10."""
    if cells is None:
        return LARGEST
    a, b, c = cells[:, 0], cells[:, 1], cells[:, 2]
    volume = np.abs(np.einsum("fi,fi->f", a, np.cross(b, c)))
    heights = [volume / np.linalg.norm(np.cross(u, v), axis=1) for u, v in ((b, c), (c, a), (a, b))]
    return float(min(LARGEST, 0.5 * np.min(heights)))


def pair_functions(run: LoadedRun) -> list[PairFunction]:
    """Distributions for every pair of the three commonest elements, from the settled part of the run."""
    keep = run.frames.times >= run.settled
    positions = run.frames.positions[keep]
    cells = None if run.frames.cells is None else run.frames.cells[keep]
    return pair_functions_of(positions, cells, run.structure.numbers, run.structure.molecules.labels)


def pair_functions_of(
    positions: np.ndarray, cells: np.ndarray | None, numbers: np.ndarray, labels: np.ndarray
) -> list[PairFunction]:
    """Distributions for every pair of the three commonest elements.

    Args:
        positions: (F, N, 3), Å.
        cells: (F, 3, 3) rows, Å, or None in an open system.
        numbers: (N,) atomic numbers.
        labels: (N,) molecule of each atom.
    """
    import mdtraj
    from ase.data import chemical_symbols

    if len(positions) == 0 or len(numbers) < 2:
        return []
    symbols = np.array([chemical_symbols[z] for z in numbers])
    common = [s for s, _ in Counter(symbols.tolist()).most_common(MAX_ELEMENTS)]
    order = sorted(common, key=lambda s: (s == "H", s))
    selections = {
        f"{a}-{b}": _pairs(np.flatnonzero(symbols == a), np.flatnonzero(symbols == b))
        for a, b in combinations_with_replacement(order, 2)
    }
    selections = {name: pairs for name, pairs in selections.items() if len(pairs)}
    count = sum(len(pairs) for pairs in selections.values())
    frames = np.unique(np.linspace(0, len(positions) - 1, max(MAX_DISTANCES // count, 1)).astype(int))
    positions, cells = positions[frames], None if cells is None else cells[frames]
    largest = largest_distance(cells)
    edges = np.arange(0, largest + 1e-9, BIN)
    if len(edges) < 10:
        return []
    # distances need no topology
    trajectory = mdtraj.Trajectory((positions / 10).astype(np.float32), None)
    if cells is not None:
        trajectory.unitcell_vectors = (cells / 10).astype(np.float32)
    found = []
    for name, pairs in selections.items():
        same = pairs[labels[pairs[:, 0]] == labels[pairs[:, 1]]]
        bonded = _reach(trajectory, same) if 0 < len(same) < len(pairs) else 0.0
        found.append(_function(trajectory, name, pairs, edges, bonded))
    return found


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    if np.array_equal(first, second):
        i, j = np.triu_indices(len(first), 1)
        return np.stack([first[i], first[j]], axis=1)
    return np.stack([np.repeat(first, len(second)), np.tile(second, len(first))], axis=1)


def _reach(trajectory: object, pairs: np.ndarray) -> float:
    """Å that atoms of one molecule reach apart, with a little room; looked at in a few frames."""
    import mdtraj

    assert isinstance(trajectory, mdtraj.Trajectory)
    few = trajectory[:: max(len(trajectory) // 20, 1)]
    return 1.05 * 10 * float(mdtraj.compute_distances(few, pairs[:20000]).max())


def _function(trajectory: object, name: str, pairs: np.ndarray, edges: np.ndarray, bonded: float) -> PairFunction:
    import mdtraj

    assert isinstance(trajectory, mdtraj.Trajectory)
    periodic = trajectory.unitcell_vectors is not None
    per_chunk = max(CHUNK // len(pairs), 1)
    total, weight = np.zeros(len(edges) - 1), 0.0
    for start in range(0, len(trajectory), per_chunk):
        part = trajectory[start : start + per_chunk]
        if periodic:
            _, g = mdtraj.compute_rdf(part, pairs, r_range=(0.0, edges[-1] / 10), n_bins=len(edges) - 1, periodic=True)
            share = float(np.sum(1.0 / part.unitcell_volumes))
        else:
            distances = mdtraj.compute_distances(part, pairs, periodic=False) * 10
            g = np.histogram(distances, edges)[0] / (distances.size * BIN)
            share = float(len(part))
        total += share * g
        weight += share
    return PairFunction(
        name=name,
        r=0.5 * (edges[1:] + edges[:-1]),
        g=total / weight,
        bonded=bonded,
        frames=len(trajectory),
        normalised=periodic,
    )
