"""Neighbour lists of a rank's own region: pairs that its own particles receive, from the particles near it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from egnn_md.distributed.part import Part, local_edges, take_part
from egnn_md.distributed.wire import Wire
from egnn_md.neighbors import VerletList, neighbor_list
from egnn_md.neighbors.backends import completed_cell

SLACK = 1e-6  # relative, so that rounding excludes nobody


def near(positions: Tensor, cell: Tensor, pbc: Tensor, members: Tensor, reach: float) -> Tensor:
    """(M,) numbers, ascending, of the particles with an image inside the box around ``members`` widened by ``reach``.

    The box is spanned along the lattice vectors (the axes, in open directions); in a periodic direction it is the
    shortest arc of the circle that holds all members.

    Args:
        positions: (N, 3).
        cell: (3, 3) rows.
        pbc: (3,) bool.
        members: (n,) numbers.
        reach: length.
    """
    inside = torch.ones(positions.shape[0], dtype=torch.bool, device=positions.device)
    if members.shape[0] == 0:
        return members
    # in double, as the neighbour lists themselves: far from home, single precision would leave somebody out
    positions, cell = positions.double(), cell.double()
    inverse = torch.linalg.inv(completed_cell(cell, pbc))
    # the height of the cell along direction k is 1 / |column k of the inverse|
    margins = (reach * (1.0 + SLACK) * inverse.norm(dim=0)).tolist()
    places = positions @ inverse
    for axis, (margin, circle) in enumerate(zip(margins, pbc.tolist(), strict=True)):
        place = places[:, axis]
        if not circle:
            held = place[members]
            inside &= (place >= held.min() - margin) & (place <= held.max() + margin)
            continue
        place = place - torch.floor(place)
        held = torch.sort(place[members])[0]
        gaps = torch.cat([held[1:], held[:1] + 1.0]) - held
        widest = int(gaps.argmax())
        start = float(held[(widest + 1) % len(held)])
        length = 1.0 - float(gaps[widest]) + 2 * margin + SLACK
        if length < 1.0:
            inside &= torch.remainder(place - (start - margin), 1.0) <= length
    return inside.nonzero().reshape(-1)


class RegionList(VerletList):
    """Pairs that a part's own particles receive, in local numbers; made when all ranks make theirs.

    Args:
        cutoff: length.
        skin: the lists are made for ``cutoff + skin``; whoever calls :meth:`make` sees to it that it is not used up.
        backend: see :func:`egnn_md.neighbors.neighbor_list`.
        dtype: of the ``cell_shifts`` that are given.
    """

    def __init__(self, cutoff: float, skin: float, backend: str = "vesin", dtype: torch.dtype | None = None) -> None:
        super().__init__(cutoff, skin, backend, dtype)

    def make(
        self,
        positions: Tensor,
        cell: Tensor,
        pbc: Tensor,
        owner: Tensor,
        wire: Wire,
        *,
        mode: str = "exact",
        device: torch.device | str = "cpu",
    ) -> Part:
        """Make the list, and the part that goes with it, for positions (N, 3) of the whole system.

        All ranks call it together.

        Raises:
            InputError: see :func:`egnn_md.neighbors.neighbor_list`.
        """
        own = (owner == wire.rank).nonzero().reshape(-1)
        reach = self.cutoff + self.skin
        close = own if mode == "paper" else near(positions, cell, pbc, own, reach)
        pairs, steps = neighbor_list(positions[close], cell, pbc, reach, backend=self.backend)
        mine = (owner[close] == wire.rank)[pairs[0]].nonzero().reshape(-1)
        pairs, steps = close[pairs.index_select(1, mine)], steps.index_select(0, mine)
        part = take_part(owner, pairs[1], wire, mode=mode, device=device)
        edges, kept = local_edges(part, pairs, positions.shape[0])
        self.adopt(positions[part.local], cell, pbc, edges, steps.index_select(0, kept))
        return part

    @property
    def pairs(self) -> int:
        """Pairs in the list, skin included."""
        return int(self._edge_index.shape[1])

    def nearest_pair(self) -> tuple[float, tuple[int, int]]:
        """Distance, receiver and sender (local numbers) of the nearest pair of the last update; -1 if there is none."""
        if not self._squared.numel():
            return math.inf, (-1, -1)
        place = int(self._squared.argmin())
        receiver, sender = self._edge_index[:, place].tolist()
        return float(self._squared[place]) ** 0.5, (receiver, sender)

    def _still_valid(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        # when to make it anew is decided for all ranks at once, never here
        assert self._positions is not None
        return True
