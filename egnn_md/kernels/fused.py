# mypy: disable-error-code="union-attr, index, assignment, operator, arg-type"
# ruff: noqa: SIM102 - TorchScript leaves out what stands under an `if` of is_scripting alone
"""Layers that call the fused operators: the same weights under the same names, other methods.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import List, Optional  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from egnn_md.kernels import ops  # noqa: F401 - registers the operators
from egnn_md.kernels.projected import projected
from egnn_md.nn.fast_egnn import FastEGNNLayer
from egnn_md.nn.smooth import SmoothFastEGNN, SmoothLayer
from egnn_md.nn.virtual_nodes import VirtualNodes

#: From this many particles on, what belongs to a particle alone is worked out again in the backward pass instead of
#: being kept; its share of the work is small, of the memory it is most.
RECOMPUTE_PARTICLES = 8192


def recomputes(features: Tensor) -> bool:
    """Whether a backward pass over these features (N, F) should recompute rather than remember."""
    return torch.is_grad_enabled() and features.shape[0] >= RECOMPUTE_PARTICLES


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
        if not torch.jit.is_scripting():
            if recomputes(features):
                return self._projected(features, positions, given, edge_features, gate_w, gate_b, edge_index, row_start)
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

    @torch.jit.unused
    def _projected(
        self,
        features: Tensor,
        positions: Tensor,
        shifts: Optional[Tensor],  # noqa: UP045
        edge_features: Optional[Tensor],  # noqa: UP045
        gate_w: Optional[Tensor],  # noqa: UP045
        gate_b: Optional[Tensor],  # noqa: UP045
        edge_index: Tensor,
        row_start: Tensor,
    ) -> tuple[Tensor, Tensor]:
        mlp, head, hidden = self.edge_mlp, self.coord_mlp, self.edge_mlp.hidden
        return projected(
            "edge_messages",
            features,
            [(2, mlp.first.weight[:, :hidden], mlp.first.bias), (3, mlp.first.weight[:, hidden : 2 * hidden], None)],
            [
                positions, shifts, None, None, edge_features, mlp.geometry_map(), mlp.second.weight, mlp.second.bias,
                gate_w, gate_b, head[0].weight, head[0].bias, head[2].weight[0], row_start, edge_index[1],
                self.normalize, self.has_tanh,
            ],
        )  # fmt: skip

    def velocity_scale(self, features: Tensor, velocities: Tensor) -> Tensor:
        """See the base class."""
        if not torch.jit.is_scripting():
            if recomputes(features):
                return self._recomputed_scale(features)
        return self.velocity_mlp(features)

    @torch.jit.unused
    def _recomputed_scale(self, features: Tensor) -> Tensor:
        return checkpoint(self.velocity_mlp, features, use_reentrant=False)

    def update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        """See the base class."""
        if not torch.jit.is_scripting():
            if recomputes(aggregated[0]):
                return self._recomputed_update(aggregated)
        return self.joined_update(aggregated)

    def joined_update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        """φ_h without joining its inputs (N, ...): their parts of the first map are added up in place."""
        first = self.node_mlp[0]
        done = aggregated[0].shape[1]
        hidden = functional.linear(aggregated[0], first.weight[:, :done], first.bias)
        for part in aggregated[1:]:
            width = part.shape[1]
            hidden.addmm_(part, first.weight[:, done : done + width].t())
            done += width
        return self.node_mlp[2](self.node_mlp[1](hidden))

    @torch.jit.unused
    def _recomputed_update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        return checkpoint(lambda *parts: self.joined_update(list(parts)), *aggregated, use_reentrant=False)


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
        if not torch.jit.is_scripting():
            if recomputes(features):
                return self._projected(features, positions, places, is_open, of_virtual, gate_w, gate_b, batch)
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

    @torch.jit.unused
    def _projected(
        self,
        features: Tensor,
        positions: Tensor,
        places: Tensor,
        is_open: Tensor,
        of_virtual: Tensor,
        gate_w: Optional[Tensor],  # noqa: UP045
        gate_b: Optional[Tensor],  # noqa: UP045
        batch: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mlp, step, place = self.edge_mlp, self.coord_mlp, self.position_mlp
        return projected(
            "virtual_messages",
            features,
            [(3, mlp.first.weight[:, : mlp.hidden], mlp.first.bias)],
            [
                positions, places, is_open, None, of_virtual, mlp.geometry_map()[0], mlp.second.weight,
                mlp.second.bias, gate_w, gate_b, step[0].weight, step[0].bias, step[2].weight[0], place[0].weight,
                place[0].bias, place[2].weight[0], batch, self.has_tanh,
            ],
        )  # fmt: skip


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
