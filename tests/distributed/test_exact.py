"""Exact mode: energies, forces and stress of any number of ranks are those of one process."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from cases import (
    CUTOFF,
    SYSTEMS,
    Values,
    alone,
    assert_same,
    each,
    on_both_paths,
    owners,
    physics,
    physics_and_training,
    potential,
    split,
    system,
)
from ranks import on_ranks
from torch import Tensor, nn

from egnn_md.distributed.part import communicating, part_of_graph, take_part
from egnn_md.distributed.partition import METHODS, partition
from egnn_md.distributed.wire import Wire
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.analytic import HarmonicTether, LennardJones
from egnn_md.models.evaluate import evaluate
from egnn_md.nn.communication import Alone

STEP = 1e-4  # Å, of central differences
SLOPE = 1e-6  # relative: their error, quadratic in the step


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *(("open", size) for size in (1, 2, 3, 4, 8)),
        *(("triclinic", size) for size in (2, 3, 4, 8)),
        ("batch", 2),
        ("batch", 3),
        ("orthorhombic", 2),
        ("slab", 3),
        ("slab", 4),
        ("own-images", 2),
        ("no-edges", 3),
    ],
)
def test_potentials_do_not_depend_on_the_number_of_ranks(name: str, size: int) -> None:
    graph, work = system(name), each(physics)
    models = on_both_paths(potential(), torch.float64, torch.float32)
    expected = alone(models, graph, work)
    stressed = bool((expected["all stress, plain float64"].abs() > 1e-3).any())
    assert stressed == bool(graph.pbc.all(1).any())  # or it would be compared nowhere
    assert_same(split(models, graph, owners(graph.num_nodes, size), size, work), expected)


@pytest.mark.parametrize("name", SYSTEMS)
def test_other_potentials(name: str) -> None:
    graph, work = system(name), each(physics)
    models = nn.ModuleDict(
        {
            "strictly local": potential(virtual_nodes=0),
            "one layer": potential(layers=1, vector_channels=1),
            "fourier": potential(fourier_width=0.9),
            "lennard-jones": LennardJones(sigma=1.0, cutoff=CUTOFF),
            "lennard-jones, shifted": LennardJones(sigma=1.0, cutoff=CUTOFF, smooth=False),
            "tether": HarmonicTether(cutoff=CUTOFF),
        }
    )
    assert_same(split(models, graph, owners(graph.num_nodes, 3), 3, work), alone(models, graph, work))


def test_a_group_of_one_without_a_process_group() -> None:
    graph, model = system("batch"), potential()
    part, piece = part_of_graph(graph, torch.zeros(graph.num_nodes, dtype=torch.int64), Wire())
    with communicating(model, part.parts):
        found = physics(model, piece, Wire(), part.own)
    assert_same(found, alone(model, graph, physics))


@pytest.mark.parametrize(
    ("who", "name"),
    [
        ("all on one", "open"),
        ("all but one", "batch"),
        ("one each and the rest", "batch"),
        ("last ranks only", "triclinic"),
        ("all but one", "no-edges"),
    ],
)
def test_ranks_with_no_particle_or_one(who: str, name: str) -> None:
    graph = system(name)
    owner = torch.full((graph.num_nodes,), 2)
    if who == "all but one":
        owner = torch.zeros(graph.num_nodes, dtype=torch.int64)
        owner[-1] = 3
    elif who == "one each and the rest":
        owner[:2] = torch.tensor([3, 0])
    elif who == "last ranks only":
        owner[::2] = 3
    models = on_both_paths(potential(layers=2))
    work = each(physics_and_training)
    assert_same(split(models, graph, owner, 4, work), alone(models, graph, work))


def test_more_ranks_than_particles() -> None:
    graph, models = system("own-images"), on_both_paths(potential(layers=2))
    owner = torch.tensor([6, 1, 3, 0])
    assert_same(split(models, graph, owner, 8, each(physics)), alone(models, graph, each(physics)))


def test_neither_a_moved_particle_nor_the_order_of_ranks_changes_anything() -> None:
    graph, model, owner = system("triclinic"), potential(layers=2), owners(24, 4)
    before = split(model, graph, owner, 4, physics_and_training)
    moved = owner.clone()
    moved[7] = (owner[7] + 1) % 4
    assert_same(split(model, graph, moved, 4, physics_and_training), before)
    permuted = torch.tensor([2, 0, 3, 1])[owner]
    assert_same(split(model, graph, permuted, 4, physics_and_training), before)


@pytest.mark.parametrize("method", METHODS)
def test_every_way_of_dividing(method: str) -> None:
    model = potential(layers=2)
    for name in ("open", "triclinic"):
        graph = system(name)
        found = partition(
            graph.positions, 3, method=method, cell=graph.cell[0], pbc=graph.pbc[0], edge_index=graph.edge_index
        )
        assert len(found.owner.unique()) == 3
        assert_same(split(model, graph, found.owner, 3, physics), alone(model, graph, physics))


def test_forces_are_slopes_of_the_split_energy() -> None:
    graph = system("slab", 9)

    def work(model: nn.Module, piece: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        slopes = []
        for particle in range(graph.num_nodes):
            for axis in range(3):
                energies = []
                for sign in (1.0, -1.0):
                    positions = piece.positions.clone()
                    positions[own == particle, axis] += sign * STEP
                    moved = replace(piece, positions=positions)
                    energies.append(evaluate(model, moved, forces=False)["energy"])  # type: ignore[arg-type]
                slopes.append((energies[0] - energies[1]) / (2 * STEP))
        forces = evaluate(model, piece)["forces"]  # type: ignore[arg-type]
        return {"own forces": forces, "all slopes": torch.cat(slopes).reshape(-1, 3)}

    found = split(potential(layers=2), graph, owners(9, 3), 3, work)
    largest = float(found["own forces"].abs().max())
    assert largest > 1e-2
    assert float((found["own forces"] + found["all slopes"]).abs().max()) < SLOPE * largest


def test_forces_of_atoms_far_apart_reach_each_other_through_the_virtual_nodes() -> None:
    """Without edges only sums over ranks are left: dropping their gradient would leave forces that are local."""
    graph = system("no-edges", 6)
    found = split(potential(), graph, torch.arange(6) % 3, 3, physics)
    assert float(found["own forces"].abs().max()) > 1e-4
    # what every particle does to every other one cancels, which no rank can see alone
    assert float(found["own forces"].sum(0).abs().max()) < 1e-12


def test_the_part_of_a_rank() -> None:
    """Five in a chain, both directions: 0-1-2-3-4, owned by 1 0 1 2 0."""
    graph, owner = system("open", 5), torch.tensor([1, 0, 1, 2, 0])
    chain = torch.tensor([[0, 1, 1, 2, 2, 3, 3, 4], [1, 0, 2, 1, 3, 2, 4, 3]])
    graph = replace(
        graph, edge_index=chain, cell_shifts=torch.zeros(8, 3).double(), edge_features=torch.arange(16.0).reshape(8, 2)
    ).validate()
    assert graph.node_features is not None
    assert graph.edge_features is not None
    features, edges = graph.node_features, graph.edge_features
    found = on_ranks(3, lambda wire: part_of_graph(graph, owner, wire))
    own = [[1, 4], [0, 2], [3]]
    halo = [[0, 2, 3], [1, 3], [4, 2]]  # by owner, then by number
    local = [[[0, 0, 1], [2, 3, 4]], [[0, 1, 1], [2, 2, 3]], [[0, 0], [2, 1]]]
    kept = [[1, 2, 7], [0, 3, 4], [5, 6]]
    for rank, (part, piece) in enumerate(found):
        assert part.own.tolist() == own[rank]
        assert part.halo.tolist() == halo[rank]
        assert part.local.tolist() == own[rank] + halo[rank]
        assert piece.edge_index.tolist() == local[rank]
        assert torch.equal(piece.positions, graph.positions[own[rank]])
        assert torch.equal(piece.species, graph.species[own[rank] + halo[rank]])
        assert torch.equal(piece.node_features, features[own[rank] + halo[rank]])
        assert torch.equal(piece.edge_features, edges[kept[rank]])
        assert torch.equal(piece.labels["forces"], graph.labels["forces"][own[rank]])
        assert torch.equal(piece.labels["energy"], graph.labels["energy"])
        assert part.parts.rows(len(own[rank])) == len(own[rank] + halo[rank])


def test_what_is_refused() -> None:
    graph, wire = system("open"), Wire()
    with pytest.raises(InputError, match=r"owner is \(3,\), but the graph has 24 particles"):
        part_of_graph(graph, torch.zeros(3, dtype=torch.int64), wire)
    for rank in (-1, 1):
        with pytest.raises(InputError, match=rf"particle 5 is owned by rank {rank}, but there are the ranks 0\.\.0"):
            part_of_graph(graph, torch.arange(24).eq(5) * rank, wire)
    with pytest.raises(InputError, match="mode must be exact or paper, not 'near'"):
        take_part(torch.zeros(24, dtype=torch.int64), graph.edge_index[1], wire, mode="near")
    part, _ = part_of_graph(graph, torch.zeros(24, dtype=torch.int64), wire)
    with pytest.raises(InputError, match="a Linear cannot be split over devices: it has no communication object"):
        communicating(nn.Linear(2, 2), part.parts).__enter__()


def test_the_model_is_given_back_as_it_was() -> None:
    model, graph = potential(), system("open")
    before = {name: module.communication for name, module in model.named_modules() if hasattr(module, "communication")}
    assert len(before) == 2 + 3  # potential, network, layers
    names = list(model.state_dict())
    part, _ = part_of_graph(graph, torch.zeros(24, dtype=torch.int64), Wire())

    def fail() -> None:
        assert all(model.get_submodule(name).communication is part.parts for name in before)
        assert list(model.state_dict()) == names
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), communicating(model, part.parts):
        fail()
    for name, communication in before.items():
        assert model.get_submodule(name).communication is communication
        assert type(communication) is Alone
