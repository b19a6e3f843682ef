"""SPH liquids: data sets that resume, what happens when a scene fails, the command, the shipped scene, statistics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from liquid_cases import simulator
from typer.testing import CliRunner

from egnn_md.data.trajectories import Trajectory, TrajectoryWriter, open_trajectories
from egnn_md.data.windows import WindowSet
from egnn_md.errors import ConfigError, InputError, MissingDependencyError, SimulationError
from egnn_md.training.config_file import read_yaml, validate
from egnn_md.training.propagator_build import build_propagator
from egnn_md.training.propagator_config import PropagatorTrainConfig
from egnn_md_systems.liquid import data_path, generate, splishsplash, statistics
from egnn_md_systems.liquid.cli import command, parse_scenes
from egnn_md_systems.liquid.presets import GRAVITY, get_preset
from egnn_md_systems.liquid.scene import Scene, random_scene
from egnn_md_systems.liquid.splishsplash import Simulation, UnstableSimulationError, simulate


@simulator
def test_a_data_set_resumes_and_repeats(tmp_path: Path):
    preset = get_preset("tiny", frames=6)
    output = tmp_path / "set"
    seen: list[int] = []
    first = generate.generate(output, preset, {"train": 1}, seed=4, progress=lambda frames, _: seen.append(frames))
    assert (first.made, first.skipped) == (1, 0)
    assert seen
    with pytest.raises(InputError, match="--resume"):
        generate.generate(output, preset, {"train": 1}, seed=4)
    with pytest.raises(InputError, match="another data set"):
        generate.generate(output, preset, {"train": 1}, seed=5, resume=True)
    again = generate.generate(output, preset, {"train": 2, "valid": 0, "test": 1}, seed=4, jobs=2, resume=True)
    assert (again.made, again.skipped) == (2, 1)
    assert sorted(path.name for path in output.iterdir()) == ["metadata.json", "test.h5", "train.h5"]

    train = open_trajectories(output, "train")
    assert [len(trajectory) for trajectory in train] == [6, 6]
    assert train.metadata.system == "liquid"
    assert train.metadata.units == {"length": "m", "time": "s"}
    assert train.metadata.frame_interval == preset.frame_interval
    assert train.metadata.walls == preset.bounds
    assert train.metadata.gravity == list(GRAVITY)
    for index, trajectory in enumerate(train):
        start, velocities = random_scene(preset, 4, "train", index).particles()
        np.testing.assert_allclose(trajectory.positions[0], start, atol=1e-6)
        np.testing.assert_allclose(trajectory.velocities[0], velocities, atol=1e-6)
        assert trajectory.positions[0].dtype == np.float32
    # the simulator in one thread repeats itself bit by bit
    other = tmp_path / "other"
    generate.generate(other, preset, {"train": 1}, seed=4)
    repeated = open_trajectories(other, "train")[0]
    np.testing.assert_array_equal(repeated.positions[:], train[0].positions[:])


@simulator
def test_a_killed_command_leaves_no_process_and_resumes(tmp_path: Path):
    """SIGKILL in the middle of the second scene: the first is kept, the second comes as if nothing had happened."""
    preset = get_preset("tiny", frames=30)
    output = tmp_path / "set"
    arguments = ["generate", "liquid", "--preset", "tiny", "--scenes", "2", "--frames", "30", "--output", str(output)]
    running = subprocess.Popen(
        [sys.executable, "-c", "from egnn_md.cli.main import main; main()", *arguments], stdout=subprocess.DEVNULL
    )
    second = output / "running" / "train_00001_0"
    try:
        wait_until(lambda: frames_of(second) > 2 or running.poll() is not None)
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()
    # the simulator looks at its parent after every step
    wait_until(lambda: not working_in(second))
    assert 2 < frames_of(second) < preset.frames
    summary = generate.generate(output, preset, {"train": 2}, resume=True)
    assert (summary.made, summary.skipped) == (1, 1)
    assert sorted(path.name for path in output.iterdir()) == ["metadata.json", "train.h5"]
    train = open_trajectories(output)
    assert [len(trajectory) for trajectory in train] == [30, 30]
    positions, velocities = simulate(random_scene(preset, 0, "train", 1), tmp_path / "alone", 60)
    np.testing.assert_array_equal(train[1].positions[:], positions)
    np.testing.assert_array_equal(train[1].velocities[:], velocities)


def frames_of(folder: Path) -> int:
    try:
        return int((folder / "progress").read_text() or 0)
    except (OSError, ValueError):
        return 0


def working_in(folder: Path) -> bool:
    """Whether a process that is alive has this folder as its argument."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:  # it ended just now
            continue
    return False


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@simulator
def test_a_failing_scene_is_named_and_kept_and_the_others_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    preset = get_preset("tiny", frames=4)

    def poisoned(preset: Any, seed: int, part: str, index: int) -> Scene:
        scene = random_scene(preset, seed, part, index)
        if index == 1:
            bad = scene.bodies[0].model_copy(update={"velocity": (float("nan"), 0.0, 0.0)})
            scene = scene.model_copy(update={"bodies": (bad, *scene.bodies[1:])})
        return scene

    monkeypatch.setattr(generate, "random_scene", poisoned)
    with pytest.raises(SimulationError, match=r"1 of 3.*failed(.|\n)*train_00001.*not finite") as caught:
        generate.generate(tmp_path, preset, {"train": 3}, jobs=2)
    assert str(tmp_path / "failed") in str(caught.value)
    kept = tmp_path / "failed" / "train_00001"
    assert json.loads((kept / "scene.json").read_text())["name"] == "train_00001"
    assert "not finite" in (kept / "log.txt").read_text()
    assert not (tmp_path / "running").exists()
    with TrajectoryWriter(tmp_path / "train.h5", generate.liquid_metadata(preset, 0)) as writer:
        assert writer.names == ["00000", "00002"]
    monkeypatch.undo()
    assert generate.generate(tmp_path, preset, {"train": 3}, resume=True).made == 1
    assert not kept.exists()


@simulator
def test_a_hanging_simulation_is_stopped_and_named(tmp_path: Path):
    scene = random_scene(get_preset("tiny", frames=5000), 0, "test", 7)
    with pytest.raises(SimulationError, match=r"test_00007.*limit of 0\.5 s.*--time-limit"):
        simulate(scene, tmp_path / "run", 0.5)


@simulator
def test_energy_out_of_nothing_is_an_error_and_the_step_is_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    preset = get_preset("tiny", frames=6)
    # a frame that does not lose all energy at once counts as a gain (falling freely it loses about 0.2 %, for the
    # integrator is of first order)
    monkeypatch.setattr(splishsplash, "ENERGY_GAIN", -1.0)
    with pytest.raises(UnstableSimulationError, match="energy jumps"):
        simulate(random_scene(preset, 0, "train", 0), tmp_path / "run", 60)

    steps: list[float] = []
    start = Simulation.__init__

    def spy(self: Simulation, scene: Scene, folder: Path, limit: float | None, timestep: float) -> None:
        steps.append(timestep)
        if len(steps) == 2:
            monkeypatch.setattr(splishsplash, "ENERGY_GAIN", 0.02)
        start(self, scene, folder, limit, timestep)

    monkeypatch.setattr(Simulation, "__init__", spy)
    summary = generate.generate(tmp_path / "set", preset, {"train": 1})
    assert summary.shortened == ["train_00000"]
    assert steps == [preset.max_timestep, preset.max_timestep / 2]


# commands and messages


def test_missing_simulator_and_library_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(splishsplash.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingDependencyError, match="pip install pysplishsplash"):
        splishsplash.check_simulator()
    monkeypatch.setattr(splishsplash.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(splishsplash, "gl_library", lambda: None)
    monkeypatch.setattr(splishsplash.sys, "platform", "linux")
    with pytest.raises(MissingDependencyError, match="libglvnd0"):
        splishsplash.check_simulator()


def test_scene_counts():
    assert parse_scenes("24,4,4") == {"train": 24, "valid": 4, "test": 4}
    assert parse_scenes("3") == {"train": 3, "valid": 0, "test": 0}
    for text in ("", "1,2,3,4", "1,x", "-1"):
        with pytest.raises(ConfigError, match="--scenes"):
            parse_scenes(text)


@simulator
def test_the_command_writes_a_data_set(tmp_path: Path):
    import typer

    app = typer.Typer()
    app.command()(command)
    arguments = ["--preset", "tiny", "--scenes", "0,0,1", "--frames", "3", "--output", str(tmp_path / "set")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "1 scenes simulated" in done.output
    assert open_trajectories(tmp_path / "set", "test")[0].num_particles > 100


def test_the_package_is_light_to_import():
    script = (
        "import sys, egnn_md_systems.liquid, egnn_md_systems.liquid.cli, egnn_md_systems.liquid.child\n"
        "print([name for name in ('torch', 'h5py', 'scipy', 'pysplishsplash') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# the shipped scene


def test_the_shipped_scene_is_the_first_of_the_small_preset_and_long_enough():
    data = open_trajectories(data_path(), "test")
    (scene,) = data
    assert data.metadata == generate.liquid_metadata(get_preset("small", frames=120), 0)
    start, velocities = random_scene(get_preset("small", frames=120), 0, "test", 0).particles()
    np.testing.assert_allclose(scene.positions[0], start, atol=1e-6)
    np.testing.assert_allclose(scene.velocities[0], velocities, atol=1e-6)
    # 50 strides of the reduced configuration, one after the other
    stride = read_yaml(Path(splishsplash.__file__).parent / "reduced.yaml")["stride_frames"]
    assert len(scene) > 50 * stride
    assert statistics.overshoot(data) < 0.5 * get_preset("small").particle_radius
    assert sum(path.stat().st_size for path in data_path().iterdir()) < 5e6


def test_a_propagator_of_the_reduced_configuration_takes_the_shipped_scene():
    """One untrained stride: x + v·stride, ended at the walls."""
    content = read_yaml(Path(splishsplash.__file__).parent / "reduced.yaml")
    config = validate(PropagatorTrainConfig, content, "reduced.yaml")
    data = open_trajectories(data_path(), "test")
    model = build_propagator(config, data, torch.float32).eval()
    assert model.config.cutoff == 0.075
    assert model.config.stride == pytest.approx(0.04)
    windows = WindowSet(data, model.config, starts=[0, 60])
    for graph in (windows[0], windows[1]):
        predicted = model.predict(graph).positions
        free = graph.positions + 0.04 * graph.velocities
        low, high = torch.tensor(model.config.walls).T
        # a fresh network adds next to nothing: less than 0.2 % of a particle distance
        torch.testing.assert_close(predicted, free.clamp(low, high), atol=1e-4, rtol=0)


# statistics


def test_statistics_of_a_known_set(tmp_path: Path):
    """A 5 × 5 × 5 lattice in free fall: known neighbours, and the ballistic prediction misses nothing."""
    preset = get_preset("tiny", frames=12, tank=(2.0, 2.0, 2.0))
    lattice = 0.1 * np.stack(np.meshgrid(*[np.arange(5.0)] * 3, indexing="ij"), -1).reshape(-1, 3) + [0.5, 1.0, 0.5]
    time = preset.frame_interval * np.arange(preset.frames)[:, None, None]
    start, gravity = np.array([0.5, 1.0, -0.2]), np.array(GRAVITY)
    positions = (lattice + start * time + 0.5 * gravity * time**2).astype(np.float32)
    velocities = np.broadcast_to(start + gravity * time, positions.shape).astype(np.float32)
    with TrajectoryWriter(tmp_path / "test.h5", generate.liquid_metadata(preset, 0)) as writer:
        writer.add(Trajectory(positions, np.zeros(125, dtype=np.int64), velocities))
    data = open_trajectories(tmp_path, "test")
    graph = statistics.graph_statistics(data, 0.11)
    assert (graph.particles, graph.edges, graph.fewest, graph.most, graph.alone) == (125, 600, 3, 6, 0)
    assert statistics.graph_statistics(data, 0.05).alone == 1
    ahead = statistics.predictability(data, 10)
    s = 10 * preset.frame_interval
    assert ahead.ballistic < 1e-6
    assert ahead.linear == pytest.approx(0.5 * 9.81 * s**2 / np.sqrt(3), rel=1e-4)
    assert ahead.still > 0.05
    assert statistics.overshoot(data) == 0
    with pytest.raises(InputError, match="21 frames"):
        statistics.predictability(data, 20)
