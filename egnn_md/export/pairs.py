"""The neighbour list with a skin inside an exported module.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import Tuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn
from vesin_torch import NeighborList  # noqa: F401 - registers the class that TorchScript makes

from egnn_md.neighbors.skin import SkinTuner, both_ways, deformation, furthest_move, squared_lengths

THREADED_POINTS = 20_000  # from here on vesin uses threads


class SkinPairs(nn.Module):
    """Pairs within the cutoff of one moving system, by the budget of :mod:`egnn_md.neighbors.verlet`.

    What it gives depends on the arguments alone: all pairs within the cutoff in the order of the contract, whatever
    list they were picked from. The list lives in attributes that are replaced as wholes and never written into, so
    copies of a module are independent. A file has none as long as the module was not used before it was saved.

    Args:
        cutoff: Å.
        skin: Å; negative for a skin that is found by itself.
        dtype: of the translations that are given.
    """

    reference: Tensor
    made_in: Tensor
    edge_index: Tensor
    steps: Tensor
    seen_in: Tensor
    translations: Tensor
    home: Tensor
    shifts: Tensor

    def __init__(self, cutoff: float, skin: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.tuner = SkinTuner(float(cutoff), skin)
        self.cutoff = float(cutoff)
        self.dtype = dtype
        self.threaded = THREADED_POINTS
        self.lists = 0
        self.uses = 0
        self.reach = 0.0
        self.repeated = False
        double = torch.float64
        self.reference = torch.zeros(0, 3, dtype=double)
        self.made_in = torch.zeros(3, 3, dtype=double)
        self.edge_index = torch.zeros(2, 0, dtype=torch.int64)
        self.steps = torch.zeros(0, 3, dtype=torch.int64)
        self.seen_in = torch.zeros(3, 3, dtype=double)  # cell of ``translations`` and ``shifts``
        self.translations = torch.zeros(3, 0, dtype=double)  # of the continuous positions
        self.home = torch.zeros(0, 3, dtype=double)  # of ``shifts``
        self.shifts = torch.zeros(0, 3, dtype=dtype)

    def forward(self, x: Tensor, cell: Tensor, home: Tensor, repeat: bool) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """``edge_index`` (2, E) and Cartesian translations (E, 3), Å, of the pairs of ``x - home @ cell``.

        Args:
            x: (M, 3) float64, Å, finite and without gradient; continuous, so that no boundary uses up the skin.
            cell: (3, 3) float64, Å, with a volume if ``repeat``.
            home: (M, 3) whole numbers.
            repeat: whether there are periodic images.
        """
        # what is kept must not hold the graph of this call, whatever the engine hands over
        with torch.no_grad():
            return self.find(x, cell, home, repeat)

    def find(self, x: Tensor, cell: Tensor, home: Tensor, repeat: bool) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """As ``forward``."""
        self.uses += 1
        if not self.usable(x, cell, repeat):
            self.make(x, cell, repeat)
        self.tuner.used(self.edge_index.size(1))
        same_cell = torch.equal(cell, self.seen_in)
        if repeat and not same_cell:
            self.translations = (self.steps.to(torch.float64) @ cell).t().contiguous()
        if not same_cell or not torch.equal(home, self.home):
            moved = home.index_select(0, self.edge_index[0]) - home.index_select(0, self.edge_index[1])
            self.shifts = ((self.steps.to(torch.float64) + moved) @ cell).to(self.dtype)
            self.seen_in, self.home = cell.clone(), home.clone()
        squared = squared_lengths(x, self.edge_index, self.translations)
        inside = (squared <= self.cutoff * self.cutoff).nonzero().reshape(-1)
        receivers = self.edge_index[0].index_select(0, inside)
        edge_index = torch.stack([receivers, self.edge_index[1].index_select(0, inside)])
        return edge_index, self.shifts.index_select(0, inside)

    def make(self, x: Tensor, cell: Tensor, repeat: bool) -> None:
        """A new list for these positions."""
        self.lists += 1
        self.reach = self.cutoff + self.tuner.skin
        on_cpu = x.device.type == "cpu"
        threads = 1 if on_cpu and x.size(0) < self.threaded else 0
        finder = torch.classes.vesin._NeighborList(self.reach, not on_cpu, False, "auto", 0.0, threads)
        found = finder.compute(x, cell, torch.tensor(repeat), "PS", True)
        pairs, steps = found[0], found[1]
        if not on_cpu:
            # a full list has every pair twice; one of each two is kept, so that one way serves both
            later = (pairs[:, 0] < pairs[:, 1]) | ((pairs[:, 0] == pairs[:, 1]) & positive(steps))
            kept = later.nonzero().reshape(-1)
            pairs, steps = pairs.index_select(0, kept), steps.index_select(0, kept)
        self.edge_index, self.steps = both_ways(pairs, steps)
        self.translations = x.new_zeros([3, 0])
        self.seen_in = torch.full_like(cell, float("nan"))
        self.reference, self.made_in, self.repeated = x.clone(), cell.clone(), repeat

    def usable(self, x: Tensor, cell: Tensor, repeat: bool) -> bool:
        """Whether the list there is holds every pair within the cutoff."""
        old = self.reference
        if old.size(0) != x.size(0) or old.device != x.device or repeat != self.repeated or self.lists == 0:
            return False
        reach, moved_from = self.reach, old
        if repeat and not torch.equal(cell, self.made_in):
            change, least = deformation(self.made_in, cell)
            reach, moved_from = reach * least, old @ change
        if reach - 2.0 * furthest_move(x, moved_from) > self.cutoff:
            return True
        self.tuner.used_up(self.edge_index.size(1))
        return False


def positive(steps: Tensor) -> Tensor:
    """(E,) whether the first of the whole numbers (E, 3) that is not zero is positive."""
    sign = steps.to(torch.int64).sign()
    return sign[:, 0] * 4 + sign[:, 1] * 2 + sign[:, 2] > 0
