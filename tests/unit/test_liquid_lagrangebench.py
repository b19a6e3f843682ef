"""Data sets as LagrangeBench ships them load: only ``position`` and ``particle_type``, and its own metadata."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from egnn_md.data.trajectories import open_trajectories
from egnn_md.data.windows import WindowSet
from egnn_md.errors import InputError
from egnn_md.models.propagator import PropagatorConfig

FRAMES, PARTICLES = 6, 30
SPEED = 0.03  # per time unit, to the right


def write_lagrangebench(directory: Path, dim: int, periodic: bool) -> np.ndarray:
    """A hand-made set: everything drifts along x; in a periodic box positions are wrapped, as theirs are."""
    rng = np.random.default_rng(dim)
    bounds = [[0.0, 1.0], [0.0, 2.0], [0.0, 0.5]][:dim]
    metadata = {
        "case": "TGV",
        "solver": "SPH",
        "dim": dim,
        "dx": 0.1,
        "dt": 0.01,
        "write_every": 100,
        "t_end": 5.0,
        "viscosity": 0.02,
        "p_bg_factor": 0.0,
        "artificial_alpha": 0.0,
        "free_slip": False,
        "density_evolution": False,
        "bounds": bounds,
        "periodic_boundary_conditions": [periodic] * dim,
        "default_connectivity_radius": 0.15,
        "sequence_length_train": FRAMES,
        "num_trajs_train": 2,
        "sequence_length_test": FRAMES,
        "num_trajs_test": 1,
        "num_particles_max": PARTICLES,
        "vel_mean": [0.0] * dim,
        "vel_std": [1.0] * dim,
        "acc_mean": [0.0] * dim,
        "acc_std": [1.0] * dim,
    }
    (directory / "metadata.json").write_text(json.dumps(metadata))
    lengths = np.array([high for _, high in bounds])
    start = rng.random((PARTICLES, dim)) * lengths
    drift = np.zeros(dim)
    drift[0] = SPEED * 1.0  # dt · write_every = 1
    path = start + np.arange(FRAMES)[:, None, None] * drift
    if periodic:
        path = path % lengths
    for part, count in (("train", 2), ("valid", 1), ("test", 1)):
        with h5py.File(directory / f"{part}.h5", "w") as file:
            for number in range(count):
                group = file.create_group(f"{number:05d}")
                group["position"] = path.astype(np.float32)
                group["particle_type"] = np.where(np.arange(PARTICLES) < 5, 1, 0)
    return path


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("periodic", [True, False])
def test_frames_types_and_box(tmp_path: Path, dim: int, periodic: bool):
    path = write_lagrangebench(tmp_path, dim, periodic)
    train = open_trajectories(tmp_path, "train")
    assert len(train) == 2
    assert len(open_trajectories(tmp_path / "test.h5")) == 1
    metadata = train.metadata
    assert metadata.frame_interval == pytest.approx(1.0)
    assert metadata.default_connectivity_radius == 0.15
    assert metadata.pbc == (periodic, periodic, periodic and dim == 3)
    assert (metadata.walls is not None) == (dim == 3 and not periodic)
    trajectory = train[1]
    assert trajectory.positions.shape == (FRAMES, PARTICLES, 3)
    assert trajectory.velocities is None
    frame = trajectory.positions[3]
    np.testing.assert_allclose(frame[:, :dim], path[3], atol=1e-6)
    assert np.all(frame[:, dim:] == 0)
    np.testing.assert_array_equal(trajectory.species, [1] * 5 + [0] * (PARTICLES - 5))
    if periodic:
        assert trajectory.cell is not None
        np.testing.assert_allclose(np.diag(trajectory.cell)[:dim], [1.0, 2.0, 0.5][:dim])


@pytest.mark.parametrize("dim", [2, 3])
@pytest.mark.parametrize("periodic", [True, False])
def test_windows_see_the_drift_through_the_boundary(tmp_path: Path, dim: int, periodic: bool):
    path = write_lagrangebench(tmp_path, dim, periodic)
    config = PropagatorConfig(
        frame_interval=1.0, stride=2.0, velocity="backward", cutoff=0.15, species=(0, 1), static_species=(1,)
    )
    windows = WindowSet(open_trajectories(tmp_path, "train"), config)
    assert len(windows) == 2 * (FRAMES - 3)  # no frame before the first, none two after the last two
    graph = windows[0]
    drift = np.array([SPEED, 0.0, 0.0])
    np.testing.assert_allclose(graph.velocities, np.broadcast_to(drift, (PARTICLES, 3)), atol=1e-6)
    moved = graph.labels["targets"][:, 0] - graph.positions
    np.testing.assert_allclose(moved, np.broadcast_to(2 * drift, (PARTICLES, 3)), atol=1e-6)
    # pairs within the cutoff, through the boundary where there is none
    apart = path[1][:, None] - path[1][None]
    if periodic:
        lengths = np.array([1.0, 2.0, 0.5][:dim])
        apart -= np.round(apart / lengths) * lengths
    near = np.linalg.norm(apart, axis=-1) < 0.15
    assert graph.edge_index.shape[1] == near.sum() - PARTICLES


def test_true_velocities_are_missed_by_name(tmp_path: Path):
    write_lagrangebench(tmp_path, 3, False)
    config = PropagatorConfig(frame_interval=1.0, stride=2.0, velocity="true", cutoff=0.15, species=(0, 1))
    with pytest.raises(InputError, match="velocity: backward"):
        WindowSet(open_trajectories(tmp_path, "train"), config)


def test_a_sequence_of_another_dimension_is_refused(tmp_path: Path):
    write_lagrangebench(tmp_path, 3, False)
    metadata = json.loads((tmp_path / "metadata.json").read_text())
    (tmp_path / "metadata.json").write_text(json.dumps({**metadata, "dim": 2, "bounds": metadata["bounds"][:2]}))
    with pytest.raises(InputError, match=r"position is .* 3\), but \(frames, particles, 2\)"):
        open_trajectories(tmp_path, "train")
