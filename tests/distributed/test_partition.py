"""Partitions: every particle owned once, shares met, few cut edges, the same on every run."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from partition_cases import BLOB, CUTOFF, DENSITY, EDGES, FULL, blob, graph_of

from egnn_md.distributed import partition_graph, partition_methods
from egnn_md.distributed.partition import METHODS, Partition, partition
from egnn_md.neighbors import neighbor_list

TRICLINIC = torch.tensor([[9.0, 0, 0], [2.0, 14.0, 0], [-1.5, 1.0, 8.0]], dtype=torch.float64)
# Greatest deviation of a rank's load from its share, relative to the mean load: METIS' own tolerances are 0.1 %
# (up to 8 parts) and 3 % (beyond); the others meet the share to a particle or, level by level, to a few.
TOLERANCE = {"bisection": 0.002, "random": 0.002, "k-means": 0.002, "metis": 0.05, "spectral": 0.01}


def held(found: Partition, loads: torch.Tensor) -> torch.Tensor:
    return torch.bincount(found.owner, weights=loads, minlength=found.parts)


LOADS = torch.bincount(EDGES[0], minlength=len(BLOB)).double() + 1


@pytest.mark.parametrize("parts", [1, 2, 3, 8, 13])
@pytest.mark.parametrize("method", METHODS)
def test_every_particle_is_owned_once_and_shares_are_equal(method: str, parts: int) -> None:
    found = partition(BLOB, parts, method=method, edge_index=EDGES)
    assert found.owner.dtype == torch.int64
    assert found.owner.shape == (len(BLOB),)
    assert found.owner.device.type == "cpu"
    assert (found.parts, found.method) == (parts, method)
    members = [found.members(rank) for rank in range(parts)]
    assert torch.equal(torch.cat(members).sort().values, torch.arange(len(BLOB)))
    assert all(bool((group.diff() > 0).all()) for group in members), "ascending"
    assert found.counts.tolist() == [len(group) for group in members]
    mean = len(BLOB) / parts
    assert float((found.counts - mean).abs().max()) <= max(TOLERANCE[method] * mean, 1.0)


@pytest.mark.parametrize("method", METHODS)
def test_loads_and_weights_are_respected(method: str) -> None:
    """Ranks of speed 3, 0, 1, 2 with particles of unequal cost; the one of speed 0 owns nothing."""
    weights = torch.tensor([3.0, 0.0, 1.0, 2.0])
    found = partition(BLOB, 4, method=method, weights=weights, loads=LOADS, edge_index=EDGES)
    wanted = LOADS.sum() * weights.double() / weights.sum()
    assert int(found.counts[1]) == 0
    assert float((held(found, LOADS) - wanted).abs().max()) <= TOLERANCE[method] * float(LOADS.sum()) / 3
    plain = partition(BLOB, 4, method=method, weights=weights, edge_index=EDGES)
    share = len(BLOB) * weights / weights.sum()
    assert float((plain.counts - share).abs().max()) <= max(TOLERANCE[method] * len(BLOB) / 3, 1.0)
    assert not torch.equal(found.owner, plain.owner)


@pytest.mark.parametrize("method", METHODS)
def test_steep_loads(method: str) -> None:
    """Half of the cost lies in a tenth of the particles, all on one side."""
    loads = torch.where(BLOB[:, 0] < BLOB[:, 0].quantile(0.1), 9.0, 1.0).double()
    found = partition(BLOB, 5, method=method, loads=loads, edge_index=EDGES)
    mean = float(loads.sum()) / 5
    allowed = TOLERANCE[method] * mean + float(loads.max())
    assert float((held(found, loads) - mean).abs().max()) <= allowed


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(0, 40),
    parts=st.integers(1, 9),
    seed=st.integers(0, 1000),
    grid=st.integers(1, 5),
    data=st.data(),
)
def test_bisection_and_random_meet_the_shares(
    count: int, parts: int, seed: int, grid: int, data: st.DataObject
) -> None:
    """Any number of particles (many at one place), any weights: each part has its share to one particle."""
    generator = torch.Generator().manual_seed(seed)
    positions = torch.randint(grid, (count, 3), generator=generator).double()
    weights = np.array(data.draw(st.lists(st.integers(0, 4), min_size=parts, max_size=parts)), dtype=float)
    weights[seed % parts] += 1
    for method in ("bisection", "random"):
        counts = partition(positions, parts, method=method, weights=weights, seed=seed).counts.numpy()
        assert counts.sum() == count
        assert np.all(np.abs(counts - count * weights / weights.sum()) <= 1 + 1e-9)
        assert np.all(counts[weights == 0] == 0)


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 30), parts=st.integers(1, 7), seed=st.integers(0, 1000), cutoff=st.floats(0.5, 9.0))
@pytest.mark.parametrize("method", ["k-means", "metis", "spectral"])
def test_small_systems_by_every_method(method: str, count: int, parts: int, seed: int, cutoff: float) -> None:
    """Fewer particles than parts, none at all, no edges, many pieces: owners exist and no part is too great."""
    positions = blob(count, seed)
    found = partition(positions, parts, method=method, cutoff=cutoff, seed=seed)
    assert len(found.owner) == count
    assert int(found.counts.sum()) == count
    if method == "k-means":
        assert float((found.counts - count / parts).abs().max()) <= 1
    if method == "spectral":  # half a particle a level
        assert float((found.counts - count / parts).abs().max()) < 2


@pytest.mark.parametrize("method", METHODS)
def test_coincident_particles_and_disconnected_pieces(method: str) -> None:
    positions = torch.cat([BLOB[:300], BLOB[:300] + 500.0, torch.full((100, 3), -300.0).double()])
    edges = torch.cat([graph_of(BLOB[:300]), graph_of(BLOB[:300]) + 300], dim=1)
    found = partition(positions, 7, method=method, edge_index=edges)
    assert float((found.counts - 100).abs().max()) <= (4 if method in ("metis", "spectral") else 1)
    everywhere = partition(torch.zeros(12, 3), 3, method=method, edge_index=torch.zeros(2, 0).long())
    assert everywhere.counts.tolist() == [4, 4, 4]


@pytest.mark.parametrize("method", METHODS)
def test_same_arguments_give_the_same_owners(method: str) -> None:
    """Whatever the global random state is, and without a trace in it or in torch's number of threads."""

    def divide(seed: int) -> torch.Tensor:
        return partition(BLOB, 5, method=method, edge_index=EDGES, loads=LOADS, seed=seed).owner

    np.random.seed(1)  # noqa: NPY002  (the global state is the point)
    torch.manual_seed(1)
    before = np.random.get_state()[1].copy(), torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    first = divide(7)
    after = np.random.get_state()[1], torch.get_rng_state(), torch.get_num_threads()  # noqa: NPY002
    assert np.array_equal(before[0], after[0])
    assert torch.equal(before[1], after[1])
    assert before[2] == after[2]
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    assert torch.equal(first, divide(7))
    assert torch.equal(
        first, partition(BLOB.numpy(), 5, method=method, edge_index=EDGES.numpy(), loads=LOADS.numpy(), seed=7).owner
    )
    if method in ("random", "k-means", "metis"):
        assert not torch.equal(first, divide(8)), "the seed is used"


def test_libraries_are_held_to_one_thread() -> None:
    from threadpoolctl import threadpool_info, threadpool_limits

    with threadpool_limits(limits=2):
        before = [pool["num_threads"] for pool in threadpool_info()]
        assert max(before) == 2
        with partition_methods.one_thread("k-means"):
            assert all(pool["num_threads"] == 1 for pool in threadpool_info())
        assert [pool["num_threads"] for pool in threadpool_info()] == before


def test_large_samples_by_k_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of many particles: centres from samples, offsets from every third particle, the same balance."""
    monkeypatch.setattr(partition_methods, "MINIBATCH_POINTS", 1000)
    monkeypatch.setattr(partition_methods, "BALANCE_POINTS", 1500)
    found = partition(BLOB, 6, method="k-means")
    assert float((found.counts - len(BLOB) / 6).abs().max()) <= 1
    cut = found.quality(EDGES).cut_fraction
    assert cut < 1.15 * partition(BLOB, 6).quality(EDGES).cut_fraction
    assert torch.equal(found.owner, partition(BLOB, 6, method="k-means").owner)


# ---- where the cuts lie


def test_bisection_cuts_the_longest_direction_at_the_share() -> None:
    positions = blob(1000, stretch=(1.0, 6.0, 1.0))
    found = partition(positions, 2, weights=torch.tensor([1.0, 3.0]))
    order = positions[:, 1].argsort()
    assert torch.equal(found.members(0), order[:250].sort().values)
    # of three ranks the first gets a third of the length, not a half
    thirds = partition(positions, 3)
    assert torch.equal(thirds.members(0), order[:333].sort().values)


def test_bisection_measures_lengths_not_fractions() -> None:
    """The cell is 40 Å along x and 30 Å along y; the particles fill a tenth of x and all of y."""
    generator = torch.Generator().manual_seed(3)
    positions = torch.rand(400, 3, generator=generator).double() * torch.tensor([28.0, 30.0, 5.0])
    cell = torch.diag(torch.tensor([40.0, 30.0, 80.0]))
    for lattice, pbc in ((cell, FULL), (None, None)):
        found = partition(positions, 2, cell=lattice, pbc=pbc)
        assert torch.equal(found.members(0), positions[:, 1].argsort()[:200].sort().values)
    # a sheared cell is measured along its normals: |a| = 30 Å, but its faces are 6 Å apart
    sheared = torch.tensor([[6.0, 29.4, 0.0], [0.0, 20.0, 0.0], [0.0, 0.0, 9.0]], dtype=torch.float64)
    fractions = torch.rand(400, 3, generator=generator).double()
    found = partition(fractions @ sheared, 2, cell=sheared, pbc=FULL)
    assert torch.equal(found.members(0), fractions[:, 2].argsort()[:200].sort().values)


def test_ties_go_by_index() -> None:
    """A flat row of equal places: the first particles go left, in every dtype and with loads."""
    positions = torch.zeros(10, 3)
    expected = [0, 0, 0, 0, 0, 1, 1, 1, 1, 1]
    assert partition(positions, 2).owner.tolist() == expected
    assert partition(positions, 2, loads=torch.ones(10)).owner.tolist() == expected
    positions[2, 0] = 1.0  # the one on the right goes right, although its index is small
    assert partition(positions, 2).owner.tolist() == [0, 0, 1, 0, 0, 0, 1, 1, 1, 1]
    assert partition(positions, 2, loads=torch.ones(10)).owner.tolist() == [0, 0, 1, 0, 0, 0, 1, 1, 1, 1]


def crystal(cell: torch.Tensor) -> torch.Tensor:
    """6 × 6 × 6 sites with one on every face of the cell, where rounding decides on which side it is."""
    steps = torch.arange(6, dtype=torch.float64) / 6
    return torch.cartesian_prod(steps, steps, steps) @ cell


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 1)])
@pytest.mark.parametrize("kind", ["random", "crystal"])
def test_lattice_translations_change_no_owner(dtype: torch.dtype, pbc: tuple[int, ...], kind: str) -> None:
    """Of all particles at once, and of each one by its own lattice vector."""
    periodic = torch.tensor(pbc, dtype=torch.bool)
    generator = torch.Generator().manual_seed(4)
    fractions = torch.rand(200, 3, generator=generator).double()
    positions = crystal(TRICLINIC) if kind == "crystal" else fractions @ TRICLINIC
    reference = partition(positions.to(dtype), 6, cell=TRICLINIC, pbc=periodic)
    assert int(reference.counts.min()) >= len(positions) // 6
    together = torch.tensor([2.0, -1.0, 1.0]).double() * periodic
    alone = torch.randint(-3, 4, (len(positions), 3), generator=generator).double() * periodic
    for steps in (together, alone):
        moved = (positions + steps @ TRICLINIC).to(dtype)
        assert torch.equal(reference.owner, partition(moved, 6, cell=TRICLINIC, pbc=periodic).owner)


def test_periodic_k_means_joins_the_faces() -> None:
    """Two clusters, one of them across the face of the cell: neither is torn."""
    generator = torch.Generator().manual_seed(5)
    spread = torch.randn(200, 3, generator=generator).double()
    spread[:100, 0] += 20.0  # its middle is at the boundary 0 = 20
    spread[100:, 0] += 10.0
    cell = torch.diag(torch.tensor([20.0, 12.0, 12.0])).double()
    found = partition(spread, 2, method="k-means", cell=cell, pbc=FULL)
    assert len(set(found.owner[:100].tolist())) == 1
    assert len(set(found.owner[100:].tolist())) == 1
    assert found.owner[0] != found.owner[100]


def test_k_means_gives_the_greatest_cluster_to_the_greatest_share() -> None:
    """Clusters of 100 and 300 particles for ranks of speed 3 and 1: neither is torn, in either order."""
    positions = blob(400, seed=9)
    positions[:100] += 100.0
    for weights, small in ((torch.tensor([3.0, 1.0]), 1), (torch.tensor([1.0, 3.0]), 0)):
        found = partition(positions, 2, method="k-means", weights=weights)
        assert torch.equal(found.members(small), torch.arange(100))


def test_boundaries_are_shifted_for_balance() -> None:
    """Points on a line between centres at 0 and 1: the nearest centre holds half, shifted it holds a fifth."""
    line = np.linspace(0.0, 1.0, 1001)
    squared = np.stack([line**2, (line - 1.0) ** 2], axis=1)
    shares = np.array([0.2, 0.8])
    shifted = partition_methods.shifted_distances(squared, np.ones(1001), shares)
    assert abs(np.mean(np.argmin(shifted, axis=1) == 0) - 0.2) < 0.002


def test_full_parts_keep_those_who_would_lose_most() -> None:
    """All ask for part 0, which has room for two: those go elsewhere to whom it matters least."""
    distances = np.array([[0.0, 5.0, 9.0], [0.0, 1.0, 9.0], [0.0, 7.0, 9.0], [0.0, 8.0, 2.0]])
    found = partition_methods.fill(distances, np.ones(4), np.array([2.0, 1.0, 1.0]))
    assert found.tolist() == [0, 1, 0, 2]


# ---- cut edges


def test_cut_edges_of_the_methods() -> None:
    cut = {
        method: int(partition(BLOB, 8, method=method, edge_index=EDGES).quality(EDGES).cut_edges.sum())
        for method in METHODS
    }
    assert cut["bisection"] < 0.4 * cut["random"]
    assert cut["k-means"] <= 1.15 * cut["bisection"]
    assert cut["metis"] <= 0.9 * cut["bisection"]
    assert cut["spectral"] <= 1.05 * cut["bisection"]


@pytest.mark.parametrize("method", ["metis", "spectral"])
def test_graph_methods_find_the_bridges(method: str) -> None:
    """A shuffled chain whose positions say nothing: P parts need P - 1 cuts."""
    count = 3000
    shuffled = torch.from_numpy(np.random.default_rng(6).permutation(count))
    chain = torch.stack([shuffled[:-1], shuffled[1:]])
    found = partition(blob(count), 4, method=method, edge_index=chain)
    assert int(found.quality(chain).cut_edges.sum()) <= (3 if method == "spectral" else 8)


@pytest.mark.parametrize("backward", [False, True])
def test_spectral_starts_at_the_lower_end(backward: bool) -> None:
    """Rank 0 owns the near end of a chain and the near ones of separate pieces, whatever their numbers."""
    row = torch.zeros(200, 3).double()
    row[:, 1] = torch.arange(200).flip(0) if backward else torch.arange(200)
    found = partition(row, 2, method="spectral", cutoff=1.1, weights=torch.tensor([1.0, 3.0]))
    assert torch.equal(found.owner, (row[:, 1] >= 50).long())
    shuffled = torch.from_numpy(np.random.default_rng(2).permutation(200))
    row[:, 1] = shuffled + 5 * (shuffled // 20)  # ten pieces of twenty
    found = partition(row, 5, method="spectral", cutoff=1.1)
    assert torch.equal(found.owner, shuffled // 40)


@pytest.mark.parametrize("method", ["metis", "spectral"])
def test_graph_is_made_both_ways_once_and_without_loops(method: str) -> None:
    """One direction only, repeated pairs (periodic images) and self-images give the partition of the plain graph."""
    reference = partition(BLOB, 4, method=method, cutoff=CUTOFF)
    half = EDGES[:, EDGES[0] < EDGES[1]]
    loops = torch.arange(len(BLOB)).repeat(2, 1)
    shuffle = torch.randperm(half.shape[1], generator=torch.Generator().manual_seed(0))
    messy = torch.cat([half[:, shuffle], half[:, ::7], loops], dim=1)
    assert torch.equal(reference.owner, partition(BLOB, 4, method=method, edge_index=messy).owner)
    plain = partition_graph.adjacency(messy.numpy(), len(BLOB))
    assert plain.nnz == EDGES.shape[1]
    assert set(plain.data.tolist()) == {1.0}


def test_graph_methods_use_the_periodic_graph() -> None:
    side = (1000 / DENSITY) ** (1 / 3)
    cell = torch.eye(3).double() * side
    positions = blob(1000)
    edges = neighbor_list(positions, cell, FULL, CUTOFF)[0]
    made = partition(positions, 4, method="metis", cell=cell, pbc=FULL, cutoff=CUTOFF)
    given_graph = partition(positions, 4, method="metis", cell=cell, pbc=FULL, edge_index=edges)
    assert torch.equal(made.owner, given_graph.owner)


@pytest.mark.parametrize("kind", ["dense", "products", "factorised"])
def test_fiedler_solves_the_eigenproblem(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the whole dense spectrum, on each of the three ways to solve it."""
    positions = blob(80 if kind == "dense" else 300, stretch=(4.0, 1.0, 1.0))
    graph = partition_graph.adjacency(graph_of(positions, 5.0).numpy(), len(positions))
    if kind == "products":
        monkeypatch.setattr(partition_graph, "FIEDLER_TOLERANCES", (1e-10,))
    if kind == "factorised":
        monkeypatch.setattr(partition_graph, "FIEDLER_MARGIN", 1e300)
    found = partition_graph.fiedler(graph, 0)
    dense = graph.toarray()
    degree = dense.sum(axis=1)
    values, vectors = np.linalg.eigh(np.eye(len(dense)) - dense / np.sqrt(degree[:, None] * degree))
    assert values[1] > 1e-6, "connected"
    wanted = vectors[:, 1] / np.sqrt(degree)
    wanted /= np.abs(wanted).max()
    assert np.abs(found * np.sign(found @ wanted) - wanted).max() < 1e-4
