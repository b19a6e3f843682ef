"""ParticleGraph: joining, splitting, validation, and what check_structure refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph, check_structure
from egnn_md.neighbors import neighbor_list


def random_graph(count: int, seed: int, *, periodic: bool = True) -> ParticleGraph:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(count, 3, generator=generator, dtype=torch.float64) * 6
    cell = torch.eye(3, dtype=torch.float64) * 6 if periodic else torch.zeros(3, 3, dtype=torch.float64)
    pbc = torch.full((3,), periodic)
    edges, shifts = neighbor_list(positions, cell, pbc, 3.0)
    return ParticleGraph(
        positions=positions,
        species=torch.randint(1, 9, (count,), generator=generator),
        edge_index=edges,
        cell_shifts=shifts,
        cell=cell[None],
        pbc=pbc[None],
        batch=torch.zeros(count, dtype=torch.long),
        velocities=torch.randn(count, 3, generator=generator, dtype=torch.float64),
        labels={
            "energy": torch.tensor([float(seed)], dtype=torch.float64),
            "forces": torch.randn(count, 3, generator=generator, dtype=torch.float64),
        },
    )


def assert_equal(first: ParticleGraph, second: ParticleGraph) -> None:
    for name in ("positions", "species", "edge_index", "cell_shifts", "cell", "pbc", "batch", "velocities"):
        assert torch.equal(getattr(first, name), getattr(second, name)), name
    assert set(first.labels) == set(second.labels)
    for name, value in first.labels.items():
        assert torch.equal(value, second.labels[name]), name


def test_join_and_split_are_inverse() -> None:
    parts = [random_graph(7, 1), random_graph(1, 2, periodic=False), random_graph(12, 3)]
    joined = ParticleGraph.join(parts).validate()
    assert (joined.num_graphs, joined.num_nodes) == (3, 20)
    assert joined.periodic.tolist() == [True, False, True]
    for part, back in zip(parts, joined.split(), strict=True):
        assert_equal(part, back.validate())


def test_pair_vectors_follow_the_convention() -> None:
    graph = ParticleGraph.join([random_graph(7, 1), random_graph(9, 2)])
    pair = graph.pair_vectors()
    for edge in range(graph.num_edges):
        i, j = graph.edge_index[:, edge].tolist()
        cell = graph.cell[graph.batch[i]]
        wanted = graph.positions[i] - graph.positions[j] + graph.cell_shifts[edge] @ cell
        assert torch.allclose(pair[edge], wanted, rtol=0, atol=1e-12)
    assert float(pair.norm(dim=1).max()) <= 3.0 + 1e-9


def test_energy_labels_keep_double_precision() -> None:
    graph = random_graph(3, 1)
    graph = replace(graph, labels={**graph.labels, "energy": torch.tensor([-4142.123456789], dtype=torch.float64)})
    single = graph.to(dtype=torch.float32)
    assert single.positions.dtype == single.labels["forces"].dtype == torch.float32
    assert float(single.labels["energy"]) == -4142.123456789
    assert single.species.dtype == torch.int64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (lambda g: {"positions": g.positions[:, :2]}, "positions is"),
        (lambda g: {"species": g.species.int()}, "species is"),
        (lambda g: {"edge_index": g.edge_index.flip(1)}, "sorted by receiver"),
        (lambda g: {"edge_index": g.edge_index + 100}, "outside 0..6"),
        (lambda g: {"batch": g.batch + 1}, "batch must ascend"),
        (lambda g: {"velocities": g.velocities[:3]}, "velocities is"),
        (lambda g: {"positions": g.positions.index_fill(0, torch.tensor([4]), float("inf"))}, "particle 4"),
    ],
)
def test_validate_names_the_fault(changes, message: str) -> None:
    graph = random_graph(7, 1)
    with pytest.raises(InputError, match=message):
        replace(graph, **changes(graph)).validate()


def test_join_names_the_odd_one_out() -> None:
    with pytest.raises(InputError, match="graph 1 has no velocities"):
        ParticleGraph.join([random_graph(3, 1), replace(random_graph(3, 2), velocities=None)])
    with pytest.raises(InputError, match="graph 1 has the labels"):
        ParticleGraph.join([random_graph(3, 1), replace(random_graph(3, 2), labels={})])
    with pytest.raises(InputError, match="no graph"):
        ParticleGraph.join([])


def test_structure_checks() -> None:
    cell, pbc = torch.eye(3, dtype=torch.float64) * 5, torch.ones(3, dtype=torch.bool)
    positions = torch.tensor([[0.0, 0, 0], [1, 0, 0], [5.0, 0, 0]], dtype=torch.float64)
    edges, shifts = neighbor_list(positions, cell, pbc, 2.0)
    pair = positions[edges[0]] - positions[edges[1]] + shifts @ cell
    with pytest.raises(InputError, match="atoms 0 and 2 coincide"):
        check_structure(positions, cell, pbc, edges, pair)
    with pytest.raises(InputError, match="atom 1 has the position"):
        check_structure(positions.index_fill(0, torch.tensor([1]), float("nan")), cell, pbc)
    flat = torch.tensor([[5.0, 0, 0], [0, 5, 0], [5, 5, 0]])
    with pytest.raises(InputError, match="no volume"):
        check_structure(positions, flat, pbc)
    check_structure(positions[:2], flat, torch.zeros(3, dtype=torch.bool))
