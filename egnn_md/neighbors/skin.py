"""What a list with a skin is made of, for Python and for TorchScript: order, lengths, the budget, and the skin's width.

Nothing here raises on numbers that are not finite: they fail the budget, and whoever makes the new list names them.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import List, Tuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn

#: A new list costs about as much as this many uses of one of the same length (648 atoms of water, one CPU: 6 to 9).
REBUILD_COST = 7.0
#: Skins that are tried, as fractions of the cutoff.
FRACTIONS = (0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4)
START = 3


def sort_order(receivers: Tensor, senders: Tensor, steps: Tensor) -> Tensor:
    """(E,) order by receiver, then sender, then lattice steps, of int64 (E,), (E,) and whole numbers (E, 3)."""
    if receivers.numel() == 0:
        return torch.zeros_like(receivers)
    whole = steps.to(torch.int64)
    low = whole.amin(0)
    span = whole.amax(0) - low + 1
    number = torch.maximum(receivers.max(), senders.max()) + 1
    if float(number) ** 2 * float(span.to(torch.float64).prod()) < 4e18:
        # one sort of one whole number a pair, an order of magnitude faster than one sort a column
        key = receivers * number + senders
        for axis in range(3):
            key = key * span[axis] + (whole[:, axis] - low[axis])
        return torch.sort(key)[1]
    order = torch.sort(whole[:, 2], stable=True)[1]
    for key in [whole[:, 1], whole[:, 0], senders, receivers]:
        order = order.index_select(0, torch.sort(key.index_select(0, order), stable=True)[1])
    return order


def both_ways(half: Tensor, half_steps: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
    """Sorted ``edge_index`` (2, E) and ``steps`` (E, 3) out of vesin's half list: pairs (E/2, 2), their shifts.

    vesin's pair is x[second] - x[first] + S·cell; ours is receiver minus sender, so where the first one receives, the
    shift changes its sign.
    """
    first, second, steps = half[:, 0].to(torch.int64), half[:, 1].to(torch.int64), half_steps.to(torch.int64)
    receivers, senders = torch.cat([first, second]), torch.cat([second, first])
    both = torch.cat([-steps, steps])
    order = sort_order(receivers, senders, both)
    edge_index = torch.stack([receivers.index_select(0, order), senders.index_select(0, order)])
    return edge_index, both.index_select(0, order)


def squared_lengths(x: Tensor, edge_index: Tensor, translations: Tensor) -> Tensor:
    """(E,) squared lengths of pairs: positions (N, 3), edges (2, E), Cartesian translations (3, E), or (3, 0) for none.

    Column by column: gathers of single numbers are several times faster than gathers of rows.
    """
    receivers, senders = edge_index[0], edge_index[1]
    columns = x.detach().t().contiguous()
    total = torch.empty(0, dtype=x.dtype, device=x.device)
    for axis in range(3):
        column = columns[axis]
        difference = column.index_select(0, receivers).sub_(column.index_select(0, senders))
        if translations.size(1) > 0:
            difference.add_(translations[axis])
        difference.mul_(difference)
        total = difference if axis == 0 else total.add_(difference)
    return total


def deformation(old: Tensor, new: Tensor) -> Tuple[Tensor, float]:  # noqa: UP006
    """D = C0⁻¹ C (3, 3) of two cells, float64, and the least length that it leaves of a unit vector, 1/‖D⁻¹‖₂."""
    change = torch.linalg.solve(old.to(torch.float64), new.to(torch.float64))
    return change, float(torch.linalg.svdvals(change)[-1])


def furthest_move(x: Tensor, reference: Tensor) -> float:
    """Length of the largest displacement between two sets of positions (N, 3); NaN where there is one."""
    if x.size(0) == 0:
        return 0.0
    moved = x - reference
    return float((moved * moved).sum(1).max().sqrt())


class SkinTuner(nn.Module):
    """Finds the skin that costs least by climbing along ``FRACTIONS`` of the cutoff while the system moves.

    The cost of a use is counted, not timed: the pairs that are looked at, and ``REBUILD_COST`` times the pairs of every
    new list. So a run chooses the same skins whenever it is repeated; what it computes never depends on them.

    Args:
        cutoff: any length.
        skin: fixed width, or negative for tuning.
    """

    fractions: List[float]  # noqa: UP006

    def __init__(self, cutoff: float, skin: float = -1.0) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.tuned = skin < 0.0
        self.skin = FRACTIONS[START] * float(cutoff) if skin < 0.0 else float(skin)
        self.rebuild_cost, self.fractions = REBUILD_COST, list(FRACTIONS)
        self.place, self.best, self.direction = START, START, 1
        self.best_cost = -1.0
        self.climbed = False
        self.settled = False
        self.lists = 0
        self.uses = 0
        self.looked = 0.0
        self.made = 0.0

    @torch.jit.export
    def used(self, pairs: int) -> None:
        """A list of so many pairs was used once."""
        self.uses += 1
        self.looked += float(pairs)

    @torch.jit.export
    def used_up(self, pairs: int) -> None:
        """Motion has used up a list of so many pairs: may change ``skin`` for the next one."""
        self.lists += 1
        self.made += float(pairs)
        # three lists, and more of short ones, tell one skin from the next; a settled one is looked at again later
        enough = self.lists >= 3 and (self.uses >= 30 or self.lists >= 10)
        if not self.tuned or not enough or (self.settled and self.lists < 100):
            return
        cost = (self.looked + self.rebuild_cost * self.made) / max(self.uses, 1)
        self.uses, self.lists, self.looked, self.made = 0, 0, 0.0, 0.0
        if self.settled or self.best_cost < 0.0:
            self.best, self.best_cost = self.place, cost
            self.direction, self.climbed, self.settled = 1, False, False
        elif cost < self.best_cost:
            self.best, self.best_cost, self.climbed = self.place, cost, True
        else:
            self._turn()
        self.place = self.best + self.direction
        if self.place == len(self.fractions):
            self._turn()
            self.place = self.best + self.direction
        if self.direction == 0 or self.place < 0:
            self.settled = True
            self.place = self.best
        self.skin = self.fractions[self.place] * self.cutoff

    def _turn(self) -> None:
        """It gets no better this way: the other one, unless a better skin than the first has been found."""
        self.direction = 0 if self.climbed or self.direction < 0 else -1
