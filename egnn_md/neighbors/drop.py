"""Edge dropping: leave out a fraction of a graph's edges, the longest or random ones (the paper's ``<C, p>``)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from egnn_md.errors import InputError

DROP_MODES = ("longest", "random")
# Relative. The two directions of a pair, and periodic images that a symmetric cell puts at one distance, may
# differ by the rounding of a single precision distance; nothing else comes this close except by chance.
SAME_DISTANCE = 1e-6


def drop_edges(
    edge_index: Tensor,
    distances: Tensor,
    graph_of_edge: Tensor | None = None,
    *,
    fraction: float,
    mode: Literal["longest", "random"] = "longest",
    generator: torch.Generator | None = None,
) -> Tensor:
    """Choose the edges that stay when a fraction of every graph's edges is left out.

    From each graph of ``E_g`` edges ``floor(fraction · E_g)`` go. ``longest`` never separates the two directions
    of a pair, so it stops before a pair that would exceed this number (equal lengths: the pair with the greater
    particle numbers goes first). ``random`` draws directed edges one by one and meets the number exactly.

    Args:
        edge_index: (2, E) receivers and senders; particles of different graphs have different numbers.
        distances: (E,) length of each edge.
        graph_of_edge: (E,) graph of each edge, None for a single graph.
        fraction: 0 keeps every edge, 1 keeps none.
        mode: ``longest`` or ``random``.
        generator: source of the random numbers, on the device of ``edge_index``; torch's global one if None.

    Returns:
        (kept,) int64, ascending: select with it what belongs to the edges.

    Raises:
        InputError: fraction outside [0, 1], unknown mode, shapes that do not agree, a length that is NaN.

    Source:
        Fraction of longest edges: arXiv 2506.19482, section on edge dropping.
    """
    count = _check(edge_index, distances, graph_of_edge, fraction, mode)
    device = edge_index.device
    if fraction == 0.0 or count == 0:
        return torch.arange(count, device=device)
    if fraction == 1.0:
        return torch.empty(0, dtype=torch.int64, device=device)
    graph = edge_index.new_zeros(count) if graph_of_edge is None else graph_of_edge
    edges_of_graph = torch.bincount(graph)
    # the small number mends products such as 0.29 · 100 = 28.999999999999996
    quota = torch.floor(edges_of_graph.double() * fraction + 1e-9).long()
    if mode == "random":
        unit, unit_of_edge = torch.rand(count, generator=generator, device=device), torch.arange(count, device=device)
    else:
        unit, unit_of_edge = _pairs(edge_index, distances)
    units = unit.shape[0]
    size = torch.bincount(unit_of_edge, minlength=units)
    graph_of_unit = graph.new_empty(units).scatter_(0, unit_of_edge, graph)
    order = units - 1 - torch.argsort(unit.flip(0), stable=True, descending=True)
    order = order[torch.argsort(graph_of_unit[order], stable=True)]
    # edges gone when this unit is gone, counted from the start of its graph
    gone = torch.cumsum(size[order], 0) - (torch.cumsum(edges_of_graph, 0) - edges_of_graph)[graph_of_unit[order]]
    dropped = torch.empty(units, dtype=torch.bool, device=device)
    dropped[order] = gone <= quota[graph_of_unit[order]]
    return torch.nonzero(~dropped[unit_of_edge]).squeeze(1)


def _check(edge_index: Tensor, distances: Tensor, graph_of_edge: Tensor | None, fraction: float, mode: str) -> int:
    """Number of edges, after every argument was looked at."""
    if not 0.0 <= fraction <= 1.0:
        raise InputError(f"drop_edges: fraction is {fraction}, but it must lie in [0, 1] (0.75 drops three quarters)")
    if mode not in DROP_MODES:
        raise InputError(f"drop_edges: mode is {mode!r}; choose one of {', '.join(DROP_MODES)}")
    if edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise InputError(f"drop_edges: edge_index is {tuple(edge_index.shape)}, but (2, E) is needed")
    count = int(edge_index.shape[1])
    if distances.shape != (count,):
        raise InputError(f"drop_edges: distances are {tuple(distances.shape)}, but ({count},) is needed, one an edge")
    if graph_of_edge is not None and graph_of_edge.shape != (count,):
        raise InputError(f"drop_edges: graph_of_edge is {tuple(graph_of_edge.shape)}, but ({count},) is needed")
    if mode == "longest" and bool(torch.isnan(distances).any()):
        where = int(torch.nonzero(torch.isnan(distances))[0])
        raise InputError(f"drop_edges: the length of edge {where} is NaN; look at the positions it comes from")
    return count


def _pairs(edge_index: Tensor, distances: Tensor) -> tuple[Tensor, Tensor]:
    """Length (U,) of each unordered pair, by particle numbers, and the pair of each edge (E,).

    Periodic images of a pair are pairs of their own; those at the same distance count as one, because the
    direction that belongs to which image cannot be told without the shifts.
    """
    receivers, senders = edge_index[0], edge_index[1]
    particles = int(edge_index.max()) + 1
    key = torch.minimum(receivers, senders) * particles + torch.maximum(receivers, senders)
    _, pair, edges_of_pair = torch.unique(key, return_inverse=True, return_counts=True)
    direction = torch.sign(senders - receivers)
    balance = torch.zeros_like(edges_of_pair).index_add_(0, pair, direction)
    if bool(((edges_of_pair > 2) | ((edges_of_pair == 2) & (balance != 0))).any()):
        pair = _images(pair, direction, distances)
    length = distances.new_zeros(int(pair.max()) + 1).scatter_reduce_(0, pair, distances.detach(), "amax")
    return length, pair


def _images(pair: Tensor, direction: Tensor, distances: Tensor) -> Tensor:
    """Split pairs that have several periodic images: the k-th distance of both directions is one pair."""
    directed = pair * 3 + direction + 1
    order = torch.argsort(distances, stable=True)
    order = order[torch.argsort(directed[order], stable=True)]
    same = directed[order][1:] == directed[order][:-1]
    low, high = distances[order][:-1], distances[order][1:]
    step = torch.zeros_like(pair)
    step[1:] = (same & (high - low > SAME_DISTANCE * high)).long()
    # the image's number: steps so far, less those before the first edge of this directed pair
    total = torch.cumsum(step, 0)
    first = torch.ones_like(step, dtype=torch.bool)
    first[1:] = ~same
    before = torch.cummax(torch.where(first, total, torch.zeros_like(total)), 0).values
    image = torch.empty_like(pair)
    image[order] = total - before
    return torch.unique(pair * (int(image.max()) + 1) + image, return_inverse=True)[1]
