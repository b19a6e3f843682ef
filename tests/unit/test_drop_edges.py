"""drop_edges: how many edges go, which, and that graphs of a batch do not see each other."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

import egnn_md
from egnn_md.errors import InputError


def full_graph(particles: int, seed: int, first: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All ordered pairs of random particles numbered from ``first``, shuffled, and their lengths."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randn(particles, 3, generator=generator)
    edges = torch.tensor([(i, j) for i in range(particles) for j in range(particles) if i != j]).T
    edges = edges[:, torch.randperm(edges.shape[1], generator=generator)]
    return edges + first, (positions[edges[0]] - positions[edges[1]]).norm(dim=1)


def as_set(edges: torch.Tensor) -> set[tuple[int, int]]:
    return {(int(i), int(j)) for i, j in edges.T}


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.25, 0.29, 0.5, 0.75, 0.999, 1.0])
@pytest.mark.parametrize("mode", ["longest", "random"])
def test_the_fraction_goes(fraction: float, mode: str) -> None:
    edges, lengths = full_graph(10, 0)
    kept = egnn_md.drop_edges(edges, lengths, fraction=fraction, mode=mode)
    gone = math.floor(fraction * 90 + 1e-9)
    assert kept.dtype == torch.int64
    assert torch.equal(kept, kept.unique())
    # "longest" drops whole pairs only: an odd number is rounded down to an even one
    assert 90 - len(kept) == (gone - gone % 2 if mode == "longest" else gone)


def test_a_product_that_rounds_down_still_counts() -> None:
    edges, lengths = full_graph(25, 1)  # 0.57 · 600 edges are 342, but 341.99999999999994 in binary
    assert 0.57 * 600 < 342
    assert len(egnn_md.drop_edges(edges, lengths, fraction=0.57)) == 600 - 342


def test_the_longest_go_and_directions_stay_together() -> None:
    edges, lengths = full_graph(12, 2)
    kept = egnn_md.drop_edges(edges, lengths, fraction=0.6)
    mask = torch.zeros(len(lengths), dtype=torch.bool)
    mask[kept] = True
    assert lengths[mask].max() < lengths[~mask].min()
    assert as_set(edges[:, kept]) == as_set(edges[:, kept].flip(0))


def test_equal_lengths_are_cut_between_pairs_and_the_order_of_edges_does_not_matter() -> None:
    edges, lengths = full_graph(8, 3)
    lengths = torch.ones_like(lengths)
    kept = egnn_md.drop_edges(edges, lengths, fraction=0.5)
    chosen = as_set(edges[:, kept])
    assert len(chosen) == 28
    assert chosen == {(j, i) for i, j in chosen}
    shuffled = torch.randperm(edges.shape[1], generator=torch.Generator().manual_seed(9))
    again = egnn_md.drop_edges(edges[:, shuffled], lengths, fraction=0.5)
    assert as_set(edges[:, shuffled][:, again]) == chosen


def test_rounding_of_a_distance_does_not_separate_a_pair() -> None:
    edges, lengths = full_graph(12, 4)
    noisy = lengths * (1 + 1e-7 * torch.sign(edges[0] - edges[1]))
    for fraction in (0.1, 0.3, 0.5, 0.7, 0.9):
        chosen = as_set(edges[:, egnn_md.drop_edges(edges, noisy, fraction=fraction)])
        assert chosen == {(j, i) for i, j in chosen}


def test_periodic_images_of_a_pair_go_one_by_one() -> None:
    # particles 0 and 1 in a cell of length 1 along x, x = 0 and 0.3: images at 0.3, 0.7, 1.3, and own images at 1
    edges = torch.tensor([[0, 1, 0, 1, 0, 1, 0, 0, 1, 1], [1, 0, 1, 0, 1, 0, 0, 0, 1, 1]])
    lengths = torch.tensor([0.3, 0.3, 0.7, 0.7, 1.3, 1.3, 1.0, 1.0, 1.0, 1.0])
    assert egnn_md.drop_edges(edges, lengths, fraction=0.2).tolist() == [0, 1, 2, 3, 6, 7, 8, 9]
    assert egnn_md.drop_edges(edges, lengths, fraction=0.4).tolist() == [0, 1, 2, 3, 6, 7]
    assert egnn_md.drop_edges(edges, lengths, fraction=0.9).tolist() == [0, 1]


def test_images_at_one_distance_are_not_torn_apart() -> None:
    # x = 0 and 0.5 in a cell of length 1: both images of the pair are at 0.5, four edges that go together
    edges = torch.tensor([[0, 0, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]])
    lengths = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.2, 0.2])
    assert egnn_md.drop_edges(edges, lengths, fraction=0.5).tolist() == [0, 1, 2, 3, 4, 5]
    assert egnn_md.drop_edges(edges, lengths, fraction=0.7).tolist() == [4, 5]


def test_every_graph_of_a_batch_is_treated_as_if_alone() -> None:
    sizes = (5, 9, 3)
    starts = (0, 5, 14, 17)
    parts = [full_graph(size, seed, first) for seed, (size, first) in enumerate(zip(sizes, starts, strict=False))]
    edges = torch.cat([part[0] for part in parts], dim=1)
    # the first graph is far larger than the others: one global cut would take all edges from it
    lengths = torch.cat([part[1] * scale for part, scale in zip(parts, (100.0, 1.0, 0.01), strict=True)])
    graph = torch.cat([torch.full((part[0].shape[1],), i) for i, part in enumerate(parts)])
    shuffled = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(1))
    for fraction in (0.3, 0.75):
        kept = egnn_md.drop_edges(edges[:, shuffled], lengths[shuffled], graph[shuffled], fraction=fraction)
        single = [part[0][:, egnn_md.drop_edges(*part, fraction=fraction)] for part in parts]
        assert as_set(edges[:, shuffled][:, kept]) == set().union(*map(as_set, single))


def test_random_is_repeatable_even_and_per_graph() -> None:
    edges, lengths = full_graph(20, 5)
    graph = (edges[0] >= 10).long()

    def draw(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return egnn_md.drop_edges(edges, lengths, graph, fraction=0.5, mode="random", generator=generator)

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))
    assert torch.bincount(graph[draw(3)]).tolist() == [95, 95]
    # no edge is favoured: 400 draws, kept half the time each, 6 standard deviations
    kept = torch.stack([torch.bincount(draw(seed), minlength=len(lengths)) for seed in range(400)]).double().mean(0)
    assert (kept - 0.5).abs().max() < 6 * 0.5 / math.sqrt(400)


def test_more_dropping_keeps_a_subset() -> None:
    edges, lengths = full_graph(15, 6)
    kept = [set(egnn_md.drop_edges(edges, lengths, fraction=f).tolist()) for f in (0.0, 0.3, 0.6, 0.9, 1.0)]
    assert all(more <= less for less, more in pairwise(kept))


def test_no_edges() -> None:
    empty = torch.empty(2, 0, dtype=torch.int64)
    assert egnn_md.drop_edges(empty, torch.empty(0), fraction=0.5).shape == (0,)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan")])
def test_fractions_that_cannot_be(fraction: float) -> None:
    with pytest.raises(InputError, match=r"fraction is .* must lie in \[0, 1\]"):
        egnn_md.drop_edges(*full_graph(4, 0), fraction=fraction)


def test_other_bad_input_names_the_argument() -> None:
    edges, lengths = full_graph(4, 0)
    with pytest.raises(InputError, match="mode is 'shortest'"):
        egnn_md.drop_edges(edges, lengths, fraction=0.5, mode="shortest")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="distances are"):
        egnn_md.drop_edges(edges, lengths[1:], fraction=0.5)
    with pytest.raises(InputError, match="graph_of_edge is"):
        egnn_md.drop_edges(edges, lengths, torch.zeros(3), fraction=0.5)
    with pytest.raises(InputError, match="edge_index is"):
        egnn_md.drop_edges(edges.T, lengths, fraction=0.5)
    lengths[2] = float("nan")
    with pytest.raises(InputError, match="length of edge 2 is NaN"):
        egnn_md.drop_edges(edges, lengths, fraction=0.5)
