"""Which atoms form a molecule, and how to show it whole across the faces of a cell."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

BOND_TOLERANCE = 1.25  # bond if closer than this times the sum of covalent radii


def minimum_image(vectors: np.ndarray, cell: np.ndarray | None) -> np.ndarray:
    """Vectors (..., 3) moved by whole lattice vectors to fractional components in [-½, ½).

    ``cell`` is (3, 3), or (..., 1, 3, 3)-broadcastable stacks of rows; None leaves the vectors as they are.
    Right for vectors shorter than half the smallest height of a reduced cell, as bonds are.
    """
    if cell is None:
        return vectors
    fractional = np.einsum("...i,...ij->...j", vectors, np.linalg.inv(cell))
    return vectors - np.einsum("...i,...ij->...j", np.round(fractional), cell)


def infer_bonds(numbers: np.ndarray, positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> np.ndarray:
    """Bonds (M, 2), first index smaller, from distances and covalent radii (Cordero et al., 2008)."""
    from ase.data import covalent_radii
    from ase.neighborlist import primitive_neighbor_list

    if len(numbers) < 2:
        return np.zeros((0, 2), dtype=np.int64)
    radii = covalent_radii[numbers] * BOND_TOLERANCE
    if not np.any(pbc):
        cell = np.eye(3)
    first, second = primitive_neighbor_list("ij", pbc, cell, positions, radii, numbers=numbers, self_interaction=False)
    pairs = np.stack([first, second], axis=1)
    return np.unique(pairs[pairs[:, 0] < pairs[:, 1]], axis=0).astype(np.int64)


@dataclass(frozen=True)
class Molecules:
    """Connected atoms, and for each the bond that leads to it from its molecule's first atom.

    Attributes:
        labels: (N,) int64, molecule of each atom, numbered in the order of first atoms.
        levels: pairs (parents, children) of index arrays, nearest the root first. Placing every child at
            its parent plus the nearest-image bond makes molecules whole.
        endless: (number of molecules,) bool; True for a network that meets its own periodic image.
    """

    labels: np.ndarray
    levels: tuple[tuple[np.ndarray, np.ndarray], ...]
    endless: np.ndarray

    @property
    def count(self) -> int:
        """How many molecules there are."""
        return len(self.endless)

    @classmethod
    def from_bonds(cls, bonds: np.ndarray, positions: np.ndarray, cell: np.ndarray | None) -> Molecules:
        """Walk the bonds (M, 2) breadth first. ``positions`` (N, 3) tell which networks are endless."""
        n = len(positions)
        neighbours: list[list[int]] = [[] for _ in range(n)]
        for i, j in bonds.tolist():
            neighbours[i].append(j)
            neighbours[j].append(i)
        labels = np.full(n, -1, dtype=np.int64)
        levels: list[tuple[list[int], list[int]]] = []
        count = 0
        for root in range(n):
            if labels[root] >= 0:
                continue
            labels[root] = count
            queue = deque([(root, 0)])
            while queue:
                atom, depth = queue.popleft()
                for other in neighbours[atom]:
                    if labels[other] < 0:
                        labels[other] = count
                        if depth == len(levels):
                            levels.append(([], []))
                        levels[depth][0].append(atom)
                        levels[depth][1].append(other)
                        queue.append((other, depth + 1))
            count += 1
        found = cls(
            labels,
            tuple((np.array(a, dtype=np.int64), np.array(b, dtype=np.int64)) for a, b in levels),
            np.zeros(count, dtype=bool),
        )
        if cell is not None and len(bonds):
            whole = found.whole(positions[None], cell[None])[0]
            bond = whole[bonds[:, 1]] - whole[bonds[:, 0]]
            broken = np.abs(bond - minimum_image(bond, cell)).max(axis=1) > 1e-3
            found.endless[labels[bonds[broken, 0]]] = True
        return found

    def whole(self, positions: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
        """Copy of positions (F, N, 3) with molecules unbroken; cells (F, 3, 3) or None."""
        positions = positions.copy()
        if cells is None:
            return positions
        for parents, children in self.levels:
            bond = minimum_image(positions[:, children] - positions[:, parents], cells[:, None])
            positions[:, children] = positions[:, parents] + bond
        return positions

    def wrapped(self, positions: np.ndarray, cells: np.ndarray | None) -> np.ndarray:
        """Copy of positions (F, N, 3) with molecules whole and their centres inside the cell."""
        positions = self.whole(positions, cells)
        if cells is None or not len(self.labels):
            return positions
        counts = np.bincount(self.labels, minlength=self.count)
        centres = np.zeros((len(positions), self.count, 3))
        for axis in range(3):
            for frame in range(len(positions)):
                centres[frame, :, axis] = np.bincount(self.labels, positions[frame, :, axis], self.count)
        centres /= counts[:, None]
        fractional = np.einsum("fmi,fij->fmj", centres, np.linalg.inv(cells))
        shift = np.einsum("fmi,fij->fmj", np.floor(fractional), cells)
        return positions - shift[:, self.labels]
