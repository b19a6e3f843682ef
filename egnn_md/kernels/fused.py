# mypy: disable-error-code="union-attr, index, assignment, operator"
"""Layers that call the fused operators: the same weights under the same names, other methods.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import List, Optional  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from egnn_md.kernels import ops
from egnn_md.nn.fast_egnn import FastEGNNLayer
from egnn_md.nn.smooth import SmoothFastEGNN, SmoothLayer
from egnn_md.nn.virtual_nodes import VirtualNodes

#: From this many particles on the feature update is worked out again in the backward pass instead of being kept: it
#: costs 5 % of a training step and saves a third of its memory.
RECOMPUTE_PARTICLES = 8192
OPERATORS = [fused.name for fused in ops.ALL]


class FusedFastEGNNLayer(FastEGNNLayer):
    """:class:`egnn_md.nn.fast_egnn.FastEGNNLayer` whose messages never exist as a whole."""

    # not as annotations: TorchScript reads those of the last class only, and would miss the base's
    __constants__ = ["has_gate", "has_tanh"]  # noqa: RUF012 - the type TorchScript wants

    def particles(
        self,
        features: Tensor,
        positions: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        edge_features: Optional[Tensor],  # noqa: UP045
        degree: Tensor,
        row_start: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the base class; the edges must be sorted by receiver."""
        given: Optional[Tensor] = None  # noqa: UP045
        if shifts.shape[0] == edge_index.shape[1]:
            given = shifts
        gate_w: Optional[Tensor] = None  # noqa: UP045
        gate_b: Optional[Tensor] = None  # noqa: UP045
        if self.has_gate:
            gate_w, gate_b = self.edge_gate.linear.weight[0], self.edge_gate.linear.bias
        return torch.ops.egnn_md.edge_messages(
            positions,
            given,
            self.edge_mlp.part_a(features),
            self.edge_mlp.part_b(features),
            edge_features,
            self.edge_mlp.geometry_map(),
            self.edge_mlp.second.weight,
            self.edge_mlp.second.bias,
            gate_w,
            gate_b,
            self.coord_mlp[0].weight,
            self.coord_mlp[0].bias,
            self.coord_mlp[2].weight[0],
            row_start,
            edge_index[1],
            self.normalize,
            self.has_tanh,
        )

    def update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        """See the base class."""
        if torch.jit.is_scripting():
            return self.node_mlp(torch.cat(aggregated, 1))
        return self._update(aggregated)

    @torch.jit.unused
    def _update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        if not torch.is_grad_enabled() or aggregated[0].shape[0] < RECOMPUTE_PARTICLES:
            return self.node_mlp(torch.cat(aggregated, 1))
        return checkpoint(lambda *parts: self.node_mlp(torch.cat(parts, 1)), *aggregated, use_reentrant=False)


class FusedVirtualNodes(VirtualNodes):
    """:class:`egnn_md.nn.virtual_nodes.VirtualNodes` whose messages never exist as a whole."""

    # not as annotations: TorchScript reads those of the last class only, and would miss the base's
    __constants__ = ["has_gate", "has_tanh"]  # noqa: RUF012 - the type TorchScript wants

    def messages(
        self, features: Tensor, positions: Tensor, places: Tensor, of_virtual: Tensor, is_open: Tensor, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """See the base class."""
        gate_w: Optional[Tensor] = None  # noqa: UP045
        gate_b: Optional[Tensor] = None  # noqa: UP045
        if self.has_gate:
            gate_w, gate_b = self.gate.linear.weight[0], self.gate.linear.bias
        return torch.ops.egnn_md.virtual_messages(
            positions,
            places,
            is_open,
            self.edge_mlp.part_a(features),
            of_virtual,
            self.edge_mlp.geometry_map()[0],
            self.edge_mlp.second.weight,
            self.edge_mlp.second.bias,
            gate_w,
            gate_b,
            self.coord_mlp[0].weight,
            self.coord_mlp[0].bias,
            self.coord_mlp[2].weight[0],
            self.position_mlp[0].weight,
            self.position_mlp[0].bias,
            self.position_mlp[2].weight[0],
            batch,
            self.has_tanh,
        )


class FusedSmoothLayer(SmoothLayer):
    """:class:`egnn_md.nn.smooth.SmoothLayer` whose messages never exist as a whole."""

    def messages(
        self,
        features: Tensor,
        vectors: Tensor,
        unit: Tensor,
        radial: Tensor,
        receivers: Tensor,
        senders: Tensor,
        row_start: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See the base class; the edges must be sorted by receiver."""
        given: Optional[Tensor] = None  # noqa: UP045
        geometry_map: Optional[Tensor] = None  # noqa: UP045
        if not self.first:
            given, geometry_map = vectors, self.from_geometry.weight.t()
        return torch.ops.egnn_md.smooth_messages(
            unit,
            radial,
            self.from_receiver(features),
            self.from_sender(features),
            given,
            self.from_radial.weight.t(),
            geometry_map,
            self.second.weight,
            self.second.bias,
            self.filter.weight.t(),
            self.vector_map.weight,
            row_start,
            senders,
        )


class FusedSmoothFastEGNN(SmoothFastEGNN):
    """:class:`egnn_md.nn.smooth.SmoothFastEGNN` with fused radial functions."""

    def pair_inputs(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """See the base class."""
        return torch.ops.egnn_md.radial_functions(pair, self.basis.orders.shape[0], self.cutoff)
