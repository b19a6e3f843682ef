"""The records of a partition, its quality against brute force, load balancing, and every error."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from partition_cases import BLOB, EDGES, FULL, blob

from egnn_md.distributed import partition_graph
from egnn_md.distributed.partition import Partition, balanced_weights, partition
from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.neighbors import neighbor_list


def test_quality_equals_brute_force() -> None:
    side = 6.0
    positions = blob(22, seed=8)
    cell = torch.eye(3).double() * side
    edges = neighbor_list(positions, cell, FULL, 5.0)[0]  # several images of one neighbour, and self-images
    owner = torch.from_numpy(np.random.default_rng(8).integers(0, 4, 22))
    owner[owner == 2] = 3  # rank 2 owns nothing
    quality = Partition.from_owner(owner, 5).quality(edges)
    rank_of = owner.tolist()
    for rank in range(5):
        received = [(r, s) for r, s in edges.T.tolist() if rank_of[r] == rank]
        foreign = [(r, s) for r, s in received if rank_of[s] != rank]
        assert int(quality.particles[rank]) == rank_of.count(rank)
        assert int(quality.edges[rank]) == len(received)
        assert int(quality.cut_edges[rank]) == len(foreign)
        assert int(quality.halo[rank]) == len({s for _, s in foreign})
    load = (quality.particles + quality.edges).tolist()
    assert quality.imbalance == pytest.approx(max(load) / (sum(load) / 5))
    assert quality.cut_fraction == pytest.approx(int(quality.cut_edges.sum()) / edges.shape[1])


def test_quality_counts_the_receiver_as_the_owner() -> None:
    """One edge only, from particle 1 (rank 1) to particle 0 (rank 0): rank 0 does the work and has the halo."""
    quality = Partition.from_owner(torch.tensor([0, 1]), 2).quality(torch.tensor([[0], [1]]))
    assert quality.edges.tolist() == [1, 0]
    assert quality.halo.tolist() == [1, 0]
    assert quality.cut_edges.tolist() == [1, 0]


def test_quality_table() -> None:
    count = 1200
    owner = torch.cat([torch.zeros(count), torch.ones(34)]).long()
    edges = torch.stack([torch.arange(count), torch.full((count,), count)])
    text = str(Partition.from_owner(owner, 2, "bisection").quality(edges))
    assert text.splitlines() == [
        "bisection: imbalance 1.972, 100.0 % of the edges cut",
        "rank  particles  edges  halo  cut edges",
        "-" * 39,
        "   0      1,200  1,200     1      1,200",
        "   1         34      0     0          0",
        "-" * 39,
        " all      1,234  1,200     1      1,200",
    ]


def test_quality_without_anything() -> None:
    quality = partition(torch.zeros(0, 3), 3).quality(torch.zeros(2, 0).long())
    assert quality.imbalance == 1.0
    assert quality.cut_fraction == 0.0
    assert quality.halo.tolist() == [0, 0, 0]


def test_moved_and_copied() -> None:
    given_owner = torch.tensor([0, 1, 1, 2])
    found = Partition.from_owner(given_owner, 4)
    given_owner[0] = 3
    assert found.owner.tolist() == [0, 1, 1, 2], "the record keeps its own copy"
    moved = found.moved(1, 3)
    assert moved.owner.tolist() == [0, 3, 1, 2]
    assert found.owner.tolist() == [0, 1, 1, 2]
    assert (moved.parts, moved.method) == (4, "explicit")
    assert moved.counts.tolist() == [1, 1, 1, 1]
    with pytest.raises(AttributeError):
        found.parts = 2  # type: ignore[misc]
    assert Partition.from_owner(np.array([1, 0], dtype=np.int32), 2).owner.dtype == torch.int64


# ---- load balancing


def test_balanced_weights_formula() -> None:
    """The second rank is twice as slow."""
    half = balanced_weights(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]), damping=0.0)
    assert half.tolist() == pytest.approx([2 / 3, 1 / 3])
    damped = balanced_weights(torch.tensor([1.0, 1.0]), torch.tensor([1.0, 2.0]))
    assert damped.tolist() == pytest.approx([0.5 * 0.5 + 0.5 * 2 / 3, 0.5 * 0.5 + 0.5 / 3])
    kept = balanced_weights(torch.tensor([3.0, 0.0, 1.0]), torch.tensor([2.0, 0.0, 2.0]))
    assert kept.dtype == torch.float64
    assert kept.tolist() == pytest.approx([0.75, 0.0, 0.25])


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.9])
def test_balanced_weights_converge_to_equal_times(damping: float) -> None:
    speed = torch.tensor([1.0, 2.0, 0.5, 4.0, 1.0]).double()
    constant = torch.tensor([0.01, 0.02, 0.0, 0.03, 0.01]).double()
    busy = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.0]).double() > 0
    weights = busy.double()
    for _ in range(200):
        weights = balanced_weights(weights, weights / speed + constant, damping=damping)
        assert float(weights.sum()) == pytest.approx(1.0)
        assert float(weights[4]) == 0.0
    seconds = (weights / speed + constant)[busy]
    assert float(seconds.max() / seconds.min()) == pytest.approx(1.0, abs=1e-6)


# ---- errors


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "magic"}, "unknown partition method 'magic'; known: bisection, random, k-means, metis, spectral"),
        ({"parts": 0}, "parts = 0"),
        ({"parts": -2}, "parts = -2"),
        ({"parts": 2.5}, "parts = 2.5"),
        ({"seed": -1}, "seed .* not -1"),
        ({"seed": 2**31}, "seed"),
        ({"positions": torch.zeros(4, 2)}, r"positions must be \(N, 3\), not \(4, 2\)"),
        ({"positions": torch.tensor([[0.0, 0, 0], [0, float("nan"), 0]])}, "particle 1 .*nan.* not finite"),
        ({"positions": torch.tensor([[float("inf"), 0, 0]])}, "particle 0 .*inf.* not finite"),
        ({"weights": torch.ones(2)}, r"weights must be \(3,\), .* not \(2,\)"),
        ({"weights": torch.tensor([1.0, -1.0, 1.0])}, r"weights\[1\] is -1.0"),
        ({"weights": torch.tensor([1.0, 1.0, float("nan")])}, r"weights\[2\] is nan"),
        ({"weights": torch.zeros(3)}, "weights are all zero"),
        ({"loads": torch.ones(4)}, r"loads must be \(5,\), .* not \(4,\)"),
        ({"loads": torch.tensor([1.0, 1.0, -2.0, 1.0, 1.0])}, r"loads\[2\] is -2.0"),
        ({"loads": torch.zeros(5)}, "loads are all zero"),
        ({"pbc": FULL}, "there is no cell"),
        ({"pbc": FULL, "cell": torch.zeros(3, 3)}, "spans no volume"),
        ({"pbc": FULL, "cell": torch.zeros(2, 3)}, r"cell must be \(3, 3\)"),
        ({"pbc": torch.ones(2), "cell": torch.eye(3)}, r"pbc \(3,\), not \(3, 3\) and \(2,\)"),
        ({"method": "metis"}, "'metis' .*neither edge_index nor cutoff"),
        ({"method": "spectral"}, "'spectral' .*neither edge_index nor cutoff"),
        ({"method": "metis", "edge_index": torch.zeros(3, 2).long()}, r"edge_index must be \(2, E\)"),
        ({"method": "metis", "edge_index": torch.zeros(2, 2)}, r"edge_index must be [^\n]*torch\.float32"),
        ({"method": "metis", "edge_index": torch.tensor([[0], [5]])}, r"particles 0\.\.5, but there are 5"),
        ({"method": "metis", "edge_index": torch.tensor([[0], [-1]])}, r"particles -1\.\.0"),
        ({"method": "metis", "cutoff": -1.0}, "cutoff must be positive"),
    ],
)
def test_arguments_that_cannot_be_used(change: dict[str, object], message: str) -> None:
    arguments: dict[str, object] = {"positions": blob(5), "parts": 3} | change
    positions, parts = arguments.pop("positions"), arguments.pop("parts")
    with pytest.raises(InputError, match=message):
        partition(positions, parts, **arguments)  # type: ignore[arg-type]


def test_limits_of_the_graph_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition_graph, "SPECTRAL_PARTICLES", 3999)
    with pytest.raises(InputError, match="at most 3,999 particles, not 4,000"):
        partition(BLOB, 2, method="spectral", edge_index=EDGES)
    monkeypatch.setattr(partition_graph, "LARGEST_METIS_INDEX", 1000)
    with pytest.raises(InputError, match="METIS counts to 1,000"):
        partition(BLOB, 2, method="metis", edge_index=EDGES)


@pytest.mark.parametrize(
    ("method", "module", "command"),
    [
        ("metis", "pymetis", "pip install pymetis"),
        ("k-means", "sklearn.cluster", "pip install scikit-learn"),
        ("k-means", "threadpoolctl", "pip install scikit-learn"),
        ("spectral", "threadpoolctl", "pip install scikit-learn"),
    ],
)
def test_missing_packages(method: str, module: str, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=command):
        partition(BLOB, 2, method=method, edge_index=EDGES)


@pytest.mark.parametrize(
    ("owner", "parts", "message"),
    [
        (torch.tensor([0, 3]), 3, r"particle 1 is owned by rank 3, but there are the ranks 0\.\.2"),
        (torch.tensor([-1, 0]), 3, "particle 0 is owned by rank -1"),
        (torch.tensor([[0, 1]]), 3, r"owner must be \(N,\)"),
        (torch.tensor([0.0, 1.0]), 3, "dtype torch.float32"),
        (torch.tensor([True, False]), 3, "dtype torch.bool"),
        (torch.tensor([0]), 0, "parts = 0"),
    ],
)
def test_owners_that_cannot_be_used(owner: torch.Tensor, parts: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Partition.from_owner(owner, parts)


def test_ranks_and_particles_that_are_not_there() -> None:
    found = Partition.from_owner(torch.tensor([0, 1]), 2)
    with pytest.raises(InputError, match=r"no rank 2: the partition has the ranks 0\.\.1"):
        found.members(2)
    with pytest.raises(InputError, match="no rank -1"):
        found.moved(0, -1)
    for index in (2, -1):
        with pytest.raises(InputError, match=f"no particle {index} to move: the partition has 2"):
            found.moved(index, 0)
    with pytest.raises(InputError, match=r"edge_index names the particles 0\.\.2"):
        found.quality(torch.tensor([[0], [2]]))


@pytest.mark.parametrize(
    ("weights", "seconds", "damping", "message"),
    [
        ([1.0, 1.0], [1.0, 0.0], 0.5, "rank 1 took 0.0 s"),
        ([1.0, 1.0], [-1.0, 1.0], 0.5, "rank 0 took -1.0 s"),
        ([1.0, 1.0], [1.0, float("nan")], 0.5, "rank 1 took nan s"),
        ([1.0, 1.0], [1.0], 0.5, r"seconds must be \(2,\)"),
        ([1.0, -1.0], [1.0, 1.0], 0.5, r"weights\[1\] is -1.0"),
        ([0.0, 0.0], [1.0, 1.0], 0.5, "weights are all zero"),
        ([], [], 0.5, r"weights must be \(P,\)"),
        ([1.0], [1.0], 1.0, "damping .* not 1.0"),
        ([1.0], [1.0], -0.1, "damping .* not -0.1"),
    ],
)
def test_times_that_cannot_be_used(weights: list[float], seconds: list[float], damping: float, message: str) -> None:
    with pytest.raises(InputError, match=message):
        balanced_weights(torch.tensor(weights), torch.tensor(seconds), damping=damping)
