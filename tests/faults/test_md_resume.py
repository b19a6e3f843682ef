"""Runs that are killed, stopped or robbed of their disk go on without a gap and without a duplicate."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fault_cases import lennard_jones, request, run

from egnn_md.errors import ConfigError, InputError
from egnn_md.models import LennardJones
from egnn_md.report.load import load_run
from egnn_md.simulation import OutputError, RunDirectory
from egnn_md.simulation.files import AppendFile
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.rundir import Checkpoint

HERE = Path(__file__).parent
ENGINES = ["ase", "openmm"]
SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {here!r})
from fault_cases import request, run
wanted = dict(engine={engine!r}, ensemble={ensemble!r}, trajectory={form!r})
run(request(Path({folder!r}), "run", steps=1000000, **wanted))
"""


def same_files(first: Path, second: Path, form: str) -> None:
    """Both runs have the same trajectory, byte by byte, and the same log but for the measured speed."""
    for name in (f"trajectory.{form}", "final.extxyz"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    logs = [[line.rpartition(",")[0] for line in (p / "log.csv").read_text().splitlines()] for p in (first, second)]
    assert logs[0] == logs[1]


class StopAfter(LennardJones):
    """Sends a signal to this process at its n-th evaluation in this process, once."""

    def __init__(self, calls: int, number: int) -> None:
        super().__init__(0.0104, 3.4, 5.0)
        self._left, self.number = calls, number

    def __deepcopy__(self, memo: dict[int, Any]) -> StopAfter:
        return self

    def forward(self, *inputs: Any) -> Any:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self.number)
        return super().forward(*inputs)


@pytest.mark.parametrize(
    ("engine", "ensemble", "form"),
    [("ase", "nvt", "dcd"), ("ase", "npt", "extxyz"), ("openmm", "nvt", "xtc"), ("openmm", "npt", "dcd")],
)
def test_sigkill_then_resume_equals_an_uninterrupted_run(tmp_path: Path, engine: str, ensemble: str, form: str) -> None:
    script = SCRIPT.format(here=str(HERE), folder=str(tmp_path), engine=engine, ensemble=ensemble, form=form)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment)
    log = tmp_path / "run" / "log.csv"
    deadline = time.monotonic() + 120
    while not log.exists() or log.read_bytes().count(b"\n") < 30:  # past step 80: several checkpoints
        assert process.poll() is None, "the run ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    folder = RunDirectory(tmp_path / "run")
    assert folder.read()["status"] == "running"
    done = Checkpoint.load(folder.checkpoint).step
    assert done >= 20
    # what a kill can leave behind the checkpoint: more rows, more frames, half a row
    with open(folder.log, "ab") as file:
        file.write(b"999999,1.0,")
    wanted = folder.request().model_copy(update={"steps": done + 50})
    result, said = run(wanted, resume=True)
    assert f"at step {done}" in said
    assert result.status == "finished"
    run(request(tmp_path, "whole", engine=engine, ensemble=ensemble, steps=done + 50, trajectory=form))
    rows = read_log(log)["step"]
    assert rows.tolist() == list(range(0, done + 51, 3))
    frames = load_run(tmp_path / "run").frames
    assert frames.total == (done + 50) // 8 + 1
    same_files(tmp_path / "run", tmp_path / "whole", form)
    assert len(folder.read()["segments"]) == 2


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_with_a_checkpoint_and_the_command_to_go_on(tmp_path: Path, number: int, code: int) -> None:
    before = signal.getsignal(number)
    result, said = run(request(tmp_path, "run", ensemble="nve"), StopAfter(33, number))
    assert signal.getsignal(number) == before
    assert (result.status, result.exit_code) == ("interrupted", code)
    assert f"egnn-md md --resume --output {tmp_path / 'run'}" in said
    done = Checkpoint.load(result.run.checkpoint).step
    assert done == result.steps
    assert 30 <= done < 40
    assert result.run.read()["status"] == "interrupted"
    model = StopAfter(10**9, number)
    final, _ = run(result.run.request(), model, resume=True)
    assert final.status == "finished"
    assert read_log(final.run.log)["step"].tolist() == list(range(0, 61, 3))
    run(request(tmp_path, "whole", ensemble="nve"))
    ours, whole = (read_log(tmp_path / n / "log.csv") for n in ("run", "whole"))
    np.testing.assert_allclose(ours["total_eV"], whole["total_eV"], atol=1e-8)


def test_a_signal_during_minimisation_leaves_nothing_half_done(tmp_path: Path) -> None:
    model = StopAfter(3, signal.SIGINT)
    wanted = request(tmp_path, "run", minimize=True, minimize_force=1e-9, structure=_rattled(tmp_path))
    result, said = run(wanted, model)
    assert (result.status, result.exit_code, result.steps) == ("interrupted", 130, 0)
    assert "stopped before the first step" in said
    model._left = 10**9
    assert run(result.run.request(), model, resume=True)[0].status == "finished"


def _rattled(folder: Path) -> str:
    import ase.io

    atoms = ase.io.read(request(folder, "unused").structure)
    atoms.rattle(0.1, seed=4)
    atoms.write(folder / "rattled.extxyz")
    return str(folder / "rattled.extxyz")


@pytest.mark.parametrize("target", ["log.csv", "trajectory.dcd", "checkpoint.npz"])
def test_a_full_disk_says_so_and_the_run_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    folder = tmp_path / "run"
    real_write, real_sync, broken = os.pwrite, os.fsync, {"on": True}

    def is_target(handle: int) -> bool:
        return Path(os.readlink(f"/proc/self/fd/{handle}")).name.startswith(target)

    def full_write(handle: int, data: Any, offset: int) -> int:
        if broken["on"] and is_target(handle) and (folder / "checkpoint.npz").exists() and offset > 700:
            real_write(handle, bytes(data)[:5], offset)  # a disk fills up in the middle of a record
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(handle, data, offset)

    def full_sync(handle: int) -> None:
        name = Path(os.readlink(f"/proc/self/fd/{handle}")).name
        if broken["on"] and name == "checkpoint.npz.tmp" and (folder / "checkpoint.npz").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        real_sync(handle)

    monkeypatch.setattr(os, "pwrite", full_write)
    if target == "checkpoint.npz":
        monkeypatch.setattr(os, "fsync", full_sync)
    with pytest.raises(OutputError, match=f"cannot write .*{target}: the disk is full") as caught:
        run(request(tmp_path, "run"))
    assert f"egnn-md md --resume --output {folder}" in str(caught.value)
    record = RunDirectory(folder).read()
    assert record["status"] == "stopped"
    assert "disk is full" in record["error"]
    assert not list(folder.glob("*.tmp"))
    read_log(folder / "log.csv")
    assert load_run(folder).frames.total >= 1
    broken["on"] = False
    final, _ = run(RunDirectory(folder).request(), resume=True)
    assert final.status == "finished"
    assert "error" not in final.run.read()
    run(request(tmp_path, "whole"))
    same_files(folder, tmp_path / "whole", "dcd")


def test_append_files_drop_half_records_and_refuse_shortened_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = AppendFile(tmp_path / "records")
    file.append(b"one\n")
    monkeypatch.setattr(os, "pwrite", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "full")))
    with pytest.raises(OutputError, match="the disk is full; free some space"):
        file.append(b"two\n")
    monkeypatch.undo()
    file.append(b"three\n")
    file.close()
    assert (tmp_path / "records").read_bytes() == b"one\nthree\n"
    AppendFile(tmp_path / "records", keep=4).close()
    assert (tmp_path / "records").read_bytes() == b"one\n"
    with pytest.raises(InputError, match="holds 4 bytes, but the checkpoint knows of 10"):
        AppendFile(tmp_path / "records", keep=10)
    with pytest.raises(InputError, match="is missing"):
        AppendFile(tmp_path / "nothing", keep=10)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_finished_run_can_be_made_longer(tmp_path: Path, engine: str) -> None:
    first, _ = run(request(tmp_path, "run", engine=engine))
    with pytest.raises(InputError, match="is finished \\(60 steps\\); give more with --steps"):
        run(first.run.request(), resume=True)
    run(first.run.request().changed({"steps": 80}), resume=True)
    run(request(tmp_path, "whole", engine=engine, steps=80))
    same_files(tmp_path / "run", tmp_path / "whole", "dcd")


def test_what_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no run directory"):
        RunDirectory(tmp_path / "nothing").request()
    result, _ = run(request(tmp_path, "run"))
    longer = result.run.request().changed({"steps": 80})
    with pytest.raises(InputError, match="the model water changed since the run"):
        run(longer, LennardJones(0.02, 3.4, 5.0), resume=True)
    with pytest.raises(ConfigError, match=r"--timestep 1.0 differs from this run's 4.0; a resumed run keeps"):
        longer.changed({"timestep": 1.0})
    whole = result.run.checkpoint.read_bytes()
    result.run.checkpoint.write_bytes(whole[:100])
    result.run.previous_checkpoint.unlink()  # which would be used instead
    with pytest.raises(InputError, match=r"checkpoint.npz cannot be read as a checkpoint"):
        run(longer, resume=True)
    result.run.checkpoint.write_bytes(whole)
    other = RunDirectory(tmp_path / "run")
    other.lock()
    with pytest.raises(InputError, match="another process is running in"):
        run(longer, resume=True)
    other.unlock()
    record = result.run.read()
    result.run.record.write_text(json.dumps({**record, "format": 99}))
    with pytest.raises(InputError, match="written by a newer egnn-md"):
        run(longer, resume=True)


def test_a_checkpoint_of_another_platform_goes_on_from_positions(tmp_path: Path) -> None:
    result, _ = run(request(tmp_path, "run", engine="openmm", ensemble="nve"))
    record = result.run.read()
    record["request"].update(platform="CPU", steps=80)
    result.run.write(record)
    _, said = run(result.run.request(), resume=True)
    assert "going on from positions and velocities" in said
    run(request(tmp_path, "whole", engine="openmm", ensemble="nve", steps=80))
    ours, whole = (read_log(tmp_path / n / "log.csv") for n in ("run", "whole"))
    np.testing.assert_allclose(ours["total_eV"], whole["total_eV"], atol=1e-6)


def test_outside_the_main_thread_signals_are_left_alone(tmp_path: Path) -> None:
    results: list[str] = []
    wanted = request(tmp_path, "run", steps=10)
    thread = threading.Thread(target=lambda: results.append(run(wanted, lennard_jones())[0].status))
    thread.start()
    thread.join()
    assert results == ["finished"]
