"""Data sets of trajectories: LagrangeBench's layout both ways, lazy reading, kills, and what is refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest

from egnn_md.data.trajectories import (
    Trajectory,
    TrajectoryMetadata,
    TrajectoryWriter,
    open_trajectories,
    write_trajectories,
)
from egnn_md.errors import InputError

META = TrajectoryMetadata(system="toy", dt=0.1, write_every=5)


def toy(seed: int = 0, frames: int = 6, particles: int = 4, **extra: object) -> Trajectory:
    random = np.random.default_rng(seed)
    return Trajectory(
        positions=random.normal(size=(frames, particles, 3)),
        species=np.arange(particles) % 2,
        velocities=random.normal(size=(frames, particles, 3)),
        features=random.normal(size=(particles, 2)),
        **extra,  # type: ignore[arg-type]
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = [toy(0, cell=np.diag([3.0, 4.0, 5.0])), toy(1, frames=9, particles=7)]
    write_trajectories(tmp_path, META, {"train": written, "test": written[:1]})
    read = open_trajectories(tmp_path, "train")
    assert len(read) == 2
    assert read.metadata == META
    assert read.metadata.frame_interval == pytest.approx(0.5)
    for ours, theirs in zip(written, read, strict=True):
        assert len(theirs) == len(ours)
        assert theirs.num_particles == ours.num_particles
        for t in range(len(ours)):
            assert np.array_equal(theirs.positions[t], ours.positions[t])
            assert np.array_equal(theirs.velocities[t], ours.velocities[t])
        assert np.array_equal(theirs.species, ours.species)
        assert theirs.features is not None
        assert np.array_equal(theirs.features, ours.features)
    assert read[0].cell is not None
    assert read[0].cell[2, 2] == 5.0
    assert read[1].cell is None


def test_lazy_frames_survive_a_pickle(tmp_path: Path) -> None:
    write_trajectories(tmp_path, META, {"train": [toy()]})
    read = open_trajectories(tmp_path)
    first = read[0].positions[3]
    copy = pickle.loads(pickle.dumps(read[0]))
    assert np.array_equal(copy.positions[3], first)


def lagrangebench(directory: Path, dim: int, periodic: bool) -> np.ndarray:
    """A data set as LagrangeBench's scripts leave it: no velocities, no marks of ours."""
    positions = np.random.default_rng(3).uniform(size=(7, 5, dim)).astype(np.float32)
    metadata = {
        "solver": "SPH", "dim": dim, "dx": 0.02, "dt": 0.0004, "t_end": 1.0, "sequence_length_train": 7,
        "num_trajs_train": 1, "num_trajs_test": 1, "num_particles_max": 5, "write_every": 100,
        "periodic_boundary_conditions": [periodic] * dim, "bounds": [[0.5, 1.5], [0.0, 2.0], [0.0, 0.5]][:dim],
        "default_connectivity_radius": 0.029, "vel_mean": [0.0] * dim, "vel_std": [1.0] * dim,
        "acc_mean": [0.0] * dim, "acc_std": [1.0] * dim,
    }  # fmt: skip
    (directory / "metadata.json").write_text(json.dumps(metadata))
    with h5py.File(directory / "train.h5", "w") as file:
        group = file.create_group("00000")
        group["position"] = positions
        group["particle_type"] = np.zeros(5, dtype=int)
    return positions


@pytest.mark.parametrize("dim", [2, 3])
def test_lagrangebench_layout(tmp_path: Path, dim: int) -> None:
    positions = lagrangebench(tmp_path, dim, periodic=True)
    read = open_trajectories(tmp_path, "train")
    frame = read[0].positions[2]
    assert frame.shape == (5, 3)
    assert np.array_equal(frame[:, :dim], positions[2])
    assert dim == 3 or not frame[:, 2].any()
    assert read.metadata.frame_interval == pytest.approx(0.04)
    assert read.metadata.pbc == ((True, True, True) if dim == 3 else (True, True, False))
    assert read[0].cell is not None
    assert np.allclose(np.diag(read[0].cell)[:2], [1.0, 2.0])
    assert read[0].velocities is None
    assert read.metadata.walls is None


def test_closed_box_has_walls(tmp_path: Path) -> None:
    lagrangebench(tmp_path, 3, periodic=False)
    assert open_trajectories(tmp_path).metadata.walls == [[0.5, 1.5], [0.0, 2.0], [0.0, 0.5]]


def test_a_killed_writer_loses_only_the_unfinished_trajectory(tmp_path: Path) -> None:
    path = tmp_path / "train.h5"
    with TrajectoryWriter(path, META) as writer:
        writer.add(toy(0))
        half = writer._file.create_group("00001")  # what a kill in the middle of add() leaves
        half["position"] = np.zeros((3, 4, 3))
        half["particle_type"] = np.zeros(4, dtype=int)
    with pytest.raises(InputError, match=r"00001 is half-written; resume"):
        open_trajectories(path)
    with TrajectoryWriter(path, META) as writer:
        assert writer.names == ["00000"]
        assert writer.add(toy(1)) == "00001"
    assert np.array_equal(open_trajectories(path)[1].positions[2], toy(1).positions[2])


def test_truncated_file(tmp_path: Path) -> None:
    write_trajectories(tmp_path, META, {"train": [toy(frames=200, particles=50)]})
    path = tmp_path / "train.h5"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InputError, match=r"train\.h5 is not a complete HDF5 file"):
        open_trajectories(tmp_path)


def test_bad_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no data set"):
        open_trajectories(tmp_path / "nothing.h5")
    with pytest.raises(InputError, match="name the part"):
        open_trajectories(tmp_path)
    write_trajectories(tmp_path, META, {"train": [toy()], "test": [toy()]})
    with pytest.raises(InputError, match="name the part"):
        open_trajectories(tmp_path)
    with pytest.raises(InputError, match=r"has no valid\.h5"):
        open_trajectories(tmp_path, "valid")
    with pytest.raises(InputError, match="describes another data set"):
        TrajectoryWriter(tmp_path / "train.h5", META.model_copy(update={"dt": 0.2}))


def test_shapes_that_do_not_agree(tmp_path: Path) -> None:
    bad = toy()
    bad.species = np.zeros(3, dtype=int)
    with pytest.raises(InputError, match="3 particle types for 4 particles"), TrajectoryWriter(
        tmp_path / "train.h5", META
    ) as writer:
        writer.add(bad)
    bad = toy()
    bad.velocities = bad.velocities[:-1]
    with pytest.raises(InputError, match=r"velocities are \(5, 4, 3\), positions \(6, 4, 3\)"):
        bad.check()
