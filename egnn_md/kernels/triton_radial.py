# mypy: allow-incomplete-defs, allow-untyped-defs
"""Unit vectors and radial functions of pairs, in one kernel each way; what they compute is
:func:`egnn_md.kernels.plain.radial_functions`.

With d the length of a pair, t = π d / c, and the envelope u, which is zero from the cutoff c on:

    b_n = sqrt(2 / c) sin(n t) u / d
    b_n' = sqrt(2 / c) (n π / c cos(n t) u / d + sin(n t) (u' / d - u / d²))

sin(n t) and cos(n t) follow from those of t by the recurrence of Chebyshev's polynomials, s_{n+1} = 2 cos(t) s_n -
s_{n-1}. It loses digits as n², so numbers are float64 on the way, which costs a GPU with fast float64 less than to read
and write the tensors; a float32 sine of n t is no cheaper, and its argument alone errs by n 10⁻⁷.

A thread's row of B numbers is filled column by column with a select, since registers have no addresses, and then
written at once, neighbours in memory together.
"""

import math
from contextlib import nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels.triton_common import check, same_kind

#: as many as the messages' kernel takes
LARGEST_BASIS = 32
#: pairs of a program, and its warps
PAIRS, WARPS = 128, 4


@triton.jit
def _length(pair, row, real):
    """x, y, z (pairs,) and 1 / d in float64."""
    x = tl.load(pair + row * 3, mask=real, other=1.0).to(tl.float64)
    y = tl.load(pair + row * 3 + 1, mask=real, other=1.0).to(tl.float64)
    z = tl.load(pair + row * 3 + 2, mask=real, other=1.0).to(tl.float64)
    d = tl.sqrt(x * x + y * y + z * z)
    return x, y, z, d, 1.0 / d


@triton.jit
def _envelope(s):
    """The envelope of degree 6 and its slope at s = d / c."""
    inside = s < 1.0
    s2 = s * s
    s5 = s2 * s2 * s
    value = 1.0 + s5 * s * (-28.0 + 48.0 * s - 21.0 * s2)
    slope = -168.0 * s5 * (1.0 - s) * (1.0 - s)
    return tl.where(inside, value, 0.0), tl.where(inside, slope, 0.0)


@triton.jit(do_not_specialize=["pairs"])
def radial_forward_kernel(pair, unit, radial, pairs, SCALE: tl.constexpr, CUTOFF: tl.constexpr, STEP: tl.constexpr,
                          BASIS: tl.constexpr, BP: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    """``SCALE`` is sqrt(2 / c), ``STEP`` π / c: compiled in, since a number passed to a kernel is float32."""
    NUMBER: tl.constexpr = pair.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    real = row < pairs
    x, y, z, d, inverse = _length(pair, row, real)
    tl.store(unit + row * 3, (x * inverse).to(NUMBER), mask=real)
    tl.store(unit + row * 3 + 1, (y * inverse).to(NUMBER), mask=real)
    tl.store(unit + row * 3 + 2, (z * inverse).to(NUMBER), mask=real)
    value, _slope = _envelope(d / CUTOFF)
    factor = SCALE * inverse * value
    now = tl.sin(STEP * d)
    twice = 2.0 * tl.cos(STEP * d)
    before = tl.zeros_like(now)
    n = tl.arange(0, BP)
    found = tl.zeros((PAIRS, BP), dtype=NUMBER)
    for k in range(BASIS):
        found = tl.where((n == k)[None, :], (factor * now).to(NUMBER)[:, None], found)
        after = twice * now - before
        before = now
        now = after
    tl.store(radial + row[:, None] * BASIS + n[None, :], found, mask=real[:, None] & (n < BASIS)[None, :])


@triton.jit(do_not_specialize=["pairs"])
def radial_backward_kernel(grad_unit, grad_radial, pair, g_pair, pairs, SCALE: tl.constexpr, CUTOFF: tl.constexpr,
                           STEP: tl.constexpr, BASIS: tl.constexpr, BP: tl.constexpr, PAIRS: tl.constexpr):  # fmt: skip
    NUMBER: tl.constexpr = pair.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * PAIRS + tl.arange(0, PAIRS)
    real = row < pairs
    x, y, z, d, inverse = _length(pair, row, real)
    x, y, z = x * inverse, y * inverse, z * inverse
    value, slope = _envelope(d / CUTOFF)
    by_sine = SCALE * inverse * (slope / CUTOFF - value * inverse)
    by_cosine = SCALE * inverse * value * STEP
    sine = tl.sin(STEP * d)
    cosine = tl.cos(STEP * d)
    twice = 2.0 * cosine
    sine_before = tl.zeros_like(sine)
    cosine_before = tl.full(cosine.shape, 1.0, tl.float64)
    n = tl.arange(0, BP)
    slopes = tl.zeros((PAIRS, BP), dtype=NUMBER)
    for k in range(BASIS):
        one = by_cosine * (k + 1) * cosine + by_sine * sine
        slopes = tl.where((n == k)[None, :], one.to(NUMBER)[:, None], slopes)
        after = twice * sine - sine_before
        sine_before = sine
        sine = after
        after = twice * cosine - cosine_before
        cosine_before = cosine
        cosine = after
    address = grad_radial + row[:, None] * BASIS + n[None, :]
    gradient = tl.load(address, mask=real[:, None] & (n < BASIS)[None, :], other=0.0)
    along = tl.sum(gradient * slopes, 1).to(tl.float64)
    gx = tl.load(grad_unit + row * 3, mask=real, other=0.0).to(tl.float64)
    gy = tl.load(grad_unit + row * 3 + 1, mask=real, other=0.0).to(tl.float64)
    gz = tl.load(grad_unit + row * 3 + 2, mask=real, other=0.0).to(tl.float64)
    # of the unit vector: what is across it, by 1 / d
    along -= (gx * x + gy * y + gz * z) * inverse
    tl.store(g_pair + row * 3, (gx * inverse + along * x).to(NUMBER), mask=real)
    tl.store(g_pair + row * 3 + 1, (gy * inverse + along * y).to(NUMBER), mask=real)
    tl.store(g_pair + row * 3 + 2, (gz * inverse + along * z).to(NUMBER), mask=real)


def constants(basis: int, cutoff: float) -> dict[str, Any]:
    """The kernels' constants."""
    return {
        "SCALE": math.sqrt(2.0 / cutoff),
        "CUTOFF": float(cutoff),
        "STEP": math.pi / cutoff,
        "BASIS": basis,
        "BP": triton.next_power_of_2(basis),
        "PAIRS": PAIRS,
    }


def _run(kernel: Any, tensors: list[Tensor], pair: Tensor, basis: int, cutoff: float) -> None:
    """Check, and run ``kernel`` on all pairs, on the device of the tensors."""
    check(pair, "ieee", "pairs")
    edges = pair.shape[0]
    if pair.shape[1] != 3:
        raise InputError(f"pair is {tuple(pair.shape)}; it must be (E, 3)")
    if not 1 <= basis <= LARGEST_BASIS or not cutoff > 0:
        raise InputError(
            f"{basis} radial functions up to {cutoff}; the fused kernels take 1..{LARGEST_BASIS} and a cutoff above "
            "zero, use the plain path for more"
        )
    if edges == 0:
        return
    dense = [tensor.detach().contiguous() for tensor in tensors]
    with torch.cuda.device(pair.device) if pair.device.type == "cuda" else nullcontext():
        programs = triton.cdiv(edges, PAIRS)
        kernel[(programs,)](*dense, edges, **constants(basis, cutoff), num_warps=WARPS)


def radial_forward(pair: Tensor, basis: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """Unit vectors (E, 3) and radial functions (E, basis) of pairs (E, 3).

    Raises:
        InputError: the kernels cannot serve these arguments.
    """
    unit, radial = pair.new_empty(pair.shape), pair.new_empty((pair.shape[0], max(basis, 0)))
    _run(radial_forward_kernel, [pair, unit, radial], pair, basis, cutoff)
    return unit, radial


def radial_backward(g_unit: Tensor, g_radial: Tensor, pair: Tensor, basis: int, cutoff: float) -> Tensor:
    """Gradient of the pairs (E, 3) from those of :func:`radial_forward`'s two outputs.

    Raises:
        InputError: the kernels cannot serve these arguments.
    """
    same_kind(pair, g_unit=g_unit, g_radial=g_radial)
    for name, tensor, shape in (("g_unit", g_unit, pair.shape), ("g_radial", g_radial, (pair.shape[0], basis))):
        if tensor.shape != shape:
            raise InputError(f"{name} is {tuple(tensor.shape)}; with these pairs it must be {tuple(shape)}")
    g_pair = pair.new_empty(pair.shape)
    _run(radial_backward_kernel, [g_unit, g_radial, pair, g_pair], pair, basis, cutoff)
    return g_pair
