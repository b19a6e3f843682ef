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

from egnn_md.nn.perceptron import Gate, SplitPerceptron, coordinate_perceptron, perceptron
from egnn_md.nn.segment import segment_sum


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
        self.edge_mlp = SplitPerceptron(hidden, 1 + channels)
        self.gate: nn.Module = Gate(hidden) if attention else nn.Identity()
        self.coord_mlp = coordinate_perceptron(hidden, tanh=tanh)
        self.position_mlp = coordinate_perceptron(hidden, tanh=tanh)
        self.node_mlp = perceptron(2 * hidden, hidden, hidden)

    def messages(
        self, features: Tensor, positions: Tensor, places: Tensor, of_virtual: Tensor, is_open: Tensor, batch: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Messages between particles and virtual nodes.

        Args:
            features: (N, F).
            positions: (N, 3).
            places: (G, C, 3).
            of_virtual: (G, C, F), what virtual nodes and their mixing bring to the first map.
            is_open: (G,) 1 where a centre of mass exists, 0 in a periodic cell.
            batch: (N,).

        Returns:
            the particles' step (N, 3) and mean message (N, F), sums over the particles of each graph of the virtual
            nodes' steps (G, C, 3) and of the messages (G, C, F).
        """
        graphs = places.shape[0]
        to_virtual = places.index_select(0, batch) - positions.unsqueeze(1)  # (N, C, 3)
        to_virtual = to_virtual * is_open.index_select(0, batch).reshape(-1, 1, 1)
        distance = torch.linalg.vector_norm(to_virtual, dim=2).unsqueeze(2)
        joined = self.edge_mlp.part_a(features).unsqueeze(1) + of_virtual.index_select(0, batch)
        message = self.gate(self.edge_mlp(joined + distance * self.edge_mlp.geometry_map()[0]))  # (N, C, F)
        # to_virtual is zero in a periodic cell, and so are both steps
        step = -(to_virtual * self.coord_mlp(message)).mean(1)
        virtual_step = to_virtual * self.position_mlp(message)
        return step, message.mean(1), segment_sum(virtual_step, batch, graphs), segment_sum(message, batch, graphs)

    def gather(
        self,
        features: Tensor,
        positions: Tensor,
        virtual_features: Tensor,
        virtual_positions: Tensor,
        centre: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What particles get and what virtual nodes are told; every input is the one from before the layer.

        Args:
            features: (N, F).
            positions: (N, 3).
            virtual_features: (G, F, C).
            virtual_positions: (G, 3, C).
            centre: (G, 3) mean position of all particles.
            batch: (N,) graph of each particle.
            periodic: (G,) bool.

        Returns:
            as :meth:`messages`.
        """
        own, places = virtual_features.transpose(1, 2), virtual_positions.transpose(1, 2)  # (G, C, F), (G, C, 3)
        is_open = periodic.logical_not().to(positions.dtype).reshape(-1, 1, 1)
        centred = (places - centre.unsqueeze(1)) * is_open
        mixing = torch.matmul(centred, centred.transpose(1, 2))
        of_virtual = self.edge_mlp.part_b(own) + torch.matmul(mixing, self.edge_mlp.geometry_map()[1:])
        return self.messages(features, positions, places, of_virtual, is_open.reshape(-1), batch)

    def update(
        self, virtual_features: Tensor, virtual_positions: Tensor, steps: Tensor, messages: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New virtual features (G, F, C) and positions (G, 3, C).

        Args:
            virtual_features: (G, F, C).
            virtual_positions: (G, 3, C).
            steps: (G, C, 3) sum over all particles, as :meth:`messages` gives it.
            messages: (G, C, F), likewise.
            counts: (G,) number of particles.
        """
        own, places = virtual_features.transpose(1, 2), virtual_positions.transpose(1, 2)
        share = 1.0 / counts.clamp(min=1.0).reshape(-1, 1, 1)
        places = places + steps * share
        update = self.node_mlp(torch.cat([own, messages * share], 2))
        own = own + update if self.residual else update
        return own.transpose(1, 2), places.transpose(1, 2)
