"""Exact mode: propagators and the published network, their outputs and gradients, one stride and two."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import (
    Values,
    Work,
    alone,
    assert_same,
    each,
    on_both_paths,
    owners,
    parameter_gradients,
    propagator,
    split,
    stirred,
    system,
)
from torch import Tensor

from egnn_md.distributed.wire import Wire
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import FastEGNNPropagator, Prediction
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig

BOX = {"walls": ((0.1, 5.5), (-0.3, 5.2), (-0.1, 5.8)), "wall_range": 2.0, "gravity": (0.4, -0.3, -2.0)}
OPTIONS: dict[str, dict[str, Any]] = {
    "published": {},
    "walls-gravity-static": {**BOX, "static_species": (8,)},
    "features-basis": {"node_features": 2, "edge_inputs": ("distance", "feature_product"), "edge_basis": 4},
    "radial-field": {"messages": "radial-field"},
    "continuous-filter": {"messages": "continuous-filter", "attention": True},
    "attention-tanh-normalize": {"attention": True, "tanh": True, "normalize": True},
    "no-virtual-nodes": {"virtual_nodes": 0},
    "no-velocity-head": {"predict_velocity": False, "residual": False, "virtual_nodes": 1, "gravity": (0.0, 0.0, -1.0)},
}
EVERYTHING = {**OPTIONS["walls-gravity-static"], **OPTIONS["features-basis"], "attention": True, "normalize": True}


def _seen(model: FastEGNNPropagator, graph: ParticleGraph) -> ParticleGraph:
    """``graph`` as the configuration wants it."""
    return graph if model.config.node_features else replace(graph, node_features=None)


def _loss(found: Prediction, graph: ParticleGraph, wire: Wire) -> Tensor:
    """Squared errors of the own particles, and this rank's share of what is on every rank."""
    of_own = (found.positions - graph.labels["target"]).square().sum() + found.velocities.square().sum()
    return of_own + found.virtual_positions.square().sum() / wire.size


def strides(model: FastEGNNPropagator, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
    """Predictions outside and inside training, gradients of one stride and of two, the edges kept."""
    graph = _seen(model, graph)
    with torch.no_grad():
        stopped = model.eval().predict(graph)
    model.train()
    positions = graph.positions.clone().requires_grad_(True)
    first = model.predict(replace(graph, positions=positions))
    once = _loss(first, graph, wire)
    second = model.predict(replace(graph, positions=first.positions, velocities=first.velocities))
    twice = once + _loss(second, graph, wire)
    (slope,) = torch.autograd.grad(twice, positions, retain_graph=True)
    return {
        "own stopped positions": stopped.positions,
        "own stopped velocities": stopped.velocities,
        "own positions": first.positions.detach(),
        "own velocities": first.velocities.detach(),
        "all virtual positions": first.virtual_positions.detach(),
        "own later positions": second.positions.detach(),
        "all later virtual positions": second.virtual_positions.detach(),
        "own slope": slope,
        **parameter_gradients(model, once, "one stride", keep=True),
        **parameter_gradients(model, twice, "two strides"),
    }


@pytest.mark.parametrize(("name", "size"), [("open", 3), ("triclinic", 2)])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_propagators(options: dict[str, Any], name: str, size: int) -> None:
    graph, models = system(name), on_both_paths(propagator(**options))
    expected = alone(models, graph, each(strides))
    if "walls" in options:  # somebody is stopped
        stopped, free = (expected[f"own {word}positions, plain float64"] for word in ("stopped ", ""))
        assert not torch.equal(stopped, free)
    assert_same(split(models, graph, owners(graph.num_nodes, size), size, each(strides)), expected)


@pytest.mark.parametrize("size", [1, 4, 8])
def test_a_propagator_with_all_options(size: int) -> None:
    graph, models = system("slab"), on_both_paths(propagator(**EVERYTHING, layers=3 if size == 4 else 2))
    expected = alone(models, graph, each(strides))
    assert_same(split(models, graph, owners(graph.num_nodes, size), size, each(strides)), expected)


def test_a_propagator_in_single_precision() -> None:
    def predictions(model: FastEGNNPropagator, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        found = model.predict(_seen(model, graph))
        return {"own positions": found.positions.detach(), "own velocities": found.velocities.detach()}

    graph, models = system("open"), on_both_paths(propagator(), torch.float32)
    assert_same(split(models, graph, owners(24, 4), 4, each(predictions)), alone(models, graph, each(predictions)))


@pytest.mark.parametrize("who", [[2] * 29, [0] * 28 + [3], [3, 0] + [2] * 27], ids=["one", "last", "ones"])
def test_ranks_with_no_particle_or_one(who: list[int]) -> None:
    graph = system("batch")
    models = on_both_paths(propagator(**EVERYTHING))
    assert_same(split(models, graph, torch.tensor(who), 4, each(strides)), alone(models, graph, each(strides)))


def test_particles_out_of_reach() -> None:
    graph, models = system("no-edges", 6), on_both_paths(propagator(**EVERYTHING))
    assert_same(split(models, graph, owners(6, 3), 3, each(strides)), alone(models, graph, each(strides)))


def network_of(whole: ParticleGraph) -> Work:
    """Outputs of the published network, and gradients of a loss on all of them."""
    fields = torch.randn(whole.num_nodes, 3, 2, generator=torch.Generator().manual_seed(5)).double()

    def work(network: FastEGNN, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        assert graph.node_features is not None
        positions, virtual_positions, features = network(
            # embedded by their owner: the halo's features come with the first exchange
            graph.node_features[: graph.num_nodes],
            graph.positions,
            graph.velocities,
            graph.edge_index,
            graph.batch,
            graph.num_graphs,
            graph.edge_features,
            graph.node_attributes,
            graph.shifts(),
            graph.periodic,
            fields[own] if network.fields else None,
        )
        loss = positions.square().sum() + features.square().sum() + virtual_positions.square().sum() / wire.size
        return {
            "own positions": positions.detach(),
            "own features": features.detach(),
            "all virtual positions": virtual_positions.detach(),
            **parameter_gradients(network, loss, "loss"),
        }

    return work


NETWORKS: dict[str, dict[str, Any]] = {
    "published": {},
    "gravity-fields": {"gravity": (0.0, 0.3, -1.0), "fields": 2, "normalize": True, "tanh": True},
    "attention-not-residual": {"attention": True, "residual": False, "virtual_nodes": 1},
    "radial-field": {"messages": "radial-field"},
    "continuous-filter": {"messages": "continuous-filter", "attention": True},
    "no-virtual-nodes": {"virtual_nodes": 0},
}


def network(**options: Any) -> FastEGNN:
    """A small one, always the same."""
    torch.manual_seed(6)
    sizes: dict[str, Any] = {"node_features": 2, "edge_features": 2, "node_attributes": 1, "hidden": 8, "layers": 2}
    return stirred(FastEGNN(FastEGNNConfig(**{**sizes, "virtual_nodes": 2, **options})))


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_published_network(options: dict[str, Any]) -> None:
    graph, models = system("batch"), on_both_paths(network(**options))
    work = each(network_of(graph))
    expected = alone(models, graph, work)
    if options.get("virtual_nodes", 2):  # those of an open graph have left its centre
        virtual = expected["all virtual positions, plain float64"]
        assert float((virtual[2] - graph.positions[graph.batch == 2].mean(0)[:, None]).abs().max()) > 1e-4
    assert_same(split(models, graph, owners(29, 3), 3, work), expected)


def test_published_network_on_eight_ranks() -> None:
    graph, models = system("batch"), on_both_paths(network(layers=3))
    work = each(network_of(graph))
    assert_same(split(models, graph, owners(29, 8), 8, work), alone(models, graph, work))
