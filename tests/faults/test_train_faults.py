"""The training command, killed and told to stop, and what it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from safetensors.torch import load_file

CONFIG = """\
data: {train: labels.extxyz, valid_fraction: 0.25}
model: {hidden: 8, layers: 1, virtual_nodes: 0, vector_channels: 2, basis: 4}
max_steps: 400
validate_every: 100
checkpoint_every: 20
log_every: 10
tensorboard: true
threads: 1
output: OUTPUT
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    frames = []
    for _ in range(12):
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)
        atoms = Atoms("Ar8", grid * 3.9 + rng.normal(scale=0.2, size=(8, 3)))
        atoms.calc = LennardJones(sigma=3.4, epsilon=0.05, rc=7.0)
        atoms.calc = SinglePointCalculator(atoms, energy=atoms.get_potential_energy(), forces=atoms.get_forces())
        frames.append(atoms)
    write(tmp_path / "labels.extxyz", frames)
    for name in ("whole", "parts"):
        (tmp_path / f"{name}.yaml").write_text(CONFIG.replace("OUTPUT", name))
    return tmp_path


def start(folder: Path, name: str, *arguments: str) -> subprocess.Popen[str]:
    code = "from egnn_md.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "train", f"{name}.yaml", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def wait_for_steps(log: Path, step: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and len(log.read_text().splitlines()) > step // 10:
            return
        time.sleep(0.02)
    pytest.fail("the training did not get that far: " + (process.communicate()[0] or ""))


def table(path: Path) -> list[list[str]]:
    rows = [line.split(",") for line in path.read_text().splitlines()]
    elapsed = rows[0].index("elapsed")
    return [row[:elapsed] + row[elapsed + 1 :] for row in rows]


def test_killed_told_to_stop_and_resumed_is_the_uninterrupted_run(folder: Path) -> None:
    whole = start(folder, "whole")
    text, _ = whole.communicate(timeout=240)
    assert whole.returncode == 0, text

    killed = start(folder, "parts")
    wait_for_steps(folder / "parts" / "train.csv", 50, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not (folder / "parts" / "model.safetensors").exists()

    stopped = start(folder, "parts", "--resume")
    wait_for_steps(folder / "parts" / "train.csv", 150, stopped)
    os.kill(stopped.pid, signal.SIGTERM)
    text, _ = stopped.communicate(timeout=60)
    assert stopped.returncode == 130, text
    assert "continue with --resume" in text
    assert "Traceback" not in text

    last = start(folder, "parts", "--resume")
    text, _ = last.communicate(timeout=240)
    assert last.returncode == 0, text
    for log in ("train.csv", "valid.csv"):
        assert table(folder / "parts" / log) == table(folder / "whole" / log)
    one = load_file(folder / "whole" / "model.safetensors")
    two = load_file(folder / "parts" / "model.safetensors")
    assert one.keys() == two.keys()
    assert all(bool((one[name] == two[name]).all()) for name in one)


def test_a_typo_is_one_readable_line(folder: Path) -> None:
    process = start(folder, "whole", "--set", "optimiser.lr=1")
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "whole.yaml: unknown key 'optimiser' at the top level (did you mean 'optimizer'?)" in text
    assert "Traceback" not in text
    assert not (folder / "whole").exists()
