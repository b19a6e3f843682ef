"""Rollouts on disk: killed, stopped, broken or refused; what is resumed equals what never stopped, byte by byte."""

from __future__ import annotations

import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import ase.io
import mdtraj
import numpy as np
import pytest
import torch
from rich.console import Console

from egnn_md import FastEGNNPropagator, PropagatorConfig
from egnn_md.cli import rollout as command
from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, open_trajectories, write_trajectories
from egnn_md.errors import ConfigError, InputError, ModelFileError
from egnn_md.models.reference_propagators import Linear
from egnn_md.rollout import RolloutError, rollout, state_at
from egnn_md.rollout.directory import LOG_COLUMNS, RolloutCheckpoint, RolloutDirectory
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.run import RolloutRun, run_rollout

HERE = Path(__file__).parent
ENGINES = ["none", "ase", "openmm"]
CONFIG = PropagatorConfig(
    system="gas",
    units={"length": "angstrom", "time": "femtosecond"},
    cutoff=3.0,
    species=(1, 8),
    frame_interval=2.0,
    stride=4.0,
    hidden=8,
    layers=2,
    drop="random",
    drop_fraction=0.2,
)
# imports once, then a process an engine
SCRIPT = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, {here!r})
from test_rollout_resume import ENGINES, run, model
import egnn_md_ase.propagator, egnn_md_openmm.propagator  # noqa: F401
for engine in ENGINES:
    if os.fork() == 0:
        slow = model()
        predict = slow.predict
        slow.predict = lambda graph: (time.sleep(0.01), predict(graph))[1]
        run(Path({folder!r}) / engine, "run", slow, engine=engine, steps=100000)
for _ in ENGINES:
    os.wait()
"""


def model(config: PropagatorConfig = CONFIG) -> FastEGNNPropagator:
    """A random one in float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return FastEGNNPropagator(config).eval()


def data(folder: Path) -> Path:
    """A data set of one trajectory: 20 particles in a cell, every particle with its own speed."""
    path = folder / "gas"
    if not path.exists():
        rng = np.random.default_rng(0)
        velocities = rng.normal(size=(1, 20, 3)) * 0.02
        positions = rng.random((1, 20, 3)) * 8 + velocities * 2.0 * np.arange(5)[:, None, None]
        species = rng.choice(CONFIG.species, 20)
        frames = Trajectory(positions, species, np.repeat(velocities, 5, 0), cell=np.eye(3) * 8.0)
        metadata = TrajectoryMetadata(
            system="gas", units=dict(CONFIG.units), dt=2.0, periodic_boundary_conditions=[True] * 3
        )
        write_trajectories(path, metadata, {"test": [frames]})
    return path


def wanted(folder: Path, name: str, **changes: Any) -> RolloutRequest:
    """A rollout of 12 strides in ``folder / name``."""
    values = {
        "system": str(data(folder)),
        "model": "gas",
        "steps": 12,
        "starts": (1,),
        "formats": ("dcd", "xtc", "extxyz"),
        "every": 2,
        "checkpoint_interval": 5,
        "output": folder / name,
    }
    return RolloutRequest.parse({**values, **changes})


def run(folder: Path, name: str, chosen: torch.nn.Module | None = None, **changes: Any) -> tuple[RolloutRun, str]:
    """The run and what was said."""
    said = io.StringIO()
    options = {key: changes.pop(key) for key in ("resume", "overwrite") if key in changes}
    request = wanted(folder, name, **changes)
    result = run_rollout(request, model=chosen or model(), console=Console(file=said, width=300), **options)
    return result, said.getvalue()


def same(first: Path, second: Path) -> None:
    for name in ("trajectory.dcd", "trajectory.xtc", "trajectory.extxyz", "log.csv", "final.extxyz"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


class Breaking(Linear):
    """Straight lines until a particle passes ``reach`` along x: that one becomes NaN."""

    def __init__(self, config: PropagatorConfig, reach: float, signal_at: int = -1) -> None:
        super().__init__(config)
        self.reach, self.calls, self.signal_at = reach, 0, signal_at

    def predict(self, graph: Any) -> Any:
        """See the class."""
        self.calls += 1
        if self.calls == self.signal_at:
            os.kill(os.getpid(), signal.SIGINT)
        found = super().predict(graph)
        found.positions[found.positions[:, 0] > self.reach] = float("nan")
        return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder an engine, each with a rollout that was killed in the middle."""
    folder = tmp_path_factory.mktemp("killed")
    for engine in ENGINES:
        (folder / engine).mkdir()
        data(folder / engine)
    script = SCRIPT.format(here=str(HERE), folder=str(folder))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    # not in the sources, where the egg-info of an older build could hide the entry points; a group, to kill them all
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, cwd=folder, start_new_session=True)
    logs, deadline = [folder / engine / "run" / "log.csv" for engine in ENGINES], time.monotonic() + 120
    try:
        while any(not log.exists() or log.read_bytes().count(b"\n") < 14 for log in logs):
            assert process.poll() is None, "the rollouts ended by themselves"
            assert time.monotonic() < deadline
            time.sleep(0.005)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    for engine in ENGINES:  # its children are not ours to wait for, but each holds its lock as long as it lives
        with open(RolloutDirectory(folder / engine / "run")._lock_path) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
    return folder


@pytest.mark.parametrize("engine", ENGINES)
def test_sigkill_then_resume_equals_an_uninterrupted_rollout(killed: Path, engine: str):
    tmp_path = killed / engine
    folder, log = RolloutDirectory(tmp_path / "run"), tmp_path / "run" / "log.csv"
    assert folder.read()["status"] == "running"
    done = RolloutCheckpoint.load(folder.checkpoint).step
    assert done >= 10
    # what a kill can leave behind the checkpoint: more rows, more frames, half a row
    for name in ("log.csv", "trajectory.dcd", "trajectory.extxyz"):
        with open(tmp_path / "run" / name, "ab") as file:
            file.write(b"999999,1.0,")
    _, said = run(tmp_path, "run", engine=engine, steps=done + 9, resume=True)
    assert f"resuming {tmp_path / 'run'} at step {done} of {done + 9}" in said
    run(tmp_path, "whole", engine=engine, steps=done + 9)
    same(tmp_path / "run", tmp_path / "whole")
    assert len(folder.read()["segments"]) == 2
    assert log.read_text().count("\n") == done + 11
    loaded = mdtraj.load(str(tmp_path / "run" / "trajectory.dcd"), top=str(tmp_path / "run" / "topology.pdb"))
    assert loaded.n_frames == (done + 9) // 2 + 1


def test_the_engines_write_the_same_bytes_and_those_of_memory(tmp_path: Path):
    for engine in ENGINES:
        run(tmp_path, engine, engine=engine)
    for engine in ENGINES[1:]:
        same(tmp_path / "none", tmp_path / engine)
    start = state_at(open_trajectories(data(tmp_path)), CONFIG, frame=1)
    memory = rollout(model(), start, 12)
    folder = tmp_path / "none"
    frames = ase.io.read(folder / "trajectory.extxyz", ":")
    assert len(frames) == 7
    assert (np.array([frame.positions for frame in frames]) == memory.positions[::2]).all()
    assert (frames[-1].arrays["velocities"] == memory.velocities[-1]).all()
    assert frames[-1].info["time_fs"] == memory.times[-1] == 2.0 + 12 * 4.0
    for name, tolerance in (("dcd", 1e-5), ("xtc", 0.0051)):
        loaded = mdtraj.load(str(folder / f"trajectory.{name}"), top=str(folder / "topology.pdb"))
        np.testing.assert_allclose(10 * loaded.xyz, memory.positions[::2], rtol=0, atol=tolerance)
        np.testing.assert_allclose(10 * loaded.unitcell_vectors[-1], np.eye(3) * 8, atol=1e-4)
        assert [atom.element.atomic_number for atom in loaded.topology.atoms] == start.species.tolist()
    np.testing.assert_allclose(loaded.time, np.arange(7) * 0.008 + 0.002, rtol=1e-6)
    rows = np.genfromtxt(folder / "log.csv", delimiter=",", names=True)
    assert rows.dtype.names == LOG_COLUMNS
    moved = np.linalg.norm(np.diff(memory.positions, axis=0), axis=2).max(1)
    np.testing.assert_allclose(rows["max_displacement"][1:], moved, rtol=1e-10)
    assert rows["rebuilds"][-1] == memory.rebuilds
    masses = frames[0].get_masses()
    momentum = np.einsum("n,tnd->td", masses, memory.velocities)
    np.testing.assert_allclose(rows["momentum_x"], momentum[:, 0], rtol=1e-9, atol=1e-12)
    record = RolloutDirectory(folder).read()
    assert record["status"] == "finished"
    assert len(record["model"]["digest"]) == 64
    # the last state is a start: what follows is what would have followed
    run(tmp_path, "more", system=str(folder / "final.extxyz"), starts=(0,), steps=2)
    longer = rollout(model(CONFIG), memory.final.replace(step=0, name="final.extxyz, frame 0", start_time=0.0), 2)
    assert (ase.io.read(tmp_path / "more" / "final.extxyz").positions == longer.positions[-1]).all()


def test_a_signal_ends_with_a_checkpoint_and_a_finished_rollout_can_be_made_longer(tmp_path: Path):
    stopped, said = run(tmp_path, "run", Breaking(CONFIG, 1e9, signal_at=7), engine="ase")
    assert (stopped.status, stopped.steps, stopped.exit_code) == ("interrupted", 7, 130)
    assert f"egnn-md rollout --resume --output {tmp_path / 'run'}" in said
    run(tmp_path, "run", Breaking(CONFIG, 1e9), engine="ase", resume=True)
    with pytest.raises(InputError, match=r"is finished \(12 strides\); give more with --steps"):
        run(tmp_path, "run", Breaking(CONFIG, 1e9), engine="ase", resume=True)
    run(tmp_path, "run", Breaking(CONFIG, 1e9), engine="ase", steps=15, resume=True)
    run(tmp_path, "whole", Breaking(CONFIG, 1e9), engine="ase", steps=15)
    same(tmp_path / "run", tmp_path / "whole")
    with pytest.raises(InputError, match="the model gas changed since the rollout"):
        run(tmp_path, "run", model(), engine="ase", steps=20, resume=True)
    with pytest.raises(ConfigError, match="--every 3 differs from this rollout's 2; a resumed rollout keeps"):
        RolloutDirectory(tmp_path / "run").rollout_request().changed({"every": 3})
    whole = (tmp_path / "run" / "checkpoint.npz").read_bytes()
    (tmp_path / "run" / "checkpoint.npz").write_bytes(whole[:200])
    with pytest.raises(InputError, match="cannot be read as the checkpoint of a rollout"):
        run(tmp_path, "run", Breaking(CONFIG, 1e9), engine="ase", steps=20, resume=True)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_failure_keeps_everything_and_names_the_frame(tmp_path: Path, engine: str):
    start = state_at(open_trajectories(data(tmp_path)), CONFIG, frame=1)
    expected = rollout(Linear(CONFIG), start, 30)
    reach = float(expected.positions[8, :, 0].max()) - 1e-9  # first passed at some step up to 8
    failed = int(np.argmax((expected.positions[:, :, 0] > reach).any(axis=1)))
    particle = int(np.argmax(expected.positions[failed, :, 0]))
    assert failed > 1
    words = f"particle {particle} .* became .nan, .* at step {failed}; last good frame: step {failed - 1} .*final.ext"
    with pytest.raises(RolloutError, match=words):
        run(tmp_path, "run", Breaking(CONFIG, reach), engine=engine)
    folder = tmp_path / "run"
    last = ase.io.read(folder / "final.extxyz")
    assert (last.positions == expected.positions[failed - 1]).all()
    assert len(ase.io.read(folder / "trajectory.extxyz", ":")) == (failed - 1) // 2 + 1
    assert (folder / "log.csv").read_text().count("\n") == failed + 1
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "failed"
    assert record["failures"][0]["particle"] == particle
    with pytest.raises(InputError, match=r"failed .* and would fail again"):
        run(tmp_path, "run", Breaking(CONFIG, reach), engine=engine, resume=True)


def test_many_starts_at_once_have_a_folder_each_and_fail_alone(tmp_path: Path):
    data_set = open_trajectories(data(tmp_path))
    ends = [rollout(Linear(CONFIG), state_at(data_set, CONFIG, frame=f), 12).positions for f in (0, 3)]
    reach = (ends[0][..., 0].max() + ends[1][..., 0].max()) / 2  # only the later start gets there
    with pytest.raises(RolloutError, match=r"frame 3: .*particle .* at step .*\n1 other starts are complete"):
        run(tmp_path, "run", Breaking(CONFIG, reach), starts=(0, 3))
    first = ase.io.read(tmp_path / "run" / "start-00000" / "final.extxyz")
    assert (first.positions == ends[0][-1]).all()
    assert first.info["step"] == 12
    other = ase.io.read(tmp_path / "run" / "start-00003" / "final.extxyz")
    assert other.info["step"] < 12
    assert (other.positions == ends[1][other.info["step"]]).all()
    # killed in the middle, both failed and running starts are remembered
    run(tmp_path, "halves", Breaking(CONFIG, 1e9), starts=(0, 3), steps=7)
    run(tmp_path, "halves", Breaking(CONFIG, 1e9), starts=(0, 3), resume=True)
    run(tmp_path, "whole", Breaking(CONFIG, 1e9), starts=(0, 3))
    for name in ("start-00000", "start-00003"):
        same(tmp_path / "halves" / name, tmp_path / "whole" / name)
    with pytest.raises(ConfigError, match="--engine ase runs one start"):
        wanted(tmp_path, "x", engine="ase", starts=(0, 1))


def test_what_is_in_the_way_or_does_not_belong_is_refused(tmp_path: Path):
    run(tmp_path, "run", steps=2)
    with pytest.raises(InputError, match="already holds a run"):
        run(tmp_path, "run", steps=2)
    run(tmp_path, "run", steps=3, overwrite=True)
    assert RolloutDirectory(tmp_path / "run").read()["steps_done"] == 3
    with pytest.raises(InputError, match="is no run directory"):
        RolloutDirectory(tmp_path / "nothing").rollout_request()
    other = PropagatorConfig(**{**CONFIG.model_dump(), "system": "liquid"})
    with pytest.raises(InputError, match="holds 'gas', but the propagator is one of 'liquid'"):
        run(tmp_path, "a", model(other))
    bare = PropagatorConfig(**{**CONFIG.model_dump(), "units": {"length": "none", "time": "none"}})
    with pytest.raises(InputError, match="in length unit 'angstrom', but the propagator was made for 'none'"):
        run(tmp_path, "a", model(bare))
    final = str(tmp_path / "run" / "final.extxyz")
    with pytest.raises(InputError, match="holds a state of 'gas', but the propagator is one of 'liquid'"):
        run(tmp_path, "a", model(other), system=final, starts=(0,))
    with pytest.raises(InputError, match="has frames 0 to 0, not 4"):
        run(tmp_path, "a", system=final, starts=(4,))
    with pytest.raises(InputError, match=r"there is no file or directory .*nowhere and no registered system"):
        run(tmp_path, "a", system=str(tmp_path / "nowhere"))
    with pytest.raises(InputError, match=r"--engine lammps is not installed \(installed: none, ase, openmm\)"):
        run(tmp_path, "a", engine="lammps")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ModelFileError, match="there is no model file"):
        run_rollout(wanted(tmp_path, "a", model=str(tmp_path / "nothing")), console=Console(file=io.StringIO()))
    with pytest.raises(InputError, match="is not a propagator"):
        run_rollout(wanted(tmp_path, "a", model="water"), console=Console(file=io.StringIO()))


def test_a_full_disk_says_so_and_the_rollout_goes_on_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import errno

    from egnn_md.errors import OutputError

    real, broken = os.pwrite, {"on": True}

    def full(handle: int, content: Any, offset: int) -> int:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if broken["on"] and name == "trajectory.xtc" and (tmp_path / "run/log.csv").read_bytes().count(b"\n") > 9:
            real(handle, bytes(content)[:5], offset)
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(handle, content, offset)

    monkeypatch.setattr(os, "pwrite", full)
    words = r"trajectory.xtc: the disk is full.*goes on from there with\n  egnn-md rollout"
    with pytest.raises(OutputError, match=words):
        run(tmp_path, "run")
    broken["on"] = False
    run(tmp_path, "run", resume=True)
    run(tmp_path, "whole")
    same(tmp_path / "run", tmp_path / "whole")


def test_the_command_reads_its_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[RolloutRequest] = []

    def catch(request: RolloutRequest, **options: Any) -> RolloutRun:
        seen.append(request)
        return RolloutRun(RolloutDirectory(request.output), "finished", request.steps, 0)

    monkeypatch.setattr("egnn_md.rollout.run.run_rollout", catch)
    given = {"system": "nbody", "model": "m", "steps": 5, "output": tmp_path / "o"}
    assert command.run({**given, "start": 3}, resume=False, overwrite=False) == 0
    several = {**given, "starts": "0,30,60", "trajectory_index": "1,2", "formats": ["xtc"]}
    command.run(several, resume=False, overwrite=False)
    assert seen[0].starts == (3,)
    assert (seen[1].starts, seen[1].trajectory_index, seen[1].formats) == ((0, 30, 60), (1, 2), ("xtc",))
    for changes, words in (
        ({"start": 1, "starts": "1"}, "--start and --starts exclude each other"),
        ({"starts": "1;2"}, "--starts 1;2: whole numbers are needed"),
        ({"formats": ["gif"]}, "--format gif: input should be 'dcd', 'xtc' or 'extxyz'"),
        ({"steps": 0}, "--steps 0: input should be greater than 0"),
        ({"starts": "1,1"}, "names one of them twice"),
    ):
        with pytest.raises(ConfigError, match=words):
            command.run({**given, **changes}, resume=False, overwrite=False)
    with pytest.raises(ConfigError, match=r"SYSTEM is missing\n--model is missing|--output is missing"):
        command.run({"steps": 3, "output": tmp_path / "o"}, resume=False, overwrite=False)
    with pytest.raises(ConfigError, match="--output is missing"):
        command.run({"steps": 3}, resume=False, overwrite=False)
