"""Batches of samples: kept small, the same as the samples; noise and edges depend on seed and step only."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from propagator_cases import METADATA, attracting, model_config, toy_set

from egnn_md.data.trajectories import TrajectorySet
from egnn_md.data.windows import WindowSet, build_graph
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import PropagatorConfig
from egnn_md.training.batches import WindowBatches, WindowStream, rebuild_edges
from egnn_md.training.propagator_config import NoiseSection

CELL = np.diag([3.0, 3.5, 4.0])
CASES: list[dict[str, Any]] = [
    {},
    {"cutoff": 1.5},
    {"drop": "longest", "drop_fraction": 0.6},
    {"cutoff": 1.5, "drop": "longest", "drop_fraction": 0.3},
    {"drop": "random", "drop_fraction": 0.6},
    {"drop": "longest", "drop_fraction": 1.0},
]


def periodic_set() -> TrajectorySet:
    trajectories = attracting(2)
    for trajectory in trajectories:
        trajectory.cell = CELL
        trajectory.positions = trajectory.positions % np.diag(CELL)
    return TrajectorySet(METADATA.model_copy(update={"periodic_boundary_conditions": [True] * 3}), trajectories)


def windows(config: PropagatorConfig, data: TrajectorySet | None = None, **options: Any) -> WindowSet:
    return WindowSet(data or toy_set(), config, **{"unroll": 2, "dtype": torch.float64, **options})


def assert_equal(one: ParticleGraph, two: ParticleGraph) -> None:
    for name, value in vars(one).items():
        other = getattr(two, name)
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, other), name
        elif name != "labels":
            assert value is other is None, name
    assert one.labels.keys() == two.labels.keys()
    assert all(torch.equal(one.labels[name], two.labels[name]) for name in one.labels)


@pytest.mark.parametrize("cache", [0, 1e9, 3000])
@pytest.mark.parametrize("changes", CASES)
def test_a_batch_is_its_samples_joined(changes: dict[str, Any], cache: float) -> None:
    config = model_config(**changes)
    samples = windows(config)
    batches = WindowBatches(samples, config, cache_bytes=cache)
    for members in ([0, 5, 2], [2, 3, 5], [1]):
        expected = ParticleGraph.join([samples[i] for i in members])
        for _ in range(2):
            assert_equal(batches.batch(members).validate(), expected)


def test_periodic_shifts_survive_the_cache() -> None:
    config = model_config(cutoff=1.4)
    samples = windows(config, periodic_set())
    batches = WindowBatches(samples, config)
    expected = ParticleGraph.join([samples[i] for i in (0, 3)])
    assert float(expected.cell_shifts.abs().max()) >= 1
    for _ in range(2):
        assert_equal(batches.batch([0, 3]), expected)
    assert_equal(rebuild_edges(expected, config), expected)


def test_edges_of_all_pairs_are_not_stored() -> None:
    config = model_config()
    batches = WindowBatches(windows(config), config)
    first, second = batches.batch([0, 1]), batches.batch([2, 3])
    assert first.edge_index.data_ptr() == second.edge_index.data_ptr()
    assert all(sample.edges is None for sample in batches._kept.values())
    small = WindowBatches(windows(model_config(cutoff=2.0)), model_config(cutoff=2.0))
    small.batch([0])
    assert small._kept[0].edges is not None
    assert small._kept[0].edges.dtype == torch.int16
    assert small._kept[0].shifts is None


@pytest.mark.parametrize("changes", CASES[:4])
def test_rebuilt_edges_are_those_of_each_graph_alone(changes: dict[str, Any]) -> None:
    config = model_config(**changes)
    samples = windows(config)
    graph = ParticleGraph.join([samples[0], samples[4]])
    moved = ParticleGraph(**{**vars(graph), "positions": graph.positions * 1.1})
    expected = [
        build_graph(config, part.positions, part.velocities, part.species) for part in moved.split()
    ]
    joined = ParticleGraph.join(expected)
    found = rebuild_edges(moved, config)
    assert torch.equal(found.edge_index, joined.edge_index)
    assert torch.equal(found.cell_shifts, joined.cell_shifts)


def test_longest_edges_of_triclinic_cells_are_told_by_the_rows_of_each_graphs_own_cell() -> None:
    """Two graphs of three particles; only the pair across the face of the tilted vector b is 1 apart and stays.

    With the columns of the cell, or with the other graph's cell, that pair would be longer than the others.
    """
    config = model_config(cutoff=2.0, drop="longest", drop_fraction=2 / 3)
    parts = []
    for tilt, place in ((3.0, 2.0), (-2.0, -3.0)):  # both particles 1 are 1 off the image at b of particle 0
        cell = torch.tensor([[10.0, 0, 0], [tilt, 10, 0], [1, 2, 10]], dtype=torch.float64)
        positions = torch.tensor([[0.0, 0, 0], [place, 10, 0], [0, 0, 1.5]], dtype=torch.float64)
        species = torch.zeros(3, dtype=torch.long)
        every = build_graph(model_config(cutoff=2.0), positions, None, species, cell=cell, pbc=(True, True, True))
        assert torch.equal(every.edge_index, torch.tensor([[0, 0, 1, 1, 2, 2], [1, 2, 0, 2, 0, 1]]))
        lengths = every.pair_vectors().norm(dim=1)
        expected = torch.tensor([1.0, 1.5, 1.0, 3.25**0.5, 1.5, 3.25**0.5], dtype=torch.float64)
        torch.testing.assert_close(lengths, expected, rtol=1e-12, atol=0.0)
        parts.append(every)
    found = rebuild_edges(ParticleGraph.join(parts), config)
    assert found.edge_index.tolist() == [[0, 1, 3, 4], [1, 0, 4, 3]]
    assert found.cell_shifts.tolist() == [[0, 1, 0], [0, -1, 0], [0, 1, 0], [0, -1, 0]]
    alone = [
        build_graph(config, part.positions, None, part.species, cell=part.cell[0], pbc=(True, True, True))
        for part in parts
    ]
    assert_equal(found, ParticleGraph.join(alone))


def test_noise_has_the_stated_spread_and_repeats_with_the_step() -> None:
    config = model_config(species=(0, 1), static_species=(1,), cutoff=9.0)
    data = toy_set()
    for trajectory in data:
        trajectory.species[0] = 1
    samples = windows(config, data)
    noise = NoiseSection(positions=0.3, velocities=0.05)
    batches = WindowBatches(samples, config, noise=noise, seed=5)
    plain = batches.batch([0, 1, 2])
    moving = plain.species == 0
    drawn: dict[str, list[torch.Tensor]] = {"positions": [], "velocities": []}
    for step in range(150):
        noisy = batches.batch([0, 1, 2], step)
        for name, values in drawn.items():
            change = getattr(noisy, name) - getattr(plain, name)
            assert float(change[~moving].abs().max()) == 0.0
            values.append(change[moving])
        assert torch.equal(noisy.labels["targets"], plain.labels["targets"])
    for name, values in drawn.items():
        change = torch.stack(values)
        spread, count = getattr(noise, name), change.numel()
        assert abs(float(change.mean())) < 4 * spread / count**0.5
        assert float(change.std()) == pytest.approx(spread, rel=4 / (2 * count) ** 0.5)
    mixed = torch.stack([torch.stack(drawn["positions"]).flatten(), torch.stack(drawn["velocities"]).flatten()])
    assert abs(float(torch.corrcoef(mixed)[0, 1])) < 4 / mixed.shape[1] ** 0.5
    again = WindowBatches(samples, config, noise=noise, seed=5)
    assert_equal(again.batch([0, 1, 2], 7), batches.batch([0, 1, 2], 7))
    other = WindowBatches(samples, config, noise=noise, seed=6)
    assert not torch.equal(other.batch([0, 1, 2], 7).positions, again.batch([0, 1, 2], 7).positions)
    assert not torch.equal(again.batch([0, 1, 2], 8).positions, again.batch([0, 1, 2], 7).positions)


@pytest.mark.parametrize("changes", CASES[1:4])
def test_noisy_positions_get_their_own_edges(changes: dict[str, Any]) -> None:
    config = model_config(**changes)
    batches = WindowBatches(windows(config), config, noise=NoiseSection(positions=0.5))
    noisy = batches.batch([0, 1], 3)
    assert_equal(noisy, rebuild_edges(noisy, config))
    assert not torch.equal(noisy.edge_index, batches.batch([0, 1]).edge_index)


def test_random_edges_of_training_are_drawn_each_step() -> None:
    config = model_config(drop="random", drop_fraction=0.5)
    base = model_config()
    batches = WindowBatches(windows(base), config, seed=1)
    found = [batches.batch([0, 1], step).edge_index for step in (0, 1, 0)]
    assert all(edges.shape[1] == 30 for edges in found)
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    noisy = WindowBatches(windows(base), config, seed=1, noise=NoiseSection(positions=0.5))
    assert torch.equal(noisy.batch([0, 1], 1).edge_index, found[1])


def test_the_stream_gives_batches_of_the_step() -> None:
    config = model_config()
    batches = WindowBatches(windows(config), config, noise=NoiseSection(velocities=0.1), seed=2)
    stream = WindowStream(batches, 3, 2, (4,), lambda: 1)
    steps = list(stream)
    assert len(steps) == 3
    for step, batch in zip((1, 2, 3), steps, strict=True):
        assert_equal(batch, batches.batch(stream.indices(step), step))
