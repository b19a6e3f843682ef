"""The trained propagator: positions and velocities now → positions and velocities one stride later.

The published network (:mod:`egnn_md.nn.fast_egnn`) predicts positions. Around it:

| symbol | meaning | where |
| --- | --- | --- |
| ``L`` | ``length_scale``: the network sees lengths divided by it | everywhere |
| ``v·s/L`` | velocity over a stride ``s``: what the published layer calls velocity | ``forward`` |
| ``u_l = x_l - x_{l-1}`` | displacement that layer ``l`` adds | ``forward`` |
| ``v' = (L/s) [Σ_l w_l(h) u_l + a(h) v s/L]`` | velocity a stride later; starts as ``(x' - x)/s`` | ``velocity_head`` |
| ``g s²/L`` | gravity over a stride, one of the layer's fields | ``_fields`` |
| ``Σ_w B_k(d_w) n_w`` | walls: inward normals weighted by three functions of the distance | ``_fields`` |

Walls and boundary particles speak twice: as distance features of a particle, and (walls) as directions that a
layer may push along, since no invariant feature tells where a wall is.
"""

from copy import deepcopy
from typing import Any, List, NamedTuple, Optional, Tuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator_config import PropagatorConfig
from egnn_md.nn.basis import BesselBasis, polynomial_envelope
from egnn_md.nn.communication import Alone
from egnn_md.nn.fast_egnn import FastEGNN

__all__ = ["FastEGNNPropagator", "Prediction", "PropagatorConfig", "check_known", "predict_unchecked"]

WALL_LIMIT = 1.5  # a particle deep inside a wall is pushed like one half a range inside it


class Prediction(NamedTuple):
    """One stride later: positions (N, 3), velocities (N, 3), virtual positions (G, 3, C)."""

    positions: Tensor
    velocities: Tensor
    virtual_positions: Tensor


def predict_unchecked(model: nn.Module, graph: ParticleGraph) -> Prediction:
    """One stride of a propagator for a graph that :func:`check_known` has seen: its checks wait for the device."""
    return Prediction(
        *model(
            graph.positions,
            graph.velocities,
            graph.species,
            graph.edge_index,
            graph.shifts(),
            graph.batch,
            graph.periodic,
            graph.node_features,
        )
    )


def check_known(config: PropagatorConfig, graph: ParticleGraph) -> None:
    """Refuse a graph that this propagator has never seen the like of.

    Raises:
        InputError: a particle type it does not know, features or velocities that are missing.
    """
    known = torch.tensor(config.species, device=graph.species.device)
    strange = ~torch.isin(graph.species, known)
    if bool(strange.any()):
        first = int(strange.nonzero()[0])
        raise InputError(
            f"particle {first} has type {int(graph.species[first])}, but the propagator of {config.system!r} "
            f"knows {list(config.species)}"
        )
    if graph.velocities is None:
        raise InputError(
            f"the propagator of {config.system!r} needs velocities ({config.velocity}) in {config.units['length']} "
            f"per {config.units['time']}; give them, or a frame before to take the difference to"
        )
    given = 0 if graph.node_features is None else graph.node_features.shape[1]
    if given != config.node_features:
        raise InputError(
            f"the propagator of {config.system!r} needs {config.node_features} node features a particle, not {given}"
        )


class FastEGNNPropagator(nn.Module):
    """Predicts one stride ahead with FastEGNN, EGNN or a baseline network.

    Args:
        config: sizes, units, inputs.
    """

    kind = "propagator"
    edge_inputs: List[str]  # noqa: UP006
    wall_normals: Tensor
    wall_offsets: Tensor
    gravity: Tensor
    kind_of: Tensor
    static: Tensor
    num_species: torch.jit.Final[int]
    has_features: torch.jit.Final[bool]
    has_static: torch.jit.Final[bool]
    has_walls: torch.jit.Final[bool]
    has_gravity: torch.jit.Final[bool]
    hard_walls: torch.jit.Final[bool]
    has_basis: torch.jit.Final[bool]
    predict_velocity: torch.jit.Final[bool]

    def __init__(self, config: PropagatorConfig) -> None:
        super().__init__()
        self.config = config
        self.stride = float(config.stride)
        self.scale = float(config.length_scale)
        self.cutoff = float(config.cutoff) if config.cutoff is not None else 0.0
        self.wall_range = float(config.wall_range or self.cutoff or 1.0)
        self.wall_limit = WALL_LIMIT
        self.num_species = len(config.species)
        self.has_features = config.node_features > 0
        self.has_static = len(config.static_species) > 0
        self.has_walls = config.walls is not None
        self.has_gravity = config.gravity is not None
        self.hard_walls = config.walls is not None and config.hard_walls
        self.has_basis = config.edge_basis > 0
        self.predict_velocity = config.predict_velocity
        self.edge_inputs = list(config.edge_inputs)

        self.communication: Alone = Alone()
        self.network = FastEGNN(config.network())
        self.velocity_head: nn.Module = nn.Identity()
        if config.predict_velocity:
            self.velocity_head = nn.Linear(config.hidden, config.layers + 1)
            nn.init.zeros_(self.velocity_head.weight)
            with torch.no_grad():  # (x' - x) / stride
                self.velocity_head.bias.fill_(1.0)
                self.velocity_head.bias[-1] = 0.0
        self.basis: nn.Module = nn.Identity()
        if config.edge_basis:
            # in units of the cutoff: functions of order one whatever the length unit
            self.basis = BesselBasis(config.edge_basis, 1.0)
        if config.linear_start:
            self._start_linear()

        largest = max(config.species)
        kind_of = torch.full((largest + 1,), -1, dtype=torch.long)
        static = torch.zeros(largest + 1, dtype=torch.bool)
        for index, number in enumerate(config.species):
            kind_of[number] = index
            static[number] = number in config.static_species
        self.register_buffer("kind_of", kind_of, persistent=False)
        self.register_buffer("static", static, persistent=False)
        # the box as six half spaces n·x >= o, so that a rotated copy of it can be made
        normals = torch.cat([torch.eye(3), -torch.eye(3)]).double()
        lows = [0.0 if config.walls is None else low for low, _ in config.walls or ((0, 0),) * 3]
        highs = [0.0 if config.walls is None else high for _, high in config.walls or ((0, 0),) * 3]
        offsets = torch.tensor([*lows, *(-high for high in highs)], dtype=torch.float64)
        self.register_buffer("wall_normals", normals.float(), persistent=False)
        self.register_buffer("wall_offsets", offsets.float(), persistent=False)
        self.register_buffer("gravity", torch.tensor(config.gravity or (0.0, 0.0, 0.0)), persistent=False)

    def _start_linear(self) -> None:
        """Velocity maps that sum to one over the layers whatever the features: x' = x + v·stride at first."""
        layer: Any
        for layer in self.network.layers:
            last = layer.velocity_mlp[-1]
            nn.init.zeros_(last.weight)
            nn.init.constant_(last.bias, 1.0 / len(self.network.layers))
            if self.network.config.fields:
                nn.init.zeros_(layer.field_mlp[-1].weight)
                nn.init.zeros_(layer.field_mlp[-1].bias)

    def _wall_functions(self, positions: Tensor) -> Tensor:
        """(N, 6, 3): B_k of the distance to each face; zero beyond ``wall_range``, with a zero slope."""
        distance = positions @ self.wall_normals.t() - self.wall_offsets
        u = (1.0 - distance / self.wall_range).clamp(0.0, self.wall_limit).unsqueeze(2)
        return torch.cat([u**2, u**4, u**8], 2)

    def _stopped_by_walls(self, positions: Tensor, moved: Tensor, velocities: Tensor) -> Tuple[Tensor, Tensor]:  # noqa: UP006
        """Motion (N, 3) that ends on the wall, not behind it, and velocities (N, 3) without their part into it."""
        for index in range(6):
            normal = self.wall_normals[index]
            inside = (positions + moved) @ normal - self.wall_offsets[index]
            behind = (inside < 0).to(moved.dtype)
            moved = moved - (behind * inside).unsqueeze(1) * normal
            into = (velocities @ normal).clamp(max=0.0) * behind
            velocities = velocities - into.unsqueeze(1) * normal
        return moved, velocities

    def _node_inputs(
        self,
        velocities: Tensor,
        kinds: Tensor,
        walls: Tensor,
        boundary: Optional[Tensor],  # noqa: UP045
        features: Optional[Tensor],  # noqa: UP045
    ) -> Tensor:
        inputs = [torch.linalg.vector_norm(velocities, dim=1, keepdim=True)]
        if self.num_species > 1:
            inputs.append(torch.nn.functional.one_hot(kinds, self.num_species).to(velocities.dtype))
        if self.has_features:
            assert features is not None
            inputs.append(features)
        if self.has_walls:
            inputs.append(walls.sum(1))
            if self.has_gravity:
                along = self.wall_normals @ (self.gravity / torch.linalg.vector_norm(self.gravity))
                inputs.append((walls * along.reshape(1, 6, 1)).sum(1))
        if boundary is not None:
            inputs.append(boundary)
        return torch.cat(inputs, 1)

    def _fields(self, walls: Tensor, positions: Tensor) -> Optional[Tensor]:  # noqa: UP045
        """(N, 3, K) directions that every layer may push along."""
        fields: List[Tensor] = []  # noqa: UP006
        if self.has_walls:
            fields.append(torch.einsum("nwk,wd->ndk", walls, self.wall_normals))
        if self.has_gravity:
            over_stride = self.gravity * (self.stride * self.stride / self.scale)
            fields.append(over_stride.reshape(1, 3, 1).expand(positions.shape[0], 3, 1))
        if len(fields) == 0:
            return None
        return torch.cat(fields, 2)

    def _edge_features(
        self, distance: Tensor, edge_index: Tensor, features: Optional[Tensor]  # noqa: UP045
    ) -> Optional[Tensor]:  # noqa: UP045
        inputs: List[Tensor] = []  # noqa: UP006
        for name in self.edge_inputs:
            if name == "distance":
                inputs.append((distance / self.scale).unsqueeze(1))
            elif features is not None:
                inputs.append(features[edge_index[0]] * features[edge_index[1]])
        if self.has_basis:
            reduced = (distance / self.cutoff).clamp(min=1e-6)
            inputs.append(self.basis(reduced) * polynomial_envelope(reduced, 1.0).unsqueeze(1))
        if len(inputs) == 0:
            return None
        return torch.cat(inputs, 1)

    def forward(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
        features: Optional[Tensor] = None,  # noqa: UP045
    ) -> Tuple[Tensor, Tensor, Tensor]:  # noqa: UP006
        """Predict one stride ahead.

        Args:
            positions: (N, 3), in the configuration's length unit; in a split system those of owned particles.
            velocities: (N, 3), length over time unit.
            species: (N,) int64 particle types; in a split system those of the halo follow, as in ``features``.
            edge_index: (2, E); row 0 receives.
            shifts: (E, 3) Cartesian lattice translations, added to receiver minus sender.
            batch: (N,) graph of each particle.
            periodic: (G,) bool; there virtual nodes carry features only.
            features: (N, F) invariant inputs.

        Returns:
            positions (N, 3), velocities (N, 3), virtual positions (G, 3, C).
        """
        own = positions.shape[0]
        kinds = self.kind_of[species[:own]]
        scaled_velocities = velocities * (self.stride / self.scale)
        everywhere = self.communication.halo([positions])[0]
        pair = everywhere[edge_index[0]] - everywhere[edge_index[1]] + shifts
        distance = torch.linalg.vector_norm(pair, dim=1)
        walls = self._wall_functions(positions) if self.has_walls else positions[:, :0].unsqueeze(2)
        boundary: Optional[Tensor] = None  # noqa: UP045
        if self.has_static:
            reached = torch.where(self.static[species[edge_index[1]]], distance, torch.full_like(distance, self.cutoff))
            nearest = torch.full_like(positions[:, 0], self.cutoff)
            nearest = nearest.scatter_reduce(0, edge_index[0], reached, "amin")
            boundary = (nearest / self.cutoff).unsqueeze(1)
        start = positions / self.scale
        steps, virtual_positions, hidden = self.network.layer_positions(
            self._node_inputs(
                scaled_velocities, kinds, walls, boundary, None if features is None else features[:own]
            ),
            start,
            scaled_velocities,
            edge_index,
            batch,
            periodic.shape[0],
            self._edge_features(distance, edge_index, features),
            None,
            shifts / self.scale,
            periodic,
            self._fields(walls, positions),
        )
        moved = (steps[-1] - start) * self.scale
        if self.predict_velocity:
            weights = self.velocity_head(hidden)
            after = weights[:, -1:] * scaled_velocities
            before = start
            for index in range(len(steps)):
                after = after + weights[:, index : index + 1] * (steps[index] - before)
                before = steps[index]
            moved_velocities = after * (self.scale / self.stride)
        else:
            moved_velocities = moved / self.stride
        if self.has_static:
            fixed = self.static[species[:own]].unsqueeze(1)
            moved = torch.where(fixed, torch.zeros_like(moved), moved)
            moved_velocities = torch.where(fixed, torch.zeros_like(moved), moved_velocities)
        if self.hard_walls and not self.training:
            # only without training: behind a wall the projection would leave the network no gradient
            moved, moved_velocities = self._stopped_by_walls(positions, moved, moved_velocities)
        # the displacement is added to the given positions: a large offset costs no more than its own rounding
        return positions + moved, moved_velocities, virtual_positions * self.scale

    @torch.jit.unused
    def predict(self, graph: ParticleGraph) -> Prediction:
        """:meth:`forward` of a graph whose velocities are those that the configuration names.

        Raises:
            InputError: unknown particle types, missing velocities or features.
        """
        check_known(self.config, graph)
        return predict_unchecked(self, graph)

    @torch.jit.unused
    def rotated(self, rotation: Tensor) -> "FastEGNNPropagator":
        """A copy whose box and gravity are turned by ``rotation`` (3, 3), ``x → x Rᵀ``: for symmetry tests."""
        copy = deepcopy(self)
        turn = rotation.to(self.wall_normals)
        copy.wall_normals = self.wall_normals @ turn.t()
        copy.gravity = self.gravity @ turn.t()
        return copy
