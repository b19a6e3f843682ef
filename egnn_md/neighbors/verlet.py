"""Verlet skin: a list made for ``cutoff + skin`` serves until motion and cell change have used it up.

Budget. A pair that is outside ``cutoff + skin`` when the list is made cannot come inside ``cutoff`` while

    |Δpair| <= 2 · max|δx_i| + |shift · ΔC|  < skin .

To separate the two, atoms are compared after the cell's deformation ``D = C0⁻¹ C`` is taken out: the
affine part stretches a pair of length ``r`` by at most ``(1 - 1/‖D⁻¹‖) r``, so a pair starting beyond
``cutoff + skin`` stays beyond ``(cutoff + skin) / ‖D⁻¹‖₂ - 2 max|x - x0 D|``.

Every use picks the pairs within the cutoff out of the list, in one order. So what an update gives depends on
positions and cell alone, whatever the skin and whenever the list was made. A pair more would cost a model a hundred
times what it costs to leave it out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.neighbors.backends import neighbor_list
from egnn_md.neighbors.skin import SkinTuner, deformation, furthest_move, squared_lengths


@dataclass
class VerletStatistics:
    """How often the list was asked for and how often it had to be made again, and why; the skin now (length)."""

    updates: int = 0
    rebuilds: int = 0
    rebuilds_by_motion: int = 0
    rebuilds_by_cell: int = 0
    skin: float = 0.0
    settled: bool = True

    @property
    def updates_per_rebuild(self) -> float:
        """Mean number of uses of one list."""
        return self.updates / max(self.rebuilds, 1)


def check_skin(skin: float | str) -> float:
    """A skin as a number, negative for ``auto``. Raises InputError for what is neither."""
    if skin == "auto":
        return -1.0
    if isinstance(skin, str) or not (math.isfinite(skin) and skin >= 0):
        raise InputError(f"the skin must be 'auto' or a finite length of at least 0 Å, not negative, not {skin!r}")
    return float(skin)


class VerletList:
    """Neighbour list with a skin for one moving system.

    Args:
        cutoff: Å.
        skin: Å; 0 rebuilds on every change; ``auto`` finds the cheapest while the system moves.
        backend: see :func:`egnn_md.neighbors.neighbor_list`.
        dtype: of the ``cell_shifts`` that are given; that of the positions if None.

    Raises:
        InputError: a skin that is negative or not finite.
    """

    def __init__(
        self, cutoff: float, skin: float | str = 0.5, backend: str = "vesin", dtype: torch.dtype | None = None
    ) -> None:
        self.cutoff = float(cutoff)
        self._tuner = SkinTuner(self.cutoff, check_skin(skin))
        self.backend = backend
        self.dtype = dtype
        self.statistics = VerletStatistics(skin=self.skin, settled=not self._tuner.tuned)
        self._positions: Tensor | None = None
        self._made_for = 0.0  # cutoff + skin of the list there is
        self._cell = torch.zeros(3, 3)
        self._pbc = torch.zeros(3, dtype=torch.bool)
        self._edge_index = torch.zeros(2, 0, dtype=torch.long)
        self._steps = torch.zeros(0, 3)
        self._home: Tensor | None = None
        self._home_steps = self._steps  # for positions that ``_home`` was taken off
        self._lattice = torch.zeros(3, 3)
        self._translations = torch.zeros(3, 0)  # of ``_steps`` in ``_lattice``
        self._squared = torch.zeros(0)

    @property
    def skin(self) -> float:
        """Å; of the next list."""
        return self._tuner.skin

    @skin.setter
    def skin(self, skin: float) -> None:
        self._tuner = SkinTuner(self.cutoff, check_skin(skin))

    @property
    def tuned(self) -> bool:
        """Whether the skin is found by itself."""
        return self._tuner.tuned

    def reset(self) -> None:
        """Forget the list: the next update makes a new one (after a change of the system)."""
        self._positions = None

    def nearest(self) -> float:
        """Distance of the nearest pair of the last update, Å; infinite if there is none."""
        return float(self._squared.min()) ** 0.5 if self._squared.numel() else math.inf

    def update(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, home: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Pairs within ``cutoff`` now: ``edge_index`` (2, E) and ``cell_shifts`` (E, 3), by receiver.

        Args:
            positions: (N, 3), Å; continuous, so that an atom that crosses the boundary does not use up the skin.
            cell: (3, 3) rows, Å.
            pbc: (3,) bool.
            home: (N, 3) whole numbers; the shifts are then for ``positions - home @ cell``.

        Raises:
            InputError: see :func:`egnn_md.neighbors.neighbor_list`.
        """
        positions, cell = positions.detach(), cell.detach()
        self.statistics.updates += 1
        if not self._still_valid(positions, cell, pbc):
            self._make(positions, cell, pbc)
        self._tuner.used(self._edge_index.shape[1])
        self._translate(cell, pbc)
        self._squared = squared_lengths(positions, self._edge_index, self._translations)
        inside = (self._squared <= self.cutoff**2).nonzero().reshape(-1)
        edge_index = torch.stack([row.index_select(0, inside) for row in self._edge_index])
        return edge_index, self._shifts(home).index_select(0, inside)

    def _make(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> None:
        self._positions = None  # an error below leaves no list behind
        edge_index, steps = neighbor_list(positions, cell, pbc, self.cutoff + self.skin, backend=self.backend)
        self.adopt(positions, cell, pbc, edge_index, steps)

    def adopt(self, positions: Tensor, cell: Tensor, pbc: Tensor, edge_index: Tensor, steps: Tensor) -> None:
        """Go on with pairs (2, E) and their lattice steps (E, 3) that hold all within ``cutoff + skin`` here."""
        self._edge_index, self._steps = edge_index, steps
        self._translations = positions.new_zeros(3, 0)
        self._lattice = torch.full_like(cell, torch.nan)
        self._steps = self._steps.to(self.dtype or positions.dtype)
        self._home, self._home_steps = None, self._steps
        self._made_for, self._cell, self._pbc = self.cutoff + self.skin, cell.clone(), pbc.clone()
        self._positions = positions.clone()
        self.statistics.rebuilds += 1
        self.statistics.skin, self.statistics.settled = self.skin, self._tuner.settled or not self._tuner.tuned

    def _translate(self, cell: Tensor, pbc: Tensor) -> None:
        """Cartesian translations of the list's pairs in this cell."""
        if torch.equal(cell, self._lattice) or not bool(pbc.any()):
            return
        lattice = torch.where(pbc[:, None], cell, torch.zeros_like(cell))
        self._translations = (self._steps.to(cell.dtype) @ lattice).t().contiguous()
        self._lattice = cell.clone()

    def _shifts(self, home: Tensor | None) -> Tensor:
        """The list's lattice steps for positions that are at home."""
        if home is None:
            return self._steps
        if self._home is None or not torch.equal(home, self._home):
            whole = home.detach().to(self._steps.dtype)
            moved = whole.index_select(0, self._edge_index[0]) - whole.index_select(0, self._edge_index[1])
            self._home, self._home_steps = home.detach().clone(), self._steps + moved
        return self._home_steps

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
        reach, reference = self._made_for, old
        cell_changed = bool(pbc.any()) and not torch.equal(cell, self._cell)
        if cell_changed:
            # only full periodicity gives an affine map of space; a changed slab or wire is rebuilt
            if not bool(pbc.all()) or not bool(torch.isfinite(cell).all()):
                self.statistics.rebuilds_by_cell += 1
                return False
            change, least = deformation(self._cell, cell)
            reach = reach * least
            reference = (old.double() @ change).to(old.dtype)
            if not reach > self.cutoff:
                self.statistics.rebuilds_by_cell += 1
                return False
        furthest = furthest_move(positions, reference)
        if len(positions) == 0 or reach - 2 * furthest > self.cutoff:
            return True
        # also where a position is not a number: neighbor_list names the atom
        if cell_changed and self._made_for - 2 * furthest > self.cutoff:
            self.statistics.rebuilds_by_cell += 1
        else:
            self.statistics.rebuilds_by_motion += 1
        self._tuner.used_up(self._edge_index.shape[1])
        return False
