"""Protein data sets: splits in time, what is written, the command, and the shipped frames."""

from __future__ import annotations

import itertools
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import typer
from adk_cases import shipped, write_files
from typer.testing import CliRunner

from egnn_md.data.trajectories import PARTS, open_trajectories
from egnn_md.errors import InputError
from egnn_md_systems.adk import data_path
from egnn_md_systems.adk.benchmark import fetch_equilibrium, named_files
from egnn_md_systems.adk.cli import register_trajectory
from egnn_md_systems.adk.dataset import DatasetOptions, convert, whole_frames
from egnn_md_systems.adk.splits import published_split, split_in_time
from egnn_md_systems.adk.trajectory import read_trajectory


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_files(tmp_path)


@pytest.mark.parametrize(("frames", "gap", "stride", "repeats"), [(100, 5, 5, 1), (1000, 25, 5, 4), (321, 7, 3, 2)])
def test_no_frame_and_no_neighbour_is_in_two_parts(frames: int, gap: int, stride: int, repeats: int) -> None:
    parts = split_in_time(frames, (70, 15, 15), gap=gap, stride=stride, repeats=repeats)
    stretches = sorted((first, end, part) for part in PARTS for first, end in parts[part])
    assert [part for _, _, part in stretches] == list(PARTS) * repeats
    assert (stretches[0][0], stretches[-1][1]) == (0, frames)
    for (_, end, _), (first, _, _) in itertools.pairwise(stretches):
        assert first - end == gap
    share = sum(end - first for first, end in parts["train"]) / sum(end - first for first, end, _ in stretches)
    assert share == pytest.approx(0.7, abs=repeats / frames * 3)


def test_splits_that_cannot_be() -> None:
    with pytest.raises(InputError, match=r"60 frames, too few for 3 parts with gaps of 20 and at least 7"):
        split_in_time(60, (70, 15, 15), gap=20, stride=5)
    with pytest.raises(InputError, match="gap of 3 frames is shorter than the stride of 5"):
        split_in_time(600, (70, 15, 15), gap=3, stride=5)
    with pytest.raises(InputError, match="give three shares"):
        split_in_time(600, (70, -15, 15), gap=5, stride=5)
    with pytest.raises(InputError, match=r"--stride 50 fs is 2.5 frames of a, which has one every 20 fs.*as 40"):
        whole_frames(50.0, 20.0, "--stride", "a")
    assert list(split_in_time(50, (1, 0, 0), gap=5, stride=5)) == ["train"]


def test_the_published_split_has_the_published_numbers_of_starts() -> None:
    parts = published_split(4187)
    assert {part: [end - first - 16 for first, end in parts[part]] for part in PARTS} == {
        "train": [2481], "valid": [827], "test": [863],
    }  # fmt: skip
    assert parts["test"][0][1] == 4187
    with pytest.raises(InputError, match="needs 4187"):
        published_split(98)


def test_path_sampling_frames_as_a_data_set(tmp_path: Path) -> None:
    shipped("adk.psf")
    summary = convert(["adk-dims"], tmp_path / "dims", DatasetOptions(stride=3000.0, align="first"))
    assert sum(sum(lengths) for lengths in summary.frames.values()) == 98 - 2 * 10
    train = open_trajectories(tmp_path / "dims", "train")
    assert (train.metadata.system, train.metadata.units["length"]) == ("adk", "angstrom")
    assert train.metadata.frame_interval == 1000.0
    assert train[0].features is not None
    assert train[0].features.shape == (855, 1)
    assert mdtraj.load_topology(str(tmp_path / "dims" / "topology.pdb")).n_atoms == 855
    moved = train[0].positions[:].mean(axis=1)
    np.testing.assert_allclose(moved, np.broadcast_to(moved[0], moved.shape), atol=1e-4)
    with pytest.raises(InputError, match="already holds a data set"):
        convert(["adk-dims"], tmp_path / "dims", DatasetOptions())


def test_windows_over_a_data_set_without_velocities(files: tuple[Path, Path], tmp_path: Path) -> None:
    from egnn_md.data.windows import WindowSet
    from egnn_md.models.propagator import PropagatorConfig

    convert([str(files[1])], tmp_path / "set", DatasetOptions(topology=files[0], stride=1000.0, gap=1000.0))
    train = open_trajectories(tmp_path / "set", "train")
    values = {"stride": 1000.0, "frame_interval": 500.0, "species": (6, 7, 8), "node_features": 1, "cutoff": 10.0}
    units = {"length": "angstrom", "time": "femtosecond"}
    windows = WindowSet(train, PropagatorConfig(velocity="backward", units=units, **values))
    assert len(windows) == len(train[0]) - 3
    with pytest.raises(InputError, match="has no velocities"):
        WindowSet(train, PropagatorConfig(velocity="true", units=units, **values))


def test_sources_that_do_not_belong_together(files: tuple[Path, Path], tmp_path: Path) -> None:
    options = DatasetOptions(topology=files[0], select="ca", gap=500.0)
    summary = convert([str(files[1])] * 2, tmp_path / "two", options)
    assert summary.frames == {"train": [27, 27], "valid": [5, 5], "test": [6, 6]}
    with pytest.raises(InputError, match=r"neither a file, nor a run's directory, nor one of adk-equilibrium"):
        convert([str(tmp_path / "nothing")], tmp_path / "out", DatasetOptions())
    with pytest.raises(InputError, match="needs --topology"):
        convert([str(files[1])], tmp_path / "out", DatasetOptions())
    with pytest.raises(InputError, match=r"--skip 39.*leave 1, but at least 2"):
        convert([str(files[1])], tmp_path / "out", DatasetOptions(topology=files[0], skip=39))
    with pytest.raises(InputError, match=r"holds no run\.json"):
        convert([str(tmp_path)], tmp_path / "out", options)


def test_a_download_that_fails_gives_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    module = pytest.importorskip("MDAnalysisData.adk_equilibrium", reason="MDAnalysisData is not installed")

    def unreachable(**_: object) -> None:
        raise OSError("name or service not known")

    monkeypatch.setattr(module, "fetch_adk_equilibrium", unreachable)
    with pytest.raises(InputError, match=r"name or service not known.*10.6084/m9.figshare.5108170"):
        fetch_equilibrium()
    with pytest.raises(InputError, match="known are adk-equilibrium, adk-dims"):
        named_files("adk-anything")


def test_molecules_made_by_others_must_share_atoms(files: tuple[Path, Path], tmp_path: Path) -> None:
    from dataclasses import replace

    from egnn_md_systems.adk.dataset import _check_same

    read = read_trajectory(*files, selection="ca")
    with pytest.raises(InputError, match=r"has 21 atoms, .*xtc 4.*choose another --select"):
        _check_same(read, read_trajectory(*files, selection="all"))
    with pytest.raises(InputError, match=r"every 250 fs, .*every 500 fs"):
        _check_same(read, replace(read, frame_interval=250.0))
    with pytest.raises(InputError, match="has no velocities, but another source has"):
        _check_same(read, replace(read, velocities=np.zeros_like(read.positions)))


def test_the_command_writes_and_says_what_it_wrote(files: tuple[Path, Path], tmp_path: Path) -> None:
    app = typer.Typer()
    register_trajectory(app)
    words = [str(files[1]), "--topology", str(files[0]), "--select", "ca", "--features", "alpha,residue"]
    result = CliRunner().invoke(app, [*words, "--gap", "1000", "--output", str(tmp_path / "set")])
    assert result.exit_code == 0, result.output
    assert "train: 25 frames" in result.output
    assert "4 atoms, a frame every 500 fs, without velocities, features: alpha, residue" in result.output
    assert open_trajectories(tmp_path / "set", "valid")[0].num_particles == 4


def test_the_shipped_frames() -> None:
    shipped_set = open_trajectories(data_path(), "test")
    trajectory = shipped_set[0]
    assert (len(trajectory), trajectory.num_particles, shipped_set.metadata.frame_interval) == (60, 855, 20.0)
    positions, velocities = trajectory.positions[:], trajectory.velocities[:]
    # a leapfrog's mean over one step knows the path: it must go where the atoms go
    ahead, behind = positions[2:] - positions[1:-1], positions[1:-1] - positions[:-2]
    assert np.corrcoef((ahead + behind).ravel(), velocities[1:-1].ravel())[0, 1] > 0.5
    atoms = list(mdtraj.load_topology(str(data_path() / "topology.pdb")).atoms)
    assert [atom.element.atomic_number for atom in atoms] == trajectory.species.tolist()
    carbon = next(i for i, a in enumerate(atoms) if a.name == "C")
    assert np.linalg.norm(positions[:, carbon] - positions[:, carbon - 1], axis=1).mean() == pytest.approx(
        1.53, abs=0.05
    )
