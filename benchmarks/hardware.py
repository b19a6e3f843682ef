"""The machine of a measurement: what it is, how busy it is, and what it does at best."""

from __future__ import annotations

import os
import time
from typing import Any

import torch

from egnn_md.diagnostics import devices
from egnn_md.simulation.machine import machine
from egnn_md_benchmarks.counts import Peak
from egnn_md_benchmarks.timing import choose_clock, wait

BUSY = 0.5  # processes a core that run or wait before we start
GEMM_ROWS, GEMM_SIZE = 4096, 512
TRIAD_BYTES = 128 * 2**20


def describe(device: str) -> dict[str, Any]:
    """Host, processor, cores, memory, threads, load, and the card if there is one."""
    found: dict[str, Any] = dict(machine(device))
    found["memory_gib"] = round(float(devices()["memory_gib"]), 1)
    try:
        found["load_average"] = round(os.getloadavg()[0], 2)
    except OSError:
        found["load_average"] = None
    found["torch_capability"] = torch.backends.cpu.get_cpu_capability()
    return found


def busy_warning(described: dict[str, Any]) -> str | None:
    """A sentence if others use the machine."""
    load, cores = described["load_average"], int(described["cores"])
    if load is None or load <= BUSY * cores:
        return None
    return (
        f"the machine is busy: load average {load:g} on {cores} cores before anything was measured; "
        "times are too long and scatter, ratios of interleaved repeats suffer less"
    )


def _best(call: Any, device: str, seconds: float) -> float:
    """Shortest of the calls that fit into ``seconds``, three at least, by the clock that models are timed with."""
    call()
    wait(device)
    clock = choose_clock(device).read
    best, begin, rounds = float("inf"), time.perf_counter(), 0
    while rounds < 3 or time.perf_counter() - begin < seconds:
        start = clock()
        call()
        wait(device)
        best, rounds = min(best, clock() - start), rounds + 1
    return best


def measure_peak(device: torch.device, dtype: torch.dtype = torch.float32, seconds: float = 0.5) -> Peak:
    """A large matrix product and a triad (a = b + s c) with torch's threads: the ceilings of this machine.

    Bytes of a triad are counted as STREAM counts them, two reads and a write. The best of the repeats counts.

    Args:
        device: where.
        dtype: of the numbers.
        seconds: for each of the two.
    """
    with torch.no_grad():
        rows = GEMM_ROWS * (4 if device.type == "cuda" else 1)
        size = GEMM_SIZE * (8 if device.type == "cuda" else 1)
        a = torch.rand(rows, size, device=device, dtype=dtype)
        b = torch.rand(size, size, device=device, dtype=dtype)
        out = torch.empty(rows, size, device=device, dtype=dtype)
        product = _best(lambda: torch.mm(a, b, out=out), str(device), seconds)
        number = TRIAD_BYTES * (4 if device.type == "cuda" else 1) // a.element_size()
        x, y, z = (torch.ones(number, device=device, dtype=dtype) for _ in range(3))
        triad = _best(lambda: torch.add(x, y, alpha=3.0, out=z), str(device), seconds)
        moved = 3 * number * a.element_size()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"this CPU, {torch.get_num_threads()} thr."
    return Peak(name, 2.0 * rows * size * size / product, moved / triad)
