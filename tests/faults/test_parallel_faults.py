"""A worker that dies or hangs costs an evaluation: the disturbed trajectory is the undisturbed one, bit by bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import units
from ase.io import Trajectory, write
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution

from egnn_md.checkpoint import save_model
from egnn_md.distributed import ParallelPotential, RankLostWarning
from egnn_md.models import FastEGNNPotential, PotentialConfig
from egnn_md_ase import FastEGNNCalculator

SILENCE = 2.0  # seconds; a stopped rank is noticed after it


@pytest.fixture(scope="module")
def model() -> FastEGNNPotential:
    torch.manual_seed(3)
    config = PotentialConfig(elements=(18,), cutoff=5.0, hidden=8, layers=2, virtual_nodes=2, vector_channels=2)
    return FastEGNNPotential(config)


def crystal() -> Any:
    from ase.build import bulk

    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat((3, 2, 2))
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    return atoms


def run(potential: ParallelPotential, steps: int, path: Path) -> np.ndarray:
    atoms = crystal()
    atoms.calc = FastEGNNCalculator(potential)
    MaxwellBoltzmannDistribution(atoms, temperature_K=60, rng=np.random.default_rng(0))
    dynamics = LangevinBAOAB(
        atoms, 2 * units.fs, temperature_K=60, T_tau=500 * units.fs, rng=np.random.default_rng(2)
    )
    with Trajectory(path, "w", atoms) as frames:
        dynamics.attach(frames.write, interval=5)
        dynamics.run(steps)
    return np.array(atoms.positions)


class Vandal(threading.Thread):
    """Sends signals to random ranks at random moments, each after the damage of the last one was mended."""

    def __init__(self, potential: ParallelPotential, signals: list[signal.Signals], seed: int) -> None:
        super().__init__(daemon=True)
        self.potential, self.signals = potential, signals
        self.random = random.Random(seed)
        self.sent = 0
        self.over = False

    def run(self) -> None:
        for number in self.signals:
            time.sleep(self.random.uniform(0.05, 0.3))
            while not self.over and (
                len(self.potential.channel.pids) < self.potential.devices
                or len(self.potential.recoveries) < self.sent
                or any(seconds == 0.0 for seconds, _ in self.potential.recoveries)
            ):
                time.sleep(0.01)
            if self.over:
                return
            try:
                os.kill(self.random.choice(self.potential.channel.pids), number)
            except (ProcessLookupError, IndexError):
                continue
            self.sent += 1


def disturbed(model: FastEGNNPotential, tmp_path: Path, signals: list[signal.Signals], steps: int) -> None:
    with ParallelPotential(model, 2, heartbeat=SILENCE, threads=1) as potential:
        wanted = run(potential, steps, tmp_path / "wanted.traj")
        assert potential.recoveries == []
    begin = time.perf_counter()
    with ParallelPotential(model, 2, heartbeat=SILENCE, threads=1) as potential, warnings.catch_warnings(
        record=True
    ) as told:
        warnings.simplefilter("always")
        vandal = Vandal(potential, signals, seed=5)
        vandal.start()
        found = run(potential, steps, tmp_path / "found.traj")
        vandal.over = True
        vandal.join()
        recoveries = potential.recoveries
    assert vandal.sent == len(signals), "the run was too short for every signal"
    # one that is sent between the last evaluation and the end does no harm
    assert len(signals) - 1 <= len(recoveries) <= len(signals)
    assert np.array_equal(found, wanted)
    with Trajectory(tmp_path / "wanted.traj") as one, Trajectory(tmp_path / "found.traj") as other:
        assert len(one) == len(other) == steps // 5 + 1
        for a, b in zip(one, other, strict=True):
            assert np.array_equal(a.positions, b.positions)
            assert np.array_equal(a.get_forces(), b.get_forces())
    texts = [str(item.message) for item in told if issubclass(item.category, RankLostWarning)]
    assert len(texts) == len(recoveries)
    for text in texts:
        assert "of 2 (cpu)" in text
        assert "SIGKILL" in text or "no sign of life" in text
    lost = [seconds for seconds, _ in recoveries]
    whole = time.perf_counter() - begin
    print(f"{len(lost)} losses, {sum(lost):.1f} s lost of {whole:.1f} s, longest {max(lost):.1f} s")


def test_killed_and_stopped(model: FastEGNNPotential, tmp_path: Path) -> None:
    disturbed(model, tmp_path, [signal.SIGKILL, signal.SIGSTOP], 200)


@pytest.mark.slow
@pytest.mark.multirank
def test_twenty_times(model: FastEGNNPotential, tmp_path: Path) -> None:
    disturbed(model, tmp_path, [signal.SIGKILL, signal.SIGSTOP] * 10, 4000)


def children(parent: int) -> list[int]:
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(words[1]) == parent and words[0] != "Z":
            found.append(int(folder.name))
    return found


@pytest.mark.multirank
def test_killed_driver_leaves_nobody_behind_and_resumes(model: FastEGNNPotential, tmp_path: Path) -> None:
    save_model(model, tmp_path / "argon.safetensors")
    write(tmp_path / "argon.extxyz", crystal())
    program = str(Path(sys.executable).parent / "egnn-md")

    def command(output: str) -> list[str]:
        return [
            program, "md", str(tmp_path / "argon.extxyz"), "--model", str(tmp_path / "argon.safetensors"), "--engine",
            "ase", "--no-minimize", "--temperature", "60", "--steps", "160", "--frame-interval", "10",
            "--checkpoint-interval", "20", "--devices", "2", "--output", str(tmp_path / output),
        ]  # fmt: skip

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    assert subprocess.run(command("whole"), check=False, **options).returncode == 0
    driver = subprocess.Popen(command("parts"), **options)
    checkpoint = tmp_path / "parts" / "checkpoint.npz"
    first = None
    while driver.poll() is None:
        if checkpoint.exists():
            first = first or checkpoint.stat().st_mtime_ns
            if checkpoint.stat().st_mtime_ns != first:  # not the one of step 0
                break
        time.sleep(0.005)
    workers = children(driver.pid)
    driver.send_signal(signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL, "the run was over before it could be killed"
    assert len(workers) == 2
    end = time.monotonic() + 10
    while time.monotonic() < end and any(Path(f"/proc/{pid}").exists() for pid in workers):
        time.sleep(0.05)
    assert not [pid for pid in workers if Path(f"/proc/{pid}").exists()]
    assert not list(temporary.glob("egnn-md-ranks-*")), "rank 0 tidies up after a driver that cannot"
    resumed = subprocess.run(
        [program, "md", "--resume", "--output", str(tmp_path / "parts")], check=False, **options
    )
    assert resumed.returncode == 0
    for name in ("trajectory.dcd", "final.pdb", "final.extxyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name
