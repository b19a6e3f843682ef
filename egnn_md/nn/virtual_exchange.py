"""Virtual nodes of the smooth network (:mod:`egnn_md.nn.smooth`): their messages with particles, and their update.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import Any

import torch
from torch import Tensor, nn

from egnn_md.nn.fourier import FourierResponse, Waves
from egnn_md.nn.perceptron import perceptron
from egnn_md.nn.segment import segment_sum
from egnn_md.nn.smooth_config import SmoothConfig

#: Å; below it the smooth norm turns from |x| into a parabola, far under any distance that carries physics.
NORM_SOFTENING = 1e-2


def smooth_norm(vectors: Tensor, dim: int, softening: float = NORM_SOFTENING) -> Tensor:
    """``sqrt(|v|² + s²) - s``: zero at zero, with every derivative finite there."""
    squared = (vectors * vectors).sum(dim)
    return (squared + softening**2).sqrt() - softening


class VirtualExchange(nn.Module):
    """Messages between particles and virtual nodes for one layer, and the virtual nodes' own update."""

    has_fourier: torch.jit.Final[bool]

    def __init__(self, config: SmoothConfig) -> None:
        super().__init__()
        hidden, channels = config.hidden, config.virtual_nodes
        self.length = config.cutoff
        self.has_fourier = config.fourier_width > 0
        self.response: Any = (
            FourierResponse(channels, config.fourier_width) if self.has_fourier else nn.Identity()
        )
        self.from_node = nn.Linear(hidden, hidden)
        self.from_virtual = nn.Linear(hidden, hidden, bias=False)
        self.from_geometry = nn.Linear(1 + channels + (2 if self.has_fourier else 0), hidden, bias=False)
        self.second = nn.Sequential(nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU())
        self.vector_map = nn.Linear(hidden, config.vector_channels, bias=False)
        self.position_map = nn.Linear(hidden, 1, bias=False)
        self.feature_update = perceptron(2 * hidden, hidden, hidden)
        for small in (self.vector_map, self.position_map):
            nn.init.xavier_uniform_(small.weight, gain=0.1)

    def gather(
        self,
        features: Tensor,
        positions: Tensor,
        virtual_features: Tensor,
        virtual_positions: Tensor,
        centre: Tensor,
        batch: Tensor,
        open_graph: Tensor,
        charges: Tensor,
        modes: Tensor,
        waves: Waves,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """What particles get and what virtual nodes are told.

        Args:
            features: (N, F).
            positions: (N, 3).
            virtual_features: (G, C, F).
            virtual_positions: (G, C, 3).
            centre: (G, 3) mean position of all particles.
            batch: (N,).
            open_graph: (G, 1, 1), 1 where a centre of mass exists and 0 in a periodic cell.
            charges: (N, C) weights of the particles in the virtual nodes' Fourier modes.
            modes: (G, W, 2C).
            waves: of the cells.

        Returns:
            mean message (N, F) and vector step (N, 3, K); sums over particles of steps (G, C, 3) and messages
            (G, C, F).
        """
        graphs = virtual_features.shape[0]
        centred = (virtual_positions - centre.unsqueeze(1)) * open_graph / self.length
        mixing = torch.matmul(centred, centred.transpose(1, 2))  # (G, C, C)
        mixing = mixing * torch.rsqrt(1.0 + mixing * mixing)
        to_virtual = (
            (virtual_positions.index_select(0, batch) - positions.unsqueeze(1))
            * open_graph.index_select(0, batch)
            / self.length
        )  # (N, C, 3)
        distance = smooth_norm(to_virtual, 2).unsqueeze(2)
        # distance and steps saturate: what evaporates from a droplet must not drag the rest with it
        to_virtual = to_virtual / (1.0 + distance)
        towards = to_virtual
        parts = [distance / (1.0 + distance), mixing.transpose(1, 2).index_select(0, batch)]
        if self.has_fourier:
            weighted = self.response.weighted(modes, waves)
            potential = self.response.potential(weighted, waves)
            towards = towards + self.response.field(weighted, waves).transpose(1, 2)
            parts = parts + [potential.unsqueeze(2), (charges * potential).unsqueeze(2)]  # noqa: RUF005
        geometry = torch.cat(parts, 2)
        message = self.second(
            self.from_node(features).unsqueeze(1)
            + self.from_virtual(virtual_features).index_select(0, batch)
            + self.from_geometry(geometry)
        )  # (N, C, F)
        vector_step = -torch.matmul(towards.transpose(1, 2), self.vector_map(message)) / message.shape[1]
        steps = segment_sum(to_virtual * self.position_map(message), batch, graphs)
        return message.mean(1), vector_step, steps, segment_sum(message, batch, graphs)

    def update(
        self, virtual_features: Tensor, virtual_positions: Tensor, steps: Tensor, messages: Tensor, counts: Tensor
    ) -> tuple[Tensor, Tensor]:
        """New virtual features (G, C, F) and positions (G, C, 3) from the sums over all ``counts`` (G,) particles."""
        number = counts.clamp(min=1.0).reshape(-1, 1, 1)
        updated = virtual_features + self.feature_update(torch.cat([virtual_features, messages / number], 2))
        return updated, virtual_positions + steps / number * self.length
