"""FastEGNN made fit for dynamics: smooth in the positions, extensive, with K displacement vectors a particle.

The published layer moves one copy of the positions, x_i + V_i, and feeds its distances back. Here K copies
move, x_i + V_i^k, and an edge sees how they lie to it. With û the unit vector and d the length of the *input*
pair x_i - x_j (so the envelope u(d) and with it the energy stay smooth as neighbours come and go):

| equation | variable |
| --- | --- |
| radial functions b(d) u(d) | ``radial`` (E, B) |
| geometry g_ij = [û·V_i, û·V_j, V_i·V_j] | ``geometry`` (E, 3K), from the second layer on |
| m_ij = SiLU(W₂ SiLU(W_i h_i + W_j h_j + W_b b u + W_g g_ij + w) + w₂) ⊙ (W_f b u) | ``message`` (E, F) |
| V_i ← V_i + n^-½ Σ_j (φ_x(m_ij) û + φ_V(m_ij) V_j) | ``vectors`` (N, 3, K) |
| h_i ← h_i + φ_h([h_i, n^-½ Σ_j m_ij, mean_c m_ic, (V_i A)·(V_i B)]) | ``features`` (N, F) |
| V_i ← V_i + φ_vel(h_i) (V_i A), the published velocity step with V_i for v_i | |

``n`` is a constant, the data set's mean neighbour count. Virtual nodes act as published in an open system. In a
periodic one, where no centre of mass exists, they carry features only, or, with ``fourier_width``, also Fourier modes
of learned particle weights (:mod:`egnn_md.nn.fourier`). What comes back from the modes stands where distance and
direction of a virtual node stand in an open system, and products of weight and potential follow the features at the
end. Why: docs/decisions/0002 and 0011.
"""

import math
from typing import Any, List, Optional  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn

from egnn_md.nn.basis import BesselBasis, polynomial_envelope
from egnn_md.nn.communication import Alone
from egnn_md.nn.fourier import FourierResponse, Waves, find_waves, modes_of, no_waves
from egnn_md.nn.perceptron import perceptron
from egnn_md.nn.segment import row_starts, segment_counts, segment_sum, sorted_by_receiver
from egnn_md.nn.smooth_config import SmoothConfig
from egnn_md.nn.virtual_exchange import NORM_SOFTENING, VirtualExchange, smooth_norm

__all__ = ["NORM_SOFTENING", "SmoothConfig", "SmoothFastEGNN", "SmoothLayer", "VirtualExchange", "smooth_norm"]


class SmoothLayer(nn.Module):
    """One layer of the module's table."""

    first: torch.jit.Final[bool]
    has_virtual: torch.jit.Final[bool]
    has_fourier: torch.jit.Final[bool]

    def __init__(self, config: SmoothConfig, *, first: bool) -> None:
        super().__init__()
        hidden, vectors = config.hidden, config.vector_channels
        self.first = first
        self.has_virtual = config.virtual_nodes > 0
        self.has_fourier = config.fourier_width > 0
        self.norm = 1.0 / math.sqrt(config.mean_neighbors)
        self.vectors = vectors
        self.from_receiver = nn.Linear(hidden, hidden)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.from_radial = nn.Linear(config.basis, hidden, bias=False)
        self.filter = nn.Linear(config.basis, hidden, bias=False)
        self.second = nn.Linear(hidden, hidden)
        self.activation = nn.SiLU()
        self.from_geometry: nn.Module = (
            nn.Identity() if first else nn.Linear(3 * vectors, hidden, bias=False)
        )
        self.vector_map = nn.Linear(hidden, vectors if first else 2 * vectors, bias=False)
        self.mix = nn.Linear(vectors, 2 * vectors, bias=False)
        aggregates = 3 if self.has_virtual else 2
        self.node_mlp = perceptron(aggregates * hidden + vectors, hidden, hidden)
        self.velocity_map = nn.Linear(hidden, vectors)
        self.communication: Alone = Alone()
        self.virtual: Any = VirtualExchange(config) if self.has_virtual else nn.Identity()
        self.charge_map: nn.Module = (
            nn.Linear(hidden, config.virtual_nodes, bias=False) if self.has_fourier else nn.Identity()
        )

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
        """Sums of vector steps (N, 3, K) and of messages (N, F) over each receiver's edges, not yet scaled.

        Args:
            features: (N, F).
            vectors: (N, 3, K).
            unit: (E, 3).
            radial: (E, B).
            receivers: (E,).
            senders: (E,).
            row_start: (N + 1,) where each receiver's edges begin, if they are sorted.
        """
        nodes = features.shape[0]
        hidden_edge = (
            self.from_receiver(features).index_select(0, receivers)
            + self.from_sender(features).index_select(0, senders)
            + self.from_radial(radial)
        )
        flat = vectors.reshape(nodes, 3 * self.vectors)
        sent = flat.index_select(0, senders).reshape(-1, 3, self.vectors)
        if not self.first:
            received = flat.index_select(0, receivers).reshape(-1, 3, self.vectors)
            u = unit.unsqueeze(2)
            geometry = torch.cat([(u * received).sum(1), (u * sent).sum(1), (received * sent).sum(1)], 1)
            hidden_edge = hidden_edge + self.from_geometry(geometry)
        message = self.activation(self.second(self.activation(hidden_edge))) * self.filter(radial)
        weights = self.vector_map(message)
        step = unit.unsqueeze(2) * weights[:, : self.vectors].unsqueeze(1)
        if not self.first:
            step = step + sent * weights[:, self.vectors :].unsqueeze(1)
        moved = segment_sum(step.reshape(-1, 3 * self.vectors), receivers, nodes)
        return moved.reshape(nodes, 3, self.vectors), segment_sum(message, receivers, nodes)

    def forward(
        self,
        features: Tensor,
        vectors: Tensor,
        positions: Tensor,
        virtual_features: Tensor,
        virtual_positions: Tensor,
        unit: Tensor,
        radial: Tensor,
        receivers: Tensor,
        senders: Tensor,
        batch: Tensor,
        open_graph: Tensor,
        row_start: Tensor,
        centre: Tensor,
        counts: Tensor,
        charges: Tensor,
        modes: Tensor,
        waves: Waves,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return updated ``features, vectors, virtual_features, virtual_positions, charges, modes``.

        ``positions`` has a row for every particle of this part, ``row_start`` counts its halo, too; the first layer is
        given features and vectors of both. ``centre`` (G, 3) and ``counts`` (G,) are those of all particles, and so
        are the sums in ``modes`` (G, W, 2C).
        """
        own = positions.shape[0]
        everywhere = [features, vectors]
        if self.first:
            features, vectors = features[:own], vectors[:own]
        else:
            everywhere = self.communication.halo(everywhere)
        moved, received = self.messages(everywhere[0], everywhere[1], unit, radial, receivers, senders, row_start)
        vectors = vectors + moved[:own] * self.norm
        aggregated = [features, received[:own] * self.norm]
        told: List[Tensor] = []  # noqa: UP006
        if self.has_virtual:
            mean_message, vector_step, steps, messages = self.virtual.gather(
                features,
                positions,
                virtual_features,
                virtual_positions,
                centre,
                batch,
                open_graph,
                charges,
                modes,
                waves,
            )
            vectors = vectors + vector_step
            told = [steps, messages]
            aggregated.append(mean_message)
        mixed = self.mix(vectors)
        left, right = mixed[:, :, : self.vectors], mixed[:, :, self.vectors :]
        aggregated.append((left * right).sum(1))
        features = features + self.node_mlp(torch.cat(aggregated, 1))
        vectors = vectors + left * self.velocity_map(features).unsqueeze(1)
        if self.has_virtual:
            if self.has_fourier:
                charges = self.charge_map(features)
                told = told + [modes_of(charges, waves)]  # noqa: RUF005
            # what the next layer asks virtual nodes for is complete after this one sum over all parts
            sums = self.communication.total(told)
            virtual_features, virtual_positions = self.virtual.update(
                virtual_features, virtual_positions, sums[0], sums[1], counts
            )
            if self.has_fourier:
                modes = sums[2]
        return features, vectors, virtual_features, virtual_positions, charges, modes


class SmoothFastEGNN(nn.Module):
    """Species and positions to invariant features (N, hidden), smooth to second derivatives.

    Args:
        config: sizes.
    """

    has_fourier: torch.jit.Final[bool]

    def __init__(self, config: SmoothConfig) -> None:
        super().__init__()
        self.config = config
        self.has_fourier = config.fourier_width > 0
        self.fourier_width: float = config.fourier_width
        self.cutoff: float = config.cutoff
        self.channels: int = config.virtual_nodes
        self.vectors: int = config.vector_channels
        self.needs_sorted_edges = False  # layers that read edges by receiver set it (egnn_md.kernels)
        self.communication: Alone = Alone()
        self.embedding = nn.Embedding(config.species, config.hidden)
        self.basis = BesselBasis(config.basis, config.cutoff)
        self.virtual_features = nn.Parameter(torch.randn(1, config.virtual_nodes, config.hidden))
        self.layers = nn.ModuleList(
            [SmoothLayer(config, first=index == 0) for index in range(config.layers)]
        )
        self.charge_map: nn.Module = (
            nn.Linear(config.hidden, config.virtual_nodes, bias=False) if self.has_fourier else nn.Identity()
        )
        self.response: Any = (
            FourierResponse(config.virtual_nodes, config.fourier_width) if self.has_fourier else nn.Identity()
        )

    def pair_inputs(self, pair: Tensor) -> tuple[Tensor, Tensor]:
        """Unit vectors (E, 3) and radial functions (E, B), which fall to zero at the cutoff, of pairs (E, 3)."""
        distance = (pair * pair).sum(1).sqrt()
        radial = self.basis(distance) * polynomial_envelope(distance, self.cutoff).unsqueeze(1)
        return pair / distance.unsqueeze(1), radial

    def forward(
        self,
        kinds: Tensor,
        positions: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
        cell: Optional[Tensor] = None,  # noqa: UP045 - the spelling TorchScript knows
    ) -> Tensor:
        """Features of every particle.

        Args:
            kinds: (N,) int64 in 0..species-1; in a split system those of the halo follow.
            positions: (N, 3), Å.
            edge_index: (2, E); row 0 receives. Pairs beyond the cutoff contribute exactly nothing.
            shifts: (E, 3) Cartesian lattice translations, Å.
            batch: (N,) graph of each particle.
            periodic: (G,) bool.
            cell: (G, 3, 3) rows, Å, zero for graphs that do not repeat in all directions; needed with Fourier modes.

        Returns:
            (N, hidden), and with Fourier modes C more columns: each channel's weight times its potential.
        """
        if self.needs_sorted_edges:
            edge_index, ordered, _ = sorted_by_receiver(edge_index, shifts, None)
            assert ordered is not None
            shifts = ordered
        receivers, senders = edge_index[0], edge_index[1]
        everywhere = self.communication.halo([positions])[0]
        unit, radial = self.pair_inputs(
            everywhere.index_select(0, receivers) - everywhere.index_select(0, senders) + shifts
        )
        nodes = everywhere.shape[0]
        row_start = row_starts(segment_counts(receivers, nodes, positions))
        graphs = periodic.shape[0]
        features = self.embedding(kinds)
        vectors = torch.zeros([nodes, 3, self.vectors], dtype=positions.dtype, device=positions.device)
        counts = positions.new_zeros(graphs)
        centre = positions.new_zeros([graphs, 3])
        waves = no_waves(positions, graphs)
        charges = positions.new_zeros([positions.shape[0], 0])
        modes = positions.new_zeros([graphs, 0, 0])
        if self.channels > 0:
            told = [segment_counts(batch, graphs, positions), segment_sum(positions, batch, graphs)]
            if self.has_fourier:
                assert cell is not None, "a network with Fourier modes needs the cell"
                waves = find_waves(positions, cell, batch, self.fourier_width)
                charges = self.charge_map(features[: positions.shape[0]])
                told = told + [modes_of(charges, waves)]  # noqa: RUF005
            sums = self.communication.total(told)
            counts = sums[0]
            centre = sums[1] / counts.clamp(min=1.0).unsqueeze(1)
            if self.has_fourier:
                modes = sums[2]
        virtual_positions = centre.unsqueeze(1).expand(-1, self.channels, -1)
        virtual_features = self.virtual_features.expand(graphs, -1, -1)
        open_graph = periodic.logical_not().to(positions.dtype).reshape(-1, 1, 1)
        for layer in self.layers:
            features, vectors, virtual_features, virtual_positions, charges, modes = layer(
                features,
                vectors,
                positions,
                virtual_features,
                virtual_positions,
                unit,
                radial,
                receivers,
                senders,
                batch,
                open_graph,
                row_start,
                centre,
                counts,
                charges,
                modes,
                waves,
            )
        if self.has_fourier:
            weighted = self.response.weighted(modes, waves)
            features = torch.cat([features, charges * self.response.potential(weighted, waves)], 1)
        return features
