"""What a training over several devices can be told, and the processes that it starts."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import typing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from training_ranks import asks, checkpoint, difference, potential_run, propagator_run

from egnn_md.distributed.part import MODES
from egnn_md.distributed.partition import METHODS
from egnn_md.errors import ConfigError, DeviceError, EgnnMdError, TrainingError
from egnn_md.training import launch
from egnn_md.training.config import RUNTIME_KEYS, RunConfig
from egnn_md.training.ranks import join
from egnn_md.training.train import train

COMMAND = [sys.executable, "-c", "from egnn_md.cli.main import main; main()", "train"]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"devices": 4, "graph_devices": 3}, "graph_devices = 3 does not divide devices = 4"),
        ({"devices": 2, "graph_devices": 4}, "graph_devices = 4 does not divide devices = 2"),
        ({"devices": 6, "graph_devices": 2}, "batch_size = 4 cannot be shared by 3 groups .* a multiple of 3"),
        ({"devices": 0}, "devices = 0"),
        ({"graph_devices": 0}, "graph_devices = 0"),
        ({"mode": "papers"}, "mode = 'papers'"),
        ({"partition": "halves"}, "partition = 'halves'"),
        ({"devices": 2, "device": "cuda:1"}, "device = 'cuda:1' is one device, but devices = 2"),
        ({"devices": 2, "device": "mps"}, "device = 'mps' is one device, but devices = 2"),
    ],
)
@pytest.mark.parametrize("make", [potential_run, propagator_run])
def test_options_that_cannot_be(tmp_path: Path, make: Any, changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        make(tmp_path, **changes)


def test_options_are_those_of_the_parts_they_go_to() -> None:
    fields = RunConfig.model_fields
    assert typing.get_args(fields["partition"].annotation) == METHODS
    assert typing.get_args(fields["mode"].annotation) == MODES
    assert "mode" not in RUNTIME_KEYS


def test_as_many_processes_as_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"devices = 2, but this process is alone; .* egnn-md train --devices 2"):
        train(potential_run(tmp_path, devices=2))
    for name, value in {"WORLD_SIZE": "3", "RANK": "1", "MASTER_PORT": "1", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    for devices in (1, 2):
        with pytest.raises(ConfigError, match=f"devices = {devices}, but torchrun started 3 processes"):
            train(potential_run(tmp_path, devices=devices))
    monkeypatch.setenv("LOCAL_RANK", "99")
    with pytest.raises(EgnnMdError, match="rank 99 has no GPU" if torch.cuda.is_available() else "NCCL needs CUDA"):
        join(potential_run(tmp_path, devices=3, device="cuda"))
    assert not (tmp_path / "run").exists()


def test_a_checkpoint_from_before_there_were_several_devices_goes_on(tmp_path: Path) -> None:
    train(potential_run(tmp_path, max_steps=4))
    path = tmp_path / "run" / "last.ckpt"
    state = checkpoint(tmp_path / "run")
    stored = json.loads(state["egnn_md"]["config"])
    for key in ("devices", "graph_devices", "partition", "mode"):
        del stored[key]
    state["egnn_md"]["config"] = json.dumps(stored)
    torch.save(state, path)
    with pytest.raises(ConfigError, match="mode = None, not 'paper'"):
        train(potential_run(tmp_path, max_steps=6, mode="paper"), resume=True)
    assert train(potential_run(tmp_path, max_steps=6), resume=True).steps == 6


def report(folder: Path, **changes: Any) -> None:
    content = {
        "rank": 0, "attempt": 0, "lost": False, "time": 1.0, "type": "ConfigError", "text": "a reason", "trace": "",
    }  # fmt: skip
    content |= changes
    (folder / f"{content['attempt']}-{content['rank']}.json").write_text(json.dumps(content))


def test_the_first_cause_is_what_the_user_sees(tmp_path: Path) -> None:
    killed = launch._explain(tmp_path, 1, -9)
    assert isinstance(killed, DeviceError)
    assert "rank 1 was ended by SIGKILL, perhaps because memory ran out; go on" in str(killed)
    report(tmp_path, rank=0, type="RanksLostError", lost=True, text="rank 0 lost the others: closed", time=0.5)
    assert "rank 1 was ended by SIGKILL" in str(launch._explain(tmp_path, 1, -9))
    assert str(launch._explain(tmp_path, 0, 1)) == "rank 0 lost the others: closed"
    report(tmp_path, rank=2, time=2.0)
    report(tmp_path, rank=1, time=3.0, text="later")
    first = launch._explain(tmp_path, 0, 1)
    assert isinstance(first, ConfigError)
    assert str(first) == "a reason"
    report(tmp_path, rank=3, attempt=1, type="ZeroDivisionError", text="by zero", trace="Traceback: here")
    again = launch._explain(tmp_path, 0, 1)
    assert isinstance(again, TrainingError)
    assert str(again) == "rank 3 failed: ZeroDivisionError: by zero\nTraceback: here"


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, "run.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_step(log: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > step:
            return
        time.sleep(0.02)
    pytest.fail("the training did not get that far: " + (process.communicate()[0] or ""))


def ranks_of(launcher: int) -> list[int]:
    """Processes that a launcher started, by their rank."""
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    return sorted(int(pid) for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text())


@pytest.mark.multirank
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks for the processes in /proc")
def test_killed_rank_restart_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command line: a rank is killed, all begin again where the checkpoint is, and are told to stop."""
    options = {"max_steps": 2000, "checkpoint_every": 5, "validate_every": 1000, "output": "parts"}
    config = potential_run(tmp_path, **options)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    log = tmp_path / "parts" / "train.csv"
    process = start(tmp_path, "--devices", "2", "--max-restarts", "1")
    wait_for_step(log, 12, process)
    first = ranks_of(process.pid)
    assert len(first) == 2
    os.kill(first[1], signal.SIGKILL)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (len(ranks_of(process.pid)) < 2 or set(ranks_of(process.pid)) & set(first)):
        time.sleep(0.05)
    reached = len(log.read_text().splitlines()) - 1
    wait_for_step(log, reached + 10, process)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 130, text
    assert "Traceback" not in text
    assert text.count("continue with --resume") == 1
    steps = checkpoint(tmp_path / "parts")["global_step"]
    assert f"interrupted after step {steps};" in text
    rows = [int(line.split(",")[0]) for line in log.read_text().splitlines()[1:]]
    assert rows == list(range(1, steps + 1))  # it went on where the checkpoint was, without a gap or a duplicate

    whole = potential_run(tmp_path, **{**options, "output": str(tmp_path / "whole")})
    asks(monkeypatch, 0, steps - 1)
    assert train(whole).steps == steps
    assert difference(tmp_path / "whole", tmp_path / "parts") < 1e-6  # rounding grows over hundreds of steps


@pytest.mark.multirank
def test_an_error_of_the_ranks_is_one_readable_line(tmp_path: Path) -> None:
    config = potential_run(tmp_path, output="run")
    content = config.model_dump(mode="json")
    content["data"]["train"] = ["nowhere.xyz"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(content))
    process = start(tmp_path, "--devices", "2")
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 2, text
    assert text.strip().splitlines() == [
        f"egnn-md: ConfigError: data.train: no file matches 'nowhere.xyz' (looked in {tmp_path})"
    ]
