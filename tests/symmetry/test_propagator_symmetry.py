"""A propagator turns, shifts and reorders with its input, box and gravity included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from egnn_md.data.windows import build_graph
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.models.reference_propagators import Linear, StayStill

TOLERANCE = 1e-11  # float64, positions of order one: a hundred roundings
WALLS = ((0.0, 3.0), (0.0, 3.0), (-0.5, 3.0))
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "egnn": {"virtual_nodes": 0},
    "cutoff": {"cutoff": 1.6, "edge_basis": 5, "length_scale": 1.3},
    "dropped": {"drop": "longest", "drop_fraction": 0.75},
    "all dropped": {"drop": "longest", "drop_fraction": 1.0},
    "liquid": {"cutoff": 1.6, "gravity": (0.3, -9.0, 2.0), "walls": WALLS, "wall_range": 0.8},
    "boundary": {"cutoff": 1.6, "species": (0, 1, 3), "static_species": (3,), "walls": WALLS},
    "radial field": {"messages": "radial-field"},
    "continuous filter": {"messages": "continuous-filter", "edge_inputs": ("distance", "feature_product")},
    "attention, normalize, tanh": {"attention": True, "normalize": True, "tanh": True},
    "no velocity head": {"predict_velocity": False},
}


def model_of(case: str) -> FastEGNNPropagator:
    """A propagator whose every map is far from its near-zero start, so that every term shows."""
    torch.manual_seed(5)
    config = PropagatorConfig(
        **{"frame_interval": 0.1, "stride": 0.2, "hidden": 12, "layers": 3, "node_features": 1, **CASES[case]}
    )
    model = FastEGNNPropagator(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn_like(parameter))
    return model.requires_grad_(False).eval()


def system(config: PropagatorConfig, number: int = 14) -> ParticleGraph:
    draw = torch.Generator().manual_seed(7)
    positions = 3.0 * torch.rand(number, 3, dtype=torch.float64, generator=draw)
    velocities = torch.randn(number, 3, dtype=torch.float64, generator=draw)
    kinds = torch.tensor(config.species)
    species = kinds[torch.randint(len(kinds), (number,), generator=draw)]
    features = torch.randn(number, 1, dtype=torch.float64, generator=draw)
    return build_graph(config, positions, velocities, species, features=features)


def rotation() -> Tensor:
    matrix = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)))[0]
    return matrix * torch.sign(torch.linalg.det(matrix))


@pytest.mark.parametrize("case", list(CASES))
def test_rotation_and_reflection(case: str) -> None:
    model = model_of(case)
    graph = system(model.config)
    before = model.predict(graph)
    assert float((before.positions - graph.positions).abs().max()) > 1e-2  # it does something
    for turn in (rotation(), -rotation()):
        assert graph.velocities is not None
        turned = replace(graph, positions=graph.positions @ turn.T, velocities=graph.velocities @ turn.T)
        after = model.rotated(turn).predict(turned)
        for ours, theirs in zip(after[:2], before[:2], strict=True):
            assert torch.allclose(ours, theirs @ turn.T, rtol=0, atol=TOLERANCE)
        virtual = torch.einsum("ij,gjc->gic", turn, before.virtual_positions)
        assert torch.allclose(after.virtual_positions, virtual, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", [name for name, changes in CASES.items() if "walls" not in changes])
def test_translation(case: str) -> None:
    model = model_of(case)
    graph = system(model.config)
    shift = torch.tensor([3.0, -11.0, 0.7], dtype=torch.float64)
    before, after = model.predict(graph), model.predict(replace(graph, positions=graph.positions + shift))
    assert torch.allclose(after.positions, before.positions + shift, rtol=0, atol=TOLERANCE)
    assert torch.allclose(after.velocities, before.velocities, rtol=0, atol=TOLERANCE)


def test_walls_and_gravity_do_break_symmetry() -> None:
    """The counterpart: what the box and gravity must not leave unchanged."""
    model = model_of("liquid")
    graph = system(model.config)
    before = model.predict(graph)
    moved = model.predict(replace(graph, positions=graph.positions + 0.3))
    assert float((moved.positions - before.positions - 0.3).abs().max()) > 1e-3
    turn = rotation()
    assert graph.velocities is not None
    turned = replace(graph, positions=graph.positions @ turn.T, velocities=graph.velocities @ turn.T)
    assert float((model.predict(turned).positions - before.positions @ turn.T).abs().max()) > 1e-3


@pytest.mark.parametrize("case", list(CASES))
def test_order_of_particles_and_batch(case: str) -> None:
    model = model_of(case)
    graph = system(model.config)
    single = model.predict(graph)
    order = torch.randperm(graph.num_nodes, generator=torch.Generator().manual_seed(2))
    assert graph.velocities is not None
    assert graph.node_features is not None
    shuffled = build_graph(
        model.config,
        graph.positions[order],
        graph.velocities[order],
        graph.species[order],
        features=graph.node_features[order],
    )
    mixed = model.predict(shuffled)
    assert torch.allclose(mixed.positions, single.positions[order], rtol=0, atol=TOLERANCE)
    both = model.predict(ParticleGraph.join([shuffled, graph]))
    assert torch.allclose(both.positions[graph.num_nodes :], single.positions, rtol=0, atol=TOLERANCE)
    assert torch.allclose(both.velocities[graph.num_nodes :], single.velocities, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", ["cutoff", "radial field"])
def test_periodic_images(case: str) -> None:
    """A particle moved by a lattice vector takes its prediction with it, and nobody else notices."""
    changes = dict(CASES[case])
    CASES["periodic"] = {**changes, "cutoff": 1.6}
    model = model_of("periodic")
    del CASES["periodic"]
    open_graph = system(model.config)
    cell = torch.tensor([[3.2, 0.0, 0.0], [0.9, 3.5, 0.0], [-0.4, 0.5, 3.1]], dtype=torch.float64)

    def periodic(positions: Tensor) -> ParticleGraph:
        return build_graph(
            model.config,
            positions,
            open_graph.velocities,
            open_graph.species,
            features=open_graph.node_features,
            cell=cell,
            pbc=(True, True, True),
        )

    before = model.predict(periodic(open_graph.positions))
    shift = torch.zeros_like(open_graph.positions)
    shift[3] = 2 * cell[0] - cell[2]
    after = model.predict(periodic(open_graph.positions + shift))
    assert torch.allclose(after.positions, before.positions + shift, rtol=0, atol=TOLERANCE)
    assert torch.allclose(after.velocities, before.velocities, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("case", list(CASES))
def test_scripted_equals_eager(case: str) -> None:
    model = model_of(case)
    graph = system(model.config)
    scripted = torch.jit.script(model)
    arguments = (
        graph.positions, graph.velocities, graph.species, graph.edge_index, graph.shifts(), graph.batch,
        graph.periodic, graph.node_features,
    )  # fmt: skip
    for ours, theirs in zip(scripted(*arguments), model.predict(graph), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_a_fresh_model_goes_straight_on() -> None:
    """Velocity maps sum to one; what is left are coordinate maps that start at a gain of 0.001."""
    torch.manual_seed(0)
    for case in CASES:
        config = PropagatorConfig(
            **{"frame_interval": 0.1, "stride": 0.2, "hidden": 12, "layers": 3, "node_features": 1, **CASES[case]}
        )
        model, linear = FastEGNNPropagator(config).double(), Linear(config)
        graph = system(config)
        assert torch.allclose(model.predict(graph).positions, linear.predict(graph).positions, atol=0.02)
        assert torch.allclose(model.predict(graph).velocities, linear.predict(graph).velocities, atol=0.1)


def test_reference_propagators() -> None:
    config = PropagatorConfig(
        frame_interval=0.1, stride=0.2, node_features=1, species=(0, 3), static_species=(3,), cutoff=1.0
    )
    graph = system(config)
    assert graph.velocities is not None
    free = (graph.species == 0).unsqueeze(1)
    assert torch.equal(StayStill(config).predict(graph).positions, graph.positions)
    expected = graph.positions + torch.where(free, 0.2 * graph.velocities, torch.zeros_like(graph.positions))
    assert torch.allclose(Linear(config).predict(graph).positions, expected)
    model = FastEGNNPropagator(config).double()
    prediction = model.predict(graph)
    assert torch.equal(prediction.positions[~free[:, 0]], graph.positions[~free[:, 0]])
    assert not prediction.velocities[~free[:, 0]].any()


def test_nobody_is_put_behind_a_wall() -> None:
    model = model_of("liquid")
    model.velocity_head.weight.zero_()  # (x' - x)/stride: what ends behind a wall moves into it
    model.velocity_head.bias.fill_(1.0)
    model.velocity_head.bias[-1] = 0.3
    graph = system(model.config)
    assert graph.velocities is not None
    fast = replace(graph, velocities=20 * graph.velocities)
    low, high = (torch.tensor(side, dtype=torch.float64) for side in zip(*WALLS, strict=True))
    soft = model.train().predict(fast)
    hard = model.eval().predict(fast)
    outside = (soft.positions < low) | (soft.positions > high)
    assert outside.sum() > 5
    assert torch.allclose(hard.positions, soft.positions.clamp(low, high), rtol=0, atol=TOLERANCE)
    into = torch.where(soft.positions < low, soft.velocities.clamp(min=0), soft.velocities.clamp(max=0))
    expected = torch.where(outside, into, soft.velocities)
    assert (expected != soft.velocities).sum() > 5
    assert torch.allclose(hard.velocities, expected, rtol=0, atol=TOLERANCE * 100)
