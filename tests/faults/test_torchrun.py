"""The same script on every rank under torchrun: it serves, is restarted after a loss, and says what was forgotten."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read, write

from egnn_md.checkpoint import save_model
from egnn_md.models import FastEGNNPotential, PotentialConfig

pytestmark = pytest.mark.multirank
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    torch.manual_seed(3)
    config = PotentialConfig(elements=(18,), cutoff=5.0, hidden=8, layers=2, virtual_nodes=2, vector_channels=2)
    save_model(FastEGNNPotential(config), folder / "argon.safetensors")
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat((2, 2, 2))
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    write(folder / "argon.extxyz", atoms)
    return folder


def environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    return {**kept, "OMP_NUM_THREADS": "1"}


def torchrun(*arguments: str, ranks: int = 2) -> list[str]:
    return [str(BIN / "torchrun"), "--standalone", "--nproc-per-node", str(ranks), *arguments]


def md(inputs: Path, output: Path, steps: int) -> list[str]:
    return [
        str(BIN / "egnn-md"), "md", str(inputs / "argon.extxyz"), "--model", str(inputs / "argon.safetensors"),
        "--engine", "ase", "--no-minimize", "--temperature", "60", "--steps", str(steps), "--frame-interval", "10",
        "--checkpoint-interval", "20", "--output", str(output), "--seed", "4",
    ]  # fmt: skip


def rank_process(parent: int, rank: int) -> int | None:
    """The process of a rank among the children of torchrun."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
            variables = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if int(words[1]) == parent and f"RANK={rank}".encode() in variables:
            return int(folder.name)
    return None


@pytest.mark.parametrize("victim", [0, 1])
def test_restarted_run_is_the_undisturbed_one(inputs: Path, tmp_path: Path, victim: int) -> None:
    steps = 300
    plain = subprocess.run(
        [*md(inputs, tmp_path / "plain", steps), "--devices", "2"],
        env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert plain.returncode == 0, plain.stderr
    process = subprocess.Popen(
        torchrun("--max-restarts", "1", "--no-python", *md(inputs, tmp_path / "torchrun", steps)),
        env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    checkpoint = tmp_path / "torchrun" / "checkpoint.npz"
    end = time.monotonic() + 120
    while time.monotonic() < end and process.poll() is None:
        if checkpoint.exists() and (found := rank_process(process.pid, victim)):
            time.sleep(0.3)
            os.kill(found, signal.SIGKILL)
            break
        time.sleep(0.02)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 0, said
    assert "SIGKILL" in said or "exitcode: -9" in said, "nothing was killed"
    for name in ("trajectory.dcd", "final.pdb"):
        assert (tmp_path / "torchrun" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    wanted, got = (read(tmp_path / name / "final.extxyz") for name in ("plain", "torchrun"))
    assert np.array_equal(got.positions, wanted.positions)


SCRIPT = """
import sys
from egnn_md.distributed import ParallelPotential, serve
{serve}
potential = ParallelPotential({model!r}{devices})
print("ranks", potential.devices)
"""


@pytest.mark.parametrize(
    ("serve", "devices", "message"),
    [
        ("", "", "rank 1 of 2 runs the script itself"),
        ("if serve(): sys.exit()", ", devices=3", "devices = 3, but torchrun started 2"),
    ],
)
def test_clear_errors(inputs: Path, tmp_path: Path, serve: str, devices: str, message: str) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(serve=serve, devices=devices, model=str(inputs / "argon.safetensors")))
    done = subprocess.run(
        torchrun(str(script)), env=environment(), capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode != 0
    assert message in done.stderr


def test_port_in_use(inputs: Path, tmp_path: Path) -> None:
    import socket

    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(serve="", devices="", model=str(inputs / "argon.safetensors")))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        variables = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        done = subprocess.run(
            [sys.executable, str(script)],
            env={**environment(), **variables}, capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert done.returncode != 0
    assert f"the port of 127.0.0.1:{port} is in use" in done.stderr
