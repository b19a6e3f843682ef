"""Verlet skin: a list made for ``cutoff + skin`` serves until motion and cell change have used it up.

Budget. A pair that is outside ``cutoff + skin`` when the list is made cannot come inside ``cutoff`` while

    |Δpair| <= 2 · max|δx_i| + |shift · ΔC|  < skin .

To separate the two, atoms are compared after the cell's deformation ``D = C0⁻¹ C`` is taken out: the
affine part stretches a pair of length ``r`` by at most ``(1 - 1/‖D⁻¹‖) r``, so a pair starting beyond
``cutoff + skin`` stays beyond ``(cutoff + skin) / ‖D⁻¹‖₂ - 2 max|x - x0 D|``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.neighbors.backends import neighbor_list


@dataclass
class VerletStatistics:
    """How often the list was asked for and how often it had to be made again, and why."""

    updates: int = 0
    rebuilds: int = 0
    rebuilds_by_motion: int = 0
    rebuilds_by_cell: int = 0

    @property
    def updates_per_rebuild(self) -> float:
        """Mean number of uses of one list."""
        return self.updates / max(self.rebuilds, 1)


class VerletList:
    """Neighbour list with a skin for one moving system.

    Args:
        cutoff: Å.
        skin: Å; 0 rebuilds on every change.
        backend: see :func:`egnn_md.neighbors.neighbor_list`.

    Raises:
        InputError: a negative skin.
    """

    def __init__(self, cutoff: float, skin: float = 0.5, backend: str = "vesin") -> None:
        if skin < 0:
            raise InputError(f"the skin must not be negative, not {skin}")
        self.cutoff = float(cutoff)
        self.skin = float(skin)
        self.backend = backend
        self.statistics = VerletStatistics()
        self._positions: Tensor | None = None
        self._cell = torch.zeros(3, 3)
        self._pbc = torch.zeros(3, dtype=torch.bool)
        self._edge_index = torch.zeros(2, 0, dtype=torch.long)
        self._cell_shifts = torch.zeros(0, 3)

    def reset(self) -> None:
        """Forget the list: the next update makes a new one (after a change of the system)."""
        self._positions = None

    def update(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> tuple[Tensor, Tensor]:
        """Pairs within ``cutoff`` now: ``edge_index`` (2, E) and ``cell_shifts`` (E, 3), by receiver.

        Args:
            positions: (N, 3), Å.
            cell: (3, 3) rows, Å.
            pbc: (3,) bool.
        """
        positions, cell = positions.detach(), cell.detach()
        self.statistics.updates += 1
        if not self._still_valid(positions, cell, pbc):
            self._edge_index, self._cell_shifts = neighbor_list(
                positions, cell, pbc, self.cutoff + self.skin, backend=self.backend
            )
            self._positions, self._cell, self._pbc = positions.clone(), cell.clone(), pbc.clone()
            self.statistics.rebuilds += 1
        lattice = torch.where(pbc[:, None], cell, torch.zeros_like(cell))
        pair = (
            positions.index_select(0, self._edge_index[0])
            - positions.index_select(0, self._edge_index[1])
            + self._cell_shifts @ lattice
        )
        inside = (pair * pair).sum(1) <= self.cutoff**2
        return self._edge_index[:, inside], self._cell_shifts[inside]

    def _still_valid(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        old = self._positions
        if (
            old is None
            or old.shape != positions.shape
            or old.dtype != positions.dtype
            or old.device != positions.device
            or not torch.equal(pbc, self._pbc)
        ):
            return False
        if not bool(torch.isfinite(positions).all()):
            return False  # the rebuild names the atom
        reach = self.cutoff + self.skin
        reference = old
        cell_changed = bool(pbc.any()) and not torch.equal(cell, self._cell)
        if cell_changed:
            # only full periodicity gives an affine map of space; a changed slab or wire is rebuilt
            if not bool(pbc.all()) or not bool(torch.isfinite(cell).all()):
                self.statistics.rebuilds_by_cell += 1
                return False
            deformation = torch.linalg.solve(self._cell.double(), cell.double())
            smallest_stretch = float(torch.linalg.svdvals(deformation)[-1])
            reach = reach * smallest_stretch
            reference = (old.double() @ deformation).to(old.dtype)
            if reach <= self.cutoff:
                self.statistics.rebuilds_by_cell += 1
                return False
        if len(positions) == 0:
            return True
        furthest = float((positions - reference).pow(2).sum(1).max().sqrt())
        if reach - 2 * furthest <= self.cutoff:
            if cell_changed and self.cutoff + self.skin - 2 * furthest > self.cutoff:
                self.statistics.rebuilds_by_cell += 1
            else:
                self.statistics.rebuilds_by_motion += 1
            return False
        return True
