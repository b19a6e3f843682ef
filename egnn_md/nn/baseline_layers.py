"""Kinds of message that the papers compare with, each with the same virtual nodes plugged in.

| kind | equation |
| --- | --- |
| radial field | x_i += mean_j (x_i - x_j) φ_x([|x_i - x_j|², e_ij]) + φ_vel(|v_i|) v_i |
| continuous filter | m_ij = W h_j ⊙ φ_w([|x_i - x_j|, e_ij]), x_i += mean_j (x_i - x_j) φ_x(m_ij) |

Sources: Köhler, Klein, Noé 2019 (arXiv 1910.00753), the baseline "RF" of arXiv 2102.09844; SchNet (arXiv
1706.08566), with the equivariant step that arXiv 2506.19482 adds to it.
"""

from typing import Optional

import torch
from torch import Tensor, nn

from egnn_md.nn.layer import EquivariantLayer, FastEGNNConfig
from egnn_md.nn.perceptron import Gate, coordinate_perceptron, perceptron
from egnn_md.nn.segment import segment_mean


class RadialFieldLayer(EquivariantLayer):
    """Forces along pairs by their distance alone. Features stay the embedded inputs: no message carries any.

    φ_x always ends in a Tanh, without which the papers found the method unstable.
    """

    def __init__(self, config: FastEGNNConfig) -> None:
        super().__init__(config, updates_features=False, velocity_inputs=1)
        self.coord_mlp = coordinate_perceptron(config.hidden, tanh=True, inputs=1 + config.edge_features)

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
        """See :meth:`EquivariantLayer.exchange`; the pooled messages are zero."""
        inputs = squared if edge_features is None else torch.cat([squared, edge_features], 1)
        step = segment_mean(difference * self.coord_mlp(inputs), receivers, features.shape[0], degree)
        return step, torch.zeros_like(features)

    def velocity_scale(self, features: Tensor, velocities: Tensor) -> Tensor:
        """φ_vel(|v|) (N, 1)."""
        return self.velocity_mlp(torch.linalg.vector_norm(velocities, dim=1, keepdim=True))


class ContinuousFilterLayer(EquivariantLayer):
    """Messages are the sender's features times a filter that the distance generates."""

    def __init__(self, config: FastEGNNConfig) -> None:
        super().__init__(config)
        hidden = config.hidden
        self.sender_map = nn.Linear(hidden, hidden, bias=False)
        self.filter_mlp = perceptron(1 + config.edge_features, hidden, hidden)
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
        # the clamp keeps the gradient finite for two particles in one place
        distance = squared.clamp(min=1e-24).sqrt()
        inputs = distance if edge_features is None else torch.cat([distance, edge_features], 1)
        message = self.edge_gate(self.sender_map(features).index_select(0, senders) * self.filter_mlp(inputs))
        step = segment_mean(difference * self.coord_mlp(message), receivers, nodes, degree)
        return step, segment_mean(message, receivers, nodes, degree)
