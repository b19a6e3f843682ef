"""FastEGNN as published: equivariant message passing with ordered virtual nodes (arXiv 2506.19482).

| equation | variable |
| --- | --- |
| particles x_i, features h_i, velocities v_i | ``positions`` (N, 3), ``features`` (N, F), ``velocities`` (N, 3) |
| virtual nodes z_c, s_c | ``virtual_positions`` (G, 3, C), ``virtual_features`` (G, F, C) |
| edge message m_ij = φ_e([h_i, h_j, |x_i - x_j|², e_ij]) | ``message`` (E, F) |
| mixing M = (Z - x̄)ᵀ(Z - x̄) | ``mixing`` (G, C, C) |
| virtual message m_ic = φ_v([h_i, s_c, |z_c - x_i|, M[:, c]]) | ``virtual_message`` (N, C, F) |

``i`` receives (row 0 of ``edge_index``) and ``j`` sends (row 1). All inputs of a layer are those from before it.
"""

from typing import List, Optional  # noqa: UP035 - TorchScript reads types from here

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from egnn_md.nn.perceptron import Gate, coordinate_perceptron, perceptron
from egnn_md.nn.segment import double_vector, segment_mean

DISTANCE_OFFSET = 1e-8  # added to |x_i - x_j| by ``normalize``, as published


class FastEGNNConfig(BaseModel):
    """Sizes and options of the published network."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    node_features: int = Field(ge=0, description="invariant inputs a particle")
    edge_features: int = Field(default=0, ge=0)
    node_attributes: int = Field(default=0, ge=0, description="inputs appended to every feature update")
    hidden: int = Field(default=64, ge=1)
    layers: int = Field(default=4, ge=1)
    virtual_nodes: int = Field(default=3, ge=0, description="C; 0 gives EGNN with velocities")
    residual: bool = True
    attention: bool = False
    normalize: bool = False
    tanh: bool = False
    gravity: tuple[float, float, float] | None = None


class FastEGNNLayer(nn.Module):
    """One layer; see the module's table. ``C = 0`` leaves out everything virtual."""

    has_virtual: torch.jit.Final[bool]
    has_gravity: torch.jit.Final[bool]
    residual: torch.jit.Final[bool]
    normalize: torch.jit.Final[bool]
    distance_offset: torch.jit.Final[float]

    def __init__(self, config: FastEGNNConfig) -> None:
        super().__init__()
        hidden, channels = config.hidden, config.virtual_nodes
        self.residual = config.residual
        self.normalize = config.normalize
        self.distance_offset = DISTANCE_OFFSET
        self.has_virtual = channels > 0
        self.has_gravity = config.gravity is not None

        def gate() -> nn.Module:
            return Gate(hidden) if config.attention else nn.Identity()

        self.edge_mlp = perceptron(
            2 * hidden + 1 + config.edge_features, hidden, hidden, final_activation=True
        )
        self.edge_gate = gate()
        self.coord_mlp = coordinate_perceptron(hidden, tanh=config.tanh)
        self.velocity_mlp = perceptron(hidden, hidden, 1)
        self.gravity_mlp = perceptron(hidden, hidden, 1) if self.has_gravity else nn.Identity()
        aggregates = 3 if self.has_virtual else 2
        self.node_mlp = perceptron(aggregates * hidden + config.node_attributes, hidden, hidden)
        if self.has_virtual:
            self.virtual_edge_mlp: nn.Module = perceptron(
                2 * hidden + 1 + channels, hidden, hidden, final_activation=True
            )
            self.virtual_gate: nn.Module = gate()
            self.virtual_coord_mlp: nn.Module = coordinate_perceptron(hidden, tanh=config.tanh)
            self.virtual_position_mlp: nn.Module = coordinate_perceptron(hidden, tanh=config.tanh)
            self.virtual_node_mlp: nn.Module = perceptron(2 * hidden, hidden, hidden)
        else:
            self.virtual_edge_mlp = nn.Identity()
            self.virtual_gate = nn.Identity()
            self.virtual_coord_mlp = nn.Identity()
            self.virtual_position_mlp = nn.Identity()
            self.virtual_node_mlp = nn.Identity()

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        velocities: Tensor,
        virtual_features: Tensor,
        virtual_positions: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        edge_features: Optional[Tensor],  # noqa: UP045
        node_attributes: Optional[Tensor],  # noqa: UP045
        gravity: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return updated ``features, positions, virtual_features, virtual_positions``."""
        nodes, graphs = positions.shape[0], virtual_features.shape[0]
        receivers, senders = edge_index[0], edge_index[1]
        difference = positions[receivers] - positions[senders] + shifts
        squared = (difference * difference).sum(1, keepdim=True)
        inputs = [features[receivers], features[senders], squared]
        if edge_features is not None:
            inputs.append(edge_features)
        message = self.edge_gate(self.edge_mlp(torch.cat(inputs, 1)))
        if self.normalize:
            difference = difference / (squared.sqrt().detach() + self.distance_offset)

        moved = positions + segment_mean(difference * self.coord_mlp(message), receivers, nodes)
        moved = moved + self.velocity_mlp(features) * velocities
        if self.has_gravity:
            moved = moved + self.gravity_mlp(features) * gravity
        aggregated = [features, segment_mean(message, receivers, nodes)]

        if self.has_virtual:
            channels = virtual_features.shape[2]
            centre = segment_mean(positions, batch, graphs)
            centred = virtual_positions - centre.unsqueeze(2)
            mixing = torch.einsum("gdc,gde->gce", centred, centred)
            to_virtual = virtual_positions[batch] - positions.unsqueeze(2)  # (N, 3, C)
            distance = torch.linalg.vector_norm(to_virtual, dim=1).unsqueeze(2)  # (N, C, 1)
            virtual_message = self.virtual_gate(
                self.virtual_edge_mlp(
                    torch.cat(
                        [
                            features.unsqueeze(1).expand(-1, channels, -1),
                            virtual_features.transpose(1, 2)[batch],
                            distance,
                            mixing.transpose(1, 2)[batch],
                        ],
                        2,
                    )
                )
            )
            step = -to_virtual * self.virtual_coord_mlp(virtual_message).transpose(1, 2)
            moved = moved + step.mean(2)
            virtual_step = to_virtual * self.virtual_position_mlp(virtual_message).transpose(1, 2)
            virtual_positions = virtual_positions + segment_mean(virtual_step, batch, graphs)
            aggregated.append(virtual_message.mean(1))
            pooled = segment_mean(virtual_message, batch, graphs)  # (G, C, F)
            update = self.virtual_node_mlp(
                torch.cat([virtual_features.transpose(1, 2), pooled], 2)
            ).transpose(1, 2)
            virtual_features = virtual_features + update if self.residual else update

        if node_attributes is not None:
            aggregated.append(node_attributes)
        update = self.node_mlp(torch.cat(aggregated, 1))
        features = features + update if self.residual else update
        return features, moved, virtual_features, virtual_positions


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
        self.embedding = nn.Linear(config.node_features, config.hidden)
        self.virtual_features = nn.Parameter(torch.randn(1, config.hidden, config.virtual_nodes))
        self.layers = nn.ModuleList([FastEGNNLayer(config) for _ in range(config.layers)])
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

        Returns:
            positions (N, 3), virtual positions (G, 3, C), features (N, hidden).
        """
        features = self.embedding(node_features)
        centre = segment_mean(positions, batch, num_graphs)
        channels = self.virtual_features.shape[2]
        virtual_positions = centre.unsqueeze(2).expand(-1, -1, channels)
        virtual_features = self.virtual_features.expand(num_graphs, -1, -1)
        pair_shifts = torch.zeros_like(positions[:1]) if shifts is None else shifts
        gravity = double_vector(self.gravity, positions.device).to(positions.dtype)
        for layer in self.layers:
            features, positions, virtual_features, virtual_positions = layer(
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
            )
        return positions, virtual_positions, features
