"""Labelling when processes die: workers that crash, a parent that is killed, an interrupt."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write

from egnn_md.data.labelling import label

PLUGIN = '''
"""A reference method of another package: slow, and deadly for structures of three atoms."""
import os, signal, time
from ase.calculators.calculator import Calculator, all_changes

class Deadly(Calculator):
    implemented_properties = ["energy", "forces"]
    def __init__(self, delay=0.0):
        super().__init__()
        self.delay = delay
    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        time.sleep(self.delay)
        if len(self.atoms) == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        if len(self.atoms) == 4:
            raise RuntimeError("no convergence")
        energy = float("nan") if len(self.atoms) == 5 else float(self.atoms.positions.sum())
        self.results = {"energy": energy, "forces": 0 * self.atoms.positions + 1.0}
'''


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package installed beside ours that registers the method ``deadly``."""
    folder = tmp_path / "site"
    (folder / "deadly-1.0.dist-info").mkdir(parents=True)
    (folder / "deadly_method.py").write_text(PLUGIN)
    (folder / "deadly-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: deadly\nVersion: 1.0\n")
    (folder / "deadly-1.0.dist-info" / "entry_points.txt").write_text(
        "[egnn_md.calculators]\ndeadly = deadly_method:Deadly\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    return folder


def structures(sizes: list[int]) -> list[Atoms]:
    out = []
    for index, size in enumerate(sizes):
        atoms = Atoms(f"Ar{size}", np.arange(3.0 * size).reshape(size, 3) + 0.01 * index)
        atoms.info["number"] = index
        out.append(atoms)
    return out


def numbers(path: Path) -> list[int]:
    return [atoms.info["number"] for atoms in read(path, ":")]


def test_a_worker_that_dies_is_a_failure_of_its_structure_only(tmp_path: Path, plugin: Path) -> None:
    output = tmp_path / "labels.extxyz"
    sizes = [2, 2, 3, 2, 4, 2, 5, 3, 2, 2]
    summary = label(structures(sizes), output, "deadly", processes=2)
    assert sorted(numbers(output)) == [0, 1, 3, 5, 8, 9]
    assert (summary.labelled, summary.failed) == (6, 4)
    kinds = Counter(message.split(":")[0] for message in summary.failures)
    assert kinds == {"LabellingError": 3, "RuntimeError": 1}
    assert sum("died" in message for message in summary.failures) == 2
    assert sum("energy that is not finite" in message for message in summary.failures) == 1
    log = [json.loads(line) for line in Path(f"{output}.failures.jsonl").read_text().splitlines()]
    assert len(log) == 4
    again = label(structures(sizes), output, "deadly", processes=2)
    assert (again.labelled, again.skipped, again.failed) == (0, 10, 0)


def start(tmp_path: Path, delay: float, processes: int = 2) -> subprocess.Popen[str]:
    if not (tmp_path / "in.extxyz").exists():
        write(tmp_path / "in.extxyz", structures([2] * 12))
    command = [
        *(sys.executable, "-c", "from egnn_md.cli.main import main; main()", "label"),
        str(tmp_path / "in.extxyz"),
        *("--output", str(tmp_path / "labels.extxyz"), "--method", "deadly"),
        *("--processes", str(processes), "--option", f"delay={delay}"),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def wait_for_frames(path: Path, count: int, process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_text().count("structure_id") >= count:
            return
        time.sleep(0.05)
    pytest.fail(f"only {path.read_text() if path.exists() else 'nothing'} after 60 s")


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /proc")
def test_killed_and_repeated_labels_everything_once(tmp_path: Path, plugin: Path) -> None:
    output = tmp_path / "labels.extxyz"
    process = start(tmp_path, delay=0.4)
    wait_for_frames(output, 2, process)
    workers = children(process.pid)
    assert workers
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    deadline = time.monotonic() + 20
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(alive(pid) for pid in workers)  # nobody goes on working for a dead parent
    assert 2 <= len(numbers(output)) < 12
    with output.open("a") as file:
        file.write(output.read_text()[:70])  # as if the kill had come in mid-write
    summary = label(read(tmp_path / "in.extxyz", ":"), output, "deadly", options={"delay": 0.4}, processes=2)
    assert summary.labelled + summary.skipped == 12
    assert sorted(numbers(output)) == list(range(12))


def test_an_interrupt_finishes_what_is_running_and_says_how_to_go_on(tmp_path: Path, plugin: Path) -> None:
    output = tmp_path / "labels.extxyz"
    process = start(tmp_path, delay=0.4)
    wait_for_frames(output, 2, process)
    os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C in a terminal: parent and workers all get it
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 130, text
    assert "the same command goes on from here" in text
    assert "Traceback" not in text
    assert 3 <= len(numbers(output)) < 12
    assert not Path(f"{output}.failures.jsonl").exists()
