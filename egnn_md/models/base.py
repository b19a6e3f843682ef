"""The contract that every potential keeps, learned or analytic."""

from typing import List  # noqa: UP035 - TorchScript reads attribute types from here

import torch
from torch import Tensor, nn

from egnn_md.nn.communication import Alone


class Potential(nn.Module):
    """Positions to per-atom energies. Subclasses are scriptable and keep no engine and no global state.

    Attributes:
        cutoff: Å; the neighbour list must hold every pair within it, and pairs beyond contribute nothing.
        elements: sorted atomic numbers that the model knows; empty if it takes any.
        long_range: True if an atom can feel another one outside ``cutoff`` times the number of layers.
        needs_cell: True if ``forward`` must be given ``cell`` as its last argument; others do not take it.
    """

    cutoff: float
    elements: List[int]  # noqa: UP006
    long_range: bool
    needs_cell: bool

    __jit_unused_properties__ = ["dtype", "device"]  # noqa: RUF012 - TorchScript wants a plain list

    def __init__(
        self,
        cutoff: float,
        elements: List[int],  # noqa: UP006
        *,
        long_range: bool = False,
        needs_cell: bool = False,
    ) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.elements = list(elements)
        self.long_range = long_range
        self.needs_cell = needs_cell
        self.communication: Alone = Alone()

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """Per-atom energies.

        Args:
            positions: (N, 3), Å; in a split system (:mod:`egnn_md.nn.communication`) those that are owned.
            species: (N,) int64, atomic numbers; in a split system those of the halo follow.
            edge_index: (2, E) int64; row 0 receives, row 1 sends; sorted by receiver.
            shifts: (E, 3) Cartesian lattice translations added to receiver minus sender, Å.
            batch: (N,) int64, the graph of each atom.
            periodic: (G,) bool, graphs that repeat in any direction.

        A subclass with ``needs_cell`` takes one more: ``cell`` (G, 3, 3), rows, Å, of graphs that repeat in all three
        directions and zero for the others; the stress comes from its gradient and that of the positions.

        Returns:
            (N,) float64, eV.
        """
        raise NotImplementedError

    @property
    def dtype(self) -> torch.dtype:
        """Floating type that positions are expected in."""
        for parameter in self.parameters():
            return parameter.dtype
        return torch.float64

    @property
    def device(self) -> torch.device:
        """Where parameters live (CPU for a model without any)."""
        for parameter in self.parameters():
            return parameter.device
        return torch.device("cpu")
