# mypy: allow-incomplete-defs, allow-untyped-defs
"""Products with *thin* maps: (R, F) with few rows R, of radial functions, vectors or their products.

A tile that a thin map is applied to has a column for each of its rows, padded with zeros to a power of two, at least
16: every product sums that many numbers or more, which is the least the compiler takes. Products are cut along the
summed axis as in :mod:`egnn_md.kernels.triton_common`.
"""

import triton
import triton.language as tl

from egnn_md.kernels.triton_common import SUMMED, dot, piece

#: columns that a gradient in memory is added to at a time
PIECE = tl.constexpr(16)


@triton.jit
def map_row(column, COUNT: tl.constexpr, PARTS: tl.constexpr):
    """Row of a map (PARTS COUNT, F) that a tile's column belongs to, and whether there is one.

    A tile has the parts of k = 0, then those of k = 1, and so on, a map all k of one part, then of the next: parts
    lie together in registers because there they are joined and split, which only works on the last axis.
    """
    GROUP: tl.constexpr = 4 if PARTS == 3 else PARTS
    part = column % GROUP
    k = column // GROUP
    return part * COUNT + k, (part < PARTS) & (k < COUNT)


@triton.jit
def through(total, x, weight, COUNT: tl.constexpr, PARTS: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
            CHUNK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """total (edges, WIDTH) + x (edges, columns) through a thin map."""
    COLUMNS: tl.constexpr = x.shape[1]
    STEP: tl.constexpr = COLUMNS if COLUMNS < CHUNK else CHUNK
    column = tl.arange(0, WIDTH)
    parts = tl.reshape(x, (x.shape[0], COLUMNS // STEP, STEP))
    which = tl.arange(0, COLUMNS // STEP)
    for k in range(COLUMNS // STEP):
        row, real = map_row(k * STEP + tl.arange(0, STEP), COUNT, PARTS)
        mask = real[:, None] & (column < HIDDEN)[None, :]
        rows = tl.load(weight + row[:, None] * HIDDEN + column[None, :], mask=mask, other=0.0)
        if COLUMNS == STEP:
            total = dot(x, rows, total, PRECISION)
        else:
            total = dot(piece(parts, which, k), rows, total, PRECISION)
    return total


@triton.jit
def onto(total, x, weight, COUNT: tl.constexpr, PARTS: tl.constexpr, HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
         CHUNK: tl.constexpr, PRECISION: tl.constexpr):  # fmt: skip
    """total (edges, columns) + x (edges, WIDTH) times the rows of a thin map: the way back of :func:`through`."""
    row, real = map_row(tl.arange(0, total.shape[1]), COUNT, PARTS)
    parts = tl.reshape(x, (x.shape[0], WIDTH // CHUNK, CHUNK))
    which = tl.arange(0, WIDTH // CHUNK)
    for k in range(WIDTH // CHUNK):
        inner = k * CHUNK + tl.arange(0, CHUNK)
        mask = real[:, None] & (inner < HIDDEN)[None, :]
        rows = tl.trans(tl.load(weight + row[:, None] * HIDDEN + inner[None, :], mask=mask, other=0.0))
        if WIDTH == CHUNK:
            total = dot(x, rows, total, PRECISION)
        else:
            total = dot(piece(parts, which, k), rows, total, PRECISION)
    return total


@triton.jit
def add_thin(total, memory, x, gradient, COUNT: tl.constexpr, PARTS: tl.constexpr, HIDDEN: tl.constexpr,
             WIDTH: tl.constexpr, CHUNK: tl.constexpr, IN_REGISTERS: tl.constexpr,
             PRECISION: tl.constexpr):  # fmt: skip
    """Add x.T @ gradient (columns, WIDTH) to ``total`` in registers, or to ``memory``, this program's own."""
    ROWS: tl.constexpr = x.shape[0]
    COLUMNS: tl.constexpr = x.shape[1]
    if IN_REGISTERS:
        if PRECISION == "ieee" and ROWS > SUMMED:
            left = tl.reshape(x, (ROWS // SUMMED, SUMMED, COLUMNS))
            right = tl.reshape(gradient, (ROWS // SUMMED, SUMMED, WIDTH))
            which = tl.arange(0, ROWS // SUMMED)
            for k in range(ROWS // SUMMED):
                chosen = (which == k)[:, None, None]
                rows = tl.sum(tl.where(chosen, left, 0.0), axis=0)
                total = dot(tl.trans(rows), tl.sum(tl.where(chosen, right, 0.0), axis=0), total, PRECISION)
        else:
            total = dot(tl.trans(x), gradient, total, PRECISION)
    else:
        # as in triton_common.add_outer: the loop over pieces of WIDTH elsewhere in the caller's loop keeps the
        # compiler from reading ``before`` ahead of the last turn's store
        tl.static_assert(WIDTH > CHUNK)
        column = tl.arange(0, WIDTH)
        parts = tl.reshape(x, (ROWS, COLUMNS // PIECE, PIECE))
        which = tl.arange(0, COLUMNS // PIECE)
        for k in range(COLUMNS // PIECE):
            row, real = map_row(k * PIECE + tl.arange(0, PIECE), COUNT, PARTS)
            mask = real[:, None] & (column < HIDDEN)[None, :]
            address = memory + row[:, None] * HIDDEN + column[None, :]
            before = tl.load(address, mask=mask, other=0.0)
            tl.store(address, dot(tl.trans(piece(parts, which, k)), gradient, before, PRECISION), mask=mask)
        tl.debug_barrier()
    return total


@triton.jit
def store_thin(memory, total, COUNT: tl.constexpr, PARTS: tl.constexpr, HIDDEN: tl.constexpr,
               WIDTH: tl.constexpr):  # fmt: skip
    """Write registers (columns, WIDTH) to a thin map."""
    column = tl.arange(0, WIDTH)
    row, real = map_row(tl.arange(0, total.shape[0]), COUNT, PARTS)
    mask = real[:, None] & (column < HIDDEN)[None, :]
    tl.store(memory + row[:, None] * HIDDEN + column[None, :], total, mask=mask)
