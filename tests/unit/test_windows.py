"""Samples for propagators: which frames, which velocities, which pairs, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, TrajectorySet
from egnn_md.data.windows import WindowSet, all_pairs, build_graph, model_velocities
from egnn_md.errors import InputError
from egnn_md.models.propagator import PropagatorConfig

INTERVAL = 0.5
META = TrajectoryMetadata(system="toy", dt=0.1, write_every=5)


def uniform(frames: int = 9, particles: int = 6, velocities: bool = True, **metadata: object) -> TrajectorySet:
    """Particles on straight lines at constant velocity."""
    random = np.random.default_rng(0)
    start, speed = random.uniform(0, 4, (particles, 3)), random.normal(size=(particles, 3))
    times = INTERVAL * np.arange(frames)[:, None, None]
    trajectory = Trajectory(
        positions=start + times * speed,
        species=np.zeros(particles, dtype=np.int64),
        velocities=np.broadcast_to(speed, (frames, particles, 3)).copy() if velocities else None,
        name="line",
    )
    return TrajectorySet(META.model_copy(update=metadata), [trajectory])


def config(**changes: object) -> PropagatorConfig:
    return PropagatorConfig(**{"system": "toy", "frame_interval": INTERVAL, "stride": 2 * INTERVAL, **changes})


@pytest.mark.parametrize("velocity", ["true", "backward", "forward"])
def test_straight_lines(velocity: str) -> None:
    windows = WindowSet(uniform(), config(velocity=velocity), unroll=2, dtype=torch.float64)
    # nine frames: two strides of two frames, one frame before or after for the differences
    assert len(windows) == {"true": 5, "backward": 4, "forward": 4}[velocity]
    for i in range(len(windows)):
        graph = windows[i].validate()
        assert graph.velocities is not None
        for k in (0, 1):
            expected = graph.positions + (k + 1) * 2 * INTERVAL * graph.velocities
            assert torch.allclose(graph.labels["targets"][:, k], expected, atol=1e-12)
            assert torch.allclose(graph.labels["target_velocities"][:, k], graph.velocities, atol=1e-12)
    assert windows.index[0] == (0, 1 if velocity == "backward" else 0)


def test_backward_is_causal_and_forward_is_not() -> None:
    data = uniform()
    data[0].positions[5] += 100.0  # only frame 5 differs
    at4 = {v: model_velocities(data[0], 4, config(velocity=v), META) for v in ("backward", "forward")}
    line = data[0].velocities[4]
    assert np.allclose(at4["backward"], line)
    assert np.allclose(at4["forward"], line + 100.0 / INTERVAL)


def test_wrapped_frames_give_small_steps() -> None:
    data = uniform(periodic_boundary_conditions=[True, True, True])
    cell = np.diag([4.0, 5.0, 6.0])
    unwrapped = data[0].positions.copy()
    data[0].positions = unwrapped % np.diag(cell)
    data[0].cell = cell
    windows = WindowSet(data, config(velocity="backward", cutoff=2.0), unroll=2, dtype=torch.float64)
    for i, (_, frame) in enumerate(windows.index):
        moved = windows[i].labels["targets"][:, 1] - windows[i].positions
        assert np.allclose(moved, unwrapped[frame + 4] - unwrapped[frame], atol=1e-12)
        assert np.allclose(windows[i].velocities, data[0].velocities[0], atol=1e-12)


def test_starts_every_and_limit() -> None:
    data = uniform(frames=30)
    assert WindowSet(data, config(), starts=[7]).index == [(0, 7)]
    assert WindowSet(data, config(), every=10).index == [(0, 0), (0, 10), (0, 20)]
    chosen = WindowSet(data, config(), limit=5, seed=1).index
    assert len(chosen) == 5
    assert chosen == sorted(chosen)
    assert chosen == WindowSet(data, config(), limit=5, seed=1).index
    assert chosen != WindowSet(data, config(), limit=5, seed=2).index


def test_all_pairs_and_dropping() -> None:
    pairs = all_pairs(5)
    assert pairs.shape == (2, 20)
    assert len({tuple(p) for p in pairs.T.tolist()}) == 20
    assert bool((pairs[0].diff() >= 0).all())
    assert bool((pairs[0] != pairs[1]).all())
    positions = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    species = torch.zeros(5, dtype=torch.long)
    full = build_graph(config(), positions, None, species)
    part = build_graph(config(drop="longest", drop_fraction=0.6), positions, None, species)
    assert full.num_edges == 20
    assert part.num_edges == 8
    left = full.pair_vectors().norm(dim=1).sort().values[:8]
    assert torch.allclose(part.pair_vectors().norm(dim=1).sort().values, left)
    none = build_graph(config(drop="random", drop_fraction=1.0), positions, None, species)
    assert none.num_edges == 0


def test_cutoff_gives_the_pairs_inside() -> None:
    data = uniform(particles=30)
    graph = WindowSet(data, config(cutoff=1.5), dtype=torch.float64)[0]
    distances = (graph.positions[:, None] - graph.positions[None]).norm(dim=-1)
    assert graph.num_edges == int((distances < 1.5).sum()) - 30


@pytest.mark.parametrize(
    ("changes", "metadata", "message"),
    [
        ({"system": "adk"}, {}, r"holds 'toy', but the propagator is one of 'adk'"),
        ({"units": {"length": "angstrom", "time": "none"}}, {}, r"length unit 'none', but the propagator was made"),
        ({}, {"write_every": 3}, r"so the propagator's stride of 1 is 3\.33333 frames"),
        ({"velocity": "backward"}, {"write_every": 10}, r"backward differences are over 0\.5"),
        ({"stride": 20 * INTERVAL}, {}, r"need trajectories of at least 21 frames, the longest has 9"),
    ],
)
def test_data_of_another_world(changes: dict[str, object], metadata: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        WindowSet(uniform(**metadata), config(**changes))  # type: ignore[arg-type]


def test_missing_velocities_and_bad_starts() -> None:
    with pytest.raises(InputError, match=r"'line' has no velocities, but the propagator takes true ones"):
        WindowSet(uniform(velocities=False), config())
    assert len(WindowSet(uniform(velocities=False), config(velocity="backward"))) == 6
    with pytest.raises(InputError, match="start frame 8 of trajectory 'line' needs frames up to 10, but it has 9"):
        WindowSet(uniform(), config(), starts=[8])
    with pytest.raises(InputError, match="a periodic system needs a cell and a propagator with a cutoff"):
        build_graph(config(), torch.zeros(2, 3), None, torch.zeros(2, dtype=torch.long), pbc=(True, True, True))
