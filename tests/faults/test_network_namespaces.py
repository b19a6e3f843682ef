"""Ranks in network namespaces of their own, joined by a narrow wire that loses packets: slower, and no bit else."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import write

from egnn_md.checkpoint import save_model
from egnn_md.models import FastEGNNPotential, PotentialConfig

pytestmark = pytest.mark.multirank
NAMES, ADDRESSES, DEVICES = ("egnnmd0", "egnnmd1"), ("10.214.7.1", "10.214.7.2"), ("veth-egnn0", "veth-egnn1")
PORT = "29617"

SCRIPT = """
import sys, time
import ase.io
from egnn_md.distributed import ParallelPotential, serve

if serve():
    sys.exit()
from egnn_md_ase import FastEGNNCalculator

folder, steps = sys.argv[1], 10
potential = ParallelPotential(folder + "/argon.safetensors", dtype="float64")
atoms = ase.io.read(folder + "/argon.extxyz")
atoms.calc = FastEGNNCalculator(potential)
energies = [atoms.get_potential_energy()]
begin = time.perf_counter()
for _ in range(steps):
    atoms.positions += 0.01 * atoms.get_forces()
    energies.append(atoms.get_potential_energy())
print("seconds", (time.perf_counter() - begin) / steps)
print("energies", " ".join(value.hex() for value in energies))
"""


def tool(*words: str, check: bool = True) -> str:
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        pytest.skip(f"this machine allows no network namespaces: {' '.join(words)}: {done.stderr.strip()}")
    return done.stdout


def clear() -> None:
    for name in NAMES:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


@pytest.fixture
def namespaces() -> Iterator[None]:
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("tc") is None:
        pytest.skip("network namespaces need root, ip and tc")
    clear()
    try:
        for name in NAMES:
            tool("ip", "netns", "add", name)
        tool("ip", "link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
        for name, device, address in zip(NAMES, DEVICES, ADDRESSES, strict=True):
            tool("ip", "link", "set", device, "netns", name)
            tool("ip", "-n", name, "addr", "add", f"{address}/24", "dev", device)
            for link in ("lo", device):
                tool("ip", "-n", name, "link", "set", link, "up")
        yield
    finally:
        clear()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("namespaces")
    torch.manual_seed(3)
    config = PotentialConfig(elements=(18,), cutoff=5.0, hidden=32, layers=2, virtual_nodes=2, vector_channels=4)
    save_model(FastEGNNPotential(config), folder / "argon.safetensors")
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat((5, 4, 4))
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    write(folder / "argon.extxyz", atoms)
    (folder / "script.py").write_text(SCRIPT)
    return folder


def run(inputs: Path) -> tuple[float, list[str]]:
    """Seconds a step and energies (hexadecimal) of a short relaxation over both namespaces."""
    processes = []
    for rank, (name, device) in enumerate(zip(NAMES, DEVICES, strict=True)):
        variables = {
            "RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": PORT,
            "GLOO_SOCKET_IFNAME": device, "OMP_NUM_THREADS": "1", "EGNN_MD_BACKEND": "gloo",
        }  # fmt: skip
        words = ["ip", "netns", "exec", name, sys.executable, str(inputs / "script.py"), str(inputs)]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(words, env={**os.environ, **variables}, **pipes))
    said = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    output = said[0][0]
    seconds = re.search(r"^seconds (.*)$", output, re.MULTILINE)
    energies = re.search(r"^energies (.*)$", output, re.MULTILINE)
    assert seconds is not None, said
    assert energies is not None, said
    return float(seconds[1]), energies[1].split()


def dropped() -> int:
    found = re.findall(r"dropped (\d+)", tool("ip", "netns", "exec", NAMES[0], "tc", "-s", "qdisc"))
    return sum(int(number) for number in found)


def test_narrow_wire_that_loses_packets(namespaces: None, inputs: Path) -> None:
    quick, wanted = run(inputs)
    for name, device in zip(NAMES, DEVICES, strict=True):
        # a bucket this small throws packets away, which TCP sends again
        tool(
            "ip", "netns", "exec", name, "tc", "qdisc", "add", "dev", device, "root", "tbf", "rate", "20mbit",
            "burst", "16kb", "limit", "20kb",
        )  # fmt: skip
    slow, found = run(inputs)
    lost = dropped()
    print(f"{quick * 1e3:.0f} ms a step, {slow * 1e3:.0f} ms over 20 Mbit/s with {lost} packets lost on one side")
    assert found == wanted
    assert slow > 1.5 * quick
    assert lost > 0
