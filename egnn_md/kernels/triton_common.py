# mypy: allow-incomplete-defs, allow-untyped-defs
"""What the two fused kernels share: products with a weight matrix, SiLU, tanh, and the choices made on the host.

Shapes inside a kernel are powers of two: a hidden size F is padded to ``WIDTH`` columns that read as zero and stay
zero (silu(0) = 0), so no sum needs a mask.

A product x @ W with a ``WIDTH`` × ``WIDTH`` weight is cut along the summed axis into pieces of ``CHUNK``. Two reasons:
the weight passes through shared memory (227 KiB on an H100, where 256 × 256 in float32 is 256 KiB), and in exact
float32, which has no tensor cores, a thread holds whole rows and columns of the pieces in registers. A register tensor
cannot be sliced, so a piece of x is a sum over a mask: exact, because all other terms are zero, and cheaper by
``WIDTH`` than the product it serves.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels.precision import PRECISIONS

#: Below this, tanh comes from its continued fraction, above from the sigmoid: 2 σ(2x) - 1 loses digits near zero, and
#: the maps of a fresh network give weights of 1e-3.
TANH_SERIES = tl.constexpr(0.5)
#: rows that a weight's gradient sums at a time, for the same reason as ``CHUNK``
SUMMED = tl.constexpr(16)


@triton.jit
def dot(x, y, total, PRECISION: tl.constexpr):
    """total + x @ y."""
    if PRECISION == "bf16":
        out = tl.dot(x.to(tl.bfloat16), y.to(tl.bfloat16), total)
    elif PRECISION == "bf16-rounded":
        # for the interpreter, which multiplies the bit patterns of bfloat16 as if they were integers
        x, y = x.to(tl.bfloat16).to(total.dtype), y.to(tl.bfloat16).to(total.dtype)
        out = tl.dot(x, y, total, input_precision="ieee", out_dtype=total.dtype)
    else:
        out = tl.dot(x, y, total, input_precision=PRECISION, out_dtype=total.dtype)
    return out


@triton.jit
def piece(parts, which, k):
    """Columns k·CHUNK... of a (rows, CHUNK) piece of ``parts`` (rows, WIDTH / CHUNK, CHUNK)."""
    return tl.sum(tl.where((which == k)[None, :, None], parts, 0.0), axis=1)


@triton.jit
def times(x, weight, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, TRANSPOSE: tl.constexpr,
          PRECISION: tl.constexpr):  # fmt: skip
    """x @ weight.T (``TRANSPOSE``, a layer's forward) or x @ weight (its backward), (rows, WIDTH)."""
    column = tl.arange(0, WIDTH)
    out = tl.zeros_like(x)
    parts = tl.reshape(x, (x.shape[0], WIDTH // CHUNK, CHUNK))
    which = tl.arange(0, WIDTH // CHUNK)
    for k in range(WIDTH // CHUNK):
        inner = k * CHUNK + tl.arange(0, CHUNK)
        if TRANSPOSE:
            # read along the rows of memory, turned on chip
            mask = (column < HIDDEN)[:, None] & (inner < HIDDEN)[None, :]
            rows = tl.trans(tl.load(weight + column[:, None] * HIDDEN + inner[None, :], mask=mask, other=0.0))
        else:
            mask = (inner < HIDDEN)[:, None] & (column < HIDDEN)[None, :]
            rows = tl.load(weight + inner[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
        if WIDTH == CHUNK:
            out = dot(x, rows, out, PRECISION)
        else:
            out = dot(piece(parts, which, k), rows, out, PRECISION)
    return out


@triton.jit
def add_outer(total, gradient, x, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
              PRECISION: tl.constexpr):  # fmt: skip
    """Add gradient.T @ x (HIDDEN, HIDDEN) to ``total`` in memory, which belongs to this program alone."""
    # With one piece the loop below dissolves into the caller's, and the compiler, which fetches operands of products a
    # turn ahead, could read ``before`` ahead of the last turn's store. Between pieces there is nothing to overtake.
    tl.static_assert(WIDTH > CHUNK)
    column = tl.arange(0, WIDTH)
    parts = tl.reshape(gradient, (x.shape[0], WIDTH // CHUNK, CHUNK))
    which = tl.arange(0, WIDTH // CHUNK)
    for k in range(WIDTH // CHUNK):
        row = k * CHUNK + tl.arange(0, CHUNK)
        address = total + row[:, None] * HIDDEN + column[None, :]
        mask = (row < HIDDEN)[:, None] & (column < HIDDEN)[None, :]
        before = tl.load(address, mask=mask, other=0.0)
        tl.store(address, dot(tl.trans(piece(parts, which, k)), x, before, PRECISION), mask=mask)
    # the next call may spread the matrix over the threads differently
    tl.debug_barrier()


@triton.jit
def sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def silu(x):
    return x * sigmoid(x)


@triton.jit
def silu_slope(x):
    """Derivative of silu: σ (1 + x (1 - σ))."""
    s = sigmoid(x)
    return s * (1.0 + x * (1.0 - s))


@triton.jit
def tanh(x):
    """Lambert's continued fraction below ``TANH_SERIES`` (relative error 1e-16), the sigmoid above."""
    small = tl.where(tl.abs(x) < TANH_SERIES, x, 0.0)
    y = small * small
    fraction = 11.0 + y / (13.0 + y / 15.0)
    fraction = 3.0 + y / (5.0 + y / (7.0 + y / (9.0 + y / fraction)))
    series = small / (1.0 + y / fraction)
    return tl.where(tl.abs(x) < TANH_SERIES, series, 2.0 * sigmoid(2.0 * x) - 1.0)


@triton.jit
def vector(memory, HIDDEN: tl.constexpr, WIDTH: tl.constexpr):
    """A row of ``HIDDEN`` numbers, (1, WIDTH)."""
    column = tl.arange(0, WIDTH)
    return tl.load(memory + column, mask=column < HIDDEN, other=0.0)[None, :]


@triton.jit
def message_of(joined, w2, b2, gate_w, gate_b, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
               PRECISION: tl.constexpr):  # fmt: skip
    """Message (rows, WIDTH) from what the parts of the first map add up to.

    Returns:
        the message m = g s; what the backward wants again: silu of ``joined``, the second map before its silu g, the
        gate s (rows,), one without attention.
    """
    hidden = silu(joined)
    second = times(hidden, w2, HIDDEN, WIDTH, CHUNK, True, PRECISION) + vector(b2, HIDDEN, WIDTH)
    message = silu(second)
    if gate_w is not None:
        gate = sigmoid(tl.sum(message * vector(gate_w, HIDDEN, WIDTH), 1) + tl.load(gate_b))
        message *= gate[:, None]
    else:
        gate = tl.full((joined.shape[0],), 1.0, joined.dtype)
    return message, hidden, second, gate


@triton.jit
def factor_of(message, w3, b3, w4, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
              TANH: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Number that a direction is multiplied by (rows,), and the map before its silu (rows, WIDTH)."""
    third = times(message, w3, HIDDEN, WIDTH, CHUNK, True, PRECISION) + vector(b3, HIDDEN, WIDTH)
    factor = tl.sum(silu(third) * vector(w4, HIDDEN, WIDTH), 1)
    if TANH:
        factor = tanh(factor)
    return factor, third


@triton.jit
def add_registers(total, gradient, x, WIDTH: tl.constexpr, PRECISION: tl.constexpr):
    """total + gradient.T @ x, in exact float32 by ``SUMMED`` rows at a time."""
    ROWS: tl.constexpr = x.shape[0]
    if PRECISION == "ieee" and ROWS > SUMMED:
        left = tl.reshape(gradient, (ROWS // SUMMED, SUMMED, WIDTH))
        right = tl.reshape(x, (ROWS // SUMMED, SUMMED, WIDTH))
        which = tl.arange(0, ROWS // SUMMED)
        for k in range(ROWS // SUMMED):
            chosen = (which == k)[:, None, None]
            rows = tl.sum(tl.where(chosen, left, 0.0), axis=0)
            total = dot(tl.trans(rows), tl.sum(tl.where(chosen, right, 0.0), axis=0), total, PRECISION)
    else:
        total = dot(tl.trans(gradient), x, total, PRECISION)
    return total


@triton.jit
def add_square(total, memory, gradient, x, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
               IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Add gradient.T @ x to ``total`` in registers, or to ``memory`` where it would not fit into them."""
    if IN_REGISTERS:
        total = add_registers(total, gradient, x, WIDTH, PRECISION)
    else:
        add_outer(memory, gradient, x, HIDDEN, WIDTH, CHUNK, PRECISION)
    return total


@triton.jit
def factor_back(g_factor, factor, third, message, w3, w4, g_w3, g_b3, g_w4, memory, HIDDEN: tl.constexpr,
                WIDTH: tl.constexpr, CHUNK: tl.constexpr, TANH: tl.constexpr, WEIGHTS: tl.constexpr,
                IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient of the message through :func:`factor_of`, and the sums of the weights' gradients so far."""
    if TANH:
        g_factor *= 1.0 - factor * factor
    if WEIGHTS:
        g_w4 += tl.sum(g_factor[:, None] * silu(third), 0)
    g_third = g_factor[:, None] * vector(w4, HIDDEN, WIDTH) * silu_slope(third)
    if WEIGHTS:
        g_b3 += tl.sum(g_third, 0)
        g_w3 = add_square(g_w3, memory, g_third, message, HIDDEN, WIDTH, CHUNK, IN_REGISTERS, PRECISION)
    return times(g_third, w3, HIDDEN, WIDTH, CHUNK, False, PRECISION), g_w3, g_b3, g_w4


@triton.jit
def message_back(g_message, joined, hidden, second, gate, w2, gate_w, g_w2, g_b2, g_gate_w, g_gate_b, memory,
                 HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr, WEIGHTS: tl.constexpr,
                 IN_REGISTERS: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """Gradient of ``joined`` through :func:`message_of`, and the sums of the weights' gradients so far."""
    if gate_w is not None:
        bare = silu(second)
        # of the gate's argument: s' = s (1 - s)
        g_argument = tl.sum(g_message * bare, 1) * gate * (1.0 - gate)
        if WEIGHTS:
            g_gate_w += tl.sum(g_argument[:, None] * bare, 0)
            g_gate_b += tl.sum(g_argument, 0)
        g_message = g_message * gate[:, None] + g_argument[:, None] * vector(gate_w, HIDDEN, WIDTH)
    g_second = g_message * silu_slope(second)
    if WEIGHTS:
        g_b2 += tl.sum(g_second, 0)
        g_w2 = add_square(g_w2, memory, g_second, hidden, HIDDEN, WIDTH, CHUNK, IN_REGISTERS, PRECISION)
    g_joined = times(g_second, w2, HIDDEN, WIDTH, CHUNK, False, PRECISION) * silu_slope(joined)
    return g_joined, g_w2, g_b2, g_gate_w, g_gate_b


@triton.jit
def store_square(memory, total, HIDDEN: tl.constexpr, WIDTH: tl.constexpr):
    """Write (WIDTH, WIDTH) registers to a (HIDDEN, HIDDEN) matrix."""
    column = tl.arange(0, WIDTH)
    mask = (column < HIDDEN)[:, None] & (column < HIDDEN)[None, :]
    tl.store(memory + column[:, None] * HIDDEN + column[None, :], total, mask=mask)


@triton.jit
def store_vector(memory, total, HIDDEN: tl.constexpr, WIDTH: tl.constexpr):
    """Write (WIDTH,) registers to a row of ``HIDDEN`` numbers."""
    column = tl.arange(0, WIDTH)
    tl.store(memory + column, total, mask=column < HIDDEN)


#: whether the kernels run in Triton's interpreter, on tensors of the CPU: decided when they are decorated
INTERPRETED = not isinstance(dot, triton.JITFunction)
#: what the interpreter is told of its device, so that there is more than one program and each has several blocks
INTERPRETED_PROCESSORS = 1
LARGEST_HIDDEN = 256
#: the next piece of a weight is fetched while this one is multiplied
STAGES = 2


def check(a: Tensor, precision: str, name: str = "features") -> str:
    """The kernels' name of ``precision``, after looking whether they can serve features ``a`` (N, F).

    Args:
        name: what errors call ``a``.

    Raises:
        InputError: hidden size, type, device or precision that the kernels do not know.
    """
    if precision not in PRECISIONS:
        raise InputError(f"precision is {precision!r}; choose one of {', '.join(PRECISIONS)}")
    if a.dim() != 2 or not 1 <= a.shape[1] <= LARGEST_HIDDEN:
        raise InputError(
            f"{name} are {tuple(a.shape)}; the fused kernels take (N, 1..{LARGEST_HIDDEN}), use the plain path"
        )
    if INTERPRETED and a.dtype == torch.float64 and precision == "ieee":
        return precision
    if a.dtype != torch.float32:
        raise InputError(f"{name} are {a.dtype}; the fused kernels are for float32, use the plain path")
    if INTERPRETED:
        return "bf16-rounded" if precision == "bf16" else precision
    if a.device.type != "cuda":
        raise InputError(f"{name} are on {a.device}; the fused kernels need a GPU, use the plain path")
    return precision


def same_kind(a: Tensor, **others: Tensor | None) -> None:
    """Raise InputError unless all are on the device of ``a``, and of its type where they are not indices."""
    for name, other in others.items():
        if other is None:
            continue
        wanted = torch.int64 if name in ("row_start", "senders", "batch") else a.dtype
        if other.dtype != wanted or other.device != a.device:
            raise InputError(f"{name} is {other.dtype} on {other.device}; it must be {wanted} on {a.device}")


class Blocks:
    """Sizes of a kernel's blocks, chosen by what compiles for an H100 without spilling much.

    A thread has at most 255 registers. At F = 64 they hold some five intermediates of 32 × 64 numbers, backward also
    the weights' gradients. Larger F: those gradients go through memory (the cache, in fact), and from 129 on fewer rows
    are done at a time. Nothing here was chosen by a measured time.

    Args:
        hidden: F.
        precision: of the products, as :func:`check` returns it.
        backward: which pass.
        squares: how many F × F weights have a gradient.
    """

    def __init__(self, hidden: int, precision: str, *, backward: bool, squares: int = 2) -> None:
        exact = precision == "ieee"
        self.width = max(16, triton.next_power_of_2(hidden))
        self.rows = 16 if self.width > 128 else 32
        self.warps = 8 if backward or self.width > 64 else 4
        # without tensor cores a thread holds all of a piece's summed axis: the more there are live, the shorter
        chunk = 16 if self.width > 128 or (exact and (backward or self.width > 64)) else 32
        self.chunk = min(chunk, self.width)
        # three exact 64 × 64 sums do not fit beside the intermediates, two do
        self.in_registers = self.width <= 32 or (self.width == 64 and (squares == 2 or not exact))


def processors(a: Tensor) -> int:
    """Streaming multiprocessors of the device."""
    if INTERPRETED:
        return INTERPRETED_PROCESSORS
    return torch.cuda.get_device_properties(a.device).multi_processor_count


def launch(
    kernel: Any, programs: int, blocks: Blocks, tensors: list[Tensor | None], *sizes: int, **constants: Any
) -> None:
    """Run ``kernel`` with its arguments in order, on the device of the tensors, which need not be torch's current one.

    The kernels know no strides: what is not dense is copied.
    """
    dense = [None if tensor is None else tensor.detach().contiguous() for tensor in tensors]
    device = next(tensor.device for tensor in dense if tensor is not None)
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[(programs,)](*dense, *sizes, WIDTH=blocks.width, CHUNK=blocks.chunk, **constants,
                            num_warps=blocks.warps, num_stages=STAGES)  # fmt: skip


def split_partial(partial: Tensor | None, sizes: list[tuple[int, ...]]) -> list[Tensor | None]:
    """Sums over programs of ``partial`` (programs, size), cut into tensors of ``sizes``; Nones for None."""
    if partial is None:
        return [None] * len(sizes)
    cut = partial.sum(0).split([math.prod(size) for size in sizes])
    return [part.reshape(size) for part, size in zip(cut, sizes, strict=True)]
