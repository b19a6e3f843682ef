"""Gradients of the gradients, block by block: what training on forces needs.

A fused function has outputs o(x) and its gradient operator gives G(g, x) = Σ g · ∂o/∂x. For cotangents c of G this
module gives the gradient of Σ c · G by g and by x. Everything between the gather of a pair's inputs and the sum over
receivers is a map of single rows, so rows are taken in blocks that stay in the cache: each block is evaluated,
differentiated twice by autograd, added up and forgotten. Gather and sum are linear; they and their transposes are
written out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from egnn_md.kernels import plain
from egnn_md.kernels.fast_silu import fast_silu
from egnn_md.kernels.optional import gathered, minus, plus, sliced, there

ROWS = 4096  # rows of a block: a feature of each is 1 MiB
Rows = Callable[..., Sequence[Tensor]]
Optionals = Sequence[Tensor | None]


def _block_twice(
    rows: Rows, leaves: Optionals, upstream: Sequence[Tensor], cotangents: Optionals
) -> tuple[Optionals, Optionals]:
    """Gradient of Σ c · ∂(Σ g · rows(x))/∂x of one block, by g and by x.

    Args:
        rows: maps the leaves to outputs.
        leaves: x, a block's rows and the weights; None stays None.
        upstream: g, one an output.
        cotangents: c, one a leaf; None means zero.
    """
    with torch.enable_grad():
        xs = [None if leaf is None else leaf.detach().requires_grad_(True) for leaf in leaves]
        gs = [g.detach().requires_grad_(True) for g in upstream]
        chosen = [(x, c) for x, c in zip(xs, cotangents, strict=True) if x is not None and c is not None]
        inner = torch.stack([(g * o).sum() for g, o in zip(gs, rows(*xs), strict=True)]).sum()
        first = torch.autograd.grad(inner, [x for x, _ in chosen], create_graph=True, allow_unused=True)
        terms = [(c * d).sum() for (_, c), d in zip(chosen, first, strict=True) if d is not None]
        there = [x for x in xs if x is not None]
        if not terms:
            return [None for _ in gs], [None for _ in xs]
        total = torch.stack(terms).sum()
        found = iter(torch.autograd.grad(total, gs + there, allow_unused=True))
    return [next(found) for _ in gs], [None if x is None else next(found) for x in xs]


class _Sums:
    """Results that are added up over the blocks."""

    def __init__(self, like: Optionals) -> None:
        self.values = [None if tensor is None else torch.zeros_like(tensor) for tensor in like]

    def whole(self, place: int, found: Tensor | None) -> None:
        """Of a weight."""
        value = self.values[place]
        if value is not None and found is not None:
            value.add_(found)

    def part(self, place: int, rows: slice, found: Tensor | None) -> None:
        """Of something that has the block's rows as its own."""
        value = self.values[place]
        if value is not None and found is not None:
            value[rows] = found

    def scattered(self, place: int, index: Tensor, found: Tensor | None, sign: float = 1.0) -> None:
        """Of something that the rows were gathered from."""
        value = self.values[place]
        if value is not None and found is not None:
            value.index_add_(0, index, found, alpha=sign)


def _receivers(row_start: Tensor) -> tuple[Tensor, Tensor]:
    """(E,) receivers and (N,) number of edges of each."""
    degree = row_start[1:] - row_start[:-1]
    return torch.repeat_interleave(torch.arange(len(degree), device=degree.device), degree), degree


def edge_messages(
    cotangents: Optionals,
    gradients: Sequence[Tensor],
    tensors: Optionals,
    row_start: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
) -> list[Tensor | None]:
    """Of :func:`egnn_md.kernels.plain.edge_messages`: by both gradients, then by every tensor."""
    _, shifts, _, _, edge_features, *weights = tensors
    positions, a, b = there(tensors[0]), there(tensors[2]), there(tensors[3])
    c_positions, c_shifts, c_a, c_b, c_features, *c_weights = cotangents
    receivers, degree = _receivers(row_start)
    share = 1.0 / degree.clamp(min=1).to(positions.dtype).unsqueeze(1)
    mean_gradients = [g * share for g in gradients]
    sums = _Sums([*gradients, *tensors])

    def rows(*leaves: Any) -> Sequence[Tensor]:
        return plain.edge_rows(*leaves, normalize=normalize, tanh=tanh, silu=fast_silu)  # type: ignore[misc]

    for start in range(0, len(senders), ROWS):
        block = slice(start, start + ROWS)
        i, j = receivers[block], senders[block]
        difference = plus(positions.index_select(0, i) - positions.index_select(0, j), sliced(shifts, block))
        c_difference = plus(gathered(c_positions, i), minus(gathered(c_positions, j)), sliced(c_shifts, block))
        leaves = [difference, a.index_select(0, i) + b.index_select(0, j), sliced(edge_features, block), *weights]
        given = [c_difference, plus(gathered(c_a, i), gathered(c_b, j)), sliced(c_features, block), *c_weights]
        upstream = [g.index_select(0, i) for g in mean_gradients]
        by_g, (by_difference, by_joined, by_features, *by_weights) = _block_twice(rows, leaves, upstream, given)
        for place, found in enumerate(by_g):
            sums.scattered(place, i, found)
        sums.scattered(2, i, by_difference)
        sums.scattered(2, j, by_difference, -1.0)
        sums.part(3, block, by_difference)
        sums.scattered(4, i, by_joined)
        sums.scattered(5, j, by_joined)
        sums.part(6, block, by_features)
        for place, found in enumerate(by_weights):
            sums.whole(7 + place, found)
    for place in range(len(gradients)):
        there(sums.values[place]).mul_(share)
    return sums.values


def smooth_messages(
    cotangents: Optionals,
    gradients: Sequence[Tensor],
    tensors: Optionals,
    row_start: Tensor,
    senders: Tensor,
) -> list[Tensor | None]:
    """Of :func:`egnn_md.kernels.plain.smooth_messages`: by both gradients, then by every tensor."""
    unit, radial, a, b = (there(tensor) for tensor in tensors[:4])
    vectors, *weights = tensors[4:]
    c_unit, c_radial, c_a, c_b, c_vectors, *c_weights = cotangents
    receivers, _ = _receivers(row_start)
    sums = _Sums([*gradients, *tensors])

    def rows(*leaves: Any) -> Sequence[Tensor]:
        return plain.smooth_rows(*leaves, silu=fast_silu)  # type: ignore[misc]

    for start in range(0, len(senders), ROWS):
        block = slice(start, start + ROWS)
        i, j = receivers[block], senders[block]
        joined = a.index_select(0, i) + b.index_select(0, j)
        leaves = [unit[block], radial[block], joined, gathered(vectors, i), gathered(vectors, j), *weights]
        given = [
            sliced(c_unit, block),
            sliced(c_radial, block),
            plus(gathered(c_a, i), gathered(c_b, j)),
            gathered(c_vectors, i),
            gathered(c_vectors, j),
            *c_weights,
        ]
        by_g, (by_unit, by_radial, by_joined, by_received, by_sent, *by_weights) = _block_twice(
            rows, leaves, [g.index_select(0, i) for g in gradients], given
        )
        for place, found in enumerate(by_g):
            sums.scattered(place, i, found)
        sums.part(2, block, by_unit)
        sums.part(3, block, by_radial)
        sums.scattered(4, i, by_joined)
        sums.scattered(5, j, by_joined)
        sums.scattered(6, i, by_received)
        sums.scattered(6, j, by_sent)
        for place, found in enumerate(by_weights):
            sums.whole(7 + place, found)
    return sums.values


def virtual_messages(
    cotangents: Optionals,
    gradients: Sequence[Tensor],
    tensors: Optionals,
    batch: Tensor,
    tanh: bool,
) -> list[Tensor | None]:
    """Of :func:`egnn_md.kernels.plain.virtual_messages`: by its four gradients, then by every tensor."""
    positions, places, is_open, a, of_virtual = (there(tensor) for tensor in tensors[:5])
    weights = tensors[5:]
    c_positions, c_places, _, c_a, c_of_virtual, *c_weights = cotangents
    g_step, g_pooled, g_places, g_sums = gradients
    channels = places.shape[1]
    sums = _Sums([*gradients, *tensors])

    def rows(*leaves: Any) -> Sequence[Tensor]:
        return plain.virtual_rows(*leaves, tanh=tanh, silu=fast_silu)  # type: ignore[misc]

    particles = max(ROWS // channels, 1)
    for start in range(0, len(batch), particles):
        block = slice(start, start + particles)
        graph = batch[block]
        factor = is_open.index_select(0, graph).reshape(-1, 1, 1)
        to_virtual = (places.index_select(0, graph) - positions[block].unsqueeze(1)) * factor
        joined = a[block].unsqueeze(1) + of_virtual.index_select(0, graph)
        leaves = [to_virtual, joined, *weights]
        moved = minus(None if c_positions is None else c_positions[block].unsqueeze(1))
        c_direction = plus(gathered(c_places, graph), moved)
        if c_direction is not None:
            c_direction = (c_direction * factor).expand_as(to_virtual)
        c_joined = plus(None if c_a is None else c_a[block].unsqueeze(1), gathered(c_of_virtual, graph))
        c_joined = None if c_joined is None else c_joined.expand_as(joined)
        upstream = [
            (g_step[block] / channels).unsqueeze(1).expand(-1, channels, -1),
            g_places.index_select(0, graph),
            (g_pooled[block] / channels).unsqueeze(1) + g_sums.index_select(0, graph),
        ]
        (by_step, by_places, by_message), (by_direction, by_joined, *by_weights) = _block_twice(
            rows, leaves, upstream, [c_direction, c_joined, *c_weights]
        )
        sums.part(0, block, None if by_step is None else by_step.mean(1))
        sums.part(1, block, None if by_message is None else by_message.mean(1))
        sums.scattered(2, graph, by_places)
        sums.scattered(3, graph, by_message)
        if by_direction is not None:
            by_direction = by_direction * factor
            sums.part(4, block, -by_direction.sum(1))
            sums.scattered(5, graph, by_direction)
        if by_joined is not None:
            sums.part(7, block, by_joined.sum(1))
            sums.scattered(8, graph, by_joined)
        for place, found in enumerate(by_weights):
            sums.whole(9 + place, found)
    return sums.values


def radial_functions(
    cotangents: Optionals,
    gradients: Sequence[Tensor],
    tensors: Optionals,
    basis: int,
    cutoff: float,
) -> list[Tensor | None]:
    """Of :func:`egnn_md.kernels.plain.radial_functions`: by both gradients, then by the pairs."""
    pair, (c_pair,) = there(tensors[0]), cotangents
    sums = _Sums([*gradients, pair])
    for start in range(0, len(pair), 4 * ROWS):
        block = slice(start, start + 4 * ROWS)
        by_g, (by_pair,) = _block_twice(
            lambda x: plain.radial_functions(x, basis, cutoff),
            [pair[block]],
            [g[block] for g in gradients],
            [sliced(c_pair, block)],
        )
        for place, found in enumerate([*by_g, by_pair]):
            sums.part(place, block, found)
    return sums.values
