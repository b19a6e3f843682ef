# mypy: allow-incomplete-defs, allow-untyped-defs
"""Messages between particles and virtual nodes in one kernel each way; what they compute is
:func:`egnn_md.kernels.plain.virtual_messages`.

A program owns ``ROWS`` particles and loops over their C virtual nodes, so that the means over C stay in registers and
one program alone writes a particle's outputs and gradients. No (N, C, F) tensor exists in memory in either pass: the
backward computes each message again.

The sums over the particles of a graph are made in two steps. A block of rows is summed on chip, once for each graph
that has a particle in it (one or two if the particles of a graph are neighbours in memory; any order of ``batch`` is
right, a shuffled one is slow). That sum is added to a buffer (slots, G, C, F + 3), of which torch sums the slots. Each
program has its own slot, so the order of summation is fixed, unless the buffer would exceed ``SLOT_BYTES``: then
programs share slots. With one graph of 10⁵ particles this is one addition per block of 32 and feature, and none of
them meets another program's.

Gradients of weights as in :mod:`egnn_md.kernels.triton_edges`.

| symbol | variable |
| --- | --- |
| z_c - x_i, zero in a periodic cell, its length | ``x``, ``y``, ``z``, ``distance`` |
| a_i + v_c + distance · distance_map | ``joined`` |
| φ_xv, φ_Z | ``factor``, ``virtual_factor`` |
"""

import triton
import triton.language as tl
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels.triton_common import (
    Blocks,
    check,
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

#: limit of the buffer of sums over graphs: small beside the level-two cache of 50 MB, and quickly summed
SLOT_BYTES = 16 * 2**20


@triton.jit
def _direction(graph, c, px, py, pz, real, places, is_open, CHANNELS: tl.constexpr):
    """From particles to virtual node c of their graph, and whether it has a place."""
    place = places + (graph * CHANNELS + c) * 3
    opened = tl.load(is_open + graph, mask=real, other=0.0)
    x = (tl.load(place, mask=real, other=0.0) - px) * opened
    y = (tl.load(place + 1, mask=real, other=0.0) - py) * opened
    z = (tl.load(place + 2, mask=real, other=0.0) - pz) * opened
    return x, y, z, opened


@triton.jit
def _add_by_graph(vectors, rows, x, y, z, graph, real, lowest, highest, c, CHANNELS: tl.constexpr,
                  HIDDEN: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Add the sums over each graph of ``rows`` and (x, y, z) to a slot (G, C, HIDDEN + 3) of ``vectors``."""
    column = tl.arange(0, WIDTH)
    for g in range(lowest, highest + 1):
        member = real & (graph == g)
        at = vectors + (g * CHANNELS + c) * (HIDDEN + 3)
        total = tl.sum(tl.where(member[:, None], rows, 0.0), 0)
        tl.atomic_add(at + column, total, mask=column < HIDDEN, sem="relaxed")
        tl.atomic_add(at + HIDDEN, tl.sum(tl.where(member, x, 0.0), 0), sem="relaxed")
        tl.atomic_add(at + HIDDEN + 1, tl.sum(tl.where(member, y, 0.0), 0), sem="relaxed")
        tl.atomic_add(at + HIDDEN + 2, tl.sum(tl.where(member, z, 0.0), 0), sem="relaxed")


@triton.jit(do_not_specialize=["nodes", "graphs", "slots"])
def virtual_forward_kernel(positions, places, is_open, a, of_virtual, distance_map, w2, b2, gate_w, gate_b, w3, b3, w4,
                           w5, b5, w6, batch, step, pooled, sums, nodes, graphs, slots, CHANNELS: tl.constexpr,
                           HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
                           TANH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Steps, mean messages, and a slot of sums over graphs (G, C, HIDDEN + 3)."""
    NUMBER: tl.constexpr = a.dtype.element_ty
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    slot = sums + (tl.program_id(0) % slots).to(tl.int64) * graphs * CHANNELS * (HIDDEN + 3)
    for tile in range(tl.program_id(0), tl.cdiv(nodes, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        real = row < nodes
        both = real[:, None] & inside[None, :]
        graph = tl.load(batch + row, mask=real, other=0)
        lowest = tl.min(tl.where(real, graph, graphs), 0)
        highest = tl.max(graph, 0)
        px = tl.load(positions + row * 3, mask=real, other=0.0)
        py = tl.load(positions + row * 3 + 1, mask=real, other=0.0)
        pz = tl.load(positions + row * 3 + 2, mask=real, other=0.0)
        of_particle = tl.load(a + row[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
        total = tl.zeros((ROWS, WIDTH), dtype=NUMBER)
        sx = tl.zeros((ROWS,), dtype=NUMBER)
        sy = tl.zeros_like(sx)
        sz = tl.zeros_like(sx)
        for c in range(CHANNELS):
            x, y, z, _opened = _direction(graph, c, px, py, pz, real, places, is_open, CHANNELS)
            distance = tl.sqrt(x * x + y * y + z * z)
            address = of_virtual + (graph[:, None] * CHANNELS + c) * HIDDEN + column[None, :]
            joined = of_particle + tl.load(address, mask=both, other=0.0)
            joined += distance[:, None] * vector(distance_map, HIDDEN, WIDTH)
            message, _, _, _ = message_of(joined, w2, b2, gate_w, gate_b, HIDDEN, WIDTH, CHUNK, PRECISION)
            factor, _ = factor_of(message, w3, b3, w4, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)
            virtual_factor, _ = factor_of(message, w5, b5, w6, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)
            total += message
            sx -= x * factor
            sy -= y * factor
            sz -= z * factor
            _add_by_graph(slot, message, x * virtual_factor, y * virtual_factor, z * virtual_factor, graph, real,
                          lowest, highest, c, CHANNELS, HIDDEN, WIDTH)  # fmt: skip
        tl.store(step + row * 3, sx / CHANNELS, mask=real)
        tl.store(step + row * 3 + 1, sy / CHANNELS, mask=real)
        tl.store(step + row * 3 + 2, sz / CHANNELS, mask=real)
        tl.store(pooled + row[:, None] * HIDDEN + column[None, :], total / CHANNELS, mask=both)


@triton.jit(do_not_specialize=["nodes", "graphs", "slots"])
def virtual_backward_kernel(grad_step, grad_pooled, grad_virtual, grad_message, positions, places, is_open, a,
                            of_virtual, distance_map, w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6, batch,
                            g_positions, g_a, sums, partial, nodes, graphs, slots, CHANNELS: tl.constexpr,
                            HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, ROWS: tl.constexpr,
                            TANH: tl.constexpr, IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradients; ``sums`` as in the forward, of ``of_virtual`` and ``places``; ``partial`` (programs, size)."""
    NUMBER: tl.constexpr = a.dtype.element_ty
    WEIGHTS: tl.constexpr = partial is not None
    SQUARE: tl.constexpr = WIDTH if WEIGHTS and IN_REGISTERS else 1
    SIZE: tl.constexpr = 3 * HIDDEN * HIDDEN + 7 * HIDDEN + 1
    column = tl.arange(0, WIDTH)
    inside = column < HIDDEN
    g_w2 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_w3 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_w5 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_b2 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_b3 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_w4 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_b5 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_w6 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_gate_w = tl.zeros((WIDTH,), dtype=NUMBER)
    g_distance_map = tl.zeros((WIDTH,), dtype=NUMBER)
    g_gate_b = tl.sum(tl.zeros((1,), dtype=NUMBER), 0)
    if WEIGHTS:
        own = partial + tl.program_id(0).to(tl.int64) * SIZE
    else:
        own = g_a  # never written through
    slot = sums + (tl.program_id(0) % slots).to(tl.int64) * graphs * CHANNELS * (HIDDEN + 3)
    for tile in range(tl.program_id(0), tl.cdiv(nodes, ROWS), tl.num_programs(0)):
        row = tl.cast(tile, tl.int64) * ROWS + tl.arange(0, ROWS)
        real = row < nodes
        both = real[:, None] & inside[None, :]
        graph = tl.load(batch + row, mask=real, other=0)
        lowest = tl.min(tl.where(real, graph, graphs), 0)
        highest = tl.max(graph, 0)
        px = tl.load(positions + row * 3, mask=real, other=0.0)
        py = tl.load(positions + row * 3 + 1, mask=real, other=0.0)
        pz = tl.load(positions + row * 3 + 2, mask=real, other=0.0)
        hx = tl.load(grad_step + row * 3, mask=real, other=0.0) / CHANNELS
        hy = tl.load(grad_step + row * 3 + 1, mask=real, other=0.0) / CHANNELS
        hz = tl.load(grad_step + row * 3 + 2, mask=real, other=0.0) / CHANNELS
        total = tl.zeros((ROWS, WIDTH), dtype=NUMBER)
        sx = tl.zeros((ROWS,), dtype=NUMBER)
        sy = tl.zeros_like(sx)
        sz = tl.zeros_like(sx)
        for c in range(CHANNELS):
            x, y, z, opened = _direction(graph, c, px, py, pz, real, places, is_open, CHANNELS)
            distance = tl.sqrt(x * x + y * y + z * z)
            shared = (graph[:, None] * CHANNELS + c) * HIDDEN + column[None, :]
            joined = tl.load(a + row[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
            joined += tl.load(of_virtual + shared, mask=both, other=0.0)
            joined += distance[:, None] * vector(distance_map, HIDDEN, WIDTH)
            message, hidden, second, gate = message_of(
                joined, w2, b2, gate_w, gate_b, HIDDEN, WIDTH, CHUNK, PRECISION)  # fmt: skip

            # of the virtual node's step, then of the particle's, which points the other way
            of_step = grad_virtual + (graph * CHANNELS + c) * 3
            vx = tl.load(of_step, mask=real, other=0.0)
            vy = tl.load(of_step + 1, mask=real, other=0.0)
            vz = tl.load(of_step + 2, mask=real, other=0.0)
            factor, third = factor_of(message, w5, b5, w6, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)
            g_message, g_w5, g_b5, g_w6 = factor_back(
                vx * x + vy * y + vz * z, factor, third, message, w5, w6, g_w5, g_b5, g_w6, own + 2 * HIDDEN * HIDDEN,
                HIDDEN, WIDTH, CHUNK, TANH, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip
            gx, gy, gz = vx * factor, vy * factor, vz * factor
            factor, third = factor_of(message, w3, b3, w4, HIDDEN, WIDTH, CHUNK, TANH, PRECISION)
            more, g_w3, g_b3, g_w4 = factor_back(
                -(hx * x + hy * y + hz * z), factor, third, message, w3, w4, g_w3, g_b3, g_w4, own + HIDDEN * HIDDEN,
                HIDDEN, WIDTH, CHUNK, TANH, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip
            g_message += more
            gx -= hx * factor
            gy -= hy * factor
            gz -= hz * factor
            address = grad_pooled + row[:, None] * HIDDEN + column[None, :]
            g_message += tl.load(address, mask=both, other=0.0) / CHANNELS
            g_message += tl.load(grad_message + shared, mask=both, other=0.0)
            g_joined, g_w2, g_b2, g_gate_w, g_gate_b = message_back(
                g_message, joined, hidden, second, gate, w2, gate_w, g_w2, g_b2, g_gate_w, g_gate_b, own,
                HIDDEN, WIDTH, CHUNK, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip

            total += g_joined
            if WEIGHTS:
                g_distance_map += tl.sum(g_joined * distance[:, None], 0)
            # a length has no derivative at zero; torch takes zero there, and a periodic cell relies on it
            inverse = tl.where(distance > 0, 1.0 / tl.where(distance > 0, distance, 1.0), 0.0)
            along = tl.sum(g_joined * vector(distance_map, HIDDEN, WIDTH), 1) * inverse
            gx = (gx + along * x) * opened
            gy = (gy + along * y) * opened
            gz = (gz + along * z) * opened
            sx -= gx
            sy -= gy
            sz -= gz
            _add_by_graph(slot, g_joined, gx, gy, gz, graph, real, lowest, highest, c, CHANNELS, HIDDEN, WIDTH)
        tl.store(g_positions + row * 3, sx, mask=real)
        tl.store(g_positions + row * 3 + 1, sy, mask=real)
        tl.store(g_positions + row * 3 + 2, sz, mask=real)
        tl.store(g_a + row[:, None] * HIDDEN + column[None, :], total, mask=both)
    if WEIGHTS:
        if IN_REGISTERS:
            store_square(own, g_w2, HIDDEN, WIDTH)
            store_square(own + HIDDEN * HIDDEN, g_w3, HIDDEN, WIDTH)
            store_square(own + 2 * HIDDEN * HIDDEN, g_w5, HIDDEN, WIDTH)
        vectors = own + 3 * HIDDEN * HIDDEN
        store_vector(vectors, g_b2, HIDDEN, WIDTH)
        store_vector(vectors + HIDDEN, g_b3, HIDDEN, WIDTH)
        store_vector(vectors + 2 * HIDDEN, g_w4, HIDDEN, WIDTH)
        store_vector(vectors + 3 * HIDDEN, g_gate_w, HIDDEN, WIDTH)
        store_vector(vectors + 4 * HIDDEN, g_distance_map, HIDDEN, WIDTH)
        store_vector(vectors + 5 * HIDDEN, g_b5, HIDDEN, WIDTH)
        store_vector(vectors + 6 * HIDDEN, g_w6, HIDDEN, WIDTH)
        tl.store(vectors + 7 * HIDDEN, g_gate_b)


def _programs(nodes: int, places: Tensor, hidden: int, a: Tensor, blocks: Blocks, waves: int) -> tuple[int, Tensor]:
    """Number of programs, and the zeroed slots (slots, G, C, F + 3) that they add to."""
    graphs, channels = places.shape[:2]
    programs = max(1, min(triton.cdiv(nodes, blocks.rows), waves * processors(a)))
    slot = graphs * channels * (hidden + 3) * a.element_size()
    slots = max(1, min(programs, SLOT_BYTES // max(slot, 1)))
    return programs, a.new_zeros((slots, graphs, channels, hidden + 3))


def _check_shapes(positions: Tensor, places: Tensor, a: Tensor, of_virtual: Tensor, batch: Tensor) -> None:
    nodes, hidden = a.shape
    graphs, channels = places.shape[:2]
    wanted = {
        "positions": (positions, (nodes, 3)),
        "places": (places, (graphs, channels, 3)),
        "of_virtual": (of_virtual, (graphs, channels, hidden)),
        "batch": (batch, (nodes,)),
    }
    for name, (tensor, shape) in wanted.items():
        if tuple(tensor.shape) != shape:
            raise InputError(f"{name} is {tuple(tensor.shape)}; with these features and places it must be {shape}")


def virtual_forward(
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
    precision: str = "ieee",
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What :func:`egnn_md.kernels.plain.virtual_messages` returns, from the same arguments.

    Args:
        precision: of the products, one of :data:`~egnn_md.kernels.triton_common.PRECISIONS`.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    mode = check(a, precision)
    _check_shapes(positions, places, a, of_virtual, batch)
    same_kind(a, positions=positions, places=places, is_open=is_open, of_virtual=of_virtual, w2=w2, batch=batch)
    nodes, hidden = a.shape
    graphs, channels = places.shape[:2]
    blocks = Blocks(hidden, mode, backward=False, squares=3)
    programs, sums = _programs(nodes, places, hidden, a, blocks, 4)
    step, pooled = a.new_empty((nodes, 3)), a.new_empty((nodes, hidden))
    tensors = [positions, places, is_open, a, of_virtual, distance_map, w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6,
               batch, step, pooled, sums]  # fmt: skip
    launch(virtual_forward_kernel, programs, blocks, tensors, nodes, graphs, sums.shape[0], CHANNELS=channels,
           HIDDEN=hidden, ROWS=blocks.rows, TANH=tanh, PRECISION=mode)  # fmt: skip
    total = sums.sum(0)
    return step, pooled, total[..., hidden:], total[..., :hidden]


def virtual_backward(
    grad_step: Tensor,
    grad_pooled: Tensor,
    grad_virtual: Tensor,
    grad_message: Tensor,
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
    need_weights: bool,
    precision: str = "ieee",
) -> tuple[Tensor | None, ...]:
    """Gradients of the inputs from those of :func:`virtual_forward`'s four outputs.

    Args:
        grad_step, grad_pooled, grad_virtual, grad_message: (N, 3), (N, F), (G, C, 3), (G, C, F).
        need_weights: otherwise the gradients of ``distance_map`` and of all weights are None.

    Returns:
        gradients of positions, places, a, of_virtual, distance_map, w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6;
        None for what is None.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    mode = check(a, precision)
    _check_shapes(positions, places, a, of_virtual, batch)
    same_kind(a, positions=positions, places=places, is_open=is_open, of_virtual=of_virtual, w2=w2, batch=batch,
              grad_step=grad_step, grad_virtual=grad_virtual)  # fmt: skip
    nodes, hidden = a.shape
    graphs, channels = places.shape[:2]
    blocks = Blocks(hidden, mode, backward=True, squares=3)
    programs, sums = _programs(nodes, places, hidden, a, blocks, 2)
    g_positions, g_a = a.new_empty((nodes, 3)), a.new_empty((nodes, hidden))
    square, row = (hidden, hidden), (hidden,)
    sizes = [square, square, square, row, row, row, row, row, row, row, (1,)]
    partial = a.new_zeros((programs, 3 * hidden * hidden + 7 * hidden + 1)) if need_weights else None
    tensors = [grad_step, grad_pooled, grad_virtual, grad_message, positions, places, is_open, a, of_virtual,
               distance_map, w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6, batch, g_positions, g_a, sums,
               partial]  # fmt: skip
    launch(virtual_backward_kernel, programs, blocks, tensors, nodes, graphs, sums.shape[0], CHANNELS=channels,
           HIDDEN=hidden, ROWS=blocks.rows, TANH=tanh, IN_REGISTERS=blocks.in_registers, PRECISION=mode)  # fmt: skip
    total = sums.sum(0)
    g_w2, g_w3, g_w5, g_b2, g_b3, g_w4, g_gate_w, g_map, g_b5, g_w6, g_gate_b = split_partial(partial, sizes)
    if gate_w is None:
        g_gate_w = g_gate_b = None
    return (g_positions, total[..., hidden:], g_a, total[..., :hidden], g_map, g_w2, g_b2, g_gate_w, g_gate_b, g_w3,
            g_b3, g_w4, g_w5, g_b5, g_w6)  # fmt: skip
