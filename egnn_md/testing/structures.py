"""Structures that the validators make for themselves, out of the elements that a model knows."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from ase import Atoms
from ase.data import covalent_radii

from egnn_md.testing.result import LARGEST_FORCE

ANY_ELEMENT = (1, 6, 8)  # for models that accept every element
_ATTEMPTS = 2000


def spacing(elements: Sequence[int], cutoff: float) -> float:
    """Nearest distance that random atoms may have, Å: a stretched bond, but well inside the cutoff."""
    mean_radius = float(np.mean([covalent_radii[z] for z in elements]))
    return min(1.8 * mean_radius, 0.45 * cutoff)


def _numbers(elements: Sequence[int], count: int, rng: np.random.Generator) -> np.ndarray:
    """``count`` atomic numbers in which every element has its turn, shuffled."""
    return rng.permutation(np.resize(np.asarray(elements), count))


def _scatter(
    count: int, cell: np.ndarray, pbc: np.ndarray, nearest: float, rng: np.random.Generator
) -> np.ndarray:
    """Random points in ``cell`` with periodic distances of ``nearest`` if they can be had, else the best."""
    grid = np.stack(np.meshgrid(*[np.arange(-1, 2) if p else [0] for p in pbc], indexing="ij"), -1)
    images = grid.reshape(-1, 3) @ cell
    points: list[np.ndarray] = []
    for _ in range(count):
        best, best_distance = None, -1.0
        for _ in range(_ATTEMPTS // count):
            trial = rng.random(3) @ cell
            distance = np.inf
            if points:
                separation = np.asarray(points)[:, None] - trial + images
                distance = float(np.sqrt((separation**2).sum(-1)).min())
            if distance > best_distance:
                best, best_distance = trial, distance
            if distance >= nearest:
                break
        assert best is not None
        points.append(best)
    return np.asarray(points)


def random_structure(
    elements: Sequence[int],
    cutoff: float,
    *,
    count: int = 8,
    pbc: Sequence[bool] = (False, False, False),
    seed: int = 0,
) -> Atoms:
    """Random atoms at condensed-phase distances in a triclinic cell, or an open cluster.

    Args:
        elements: atomic numbers to draw from; empty means any.
        cutoff: Å; keeps the distances below it, so that there are edges.
        count: atoms.
        pbc: periodic directions. Without any, the cell is dropped.
        seed: of the random numbers.
    """
    rng = np.random.default_rng(seed)
    elements = list(elements) or list(ANY_ELEMENT)
    nearest = spacing(elements, cutoff)
    edge = (count * (1.8 * nearest) ** 3) ** (1 / 3)
    shape = np.array([[1.0, 0.0, 0.0], [0.25, 0.95, 0.0], [-0.2, 0.3, 1.1]])
    periodic = np.asarray(pbc, dtype=bool)
    cell = edge * shape
    points = _scatter(count, cell, periodic, nearest, rng)
    atoms = Atoms(numbers=_numbers(elements, count, rng), positions=points)
    if periodic.any():
        atoms.cell = cell
        atoms.pbc = periodic
    return atoms


def centred_structure(elements: Sequence[int], cutoff: float) -> Atoms:
    """A tetrahedral molecule, like CH4, whose first atom sits exactly at the mean of all positions."""
    elements = list(elements) or list(ANY_ELEMENT)
    radius = spacing(elements, cutoff)
    corners = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) * (radius / np.sqrt(3))
    return Atoms(numbers=[elements[-1], *[elements[0]] * 4], positions=[[0.0, 0.0, 0.0], *corners])


def relaxed_apart(atoms: Atoms, largest_force: Callable[[Atoms], float]) -> Atoms:
    """Blow a structure up until ``largest_force(atoms)`` is at most LARGEST_FORCE, or take the mildest seen.

    Random contacts can lie anywhere on a repulsive wall; a comparison there measures rounding.
    """
    best, smallest = atoms, np.inf
    for _ in range(40):
        force = largest_force(atoms)
        if force < smallest:  # False for NaN, which blowing up may cure
            best, smallest = atoms, force
        if smallest <= LARGEST_FORCE:
            break
        atoms = atoms.copy()
        if atoms.pbc.any():
            atoms.set_cell(atoms.cell.array * 1.08, scale_atoms=True)
        else:
            atoms.positions *= 1.08
    return best
