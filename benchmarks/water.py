"""Boxes of water at the density of the shipped one, for potentials."""

from __future__ import annotations

import re
from importlib.resources import files
from typing import Any

import numpy as np
import torch

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.neighbors import neighbor_list

SIZES = ("water-192", "water-648", "water-1536", "water-5184", "water-12288", "water-41472", "water-98304")
UNIT_ATOMS = 192
LARGEST_LATTICE = 10  # molecules along an edge; larger boxes are tiled
TRIALS = 60


def water_atoms_count(name: str) -> int:
    """Atoms of ``water-N``: N = 192 m for tiled boxes, 3 k³ (k ≤ 10) for a lattice of molecules.

    Raises:
        InputError: another name or number.
    """
    found = re.fullmatch("(?:water-)?([1-9][0-9]*)", name)
    count = int(found[1]) if found else 0
    if count and (count % UNIT_ATOMS == 0 or _lattice_edge(count)):
        return count
    raise InputError(
        f"unknown size {name!r}; known: {', '.join(SIZES)}, and water-N with N = {UNIT_ATOMS} m (copies of the shipped "
        f"box) or N = 3 k³, k up to {LARGEST_LATTICE} (a lattice of molecules)"
    )


def _lattice_edge(count: int) -> int:
    """k of 3 k³ atoms, 0 if there is none."""
    edge = round((count / 3) ** (1 / 3))
    return edge if 3 * edge**3 == count and edge <= LARGEST_LATTICE else 0


def water_box(count: int, seed: int = 0) -> Any:
    """ASE ``Atoms`` of ``count`` atoms, periodic; velocities zero.

    Multiples of 192 are copies of the shipped box of 64 molecules side by side, others k³ molecules on a cubic lattice
    at the same density, each turned at random (``seed``) so that it keeps clear of those that are there.

    Raises:
        InputError: a number that neither gives.
    """
    import ase.io

    water_atoms_count(str(count))
    unit: Any = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
    if count % UNIT_ATOMS == 0:
        return unit.repeat(_tiles(count // UNIT_ATOMS))
    return _lattice(_lattice_edge(count), unit.cell.lengths()[0] / 4.0, seed)


def _tiles(number: int) -> tuple[int, int, int]:
    """Three factors of ``number``, as near to each other as can be."""
    best = (1, 1, number)
    for a in range(1, round(number ** (1 / 3)) + 1):
        if number % a == 0:
            for b in range(a, int((number // a) ** 0.5) + 1):
                if (number // a) % b == 0:
                    best = max(best, (a, b, number // a // b), key=lambda t: (t[0], t[1]))
    return best


def _lattice(edge: int, spacing: float, seed: int) -> Any:
    from ase import Atoms

    rng = np.random.default_rng(seed)
    half = np.deg2rad(104.5) / 2
    # oxygen at the origin, hydrogens in a plane
    shape = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]]) * 0.96
    side = edge * spacing
    corners = np.stack(np.meshgrid(*[np.arange(edge)] * 3, indexing="ij"), -1).reshape(-1, 3) * spacing
    placed = np.zeros((0, 3))
    for corner in corners:
        near = placed
        if len(placed):
            away = placed - corner
            away -= side * np.round(away / side)
            near = (away + corner)[np.linalg.norm(away, axis=1) < 2 * spacing]
        best, best_distance = shape + corner, -1.0
        for _ in range(TRIALS):
            turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
            trial = shape @ turn + corner
            distance = np.linalg.norm(trial[:, None] - near, axis=2).min() if len(near) else np.inf
            if distance > best_distance:
                best, best_distance = trial, distance
        placed = np.concatenate([placed, best])
    return Atoms("OHH" * edge**3, positions=placed, cell=[side] * 3, pbc=True)


def shuffled(atoms: Any, seed: int) -> Any:
    """A copy whose atoms moved by 0.01 Å, so that nothing of the last call can be used again."""
    moved = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(scale=0.01, size=moved.positions.shape)
    return moved


def water_graph(count: int, cutoff: float, dtype: torch.dtype, seed: int = 0) -> ParticleGraph:
    """The graph of :func:`water_box`, with labels ``energy`` and ``forces`` (zeros) for a training step.

    Args:
        count: atoms.
        cutoff: Å.
        dtype: of positions.
        seed: of a lattice's orientations.
    """
    atoms = water_box(count, seed)
    positions = torch.from_numpy(atoms.positions)
    cell, pbc = torch.from_numpy(atoms.cell.array.copy()), torch.from_numpy(atoms.pbc.copy())
    edge_index, cell_shifts = neighbor_list(positions, cell, pbc, cutoff)
    species = torch.from_numpy(atoms.numbers.astype(np.int64))
    graph = ParticleGraph(
        positions=positions,
        species=species,
        edge_index=edge_index,
        cell_shifts=cell_shifts,
        cell=cell[None],
        pbc=pbc[None],
        batch=torch.zeros_like(species),
        labels={"energy": torch.zeros(1, dtype=torch.float64), "forces": torch.zeros_like(positions)},
    )
    return graph.to(dtype=dtype)
