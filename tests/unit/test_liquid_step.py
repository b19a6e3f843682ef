"""One propagator step over a frame of a liquid scene: what is counted, that it is done, and what is refused."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

from egnn_md.checkpoint import save_model
from egnn_md.data.trajectories import Trajectory, TrajectoryWriter, open_trajectories
from egnn_md.errors import ConfigError, InputError
from egnn_md_systems.liquid import step
from egnn_md_systems.liquid.generate import liquid_metadata
from egnn_md_systems.liquid.presets import get_preset
from egnn_md_systems.liquid.step import Request, StepCost, load_or_make, measure, table

SIDE = 9
PARTICLES = SIDE**3
# of a cubic lattice, by a radius of one and a half spacings: those along the axes and across the squares
NEAREST = 3 * 2 * SIDE**2 * (SIDE - 1)
EDGES = NEAREST + 3 * 4 * SIDE * (SIDE - 1) ** 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two scenes of 22 frames: a lattice that falls."""
    folder = tmp_path_factory.mktemp("lattice")
    preset = get_preset("tiny", frames=22)
    axis = 0.1 + preset.spacing * np.arange(SIDE) * 0.8
    lattice = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"), axis=-1).reshape(-1, 3)
    time = preset.frame_interval * np.arange(22.0)[:, None, None]
    positions = lattice + time * np.array([0.0, -0.1, 0.0])
    velocities = np.broadcast_to([0.0, -0.1, 0.0], positions.shape)
    with TrajectoryWriter(folder / "test.h5", liquid_metadata(preset, 0)) as writer:
        for _ in range(2):
            kinds = np.zeros(PARTICLES, dtype=np.int64)
            writer.add(Trajectory(positions.astype(np.float32), kinds, velocities.astype(np.float32)))
    return folder


def test_particles_edges_and_the_fraction_left_out(data: Path):
    threads = torch.get_num_threads()
    try:
        whole = measure(Request(data, threads=1, repeats=1))
        part = measure(Request(data, scene=1, frame=3, drop=0.75, threads=1, repeats=2))
    finally:
        torch.set_num_threads(threads)
    # the cutoff is 0.15 and the lattice's spacing 0.08: neighbours across a cube's diagonal (0.139) count, too
    across = 8 * (SIDE - 1) ** 3
    assert (whole.particles, whole.edges, whole.found) == (PARTICLES, EDGES + across, EDGES + across)
    assert part.found == whole.found
    # longest first: whole pairs, at most three quarters
    assert 0 <= part.edges - 0.25 * part.found < 2
    assert min(whole.neighbors, whole.forward, whole.neighbors_cpu, whole.forward_cpu) > 0
    # the step of a fresh network: near v · stride
    assert whole.displacement > 0


def test_weights_do_not_depend_on_the_fraction_and_the_sizes_are_the_published_ones(data: Path):
    trajectories = open_trajectories(data)
    some, whole = load_or_make(None, trajectories, 0.75), load_or_make(None, trajectories, 0.0)
    assert (some.config.drop, some.config.drop_fraction) == ("longest", 0.75)
    assert (whole.config.drop, whole.config.drop_fraction) == ("none", 0.0)
    assert (whole.config.hidden, whole.config.layers, whole.config.virtual_nodes) == (64, 4, 3)
    assert whole.config.velocity == "true"
    assert whole.config.cutoff == trajectories.metadata.default_connectivity_radius
    for ours, theirs in zip(some.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_model_file_is_measured(data: Path, tmp_path: Path):
    model = load_or_make(None, open_trajectories(data), 0.0)
    other = type(model)(model.config.model_copy(update={"virtual_nodes": 1, "hidden": 8, "layers": 1}))
    save_model(other, tmp_path / "small.safetensors")
    loaded = load_or_make(str(tmp_path / "small.safetensors"), open_trajectories(data), 0.5)
    assert (loaded.config.hidden, loaded.config.drop_fraction) == (8, 0.5)
    wrong = type(model)(model.config.model_copy(update={"system": "nbody"}))
    save_model(wrong, tmp_path / "nbody.safetensors")
    with pytest.raises(InputError, match="nbody"):
        load_or_make(str(tmp_path / "nbody.safetensors"), open_trajectories(data), 0.0)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"scene": 2}, InputError, "scenes 0 to 1, not 2"),
        ({"frame": 22}, InputError, "frames 0 to 21, not 22"),
        ({"drop": 1.5}, ConfigError, r"--drop 1\.5"),
        ({"repeats": 0}, ConfigError, "0 repeats"),
    ],
)
def test_impossible_requests_are_refused(data: Path, changes: dict, error: type[Exception], message: str):
    with pytest.raises(error, match=message):
        measure(replace(Request(data, threads=1, repeats=1), **changes))


def test_rows_of_the_table():
    cost = StepCost(0.75, 113_000, 2_000_000, 500_000, 1.25, 2.5, 3.0, 6.0, 10**8, 3 * 10**9, 0.1)
    assert table([cost]).splitlines()[-1] == "| 0.75 | 113,000 | 500,000 | 1.25 | 3 | 2.5 + 6 | 3.00 |"


def test_the_command_measures_in_a_process_of_its_own(data: Path, tmp_path: Path):
    arguments = [str(data), "--threads", "1", "--repeats", "1", "--frame", "21", "--drop", "0"]
    app = typer.Typer()
    app.command()(step.main)
    done = CliRunner().invoke(app, [*arguments, "--json", str(tmp_path / "out" / "step.json")])
    assert done.exit_code == 0, done.output
    content = json.loads((tmp_path / "out" / "step.json").read_text())
    (cost,) = content["steps"]
    assert (cost["drop"], cost["particles"], content["frame"]) == (0.0, PARTICLES, 21)
    assert f"| 0 | {PARTICLES:,} | {cost['edges']:,} |" in done.output
    # 64 numbers of 4 bytes for each edge stand together somewhere in the network
    assert cost["edges"] * 64 * 4 < cost["memory"] < 1e9
    assert 0 < cost["graph_memory"] <= cost["memory"]


def test_a_mistake_is_one_line_and_exit_code_2(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(step, "measure_apart", measure)
    monkeypatch.setattr(sys, "argv", ["step", str(data), "--frame", "99", "--threads", "1"])
    with pytest.raises(SystemExit) as caught:
        step.run()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("step: InputError: scene 'test/00000' has frames 0 to 21, not 99")
