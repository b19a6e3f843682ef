"""What every table of propagators shows beside a network: nothing moves, or everything goes straight on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import Prediction, PropagatorConfig, check_known, predict_unchecked


class _Reference(nn.Module):
    """A propagator without weights, behind the contract of ``FastEGNNPropagator``.

    Args:
        config: gives stride, units and what never moves.
    """

    name = ""
    static_species: Tensor

    def __init__(self, config: PropagatorConfig) -> None:
        super().__init__()
        self.config = config
        # follows .to(device): outputs must be where the inputs are
        self.register_buffer("static_species", torch.tensor(config.static_species, dtype=torch.long), persistent=False)

    def displacement(self, velocities: Tensor) -> Tensor:
        """(N, 3) motion in one stride."""
        raise NotImplementedError

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As :meth:`egnn_md.models.propagator.FastEGNNPropagator.forward`, without virtual nodes (C = 0)."""
        fixed = torch.isin(species, self.static_species.to(species.device)).unsqueeze(1)
        velocities = torch.where(fixed, torch.zeros_like(velocities), velocities)
        virtual = positions.new_zeros(periodic.shape[0], 3, 0)
        return positions + self.displacement(velocities), self.velocity(velocities), virtual

    def velocity(self, velocities: Tensor) -> Tensor:
        """(N, 3) velocity after the stride."""
        return velocities

    def predict(self, graph: ParticleGraph) -> Prediction:
        """As :meth:`egnn_md.models.propagator.FastEGNNPropagator.predict`.

        Raises:
            InputError: unknown particle types, missing velocities or features.
        """
        check_known(self.config, graph)
        return predict_unchecked(self, graph)


class StayStill(_Reference):
    """x' = x. The velocity is kept, so that a later stride sees what the first one saw."""

    name = "stay still"

    def displacement(self, velocities: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(velocities)


class Linear(_Reference):
    """x' = x + v · stride, v' = v."""

    name = "linear"

    def displacement(self, velocities: Tensor) -> Tensor:
        """v · stride."""
        return velocities * self.config.stride
