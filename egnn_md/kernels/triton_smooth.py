# mypy: allow-incomplete-defs, allow-untyped-defs
"""Messages of the smooth network in one kernel each way; what they compute is
:func:`egnn_md.kernels.plain.smooth_messages`.

Tiles of receivers, blocks of edges, and sums over them as in :mod:`egnn_md.kernels.triton_edges`: no (E, F) tensor
exists in memory, the backward computes each message again, a program keeps its gradients of weights to itself, and
what goes to senders (of ``b`` and of the vectors) is added atomically, so that its last digits differ from run to run.

| symbol | variable, of a block's edges |
| --- | --- |
| û, V_i, V_j, x before y before z and a fourth of zeros | ``u`` (edges, 4); ``received``, ``sent`` (edges, 4, KP) |
| radial functions b u | ``x`` (edges, BP) |
| û·V_i, û·V_j, V_i·V_j, zero | ``geometry`` (edges, 4 KP), these four of k = 0, then of k = 1 ... |
| what is inside the first SiLU | ``joined`` (edges, WIDTH) |
| SiLU(W₂ ...), W_f b u, their product | ``bare``, ``filters``, ``message`` |
| φ_x, φ_V | ``along``, ``mixed`` (edges, KP) |

B and K are padded to powers of two, BP and KP, for products with :mod:`egnn_md.kernels.triton_thin`. The sums of
vectors over a receiver's edges are exact at every precision: they are little work, and a step is a position.
"""

import triton
import triton.language as tl
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels.optional import there
from egnn_md.kernels.triton_common import (
    Blocks,
    check,
    dot,
    launch,
    message_back,
    message_of,
    processors,
    same_kind,
    split_partial,
    store_square,
    store_vector,
)
from egnn_md.kernels.triton_edges import receivers_of_tile
from egnn_md.kernels.triton_thin import add_thin, onto, store_thin, through

#: of the vectors and of the radial functions: above, tiles of (edges, 4 K) leave no registers
LARGEST_COUNT = 32
#: numbers of all thin maps' gradients that a program keeps in registers, 32 a thread of 256
THIN_NUMBERS = 8192
#: receivers of a tile: their sums of vectors take registers, too
LARGEST_TILE = 16
NAMES = ("unit", "radial", "a", "b", "vectors", "radial_map", "geometry_map", "w2", "b2", "filter_map", "vector_map",
         "row_start", "senders")  # fmt: skip


@triton.jit
def _places(row, present, COUNT: tl.constexpr, KP: tl.constexpr):
    """Where the vectors of particles ``row`` are in memory, (rows, 4, KP), and which of those places exist."""
    axis = tl.arange(0, 4)[None, :, None]
    k = tl.arange(0, KP)[None, None, :]
    real = present[:, None, None] & (axis < 3) & (k < COUNT)
    return row[:, None, None] * (3 * COUNT) + axis * COUNT + k, real


@triton.jit
def _block(edge, last, start, end, receivers, unit, radial, a, b, vectors, radial_map, geometry_map, senders,
           BASIS: tl.constexpr, BP: tl.constexpr, COUNT: tl.constexpr, KP: tl.constexpr, HIDDEN: tl.constexpr,
           WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Inputs and first map of a block of edges; edges that are not present have zeros, and so a zero message."""
    present = edge < last
    column = tl.arange(0, WIDTH)
    # (receivers, edges): which edge is whose
    mine = (edge[None, :] >= start[:, None]) & (edge[None, :] < end[:, None])
    receiver = tl.sum(tl.where(mine, receivers[:, None], 0), 0)
    sender = tl.load(senders + edge, mask=present, other=0)
    axis = tl.arange(0, 4)
    u = tl.load(unit + edge[:, None] * 3 + axis[None, :], mask=present[:, None] & (axis < 3)[None, :], other=0.0)
    n = tl.arange(0, BP)
    x = tl.load(radial + edge[:, None] * BASIS + n[None, :], mask=present[:, None] & (n < BASIS)[None, :], other=0.0)
    both = present[:, None] & (column < HIDDEN)[None, :]
    joined = tl.load(a + receiver[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
    joined += tl.load(b + sender[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
    joined = through(joined, x, radial_map, BASIS, 1, HIDDEN, WIDTH, CHUNK, PRECISION)
    if vectors is not None:
        place, real = _places(receiver, present, COUNT, KP)
        received = tl.load(vectors + place, mask=real, other=0.0)
        place, real = _places(sender, present, COUNT, KP)
        sent = tl.load(vectors + place, mask=real, other=0.0)
        of_received = tl.sum(u[:, :, None] * received, 1)
        of_sent = tl.sum(u[:, :, None] * sent, 1)
        of_both = tl.sum(received * sent, 1)
        geometry = tl.join(tl.join(of_received, of_both), tl.join(of_sent, tl.zeros_like(of_sent)))
        geometry = tl.reshape(geometry, (edge.shape[0], 4 * KP))
        joined = through(joined, geometry, geometry_map, COUNT, 3, HIDDEN, WIDTH, CHUNK, PRECISION)
    else:  # never looked at
        received = u
        sent = u
        geometry = x
    return mine, receiver, sender, u, x, received, sent, geometry, joined


@triton.jit
def _weights(message, vector_map, COUNT: tl.constexpr, KP: tl.constexpr, MIXED: tl.constexpr, HIDDEN: tl.constexpr,
             WIDTH: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """φ_x and φ_V (edges, KP); the second means nothing in the first layer."""
    PARTS: tl.constexpr = 2 if MIXED else 1
    weights = tl.zeros((message.shape[0], PARTS * KP), dtype=message.dtype)
    weights = onto(weights, message, vector_map, COUNT, PARTS, HIDDEN, WIDTH, CHUNK, PRECISION)
    if MIXED:
        along, mixed = tl.split(tl.reshape(weights, (message.shape[0], KP, 2)))
    else:
        along = weights
        mixed = weights
    return along, mixed


@triton.jit(do_not_specialize=["nodes"])
def smooth_forward_kernel(unit, radial, a, b, vectors, radial_map, geometry_map, w2, b2, filter_map, vector_map,
                          row_start, senders, step, pooled, nodes, BASIS: tl.constexpr, BP: tl.constexpr,
                          COUNT: tl.constexpr, KP: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
                          CHUNK: tl.constexpr, RECEIVERS: tl.constexpr, EDGES: tl.constexpr,
                          PRECISION: tl.constexpr):  # fmt: skip
    NUMBER: tl.constexpr = a.dtype.element_ty
    MIXED: tl.constexpr = vectors is not None
    column = tl.arange(0, WIDTH)
    for tile in range(tl.program_id(0), tl.cdiv(nodes, RECEIVERS), tl.num_programs(0)):
        receivers = tl.cast(tile, tl.int64) * RECEIVERS + tl.arange(0, RECEIVERS)
        real = receivers < nodes
        start = tl.load(row_start + receivers, mask=real, other=0)
        end = tl.load(row_start + receivers + 1, mask=real, other=0)
        first = tl.load(row_start + tile * RECEIVERS)
        last = tl.load(row_start + tl.minimum((tile + 1) * RECEIVERS, nodes))
        total = tl.zeros((RECEIVERS, WIDTH), dtype=NUMBER)
        moved = tl.zeros((RECEIVERS, 4 * KP), dtype=NUMBER)
        for at in range(first, last, EDGES):
            edge = at + tl.arange(0, EDGES)
            mine, _receiver, _sender, u, x, _received, sent, _geometry, joined = _block(
                edge, last, start, end, receivers, unit, radial, a, b, vectors, radial_map, geometry_map, senders,
                BASIS, BP, COUNT, KP, HIDDEN, WIDTH, CHUNK, PRECISION)  # fmt: skip
            bare, _, _, _ = message_of(joined, w2, b2, None, None, HIDDEN, WIDTH, CHUNK, PRECISION)
            message = bare * through(tl.zeros_like(bare), x, filter_map, BASIS, 1, HIDDEN, WIDTH, CHUNK, PRECISION)
            along, mixed = _weights(message, vector_map, COUNT, KP, MIXED, HIDDEN, WIDTH, CHUNK, PRECISION)
            one = u[:, :, None] * along[:, None, :]
            if MIXED:
                one += sent * mixed[:, None, :]
            which = mine.to(NUMBER)
            total = dot(which, message, total, PRECISION)
            moved = dot(which, tl.reshape(one, (EDGES, 4 * KP)), moved, "ieee")
        place, exists = _places(receivers, real, COUNT, KP)
        tl.store(step + place, tl.reshape(moved, (RECEIVERS, 4, KP)), mask=exists)
        tl.store(pooled + receivers[:, None] * HIDDEN + column[None, :], total,
                 mask=real[:, None] & (column < HIDDEN)[None, :])  # fmt: skip


@triton.jit(do_not_specialize=["nodes"])
def smooth_backward_kernel(grad_step, grad_pooled, unit, radial, a, b, vectors, radial_map, geometry_map, w2, b2,
                           filter_map, vector_map, row_start, senders, g_unit, g_radial, g_a, g_b, g_vectors, partial,
                           nodes, BASIS: tl.constexpr, BP: tl.constexpr, COUNT: tl.constexpr, KP: tl.constexpr,
                           HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, RECEIVERS: tl.constexpr,
                           EDGES: tl.constexpr, IN_REGISTERS: tl.constexpr, THIN_IN_REGISTERS: tl.constexpr,
                           PRECISION: tl.constexpr):  # fmt: skip
    """Gradients. ``partial`` (programs, size): each program's, of w2, b2, radial, filter, vector, geometry map."""
    NUMBER: tl.constexpr = a.dtype.element_ty
    MIXED: tl.constexpr = vectors is not None
    PARTS: tl.constexpr = 2 if MIXED else 1
    WEIGHTS: tl.constexpr = partial is not None
    SQUARE: tl.constexpr = WIDTH if WEIGHTS and IN_REGISTERS else 1
    THIN: tl.constexpr = WEIGHTS and THIN_IN_REGISTERS
    SIZE: tl.constexpr = HIDDEN * (HIDDEN + 1 + 2 * BASIS + (5 if MIXED else 1) * COUNT)
    column = tl.arange(0, WIDTH)
    g_w2 = tl.zeros((SQUARE, SQUARE), dtype=NUMBER)
    g_b2 = tl.zeros((WIDTH,), dtype=NUMBER)
    g_radial_map = tl.zeros((BP if THIN else 1, WIDTH if THIN else 1), dtype=NUMBER)
    g_filter_map = tl.zeros((BP if THIN else 1, WIDTH if THIN else 1), dtype=NUMBER)
    g_vector_map = tl.zeros((PARTS * KP if THIN else 1, WIDTH if THIN else 1), dtype=NUMBER)
    g_geometry_map = tl.zeros((4 * KP if THIN and MIXED else 1, WIDTH if THIN and MIXED else 1), dtype=NUMBER)
    if WEIGHTS:
        own = partial + tl.program_id(0).to(tl.int64) * SIZE
    else:
        own = g_a  # never written through
    own_radial = own + HIDDEN * (HIDDEN + 1)
    own_filter = own_radial + BASIS * HIDDEN
    own_vector = own_filter + BASIS * HIDDEN
    own_geometry = own_vector + PARTS * COUNT * HIDDEN
    for tile in range(tl.program_id(0), tl.cdiv(nodes, RECEIVERS), tl.num_programs(0)):
        receivers = tl.cast(tile, tl.int64) * RECEIVERS + tl.arange(0, RECEIVERS)
        real = receivers < nodes
        start = tl.load(row_start + receivers, mask=real, other=0)
        end = tl.load(row_start + receivers + 1, mask=real, other=0)
        first = tl.load(row_start + tile * RECEIVERS)
        last = tl.load(row_start + tl.minimum((tile + 1) * RECEIVERS, nodes))
        total = tl.zeros((RECEIVERS, WIDTH), dtype=NUMBER)
        turned = tl.zeros((RECEIVERS, 4 * KP), dtype=NUMBER)
        for at in range(first, last, EDGES):
            edge = at + tl.arange(0, EDGES)
            present = edge < last
            both = present[:, None] & (column < HIDDEN)[None, :]
            mine, receiver, sender, u, x, received, sent, geometry, joined = _block(
                edge, last, start, end, receivers, unit, radial, a, b, vectors, radial_map, geometry_map, senders,
                BASIS, BP, COUNT, KP, HIDDEN, WIDTH, CHUNK, PRECISION)  # fmt: skip
            bare, hidden, second, gate = message_of(joined, w2, b2, None, None, HIDDEN, WIDTH, CHUNK, PRECISION)
            filters = through(tl.zeros_like(bare), x, filter_map, BASIS, 1, HIDDEN, WIDTH, CHUNK, PRECISION)
            message = bare * filters
            along, mixed = _weights(message, vector_map, COUNT, KP, MIXED, HIDDEN, WIDTH, CHUNK, PRECISION)

            # of the step: its weights, û, and V_j
            place, exists = _places(receiver, present, COUNT, KP)
            g_one = tl.load(grad_step + place, mask=exists, other=0.0)
            g_u = tl.sum(g_one * along[:, None, :], 2)
            g_weights = tl.sum(g_one * u[:, :, None], 1)
            g_sent = g_one
            if MIXED:
                g_sent = g_one * mixed[:, None, :]
                g_weights = tl.join(g_weights, tl.sum(g_one * sent, 1))
                g_weights = tl.reshape(g_weights, (EDGES, 2 * KP))
            if WEIGHTS:
                g_vector_map = add_thin(g_vector_map, own_vector, g_weights, message, COUNT, PARTS, HIDDEN, WIDTH,
                                         CHUNK, THIN_IN_REGISTERS, PRECISION)  # fmt: skip
            g_message = tl.load(grad_pooled + receiver[:, None] * HIDDEN + column[None, :], mask=both, other=0.0)
            g_message = through(g_message, g_weights, vector_map, COUNT, PARTS, HIDDEN, WIDTH, CHUNK, PRECISION)

            # of the filter, and of the maps before it
            g_filters = g_message * bare
            g_x = onto(tl.zeros_like(x), g_filters, filter_map, BASIS, 1, HIDDEN, WIDTH, CHUNK, PRECISION)
            if WEIGHTS:
                g_filter_map = add_thin(g_filter_map, own_filter, x, g_filters, BASIS, 1, HIDDEN, WIDTH, CHUNK,
                                         THIN_IN_REGISTERS, PRECISION)  # fmt: skip
            g_joined, g_w2, g_b2, _, _ = message_back(
                g_message * filters, joined, hidden, second, gate, w2, None, g_w2, g_b2, g_b2, g_b2, own,
                HIDDEN, WIDTH, CHUNK, WEIGHTS, IN_REGISTERS, PRECISION)  # fmt: skip

            # what joined was made of
            total = dot(mine.to(NUMBER), g_joined, total, PRECISION)
            tl.atomic_add(g_b + sender[:, None] * HIDDEN + column[None, :], g_joined, mask=both, sem="relaxed")
            g_x = onto(g_x, g_joined, radial_map, BASIS, 1, HIDDEN, WIDTH, CHUNK, PRECISION)
            n = tl.arange(0, BP)
            tl.store(g_radial + edge[:, None] * BASIS + n[None, :], g_x,
                     mask=present[:, None] & (n < BASIS)[None, :])  # fmt: skip
            if WEIGHTS:
                g_radial_map = add_thin(g_radial_map, own_radial, x, g_joined, BASIS, 1, HIDDEN, WIDTH, CHUNK,
                                         THIN_IN_REGISTERS, PRECISION)  # fmt: skip
            if MIXED:
                if WEIGHTS:
                    g_geometry_map = add_thin(g_geometry_map, own_geometry, geometry, g_joined, COUNT, 3, HIDDEN,
                                               WIDTH, CHUNK, THIN_IN_REGISTERS, PRECISION)  # fmt: skip
                g_geometry = onto(tl.zeros_like(geometry), g_joined, geometry_map, COUNT, 3, HIDDEN, WIDTH, CHUNK,
                                   PRECISION)  # fmt: skip
                even, odd = tl.split(tl.reshape(g_geometry, (EDGES, KP, 2, 2)))
                of_received, of_both = tl.split(even)
                of_sent, _zero = tl.split(odd)
                of_received, of_sent, of_both = of_received[:, None, :], of_sent[:, None, :], of_both[:, None, :]
                g_u += tl.sum(of_received * received + of_sent * sent, 2)
                g_received = of_received * u[:, :, None] + of_both * sent
                turned = dot(mine.to(NUMBER), tl.reshape(g_received, (EDGES, 4 * KP)), turned, "ieee")
                g_sent += of_sent * u[:, :, None] + of_both * received
                place, exists = _places(sender, present, COUNT, KP)
                tl.atomic_add(g_vectors + place, g_sent, mask=exists, sem="relaxed")
            axis = tl.arange(0, 4)
            tl.store(g_unit + edge[:, None] * 3 + axis[None, :], g_u,
                     mask=present[:, None] & (axis < 3)[None, :])  # fmt: skip
        tl.store(g_a + receivers[:, None] * HIDDEN + column[None, :], total,
                 mask=real[:, None] & (column < HIDDEN)[None, :])  # fmt: skip
        if MIXED:
            place, exists = _places(receivers, real, COUNT, KP)
            tl.atomic_add(g_vectors + place, tl.reshape(turned, (RECEIVERS, 4, KP)), mask=exists, sem="relaxed")
    if WEIGHTS:
        store_vector(own + HIDDEN * HIDDEN, g_b2, HIDDEN, WIDTH)
        if IN_REGISTERS:
            store_square(own, g_w2, HIDDEN, WIDTH)
        if THIN_IN_REGISTERS:
            store_thin(own_radial, g_radial_map, BASIS, 1, HIDDEN, WIDTH)
            store_thin(own_filter, g_filter_map, BASIS, 1, HIDDEN, WIDTH)
            store_thin(own_vector, g_vector_map, COUNT, PARTS, HIDDEN, WIDTH)
            if MIXED:
                store_thin(own_geometry, g_geometry_map, COUNT, 3, HIDDEN, WIDTH)


def constants(hidden: int, basis: int, count: int, first: bool) -> dict[str, int]:
    """The kernels' constants that follow from F, B, K and the layer."""
    radial, vectors = max(16, triton.next_power_of_2(basis)), max(16 if first else 8, triton.next_power_of_2(count))
    return {"HIDDEN": hidden, "BASIS": basis, "BP": radial, "COUNT": count, "KP": vectors}


def _checked(
    inputs: list[Tensor | None], precision: str, grad_step: Tensor | None = None, grad_pooled: Tensor | None = None
) -> tuple[str, dict[str, int]]:
    """The kernels' name of ``precision``, and their constants that follow from the shapes of the inputs."""
    given = dict(zip(NAMES, inputs, strict=True))
    a, radial_map, vector_map, senders = (there(given[name]) for name in ("a", "radial_map", "vector_map", "senders"))
    mode = check(a, precision)
    given.update(grad_step=grad_step, grad_pooled=grad_pooled)
    same_kind(a, **{name: tensor for name, tensor in given.items() if name != "a"})
    (nodes, hidden), edges, basis = a.shape, senders.shape[0], radial_map.shape[0]
    first = given["vectors"] is None
    if first != (given["geometry_map"] is None):
        raise InputError("one of vectors and geometry_map is None; pass both, or neither as in the first layer")
    count = vector_map.shape[0] // (1 if first else 2)
    for name, size in (("vectors", count), ("radial functions", basis)):
        if not 1 <= size <= LARGEST_COUNT:
            raise InputError(f"there are {size} {name}; the fused kernels take 1..{LARGEST_COUNT}, use the plain path")
    shapes = [(edges, 3), (edges, basis), (nodes, hidden), (nodes, hidden), (nodes, 3, count), (basis, hidden),
              (3 * count, hidden), (hidden, hidden), (hidden,), (basis, hidden), (count * (1 if first else 2), hidden),
              (nodes + 1,), (edges,), (nodes, 3, count), (nodes, hidden)]  # fmt: skip
    for (name, tensor), shape in zip(given.items(), shapes, strict=True):
        if tensor is not None and tuple(tensor.shape) != shape:
            raise InputError(f"{name} is {tuple(tensor.shape)}; with these features and maps it must be {shape}")
    return mode, constants(hidden, basis, count, first)


def thin_in_registers(width: int, sizes: dict[str, int]) -> bool:
    """Whether a program keeps the gradients of the thin maps in registers."""
    return width * (2 * sizes["BP"] + 6 * sizes["KP"]) <= THIN_NUMBERS


def smooth_forward(
    unit: Tensor, radial: Tensor, a: Tensor, b: Tensor, vectors: Tensor | None, radial_map: Tensor,
    geometry_map: Tensor | None, w2: Tensor, b2: Tensor, filter_map: Tensor, vector_map: Tensor, row_start: Tensor,
    senders: Tensor, precision: str = "ieee",
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What :func:`egnn_md.kernels.plain.smooth_messages` returns, for edges sorted by receiver.

    Args:
        row_start: (N + 1,) int64, the edges of receiver i are ``row_start[i]:row_start[i + 1]``; from 0 to E and never
            falling, which is not looked at (that would wait for the GPU).
        precision: of the products, one of :data:`~egnn_md.kernels.triton_common.PRECISIONS`.

    The other arguments are those of the plain function.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    inputs = [unit, radial, a, b, vectors, radial_map, geometry_map, w2, b2, filter_map, vector_map, row_start, senders]
    mode, sizes = _checked(inputs, precision)
    nodes, hidden = a.shape
    blocks = Blocks(hidden, mode, backward=False)
    receivers = min(LARGEST_TILE, receivers_of_tile(nodes, senders.shape[0], blocks.rows, processors(a)))
    step, pooled = a.new_empty((nodes, 3, sizes["COUNT"])), a.new_empty((nodes, hidden))
    programs = max(1, min(triton.cdiv(nodes, receivers), 4 * processors(a)))
    launch(smooth_forward_kernel, programs, blocks, [*inputs, step, pooled], nodes, **sizes, RECEIVERS=receivers,
           EDGES=blocks.rows, PRECISION=mode)  # fmt: skip
    return step, pooled


def smooth_backward(
    grad_step: Tensor, grad_pooled: Tensor, unit: Tensor, radial: Tensor, a: Tensor, b: Tensor, vectors: Tensor | None,
    radial_map: Tensor, geometry_map: Tensor | None, w2: Tensor, b2: Tensor, filter_map: Tensor, vector_map: Tensor,
    row_start: Tensor, senders: Tensor, need_weights: bool, precision: str = "ieee",
) -> tuple[Tensor | None, ...]:  # fmt: skip
    """Gradients of the inputs from those of :func:`smooth_forward`'s two outputs.

    Args:
        grad_step, grad_pooled: (N, 3, K), (N, F).
        need_weights: otherwise the gradients of all maps are None.

    Returns:
        gradients of unit, radial, a, b, vectors, radial_map, geometry_map, w2, b2, filter_map, vector_map; None for
        what is None.

    Raises:
        InputError: the kernels cannot serve these tensors.
    """
    inputs = [unit, radial, a, b, vectors, radial_map, geometry_map, w2, b2, filter_map, vector_map, row_start, senders]
    mode, sizes = _checked(inputs, precision, grad_step, grad_pooled)
    nodes, hidden = a.shape
    blocks = Blocks(hidden, mode, backward=True)
    receivers = min(LARGEST_TILE, receivers_of_tile(nodes, senders.shape[0], blocks.rows, processors(a)))
    programs = max(1, min(triton.cdiv(nodes, receivers), 2 * processors(a)))
    thin = [tuple(t.shape) for t in (radial_map, filter_map, vector_map, geometry_map) if t is not None]
    shapes = [(hidden, hidden), (hidden,), *thin]
    size = hidden * (hidden + 1 + sum(rows for rows, _ in thin))
    partial = a.new_zeros((programs, size)) if need_weights else None
    g_unit, g_radial = unit.new_empty(unit.shape), radial.new_empty(radial.shape)
    g_a, g_b = a.new_empty(a.shape), a.new_zeros(a.shape)
    g_vectors = None if vectors is None else vectors.new_zeros(vectors.shape)
    tensors = [grad_step, grad_pooled, *inputs, g_unit, g_radial, g_a, g_b, g_vectors, partial]
    launch(smooth_backward_kernel, programs, blocks, tensors, nodes, **sizes, RECEIVERS=receivers, EDGES=blocks.rows,
           IN_REGISTERS=blocks.in_registers, THIN_IN_REGISTERS=thin_in_registers(blocks.width, sizes),
           PRECISION=mode)  # fmt: skip
    found = split_partial(partial, shapes)
    g_w2, g_b2, g_radial_map, g_filter_map, g_vector_map = found[:5]
    g_geometry_map = None if geometry_map is None else found[5]
    return (g_unit, g_radial, g_a, g_b, g_vectors, g_radial_map, g_geometry_map, g_w2, g_b2, g_filter_map,
            g_vector_map)  # fmt: skip
