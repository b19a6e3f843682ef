"""Paper mode: one process's answer for the graph without the edges between ranks, and nothing fetched."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    Values,
    alone,
    assert_same,
    each,
    largest_difference,
    on_both_paths,
    owners,
    physics_and_training,
    potential,
    propagator,
    split,
    system,
    without_cut_edges,
)
from test_exact_propagators import EVERYTHING, OPTIONS, network, network_of, strides
from torch import Tensor, nn

from egnn_md.distributed.part import part_of_graph
from egnn_md.distributed.wire import Wire
from egnn_md.graph import ParticleGraph
from egnn_md.models.analytic import LennardJones
from egnn_md.models.evaluate import evaluate

SEEN = 1e7  # in units of what rounding may do: what the cut edges are worth, at least


@pytest.mark.parametrize(("name", "size"), [("open", 2), ("own-images", 2), ("batch", 3), ("triclinic", 4)])
def test_potentials(name: str, size: int) -> None:
    graph, models, owner = system(name), on_both_paths(potential(layers=2)), owners(system(name).num_nodes, size)
    work = each(physics_and_training)
    found = split(models, graph, owner, size, work, mode="paper")
    assert_same(found, alone(models, without_cut_edges(graph, owner), work))
    assert largest_difference(found, alone(models, graph, work))[0] > SEEN


@pytest.mark.parametrize("options", [OPTIONS["published"], OPTIONS["no-virtual-nodes"], EVERYTHING])
def test_propagators(options: dict[str, Any]) -> None:
    graph, models, owner = system("batch"), on_both_paths(propagator(**options)), owners(29, 3)
    work = each(strides)
    found = split(models, graph, owner, 3, work, mode="paper")
    assert_same(found, alone(models, without_cut_edges(graph, owner), work))
    assert largest_difference(found, alone(models, graph, work))[0] > SEEN


def test_published_network() -> None:
    graph, models, owner = system("batch"), on_both_paths(network()), owners(29, 3)
    work = each(network_of(graph))
    found = split(models, graph, owner, 3, work, mode="paper")
    assert_same(found, alone(models, without_cut_edges(graph, owner), work))
    assert largest_difference(found, alone(models, graph, work))[0] > SEEN


def test_without_cut_edges_both_modes_agree() -> None:
    """Graphs of a batch on ranks of their own."""
    graph, model = system("batch"), potential()
    owner = graph.batch.clone()
    assert torch.equal(without_cut_edges(graph, owner).edge_index, graph.edge_index)
    found = split(model, graph, owner, 4, physics_and_training, mode="paper")
    assert_same(found, split(model, graph, owner, 4, physics_and_training))


def _traffic(mode: str) -> Any:
    def work(models: nn.ModuleDict, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        found: Values = {}
        for name, model in models.items():
            before = wire.traffic.copy()
            if isinstance(model, LennardJones) or name.startswith("potential"):
                evaluate(model, graph, forces=False)  # type: ignore[arg-type]
            else:
                model.predict(replace(graph, node_features=None))  # type: ignore[operator]
            after = wire.traffic
            found[f"all {name}"] = torch.tensor(
                [after.exchanges - before.exchanges, after.reductions - before.reductions]
            )
            found[f"sum {name} bytes"] = torch.tensor(after.bytes - before.bytes)
        return found

    return work


@pytest.mark.parametrize("mode", ["exact", "paper"])
def test_collectives_of_a_step(mode: str) -> None:
    """Each layer at most one exchange and one reduction, each step one of either more; rows of the halo go once."""
    size, graph = 3, system("triclinic")
    owner = owners(24, size)
    models = nn.ModuleDict({"pairs": LennardJones(1.0, 1.0)})
    for layers in (1, 3):
        for channels in (0, 2):
            models[f"potential {layers} {channels}"] = potential(layers=layers, virtual_nodes=channels)
            models[f"propagator {layers} {channels}"] = propagator(layers=layers, virtual_nodes=channels)
        models[f"potential {layers} fourier"] = potential(layers=layers, fourier_width=0.9)
    found = split(models, graph, owner, size, _traffic(mode), mode=mode)
    cut = (owner[graph.edge_index[0]] != owner[graph.edge_index[1]]).nonzero().reshape(-1)
    halo = len({(int(owner[i]), int(j)) for i, j in graph.edge_index[:, cut].T.tolist()})
    assert halo < len(cut)
    exact = mode == "exact"
    assert found["all pairs"].tolist() == [exact, 1]
    for layers in (1, 3):
        # the modes travel with the other sums of their layer
        assert found[f"all potential {layers} fourier"].tolist() == found[f"all potential {layers} 2"].tolist()
        for channels in (0, 2):
            of_layers = layers + 1 if channels else 0
            exchanges, reductions = found[f"all potential {layers} {channels}"].tolist()
            assert exchanges == exact * layers
            assert reductions <= of_layers + 1
            exchanges, reductions = found[f"all propagator {layers} {channels}"].tolist()
            assert exchanges == exact * (layers + 1)
            assert reductions <= of_layers
        # positions once, in each later layer features and vectors; the energy and the strain's gradient, 10 numbers
        potential_rows = 8 * halo * (3 + (layers - 1) * (8 + 3 * 2))
        energy = size * (2 * 10 * 8 * (size - 1) // size)
        assert int(found[f"sum potential {layers} 0 bytes"]) == exact * potential_rows + energy
        # positions once, in each layer features and positions
        assert int(found[f"sum propagator {layers} 0 bytes"]) == exact * 8 * halo * (3 + layers * (8 + 3))


def test_the_plan_of_paper_mode_needs_no_word() -> None:
    graph, wire = system("triclinic"), Wire()
    part, piece = part_of_graph(graph, torch.zeros(24, dtype=torch.int64), wire, mode="paper")
    assert (wire.traffic.exchanges, wire.traffic.reductions, len(part.halo)) == (0, 0, 0)
    assert torch.equal(piece.edge_index, graph.edge_index)
