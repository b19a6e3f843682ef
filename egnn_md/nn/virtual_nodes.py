"""The virtual nodes of one layer, the same for every kind of message between particles (arXiv 2506.19482).

| equation | variable |
| --- | --- |
| particles x_i, features h_i | ``positions`` (N, 3), ``features`` (N, F) |
| virtual nodes z_c, s_c | ``virtual_positions`` (G, 3, C), ``virtual_features`` (G, F, C) |
| mixing M = (Z - x̄)ᵀ(Z - x̄) | ``mixing`` (G, C, C) |
| virtual message m_ic = φ_v([h_i, s_c, |z_c - x_i|, M[:, c]]) | ``message`` (N, C, F) |

A periodic cell has no centre of mass: there the distance and the mixing enter as zero and the messages move
nobody, they carry features only. Why: docs/decisions/0002.
"""

import torch
from torch import Tensor, nn

from egnn_md.nn.perceptron import Gate, coordinate_perceptron, perceptron
from egnn_md.nn.segment import segment_mean


class VirtualNodes(nn.Module):
    """Messages between particles and C virtual nodes, and the virtual nodes' own update.

    Args:
        hidden: F.
        channels: C, at least 1.
        residual: the update of the virtual features is added to them.
        attention: messages pass a :class:`Gate`.
        tanh: coordinate maps end in a Tanh.
    """

    residual: torch.jit.Final[bool]

    def __init__(
        self, hidden: int, channels: int, *, residual: bool = True, attention: bool = False, tanh: bool = False
    ) -> None:
        super().__init__()
        self.residual = residual
        self.edge_mlp = perceptron(2 * hidden + 1 + channels, hidden, hidden, final_activation=True)
        self.gate: nn.Module = Gate(hidden) if attention else nn.Identity()
        self.coord_mlp = coordinate_perceptron(hidden, tanh=tanh)
        self.position_mlp = coordinate_perceptron(hidden, tanh=tanh)
        self.node_mlp = perceptron(2 * hidden, hidden, hidden)

    def forward(
        self,
        features: Tensor,
        positions: Tensor,
        virtual_features: Tensor,
        virtual_positions: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One exchange; every input is the one from before the layer.

        Args:
            features: (N, F).
            positions: (N, 3).
            virtual_features: (G, F, C).
            virtual_positions: (G, 3, C).
            batch: (N,) graph of each particle.
            periodic: (G,) bool.

        Returns:
            the particles' step (N, 3), their mean message (N, F), new virtual features (G, F, C), new virtual
            positions (G, 3, C).
        """
        graphs, channels = virtual_features.shape[0], virtual_features.shape[2]
        is_open = periodic.logical_not().to(positions.dtype).reshape(-1, 1, 1)
        centre = segment_mean(positions, batch, graphs)
        centred = (virtual_positions - centre.unsqueeze(2)) * is_open
        mixing = torch.matmul(centred.transpose(1, 2), centred)
        to_virtual = (virtual_positions[batch] - positions.unsqueeze(2)) * is_open[batch]  # (N, 3, C)
        distance = torch.linalg.vector_norm(to_virtual, dim=1).unsqueeze(2)  # (N, C, 1)
        message = self.gate(
            self.edge_mlp(
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
        # to_virtual is zero in a periodic cell, and so are both steps
        step = (-to_virtual * self.coord_mlp(message).transpose(1, 2)).mean(2)
        virtual_step = to_virtual * self.position_mlp(message).transpose(1, 2)
        virtual_positions = virtual_positions + segment_mean(virtual_step, batch, graphs)
        own = virtual_features.transpose(1, 2)
        update = self.node_mlp(torch.cat([own, segment_mean(message, batch, graphs)], 2)).transpose(1, 2)
        virtual_features = virtual_features + update if self.residual else update
        return step, message.mean(1), virtual_features, virtual_positions
