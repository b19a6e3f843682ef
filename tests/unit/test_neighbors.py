"""Neighbour lists: every backend against brute force, and the Verlet skin against fresh lists."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.neighbors import VerletList, available_backends, neighbor_list

TRICLINIC = torch.tensor([[5.0, 0, 0], [1.5, 4.5, 0], [-0.7, 0.8, 6.0]], dtype=torch.float64)
OPEN = torch.zeros(3, dtype=torch.bool)
FULL = torch.ones(3, dtype=torch.bool)


def random_positions(count: int, seed: int, spread: float = 6.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64) * spread


def assert_same(first: tuple[torch.Tensor, torch.Tensor], second: tuple[torch.Tensor, torch.Tensor]) -> None:
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("pbc", [(1, 1, 1), (1, 0, 1), (0, 1, 0), (0, 0, 0)])
@pytest.mark.parametrize("count", [1, 2, 30])
@pytest.mark.parametrize("cutoff", [2.0, 5.3, 9.0])
def test_vesin_equals_brute_force(pbc: tuple[int, ...], count: int, cutoff: float) -> None:
    """Triclinic cell, unwrapped atoms, partial periodicity, cutoffs beyond the whole cell."""
    positions = random_positions(count, seed=count)
    periodic = torch.tensor(pbc, dtype=torch.bool)
    found = neighbor_list(positions, TRICLINIC, periodic, cutoff)
    assert_same(found, neighbor_list(positions, TRICLINIC, periodic, cutoff, backend="brute"))
    edges, shifts = found
    pair = positions[edges[0]] - positions[edges[1]] + shifts @ TRICLINIC
    assert bool((pair.norm(dim=1) <= cutoff + 1e-9).all())
    assert bool((edges[0].diff() >= 0).all()), "sorted by receiver"
    # every pair is seen from both ends
    assert torch.equal(torch.bincount(edges[0], minlength=count), torch.bincount(edges[1], minlength=count))


def test_left_handed_cell() -> None:
    positions = random_positions(20, seed=5)
    cell = TRICLINIC[[1, 0, 2]]
    assert torch.linalg.det(cell) < 0
    assert_same(
        neighbor_list(positions, cell, FULL, 4.0), neighbor_list(positions, cell, FULL, 4.0, backend="brute")
    )


@settings(max_examples=25, deadline=None)
@given(
    count=st.integers(1, 12),
    seed=st.integers(0, 10_000),
    cutoff=st.floats(0.5, 6.0),
    pbc=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_random_cells(count: int, seed: int, cutoff: float, pbc: tuple[bool, bool, bool]) -> None:
    generator = torch.Generator().manual_seed(seed)
    cell = 4.0 * torch.eye(3, dtype=torch.float64) + torch.rand(3, 3, generator=generator).double()
    positions = random_positions(count, seed, spread=4.0)
    periodic = torch.tensor(pbc)
    assert_same(
        neighbor_list(positions, cell, periodic, cutoff),
        neighbor_list(positions, cell, periodic, cutoff, backend="brute"),
    )


@pytest.mark.skipif(
    importlib.util.find_spec("torch_cluster") is None, reason="torch-cluster is not installed (make cluster)"
)
@pytest.mark.parametrize("count", [1, 2, 60])
def test_torch_cluster_equals_brute_force(count: int) -> None:
    assert "torch_cluster" in available_backends()
    positions = random_positions(count, seed=3, spread=3.0)
    cell = torch.zeros(3, 3, dtype=torch.float64)
    assert_same(
        neighbor_list(positions, cell, OPEN, 4.0, backend="torch_cluster"),
        neighbor_list(positions, cell, OPEN, 4.0, backend="brute"),
    )


def test_torch_cluster_refuses_periodic_cells() -> None:
    with pytest.raises(InputError, match="periodic"):
        neighbor_list(random_positions(3, 0), TRICLINIC, FULL, 3.0, backend="torch_cluster")


@pytest.mark.skipif(
    importlib.util.find_spec("torch_cluster") is not None, reason="torch-cluster is installed here"
)
def test_torch_cluster_missing_says_how_to_get_it() -> None:
    with pytest.raises(MissingDependencyError, match="make cluster"):
        neighbor_list(random_positions(3, 0), torch.zeros(3, 3), OPEN, 3.0, backend="torch_cluster")


def test_nothing_and_one_atom() -> None:
    for count in (0, 1):
        edges, shifts = neighbor_list(torch.zeros(count, 3), torch.zeros(3, 3), OPEN, 3.0)
        assert edges.shape == (2, 0)
        assert shifts.shape == (0, 3)
    edges, shifts = neighbor_list(torch.zeros(1, 3), torch.eye(3) * 2.0, FULL, 2.5)
    assert edges.shape[1] == 6, "one atom in a cubic cell sees its six nearest images"
    assert edges.max() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cutoff": 0.0}, "cutoff"),
        ({"backend": "vezin"}, "vezin"),
        ({"positions": torch.tensor([[0.0, 0, 0], [float("nan"), 0, 0]])}, "atom 1"),
        ({"cell": torch.zeros(3, 3)}, "no volume"),
        ({"cell": torch.ones(3, 3)}, "no volume"),
        ({"positions": torch.zeros(4, 2)}, r"\(4, 2\)"),
    ],
)
def test_bad_input(change: dict, message: str) -> None:
    arguments = {"positions": torch.zeros(1, 3), "cell": torch.eye(3) * 4, "pbc": FULL, "cutoff": 3.0}
    arguments.update(change)
    with pytest.raises(InputError, match=message):
        neighbor_list(**arguments)


def test_skin_equals_fresh_lists_while_atoms_and_cell_move() -> None:
    generator = torch.Generator().manual_seed(0)
    positions, cell = random_positions(40, seed=1, spread=4.0), TRICLINIC * 2
    verlet = VerletList(cutoff=4.0, skin=0.6)
    for step in range(60):
        assert_same(verlet.update(positions, cell, FULL), neighbor_list(positions, cell, FULL, 4.0))
        positions = positions + 0.02 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
        if step % 5 == 4:  # a barostat's move: cell and atoms scaled together, with shear
            strain = torch.eye(3, dtype=torch.float64)
            strain = strain + 0.004 * torch.randn(3, 3, generator=generator).double()
            cell, positions = cell @ strain, positions @ strain
    statistics = verlet.statistics
    assert statistics.updates == 60
    assert 1 < statistics.rebuilds < 40, statistics


def test_skin_survives_a_small_breath_of_the_cell_but_not_a_large_one() -> None:
    positions, cell = random_positions(20, seed=2, spread=4.0), TRICLINIC * 2
    verlet = VerletList(cutoff=4.0, skin=0.6)
    verlet.update(positions, cell, FULL)
    verlet.update(positions * 0.99, cell * 0.99, FULL)
    assert verlet.statistics.rebuilds == 1, "1 % of 4.6 Å is within the skin"
    verlet.update(positions * 0.85, cell * 0.85, FULL)
    assert verlet.statistics.rebuilds == 2
    assert verlet.statistics.rebuilds_by_cell == 1


def test_cell_change_alone_is_noticed() -> None:
    """Atoms that stay while the box shrinks: images come closer although nothing moved."""
    positions = torch.tensor([[0.0, 0, 0], [7.0, 0, 0]], dtype=torch.float64)
    verlet = VerletList(cutoff=3.0, skin=0.5)
    cell = torch.eye(3, dtype=torch.float64) * 10.8
    assert verlet.update(positions, cell, FULL)[0].shape[1] == 0  # image distance 3.8
    shrunk = torch.eye(3, dtype=torch.float64) * 9.9
    assert_same(verlet.update(positions, shrunk, FULL), neighbor_list(positions, shrunk, FULL, 3.0))
    assert verlet.update(positions, shrunk, FULL)[0].shape[1] == 2


def test_negative_skin_is_refused() -> None:
    with pytest.raises(InputError, match="skin"):
        VerletList(4.0, -0.1)
