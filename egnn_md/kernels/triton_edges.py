# mypy: allow-incomplete-defs, allow-untyped-defs
"""Messages between particles in one kernel each way; what they compute is :func:`egnn_md.kernels.plain.edge_messages`.

Edges are sorted by receiver, those of i are ``row_start[i]:row_start[i + 1]``. A program owns a tile of consecutive
receivers and walks through their edges in blocks, so that

- the means over a receiver's edges, and the gradients of what it brings, are sums that stay in registers: a block's
  share is the product of a 0/1 matrix (receivers, edges) with the messages, a few per cent of the work of the maps.
  Nothing is added to memory by many programs, the sums have a fixed order, and no list of receivers is read;
- tiles are of many receivers, so that uneven degrees average out and blocks of edges are full; with few particles they
  are of few, so that all processors have work (:func:`receivers_of_tile`).

Splitting edges evenly instead would balance better, but every message would be added to memory atomically, F numbers
an edge, or receivers that lie across a boundary would need a second pass.

No (E, F) tensor exists in memory in either pass: the backward computes each message again from ``a``, ``b`` and the
positions, two products of six. Gradients of weights stay in a program (registers for F up to 64, its own rows of a
buffer above) while it walks through every n-th tile; there are at most two programs a processor, and torch sums the
buffer. Gradients of senders are added atomically: their order, and so the last digits, differ from run to run.

| symbol | variable |
| --- | --- |
| x_i - x_j + shift | ``x``, ``y``, ``z`` of a block's edges |
| a_i + b_j + geometry | ``joined`` (edges, WIDTH) |
| which edge is of which receiver | ``mine`` (receivers, edges) |
"""

import triton
import triton.language as tl
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels.triton_common import (
    Blocks,
    check,
    dot,
    factor_back,
    factor_of,
    launch,
    message_back,
    message_of,
    processors,
    same_kind,
    split_partial,
    store_square,
    store_vector,
    vector,
)
from egnn_md.nn.layer import DISTANCE_OFFSET


@triton.jit
def _block(edge, last, start, end, receivers, positions, shifts, a, b, edge_features, geometry_map, senders,
           HIDDEN: tl.constexpr, WIDTH: tl.constexpr, FEATURES: tl.constexpr):  # fmt: skip
    """Geometry and first map of a block of edges."""
    present = edge < last
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    # (receivers, edges): which edge is whose
    mine = (edge[None, :] >= start[:, None]) & (edge[None, :] < end[:, None])
    receiver = tl.sum(tl.where(mine, receivers[:, None], 0), 0)
    sender = tl.load(senders + edge, mask=present, other=0)
    x = tl.load(positions + receiver * 3, mask=present, other=0.0)
    y = tl.load(positions + receiver * 3 + 1, mask=present, other=0.0)
    z = tl.load(positions + receiver * 3 + 2, mask=present, other=0.0)
    x -= tl.load(positions + sender * 3, mask=present, other=0.0)
    y -= tl.load(positions + sender * 3 + 1, mask=present, other=0.0)
    z -= tl.load(positions + sender * 3 + 2, mask=present, other=0.0)
    if shifts is not None:
        x += tl.load(shifts + edge * 3, mask=present, other=0.0)
        y += tl.load(shifts + edge * 3 + 1, mask=present, other=0.0)
        z += tl.load(shifts + edge * 3 + 2, mask=present, other=0.0)
    squared = x * x + y * y + z * z
    both = present[:, None] & inside[None, :]
    joined = tl.load(a + receiver[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
    joined += tl.load(b + sender[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
    joined += squared[:, None] * tl.load(geometry_map + column, mask=inside, other=0.0)[None, :]
    for d in tl.static_range(FEATURES):
        feature = tl.load(edge_features + edge * FEATURES + d, mask=present, other=0.0)
        row = tl.load(geometry_map + (1 + d) * HIDDEN + column, mask=inside, other=0.0)
        joined += feature[:, None] * row[None, :]
    return mine, receiver, sender, x, y, z, squared, joined


@triton.jit(do_not_specialize=["nodes"])
def edge_forward_kernel(positions, shifts, a, b, edge_features, geometry_map, w2, b2, gate_w, gate_b, w3, b3, w4,
                   row_start, senders, step, pooled, nodes, OFFSET: tl.constexpr,
                   HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, FEATURES: tl.constexpr,
                   RECEIVERS: tl.constexpr, EDGES: tl.constexpr, NORMALIZE: tl.constexpr, TANH: tl.constexpr,
                   PRECISION: tl.constexpr):  # fmt: skip
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    for tile in range(tl.program_id(0), tl.cdiv(nodes, RECEIVERS), tl.num_programs(0)):
        receivers = tl.cast(tile, tl.int64) * RECEIVERS + tl.arange(0, RECEIVERS)
        real = receivers < nodes
        start = tl.load(row_start + receivers, mask=real, other=0)
        end = tl.load(row_start + receivers + 1, mask=real, other=0)
        first = tl.load(row_start + tile * RECEIVERS)
        last = tl.load(row_start + tl.minimum((tile + 1) * RECEIVERS, nodes))
        total = tl.zeros((RECEIVERS, WIDTH), dtype=a.dtype.element_ty)
        sx = tl.zeros((RECEIVERS,), dtype=a.dtype.element_ty)
        sy = tl.zeros_like(sx)
        sz = tl.zeros_like(sx)
        for at in range(first, last, EDGES):
            edge = at + tl.arange(0, EDGES)
            mine, _receiver, _sender, x, y, z, squared, joined = _block(
                edge, last, start, end, receivers, positions, shifts, a, b, edge_features, geometry_map, senders,
                HIDDEN, WIDTH, FEATURES)  # fmt: skip
            message, _, _, _ = message_of(joined, w2, b2, gate_w, gate_b, HIDDEN, WIDTH, CHUNK, PRECISION)
            factor, _ = factor_of(message, w3, b3, w4, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)
            if NORMALIZE:
                factor /= tl.sqrt(squared) + OFFSET
            total = dot(mine.to(message.dtype), message, total, PRECISION)
            sx += tl.sum(tl.where(mine, (x * factor)[None, :], 0.0), 1)
            sy += tl.sum(tl.where(mine, (y * factor)[None, :], 0.0), 1)
            sz += tl.sum(tl.where(mine, (z * factor)[None, :], 0.0), 1)
        share = 1.0 / tl.maximum(end - start, 1).to(sx.dtype)
        tl.store(step + receivers * 3, sx * share, mask=real)
        tl.store(step + receivers * 3 + 1, sy * share, mask=real)
        tl.store(step + receivers * 3 + 2, sz * share, mask=real)
        tl.store(pooled + receivers[:, None] * HIDDEN + column[None, :], total * share[:, None],
                 mask=real[:, None] & inside[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["nodes"])
def edge_backward_kernel(grad_step, grad_pooled, positions, shifts, a, b, edge_features, geometry_map, w2, b2, gate_w,
                    gate_b, w3, b3, w4, row_start, senders, g_positions, g_shifts, g_a, g_b, g_edge_features, partial,
                    nodes, OFFSET: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
                    FEATURES: tl.constexpr, RECEIVERS: tl.constexpr, EDGES: tl.constexpr, NORMALIZE: tl.constexpr,
                    TANH: tl.constexpr, IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients of the two means. ``partial`` (programs, size) holds each program's gradients of the weights."""
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    WEIGHTS: tl.constexpr = partial is not None
    SQUARE: tl.constexpr = WIDTH if WEIGHTS and IN_REGISTERS else 1
    SIZE: tl.constexpr = 2 * HIDDEN * HIDDEN + (5 + FEATURES) * HIDDEN + 1
    NUMBER: tl.constexpr = a.dtype.element_ty
    g_w2 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_w3 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_b2 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_b3 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_w4 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_gate_w = tl.zeros((WIDTH,), dtype=NUMBER)
    g_squared_map = tl.zeros((WIDTH,), dtype=NUMBER)
    g_gate_b = tl.sum(tl.zeros((1,), dtype=NUMBER), 0)
    if WEIGHTS:
        own = partial + tl.program_id(0).to(tl.int64) * SIZE
    else:
        own = g_a
    own_vectors = own + 2 * HIDDEN * HIDDEN
    for tile in range(tl.program_id(0), tl.cdiv(nodes, RECEIVERS), tl.num_programs(0)):
        receivers = tl.cast(tile, tl.int64) * RECEIVERS + tl.arange(0, RECEIVERS)
        real = receivers < nodes
        start = tl.load(row_start + receivers, mask=real, other=0)
        end = tl.load(row_start + receivers + 1, mask=real, other=0)
        first = tl.load(row_start + tile * RECEIVERS)
        last = tl.load(row_start + tl.minimum((tile + 1) * RECEIVERS, nodes))
        share = 1.0 / tl.maximum(end - start, 1).to(NUMBER)
        total = tl.zeros((RECEIVERS, WIDTH), dtype=NUMBER)
        sx = tl.zeros((RECEIVERS,), dtype=NUMBER)
        sy = tl.zeros_like(sx)
        sz = tl.zeros_like(sx)
        for at in range(first, last, EDGES):
            edge = at + tl.arange(0, EDGES)
            present = edge < last
            both = present[:, None] & inside[None, :]
            mine, receiver, sender, x, y, z, squared, joined = _block(
                edge, last, start, end, receivers, positions, shifts, a, b, edge_features, geometry_map, senders,
                HIDDEN, WIDTH, FEATURES)  # fmt: skip
            message, hidden, second, gate = message_of(
                joined, w2, b2, gate_w, gate_b, HIDDEN, WIDTH, CHUNK, PRECISION)  # fmt: skip
            factor, third = factor_of(message, w3, b3, w4, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)

            # the means' gradients, zero for edges that are not present
            edge_share = tl.sum(tl.where(mine, share[:, None], 0.0), 0)
            gx = tl.load(grad_step + receiver * 3, mask=present, other=0.0) * edge_share
            gy = tl.load(grad_step + receiver * 3 + 1, mask=present, other=0.0) * edge_share
            gz = tl.load(grad_step + receiver * 3 + 2, mask=present, other=0.0) * edge_share
            if NORMALIZE:  # the length is a constant
                inverse = 1.0 / (tl.sqrt(squared) + OFFSET)
                gx *= inverse
                gy *= inverse
                gz *= inverse
            g_factor = gx * x + gy * y + gz * z
            g_message, g_w3, g_b3, g_w4 = factor_back(
                g_factor, factor, third, message, w3, w4, g_w3, g_b3, g_w4, own + HIDDEN * HIDDEN,
                HIDDEN, WIDTH, CHUNK, TANH, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip
            address = grad_pooled + receiver[:, None] * HIDDEN + column[None, :]
            g_message += tl.load(address, mask=both, other=0.0) * edge_share[:, None]
            g_joined, g_w2, g_b2, g_gate_w, g_gate_b = message_back(
                g_message, joined, hidden, second, gate, w2, gate_w, g_w2, g_b2, g_gate_w, g_gate_b, own,
                HIDDEN, WIDTH, CHUNK, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip

            # what joined was made of
            total = dot(mine.to(NUMBER), g_joined, total, PRECISION)
            tl.atomic_add(g_b + sender[:, None] * HIDDEN + column[None, :], g_joined, mask=both, sem="relaxed")
            g_squared = 2.0 * tl.sum(g_joined * vector(geometry_map, HIDDEN, WIDTH), 1)
            if WEIGHTS:
                g_squared_map += tl.sum(g_joined * squared[:, None], 0)
            for d in tl.static_range(FEATURES):
                if WEIGHTS:
                    feature = tl.load(edge_features + edge * FEATURES + d, mask=present, other=0.0)
                    row = own_vectors + (5 + d) * HIDDEN + column
                    before = tl.load(row, mask=inside, other=0.0)
                    tl.store(row, before + tl.sum(g_joined * feature[:, None], 0), mask=inside)
                if g_edge_features is not None:
                    of_feature = tl.sum(g_joined * vector(geometry_map + (1 + d) * HIDDEN, HIDDEN, WIDTH), 1)
                    tl.store(g_edge_features + edge * FEATURES + d, of_feature, mask=present)
            if WEIGHTS and FEATURES > 0:
                tl.debug_barrier()  # the next block reads what other threads may have written of ``row``
            gx = gx * factor + g_squared * x
            gy = gy * factor + g_squared * y
            gz = gz * factor + g_squared * z
            sx += tl.sum(tl.where(mine, gx[None, :], 0.0), 1)
            sy += tl.sum(tl.where(mine, gy[None, :], 0.0), 1)
            sz += tl.sum(tl.where(mine, gz[None, :], 0.0), 1)
            tl.atomic_add(g_positions + sender * 3, -gx, mask=present, sem="relaxed")
            tl.atomic_add(g_positions + sender * 3 + 1, -gy, mask=present, sem="relaxed")
            tl.atomic_add(g_positions + sender * 3 + 2, -gz, mask=present, sem="relaxed")
            if g_shifts is not None:
                tl.store(g_shifts + edge * 3, gx, mask=present)
                tl.store(g_shifts + edge * 3 + 1, gy, mask=present)
                tl.store(g_shifts + edge * 3 + 2, gz, mask=present)
        tl.store(g_a + receivers[:, None] * HIDDEN + column[None, :], total, mask=real[:, None] & inside[None, :])
        tl.atomic_add(g_positions + receivers * 3, sx, mask=real, sem="relaxed")
        tl.atomic_add(g_positions + receivers * 3 + 1, sy, mask=real, sem="relaxed")
        tl.atomic_add(g_positions + receivers * 3 + 2, sz, mask=real, sem="relaxed")
    if WEIGHTS:
        if IN_REGISTERS:
            store_square(own, g_w2, HIDDEN, WIDTH)
            store_square(own + HIDDEN * HIDDEN, g_w3, HIDDEN, WIDTH)
        store_vector(own_vectors, g_b2, HIDDEN, WIDTH)
        store_vector(own_vectors + HIDDEN, g_b3, HIDDEN, WIDTH)
        store_vector(own_vectors + 2 * HIDDEN, g_w4, HIDDEN, WIDTH)
        store_vector(own_vectors + 3 * HIDDEN, g_gate_w, HIDDEN, WIDTH)
        store_vector(own_vectors + 4 * HIDDEN, g_squared_map, HIDDEN, WIDTH)
        tl.store(own_vectors + (5 + FEATURES) * HIDDEN, g_gate_b)


def receivers_of_tile(nodes: int, edges: int, rows: int, processors: int) -> int:
    """Receivers of a tile: some 16 blocks of edges a tile (its last block is half empty), yet 4 tiles a processor."""
    receivers = 64
    while receivers > 4 and (receivers * edges > 16 * rows * nodes or nodes < 4 * processors * receivers):
        receivers //= 2
    return receivers


def _check_shapes(
    positions: Tensor, shifts: Tensor | None, a: Tensor, b: Tensor, edge_features: Tensor | None, geometry_map: Tensor,
    row_start: Tensor, senders: Tensor,
) -> None:  # fmt: skip
    nodes, hidden = a.shape
    edges, features = senders.shape[0], geometry_map.shape[0] - 1
    wanted = {
        "positions": (positions, (nodes, 3)),
        "shifts": (shifts, (edges, 3)),
        "b": (b, (nodes, hidden)),
        "edge_features": (edge_features, (edges, features)),
        "geometry_map": (geometry_map, (1 + features, hidden)),
        "row_start": (row_start, (nodes + 1,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{name} is {tuple(tensor.shape)}; with these features and senders it must be {shape}")
    if features and edge_features is None:
        raise InputError(f"geometry_map has {features} rows for edge features, but edge_features is None; pass them")


def edge_forward(
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
    row_start: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
    precision: str = "ieee",
) -> tuple[Tensor, Tensor]:
    """What :func:`egnn_md.kernels.plain.edge_messages` returns, for edges sorted by receiver.

    Args:
        row_start: (N + 1,) int64, the edges of receiver i are ``row_start[i]:row_start[i + 1]``; from 0 to E and never
            falling, which is not looked at (that would wait for the GPU).
        precision: of the products, one of :data:`~egnn_md.kernels.triton_common.PRECISIONS`.

    The other arguments are those of the plain function.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    mode = check(a, precision)
    _check_shapes(positions, shifts, a, b, edge_features, geometry_map, row_start, senders)
    same_kind(a, positions=positions, shifts=shifts, b=b, edge_features=edge_features, w2=w2, row_start=row_start,
              senders=senders)  # fmt: skip
    (nodes, hidden), features = a.shape, geometry_map.shape[0] - 1
    blocks = Blocks(hidden, mode, backward=False)
    receivers = receivers_of_tile(nodes, senders.shape[0], blocks.rows, processors(a))
    step, pooled = a.new_empty((nodes, 3)), a.new_empty((nodes, hidden))
    programs = max(1, min(triton.cdiv(nodes, receivers), 4 * processors(a)))
    tensors = [positions, shifts, a, b, edge_features if features else None, geometry_map, w2, b2, gate_w, gate_b, w3,
               b3, w4, row_start, senders, step, pooled]  # fmt: skip
    launch(edge_forward_kernel, programs, blocks, tensors, nodes, OFFSET=DISTANCE_OFFSET, HIDDEN=hidden,
           FEATURES=features, RECEIVERS=receivers, EDGES=blocks.rows, NORMALIZE=normalize, TANH=tanh,
           PRECISION=mode)  # fmt: skip
    return step, pooled


def edge_backward(
    grad_step: Tensor,
    grad_pooled: Tensor,
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
    row_start: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
    need_weights: bool,
    need_edge_features: bool,
    need_shifts: bool,
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs from those of :func:`edge_forward`'s two outputs.

    Args:
        grad_step, grad_pooled: (N, 3), (N, F).
        need_weights: otherwise the gradients of ``geometry_map`` and of all weights are None.
        need_edge_features, need_shifts: otherwise theirs are None.

    Returns:
        gradients of positions, shifts, a, b, edge_features, geometry_map, w2, b2, gate_w, gate_b, w3, b3, w4; None
        for what is None.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    mode = check(a, precision)
    _check_shapes(positions, shifts, a, b, edge_features, geometry_map, row_start, senders)
    same_kind(a, positions=positions, shifts=shifts, b=b, edge_features=edge_features, w2=w2, row_start=row_start,
              senders=senders, grad_step=grad_step, grad_pooled=grad_pooled)  # fmt: skip
    (nodes, hidden), features = a.shape, geometry_map.shape[0] - 1
    blocks = Blocks(hidden, mode, backward=True)
    receivers = receivers_of_tile(nodes, senders.shape[0], blocks.rows, processors(a))
    programs = max(1, min(triton.cdiv(nodes, receivers), 2 * processors(a)))
    square, row = (hidden, hidden), (hidden,)
    sizes = [square, square, row, row, row, row, (1 + features, hidden), (1,)]
    partial = a.new_zeros((programs, 2 * hidden * hidden + (5 + features) * hidden + 1)) if need_weights else None
    g_positions, g_a, g_b = a.new_zeros((nodes, 3)), a.new_empty((nodes, hidden)), a.new_zeros((nodes, hidden))
    g_shifts = a.new_empty((senders.shape[0], 3)) if need_shifts and shifts is not None else None
    wanted = need_edge_features and edge_features is not None
    g_edge_features = a.new_empty((senders.shape[0], features)) if wanted else None
    tensors = [grad_step, grad_pooled, positions, shifts, a, b, edge_features if features else None, geometry_map, w2,
               b2, gate_w, gate_b, w3, b3, w4, row_start, senders, g_positions, g_shifts, g_a, g_b,
               g_edge_features if features else None, partial]  # fmt: skip
    launch(edge_backward_kernel, programs, blocks, tensors, nodes, OFFSET=DISTANCE_OFFSET, HIDDEN=hidden,
           FEATURES=features, RECEIVERS=receivers, EDGES=blocks.rows, NORMALIZE=normalize, TANH=tanh,
           IN_REGISTERS=blocks.in_registers, PRECISION=mode)  # fmt: skip
    g_w2, g_w3, g_b2, g_b3, g_w4, g_gate_w, g_geometry_map, g_gate_b = split_partial(partial, sizes)
    if gate_w is None:
        g_gate_w = g_gate_b = None
    return (g_positions, g_shifts, g_a, g_b, g_edge_features, g_geometry_map, g_w2, g_b2, g_gate_w, g_gate_b, g_w3,
            g_b3, g_w4)  # fmt: skip
