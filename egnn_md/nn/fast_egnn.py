"""FastEGNN as published: equivariant message passing with ordered virtual nodes (arXiv 2506.19482).

| equation | variable |
| --- | --- |
| edge message m_ij = φ_e([h_i, h_j, |x_i - x_j|², e_ij]) | ``message`` (E, F) |
| step of messages mean_j (x_i - x_j) φ_x(m_ij) | |

The rest of a layer is in :mod:`egnn_md.nn.layer` and :mod:`egnn_md.nn.virtual_nodes`, other kinds of message in
:mod:`egnn_md.nn.baseline_layers`.
"""

from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn

from egnn_md.errors import InputError
from egnn_md.nn.baseline_layers import ContinuousFilterLayer, RadialFieldLayer
from egnn_md.nn.communication import Alone
from egnn_md.nn.layer import EquivariantLayer, FastEGNNConfig
from egnn_md.nn.perceptron import Gate, SplitPerceptron, coordinate_perceptron
from egnn_md.nn.segment import (
    double_vector,
    row_starts,
    segment_counts,
    segment_mean,
    segment_sum,
    sorted_by_receiver,
)

__all__ = ["MESSAGE_LAYERS", "FastEGNN", "FastEGNNConfig", "FastEGNNLayer"]


class FastEGNNLayer(EquivariantLayer):
    """One layer of the published network."""

    def __init__(self, config: FastEGNNConfig) -> None:
        super().__init__(config)
        hidden = config.hidden
        self.edge_mlp = SplitPerceptron(hidden, 1 + config.edge_features)
        self.edge_gate: nn.Module = Gate(hidden) if config.attention else nn.Identity()
        self.coord_mlp = coordinate_perceptron(hidden, tanh=config.tanh)

    def exchange(
        self,
        features: Tensor,
        difference: Tensor,
        squared: Tensor,
        edge_features: Optional[Tensor],  # noqa: UP045
        receivers: Tensor,
        senders: Tensor,
        degree: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`EquivariantLayer.exchange`."""
        nodes = features.shape[0]
        geometry_map = self.edge_mlp.geometry_map()
        # in place into a tensor of our own: nothing needs the values before for its gradient
        joined = self.edge_mlp.part_a(features).index_select(0, receivers)
        joined.add_(self.edge_mlp.part_b(features).index_select(0, senders))
        # apart from the edge features, whose own gradient is seldom asked for
        joined.addmm_(squared, geometry_map[:1])
        if edge_features is not None:
            joined.addmm_(edge_features, geometry_map[1:])
        message = self.edge_gate(self.edge_mlp(joined))
        step = segment_mean(difference * self.coord_mlp(message), receivers, nodes, degree)
        return step, segment_mean(message, receivers, nodes, degree)


#: The layer of every kind of ``FastEGNNConfig.messages``.
MESSAGE_LAYERS: dict[str, type[EquivariantLayer]] = {
    "egnn": FastEGNNLayer,
    "radial-field": RadialFieldLayer,
    "continuous-filter": ContinuousFilterLayer,
}


class FastEGNN(nn.Module):
    """The published network: predicts future positions of particles and virtual nodes.

    Args:
        config: sizes and options.
    """

    gravity: List[float]  # noqa: UP006

    def __init__(self, config: FastEGNNConfig) -> None:
        super().__init__()
        self.config = config
        self.hidden: int = config.hidden
        self.fields: int = config.fields
        self.needs_sorted_edges = False  # layers that read edges by receiver set it (egnn_md.kernels)
        self.communication: Alone = Alone()
        self.embedding = nn.Linear(config.node_features, config.hidden)
        self.virtual_features = nn.Parameter(torch.randn(1, config.hidden, config.virtual_nodes))
        layer = MESSAGE_LAYERS[config.messages]
        self.layers = nn.ModuleList([layer(config) for _ in range(config.layers)])
        # a list, not a buffer: a cast of the module must not round it
        self.gravity = list(config.gravity) if config.gravity is not None else [0.0, 0.0, 0.0]

    def forward(
        self,
        node_features: Tensor,
        positions: Tensor,
        velocities: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        num_graphs: int = 1,
        edge_features: Optional[Tensor] = None,  # noqa: UP045
        node_attributes: Optional[Tensor] = None,  # noqa: UP045
        shifts: Optional[Tensor] = None,  # noqa: UP045
        periodic: Optional[Tensor] = None,  # noqa: UP045
        fields: Optional[Tensor] = None,  # noqa: UP045
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict positions one stride ahead.

        Args:
            node_features: (N, node_features).
            positions: (N, 3), in the unit the weights were trained in.
            velocities: (N, 3), likewise.
            edge_index: (2, E); row 0 receives.
            batch: (N,) graph of each particle.
            num_graphs: G.
            edge_features: (E, edge_features).
            node_attributes: (N, node_attributes).
            shifts: (E, 3) Cartesian lattice translations, added to receiver minus sender.
            periodic: (G,) bool; virtual nodes of a periodic graph carry features only. None: all are open.
            fields: (N, 3, K) vectors that turn with the system, K as in the configuration.

        Returns:
            positions (N, 3), virtual positions (G, 3, C), features (N, hidden). In a periodic graph the virtual
            positions stay at the mean of the input positions, which depends on the images chosen.

        Raises:
            InputError: ``fields`` do not fit the configuration.
        """
        steps, virtual_positions, features = self.layer_positions(
            node_features,
            positions,
            velocities,
            edge_index,
            batch,
            num_graphs,
            edge_features,
            node_attributes,
            shifts,
            periodic,
            fields,
        )
        return steps[-1], virtual_positions, features

    @torch.jit.export
    def layer_positions(
        self,
        node_features: Tensor,
        positions: Tensor,
        velocities: Tensor,
        edge_index: Tensor,
        batch: Tensor,
        num_graphs: int = 1,
        edge_features: Optional[Tensor] = None,  # noqa: UP045
        node_attributes: Optional[Tensor] = None,  # noqa: UP045
        shifts: Optional[Tensor] = None,  # noqa: UP045
        periodic: Optional[Tensor] = None,  # noqa: UP045
        fields: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tuple[List[Tensor], Tensor, Tensor]:  # noqa: UP006
        """As :meth:`forward`, with the positions after each layer: a list of (N, 3), the last is the prediction."""
        given = 0 if fields is None else fields.shape[2]
        if given != self.fields:
            raise InputError(f"the network has {self.fields} fields a particle, got {given}; pass fields (N, 3, K)")
        if self.needs_sorted_edges:
            if shifts is not None:
                shifts = shifts.expand(edge_index.shape[1], 3)  # one for all edges is no default
            if edge_features is not None and edge_features.shape[0] != edge_index.shape[1]:
                raise InputError(f"{edge_index.shape[1]} edges, but edge_features of {edge_features.shape[0]}")
            edge_index, shifts, edge_features = sorted_by_receiver(edge_index, shifts, edge_features)
        features = self.embedding(node_features)
        channels = self.virtual_features.shape[2]
        counts = positions.new_zeros(num_graphs)
        centre = positions.new_zeros([num_graphs, 3])
        if channels > 0:
            sums = self.communication.total(
                [segment_counts(batch, num_graphs, positions), segment_sum(positions, batch, num_graphs)]
            )
            counts = sums[0]
            centre = sums[1] / counts.clamp(min=1.0).unsqueeze(1)
        virtual_positions = centre.unsqueeze(2).expand(-1, -1, channels)
        virtual_features = self.virtual_features.expand(num_graphs, -1, -1)
        pair_shifts = torch.zeros_like(positions[:1]) if shifts is None else shifts
        if periodic is None:
            periodic = torch.zeros(num_graphs, dtype=torch.bool, device=positions.device)
        gravity = double_vector(self.gravity, positions.device).to(positions.dtype)
        degree = segment_counts(edge_index[0], self.communication.rows(positions.shape[0]), positions)
        row_start = row_starts(degree)
        steps: List[Tensor] = []  # noqa: UP006
        for layer in self.layers:
            features, positions, virtual_features, virtual_positions, centre = layer(
                features,
                positions,
                velocities,
                virtual_features,
                virtual_positions,
                edge_index,
                pair_shifts,
                batch,
                edge_features,
                node_attributes,
                gravity,
                periodic,
                fields,
                degree,
                row_start,
                centre,
                counts,
            )
            steps.append(positions)
        return steps, virtual_positions, features
