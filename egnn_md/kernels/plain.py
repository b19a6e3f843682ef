"""What the fused kernels compute, written with plain torch operations: their reference, and their second derivatives.

The functions take a layer apart where the fast paths do: what belongs to a particle alone (the two parts of the
first map, the feature update) stays outside, what a pair needs is inside. Each is a map of single rows (a pair, or a
particle and a virtual node), ``*_rows``, between a gather and a sum. Equations as in :mod:`egnn_md.nn.fast_egnn`,
:mod:`egnn_md.nn.virtual_nodes` and :mod:`egnn_md.nn.smooth`.

| symbol | argument |
| --- | --- |
| part of the first map that i, j, and the pair itself bring | ``a`` (N, F), ``b`` (N, F), ``geometry_map`` (1 + D, F) |
| second map of φ_e | ``w2`` (F, F), ``b2`` (F,): ``silu(x @ w2.T + b2)`` |
| attention | ``gate_w`` (F,), ``gate_b`` (1,); both None without it |
| φ_x | ``w3`` (F, F), ``b3`` (F,), ``w4`` (F,): ``silu(m @ w3.T + b3) @ w4 [tanh]`` |
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.functional import linear

from egnn_md.nn.basis import polynomial_envelope
from egnn_md.nn.layer import DISTANCE_OFFSET
from egnn_md.nn.segment import segment_counts, segment_mean, segment_sum

Activation = Callable[[Tensor], Tensor]


def _gated(message: Tensor, gate_w: Tensor | None, gate_b: Tensor | None) -> Tensor:
    if gate_w is None:
        return message
    assert gate_b is not None
    return message * torch.sigmoid(message @ gate_w + gate_b).unsqueeze(-1)


def _weight(message: Tensor, first: Tensor, bias: Tensor, last: Tensor, tanh: bool, silu: Activation) -> Tensor:
    """(..., 1) number that a direction is multiplied by."""
    weight = (silu(linear(message, first, bias)) @ last).unsqueeze(-1)
    return torch.tanh(weight) if tanh else weight


def edge_rows(
    difference: Tensor,
    joined: Tensor,
    edge_features: Tensor | None,
    geometry_map: Tensor,
    w2: Tensor,
    b2: Tensor,
    gate_w: Tensor | None,
    gate_b: Tensor | None,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    normalize: bool,
    tanh: bool,
    silu: Activation = functional.silu,
) -> tuple[Tensor, Tensor]:
    """Step (E, 3) and message (E, F) of pairs with difference (E, 3) and ``a_i + b_j`` (E, F)."""
    squared = (difference * difference).sum(1, keepdim=True)
    if normalize:
        difference = difference / (squared.sqrt().detach() + DISTANCE_OFFSET)
    joined = joined + squared * geometry_map[0]
    if edge_features is not None:
        joined = joined + edge_features @ geometry_map[1:]
    message = _gated(silu(linear(silu(joined), w2, b2)), gate_w, gate_b)
    return difference * _weight(message, w3, b3, w4, tanh, silu), message


def edge_messages(
    positions: Tensor,
    shifts: Tensor | None,
    a: Tensor,
    b: Tensor,
    edge_features: Tensor | None,
    geometry_map: Tensor,
    w2: Tensor,
    b2: Tensor,
    gate_w: Tensor | None,
    gate_b: Tensor | None,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    receivers: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
) -> tuple[Tensor, Tensor]:
    """Messages between particles: mean step (N, 3) and mean message (N, F) of each receiver, zero without edges.

    Args:
        positions: (N, 3).
        shifts: (E, 3) added to receiver minus sender; None means zero.
        a: (N, F), of the receiver, with the bias of the first map.
        b: (N, F), of the sender.
        edge_features: (E, D) or None.
        geometry_map: (1 + D, F), the squared distance first.
        w2, b2, gate_w, gate_b, w3, b3, w4: see the table above.
        receivers: (E,) int64.
        senders: (E,) int64.
        normalize: the difference is divided by its length, which takes no gradient.
        tanh: of the step's weight.
    """
    nodes = positions.shape[0]
    difference = positions.index_select(0, receivers) - positions.index_select(0, senders)
    if shifts is not None:
        difference = difference + shifts
    joined = a.index_select(0, receivers) + b.index_select(0, senders)
    step, message = edge_rows(
        difference, joined, edge_features, geometry_map, w2, b2, gate_w, gate_b, w3, b3, w4, normalize, tanh
    )
    degree = segment_counts(receivers, nodes, positions)
    return segment_mean(step, receivers, nodes, degree), segment_mean(message, receivers, nodes, degree)


def virtual_rows(
    to_virtual: Tensor,
    joined: Tensor,
    distance_map: Tensor,
    w2: Tensor,
    b2: Tensor,
    gate_w: Tensor | None,
    gate_b: Tensor | None,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    w5: Tensor,
    b5: Tensor,
    w6: Tensor,
    tanh: bool,
    silu: Activation = functional.silu,
) -> tuple[Tensor, Tensor, Tensor]:
    """Step (N, C, 3) of the particle, of the virtual node, and message (N, C, F), from ``z_c - x_i`` (N, C, 3)."""
    distance = torch.linalg.vector_norm(to_virtual, dim=-1, keepdim=True)
    message = _gated(silu(linear(silu(joined + distance * distance_map), w2, b2)), gate_w, gate_b)
    step = -to_virtual * _weight(message, w3, b3, w4, tanh, silu)
    return step, to_virtual * _weight(message, w5, b5, w6, tanh, silu), message


def virtual_messages(
    positions: Tensor,
    places: Tensor,
    is_open: Tensor,
    a: Tensor,
    of_virtual: Tensor,
    distance_map: Tensor,
    w2: Tensor,
    b2: Tensor,
    gate_w: Tensor | None,
    gate_b: Tensor | None,
    w3: Tensor,
    b3: Tensor,
    w4: Tensor,
    w5: Tensor,
    b5: Tensor,
    w6: Tensor,
    batch: Tensor,
    tanh: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Messages between particles and virtual nodes.

    Args:
        positions: (N, 3).
        places: (G, C, 3) of the virtual nodes.
        is_open: (G,) 1 where a centre of mass exists, 0 in a periodic cell, in the dtype of ``positions``.
        a: (N, F), what particles bring to the first map, with its bias.
        of_virtual: (G, C, F), what virtual nodes and their mixing bring.
        distance_map: (F,), what the distance is multiplied by.
        w2, b2, gate_w, gate_b: as for edges.
        w3, b3, w4: φ_xv, of the particles' steps.
        w5, b5, w6: φ_Z, of the virtual nodes' steps.
        batch: (N,) int64 graph of each particle, in any order.
        tanh: of both steps' weights.

    Returns:
        the particles' steps (N, 3) and mean messages (N, F), both means over C; *sums* over the particles of
        each graph of the virtual nodes' steps (G, C, 3) and of the messages (G, C, F).
    """
    graphs = places.shape[0]
    to_virtual = places.index_select(0, batch) - positions.unsqueeze(1)  # (N, C, 3)
    to_virtual = to_virtual * is_open.index_select(0, batch).reshape(-1, 1, 1)
    joined = a.unsqueeze(1) + of_virtual.index_select(0, batch)
    step, virtual_step, message = virtual_rows(
        to_virtual, joined, distance_map, w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6, tanh
    )
    sums = segment_sum(virtual_step, batch, graphs), segment_sum(message, batch, graphs)
    return step.mean(1), message.mean(1), *sums


def smooth_rows(
    unit: Tensor,
    radial: Tensor,
    joined: Tensor,
    received: Tensor | None,
    sent: Tensor | None,
    radial_map: Tensor,
    geometry_map: Tensor | None,
    w2: Tensor,
    b2: Tensor,
    filter_map: Tensor,
    vector_map: Tensor,
    silu: Activation = functional.silu,
) -> tuple[Tensor, Tensor]:
    """Vector step (E, 3, K) and message (E, F) of pairs with ``V_i``, ``V_j`` (E, 3, K) and ``a_i + b_j`` (E, F)."""
    joined = joined + radial @ radial_map
    u = unit.unsqueeze(2)
    if received is not None:
        assert geometry_map is not None
        assert sent is not None
        geometry = torch.cat([(u * received).sum(1), (u * sent).sum(1), (received * sent).sum(1)], 1)
        joined = joined + geometry @ geometry_map
    message = silu(linear(silu(joined), w2, b2)) * (radial @ filter_map)
    weights = message @ vector_map.t()
    if sent is None:
        return u * weights.unsqueeze(1), message
    along, mixed = weights.unsqueeze(1).chunk(2, dim=2)
    return u * along + sent * mixed, message


def smooth_messages(
    unit: Tensor,
    radial: Tensor,
    a: Tensor,
    b: Tensor,
    vectors: Tensor | None,
    radial_map: Tensor,
    geometry_map: Tensor | None,
    w2: Tensor,
    b2: Tensor,
    filter_map: Tensor,
    vector_map: Tensor,
    receivers: Tensor,
    senders: Tensor,
) -> tuple[Tensor, Tensor]:
    """Messages of :mod:`egnn_md.nn.smooth`: sums over the edges of each receiver.

    Args:
        unit: (E, 3) û.
        radial: (E, B), basis times envelope.
        a: (N, F), of the receiver, with the bias of the first map.
        b: (N, F), of the sender.
        vectors: (N, 3, K) V; None in the first layer, where they are zero.
        radial_map: (B, F).
        geometry_map: (3 K, F), of [û·V_i, û·V_j, V_i·V_j]; None in the first layer.
        w2: (F, F).
        b2: (F,).
        filter_map: (B, F).
        vector_map: (2 K, F), in the first layer (K, F).
        receivers: (E,) int64.
        senders: (E,) int64.

    Returns:
        vector steps (N, 3, K) and messages (N, F).
    """
    nodes = a.shape[0]
    joined = a.index_select(0, receivers) + b.index_select(0, senders)
    received = sent = None
    if vectors is not None:
        received, sent = vectors.index_select(0, receivers), vectors.index_select(0, senders)
    step, message = smooth_rows(
        unit, radial, joined, received, sent, radial_map, geometry_map, w2, b2, filter_map, vector_map
    )
    return segment_sum(step, receivers, nodes), segment_sum(message, receivers, nodes)


def radial_functions(pair: Tensor, basis: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """Unit vectors (E, 3) and Bessel functions times the envelope (E, basis) of pairs (E, 3)."""
    distance = (pair * pair).sum(1).sqrt()
    orders = torch.arange(1, basis + 1, dtype=pair.dtype, device=pair.device)
    d = distance.unsqueeze(1)
    bessel = math.sqrt(2.0 / cutoff) * torch.sin(orders * (math.pi / cutoff) * d) / d
    return pair / d, bessel * polynomial_envelope(distance, cutoff).unsqueeze(1)
