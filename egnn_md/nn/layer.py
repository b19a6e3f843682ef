"""What the layers of every network share: configuration, and all of a layer but its messages between particles.

| equation | variable |
| --- | --- |
| particles x_i, features h_i, velocities v_i | ``positions`` (N, 3), ``features`` (N, F), ``velocities`` (N, 3) |
| virtual nodes z_c, s_c | ``virtual_positions`` (G, 3, C), ``virtual_features`` (G, F, C) |
| x_i ← x_i + step of messages + step of virtual nodes + φ_vel(h_i) v_i + φ_g(h_i) g + Σ_k φ_f(h_i)_k f_ik | |
| h_i ← [h_i +] φ_h([h_i, pooled messages, pooled virtual messages, attributes]) | |

``i`` receives (row 0 of ``edge_index``) and ``j`` sends (row 1). All inputs of a layer are those from before it.
"""

from typing import Any, List, Literal, Optional  # noqa: UP035 - TorchScript reads types from here

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from egnn_md.nn.communication import Alone
from egnn_md.nn.perceptron import perceptron
from egnn_md.nn.segment import segment_sum
from egnn_md.nn.virtual_nodes import VirtualNodes

DISTANCE_OFFSET = 1e-8  # added to |x_i - x_j| by ``normalize``, as published


class FastEGNNConfig(BaseModel):
    """Sizes and options of a network; the defaults are the published one."""

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
    fields: int = Field(default=0, ge=0, description="K, equivariant input vectors a particle (walls, boundaries)")
    messages: Literal["egnn", "radial-field", "continuous-filter"] = Field(
        default="egnn", description="kind of message between particles"
    )


class EquivariantLayer(nn.Module):
    """One layer; a kind of message adds :meth:`exchange` to it. ``C = 0`` leaves out everything virtual.

    Args:
        config: sizes and options.
        updates_features: the kind has feature messages, and φ_h.
        velocity_inputs: size of what φ_vel reads.
    """

    has_virtual: torch.jit.Final[bool]
    has_gravity: torch.jit.Final[bool]
    has_fields: torch.jit.Final[bool]
    updates_features: torch.jit.Final[bool]
    residual: torch.jit.Final[bool]
    normalize: torch.jit.Final[bool]
    distance_offset: torch.jit.Final[float]

    def __init__(
        self, config: FastEGNNConfig, *, updates_features: bool = True, velocity_inputs: int | None = None
    ) -> None:
        super().__init__()
        hidden = config.hidden
        self.residual = config.residual
        self.normalize = config.normalize
        self.distance_offset = DISTANCE_OFFSET
        self.has_virtual = config.virtual_nodes > 0
        self.has_gravity = config.gravity is not None
        self.has_fields = config.fields > 0
        self.updates_features = updates_features
        self.velocity_mlp = perceptron(velocity_inputs or hidden, hidden, 1)
        self.gravity_mlp = perceptron(hidden, hidden, 1) if self.has_gravity else nn.Identity()
        self.field_mlp = perceptron(hidden, hidden, config.fields) if self.has_fields else nn.Identity()
        inputs = (3 if self.has_virtual else 2) * hidden + config.node_attributes
        self.node_mlp = perceptron(inputs, hidden, hidden) if updates_features else nn.Identity()
        self.communication: Alone = Alone()
        self.virtual: Any = nn.Identity()
        if self.has_virtual:
            self.virtual = VirtualNodes(
                hidden,
                config.virtual_nodes,
                residual=config.residual,
                attention=config.attention,
                tanh=config.tanh,
            )

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
        """Messages between particles.

        Args:
            features: (N, F).
            difference: (E, 3) x_i - x_j, divided by its length if ``normalize``.
            squared: (E, 1) |x_i - x_j|², of the undivided one.
            edge_features: (E, D).
            receivers: (E,).
            senders: (E,).
            degree: (N,) number of edges that each particle receives.

        Returns:
            the particles' step (N, 3) and pooled messages (N, F).
        """
        raise NotImplementedError

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
        """Messages between particles from their positions; returns what :meth:`exchange` does.

        Args:
            features: (N, F).
            positions: (N, 3).
            edge_index: (2, E); row 0 receives.
            shifts: (E, 3) or (1, 3), added to receiver minus sender.
            edge_features: (E, D).
            degree: (N,).
            row_start: (N + 1,) where each receiver's edges begin, if they are sorted.
        """
        receivers, senders = edge_index[0], edge_index[1]
        difference = positions.index_select(0, receivers) - positions.index_select(0, senders) + shifts
        squared = (difference * difference).sum(1, keepdim=True)
        if self.normalize:
            difference = difference / (squared.sqrt().detach() + self.distance_offset)
        return self.exchange(features, difference, squared, edge_features, receivers, senders, degree)

    def update(self, aggregated: List[Tensor]) -> Tensor:  # noqa: UP006
        """φ_h of [h_i, pooled messages, ...] (N, ...) joined."""
        return self.node_mlp(torch.cat(aggregated, 1))

    def velocity_scale(self, features: Tensor, velocities: Tensor) -> Tensor:
        """φ_vel (N, 1)."""
        return self.velocity_mlp(features)

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
        periodic: Tensor,
        fields: Optional[Tensor],  # noqa: UP045
        degree: Tensor,
        row_start: Tensor,
        centre: Tensor,
        counts: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return updated ``features, positions, virtual_features, virtual_positions, centre``.

        N counts the particles of this part; edges, ``degree`` and ``row_start`` count its halo, too. ``centre`` (G, 3)
        and ``counts`` (G,) are mean position and number of all particles.
        """
        own = positions.shape[0]
        everywhere = self.communication.halo([features, positions])
        step, received = self.particles(
            everywhere[0], everywhere[1], edge_index, shifts, edge_features, degree, row_start
        )
        step, received = step[:own], received[:own]
        moved = positions + step + self.velocity_scale(features, velocities) * velocities
        if self.has_gravity:
            moved = moved + self.gravity_mlp(features) * gravity
        if self.has_fields:
            assert fields is not None
            moved = moved + (fields * self.field_mlp(features).unsqueeze(1)).sum(2)
        aggregated = [features, received]
        if self.has_virtual:
            virtual_step, pooled, steps, messages = self.virtual.gather(
                features, positions, virtual_features, virtual_positions, centre, batch, periodic
            )
            moved = moved + virtual_step
            # the next layer's centre travels with this layer's sums
            sums = self.communication.total([steps, messages, segment_sum(moved, batch, periodic.shape[0])])
            virtual_features, virtual_positions = self.virtual.update(
                virtual_features, virtual_positions, sums[0], sums[1], counts
            )
            centre = sums[2] / counts.clamp(min=1.0).unsqueeze(1)
            aggregated.append(pooled)
        if self.updates_features:
            if node_attributes is not None:
                aggregated.append(node_attributes)
            update = self.update(aggregated)
            features = features + update if self.residual else update
        return features, moved, virtual_features, virtual_positions, centre
