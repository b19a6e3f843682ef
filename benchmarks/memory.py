"""Peak memory of one call, in a process of its own, so that nothing else's allocations count.

On a CPU the kernel's high-water mark of resident memory is set back (``/proc/self/clear_refs``), the call made once,
and the mark compared with what was resident before. A sampling thread would miss short peaks. Where the mark cannot be
set back, the process's own peak is read instead, which shows only what goes beyond the making of the inputs. On a card
torch's allocator counts.
"""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

MARK = "high-water mark of resident memory"
USAGE = "peak of the process (a lower bound)"
CARD = "torch's allocator"


def _status(key: str) -> int:
    """Bytes of a line of /proc/self/status."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    raise OSError(f"no {key}")


def resident() -> int:
    """Bytes of this process in memory now; its peak where that cannot be had."""
    try:
        return _status("VmRSS:")
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _trim() -> None:
    """Freed memory goes back to the system, so that the call cannot hide in it."""
    gc.collect()
    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def peak_of(call: Callable[[], Any], device: str) -> tuple[int, str]:
    """Bytes that ``call`` needs above what is there, and how they were measured."""
    if device.startswith("cuda"):
        place = torch.device(device)
        torch.cuda.synchronize(place)
        torch.cuda.reset_peak_memory_stats(place)
        before = torch.cuda.memory_allocated(place)
        call()
        torch.cuda.synchronize(place)
        return torch.cuda.max_memory_allocated(place) - before, CARD
    _trim()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = _status("VmRSS:")
        call()
        return max(_status("VmHWM:") - before, 0), MARK
    except OSError:
        before = resident()
        call()
        return max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before, 0), USAGE


def load_libraries(call: Callable[[], Any]) -> None:
    """Make a call that is too small to count twice: as it is, and recomputing as large systems do.

    The second one makes torch import 150 MB of modules, which must not be taken for tensors.
    """
    from egnn_md.kernels import fused

    call()
    before = fused.RECOMPUTE_PARTICLES
    fused.RECOMPUTE_PARTICLES = 0
    try:
        call()
    finally:
        fused.RECOMPUTE_PARTICLES = before


def measure_in_child(case: dict[str, Any], path: str, quantity: str, threads: int, timeout: float) -> dict[str, Any]:
    """``bytes`` and ``method``, or ``error``, of one call in a new process.

    Args:
        case: of :class:`egnn_md_benchmarks.workloads.Case`.
        path: of the network.
        quantity: what is called.
        threads: of torch.
        timeout: s.
    """
    request = json.dumps({"case": case, "path": path, "quantity": quantity, "threads": threads})
    command = [sys.executable, "-m", "egnn_md_benchmarks.memory", request]
    try:
        done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
    except subprocess.TimeoutExpired:
        return {"error": f"no answer within {timeout:g} s"}
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, json.JSONDecodeError):
        text = done.stderr.strip().splitlines()
        return {"error": f"the process ended with {done.returncode}: {text[-1] if text else 'no message'}"}
    assert isinstance(answer, dict)
    return answer


def child(request: str) -> dict[str, Any]:
    """What the new process does: make everything, warm up on a tiny input, measure one call."""
    from egnn_md_benchmarks.workloads import Case, make_work

    asked = json.loads(request)
    torch.set_num_threads(asked["threads"])
    case = Case(**asked["case"])
    load_libraries(make_work(case.tiny()).call(asked["path"], asked["quantity"]))
    call = make_work(case).call(asked["path"], asked["quantity"])
    if asked["path"] == "compiled":
        call()
    size, method = peak_of(call, case.device)
    return {"bytes": size, "method": method}


if __name__ == "__main__":
    try:
        print(json.dumps(child(sys.argv[1])))
    except Exception as error:  # the parent prints it in its table
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
