"""The module that is scripted for a propagator: network, neighbour list and edge dropping in one ``forward``.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import Optional, Tuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor
from vesin_torch import NeighborList


class ExportedPropagator(torch.nn.Module):
    """One stride of one system in the propagator's own units (they stand in the file's description).

    Args:
        propagator: a :class:`egnn_md.models.propagator.FastEGNNPropagator`, scripted, already in ``dtype``.
        cutoff: of its pairs; 0 joins all.
        drop: fraction of the longest edges to leave out.
        dtype: floating type that the network computes in.
    """

    def __init__(self, propagator: torch.nn.Module, cutoff: float, drop: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.propagator = propagator
        self.neighbors = NeighborList(cutoff=cutoff if cutoff > 0 else 1.0, full_list=True, sorted=True)
        self.cutoff = cutoff
        self.drop = drop
        self.dtype = dtype

    def pairs(self, positions: Tensor, cell: Tensor, periodic: bool) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """``edge_index`` (2, E) by receiver, and Cartesian shifts (E, 3)."""
        if self.cutoff > 0:
            found = self.neighbors.compute(positions, cell, periodic, "PS")
            # vesin: pair = x[second] - x[first] + S·cell; ours is receiver minus sender, the first one receiving
            edge_index = found[0].to(torch.int64).t().contiguous()
            shifts = -(found[1].to(self.dtype) @ cell)
        else:
            number = positions.size(0)
            receivers = torch.arange(number, device=positions.device).repeat_interleave(number)
            senders = torch.arange(number, device=positions.device).repeat(number)
            different = receivers != senders
            edge_index = torch.stack([receivers[different], senders[different]])
            shifts = positions.new_zeros([edge_index.size(1), 3])
        if self.drop > 0.0 and edge_index.size(1) > 0:
            # both directions of a pair have the same length to the last bit: whole pairs are taken off the end
            distance = torch.linalg.vector_norm(
                positions[edge_index[0]] - positions[edge_index[1]] + shifts, dim=1
            )
            left = edge_index.size(1) - 2 * int(self.drop * edge_index.size(1) / 2.0 + 1e-9)
            kept = torch.argsort(distance)[:left].sort()[0]
            edge_index, shifts = edge_index[:, kept], shifts[kept]
        return edge_index, shifts

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        features: Optional[Tensor] = None,  # noqa: UP045
        cell: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Positions and velocities (N, 3) one stride later, in the dtype of the input.

        Args:
            positions: (N, 3).
            velocities: (N, 3).
            species: (N,) int64.
            features: (N, F), where the propagator wants them.
            cell: (3, 3) rows; with it all three directions repeat, without it none does.
        """
        if not bool(torch.isfinite(positions).all()):
            raise RuntimeError("egnn_md: a position is not finite")
        x = positions.to(self.dtype)
        box = torch.zeros([3, 3], dtype=self.dtype, device=x.device) if cell is None else cell.to(self.dtype)
        edge_index, shifts = self.pairs(x, box, cell is not None)
        moved, after, _ = self.propagator(
            x,
            velocities.to(self.dtype),
            species,
            edge_index,
            shifts,
            torch.zeros_like(species),
            torch.tensor([cell is not None], device=x.device),
            None if features is None else features.to(self.dtype),
        )
        return positions + (moved - x).to(positions.dtype), after.to(positions.dtype)
