"""A process of ``egnn-md bench scaling``: ``python -m egnn_md_benchmarks.scaling_rank REQUEST`` (JSON).

``what: memory`` measures the peak of one call of a part alone. ``what: run`` is one of P ranks that do real steps over
gloo: in each round every rank in turn runs its part alone while the others wait, then all step together, so that both
times are of the same minute. Then the collectives of a step are timed by themselves.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from egnn_md.distributed.wire import Wire, open_group
from egnn_md.nn.communication import Alone
from egnn_md_benchmarks.memory import load_libraries, peak_of
from egnn_md_benchmarks.scaling_parts import Collective, PartWork, Piece, pieces, whole_graph
from egnn_md_benchmarks.workloads import Case

PINGS = 15


def load(case: Case, path: str, quantity: str) -> None:
    """Load what a call loads, by one that is too small to count."""
    tiny = case.tiny()
    (piece,) = pieces(whole_graph(tiny), torch.zeros(0, dtype=torch.int64), 1)
    load_libraries(PartWork(tiny, piece).call(path, quantity, Alone()))


def measure_memory(asked: dict[str, Any]) -> dict[str, Any]:
    """``bytes`` above inputs and weights, ``method``, ``inputs``, ``weights``."""
    case = Case(**asked["case"])
    load(case, asked["path"], asked["quantity"])
    piece = Piece.load(Path(asked["piece"]))
    work = PartWork(case, piece)
    size, method = peak_of(work.call(asked["path"], asked["quantity"], piece.dry()), "cpu")
    weights = sum(item.numel() * item.element_size() for item in work.module.parameters())
    return {"bytes": size, "method": method, "inputs": piece.input_bytes, "weights": weights}


def measure_run(asked: dict[str, Any]) -> dict[str, Any]:
    """What one of P ranks saw.

    In every round: ``alone``, ``step``, ``waited`` (inside collectives), ``..._cpu`` (own processor time) and
    ``..._busy`` (the whole machine's), s. Once: ``memory``, ``inputs``, ``traffic``, ``log``, ``pings``.
    """
    case, size, rank = Case(**asked["case"]), int(asked["size"]), int(asked["rank"])
    path, quantity = asked["path"], asked["quantity"]
    load(case, path, quantity)
    piece = Piece.load(Path(asked["piece"]))
    work = PartWork(case, piece)
    store = torch.distributed.FileStore(str(Path(asked["folder"]) / "store"), size)
    limit = float(asked["limit"])
    prefix = torch.distributed.PrefixStore
    wire = Wire(open_group(prefix("step", store), rank, size, limit=limit, loopback=True), rank, size)
    control = Wire(open_group(prefix("control", store), rank, size, limit=limit, loopback=True), rank, size)
    together = work.call(path, quantity, piece.wired(wire))
    said = piece.dry()
    alone = work.call(path, quantity, said)

    def meet() -> None:
        control.total(torch.zeros(1))

    meet()
    memory, method = peak_of(together, "cpu")
    traffic = vars(wire.traffic.copy())
    rows: dict[str, list[float]] = {}
    for number in range(-asked["warmup"], asked["repeats"]):
        found: dict[str, float] = {}
        for turn in range(size):
            meet()
            if turn == rank:
                found |= _timed("alone", alone)
        meet()
        waited = wire.waited
        found |= _timed("step", together)
        found["waited"] = wire.waited - waited
        meet()
        if number >= 0:
            for name, seconds in found.items():
                rows.setdefault(name, []).append(seconds)
    log: list[Collective] = []
    if size > 1:
        group = said.wire.group
        log = group.log[-(len(group.log) // (asked["warmup"] + asked["repeats"])) :]
    return {
        "rank": rank, **rows, "memory": memory, "method": method, "traffic": traffic,
        "inputs": piece.input_bytes, "pings": pings(wire, control, piece, log), "log": [vars(item) for item in log],
    }  # fmt: skip


def busy_seconds() -> float:
    """Processor time that the whole machine has worked, all cores together; NaN where that cannot be read."""
    try:
        words = Path("/proc/stat").read_text().splitlines()[0].split()
    except OSError:
        return float("nan")
    # user nice system idle iowait irq softirq steal; what a hypervisor takes is no other program's work, and not ours
    return sum(int(words[k]) for k in (1, 2, 3, 6, 7, 8)) / os.sysconf("SC_CLK_TCK")


def _timed(name: str, call: Any) -> dict[str, float]:
    busy, wall, processor = busy_seconds(), time.perf_counter(), time.process_time()
    call()
    seconds, own = time.perf_counter() - wall, time.process_time() - processor
    return {name: seconds, f"{name}_cpu": own, f"{name}_busy": busy_seconds() - busy}


def pings(wire: Wire, control: Wire, piece: Piece, log: list[Collective]) -> list[dict[str, Any]]:
    """Times of the collectives of a step by themselves, the real ones and the smallest.

    Every rank gets the same list: ``kind``, ``number`` (of a row, or summed), and the greatest ``peers``, ``bytes`` and
    ``seconds`` of a rank.
    """
    widths = sorted({item.width for item in log if item.kind == "exchange"})
    counts = sorted({item.sent // 4 for item in log if item.kind == "reduction"})
    out = []
    wanted = [("exchange", number) for number in ([1, *widths] if widths else [])]
    wanted += [("reduction", number) for number in [1, *counts]]
    for kind, number in wanted:
        rows = torch.zeros(sum(piece.send), number) if kind == "exchange" else torch.zeros(number)
        times = []
        for repeat in range(PINGS + 2):
            control.total(torch.zeros(1))
            begin = time.perf_counter()
            if kind == "exchange":
                wire.exchange(rows, piece.send, piece.receive)
            else:
                wire.total(rows)
            seconds = torch.tensor(time.perf_counter() - begin, dtype=torch.float64)
            slowest = max(float(value) for value in control.everywhere(seconds))
            if repeat >= 2:
                times.append(slowest)
        moved = max(sum(piece.send), sum(piece.receive)) * number * 4 if kind == "exchange" else number * 4
        most = max(int(value) for value in control.everywhere(torch.tensor(moved)))
        peers = max(int(v) for v in control.everywhere(torch.tensor(sum(c > 0 for c in piece.send))))
        out.append({"kind": kind, "number": number, "peers": peers, "bytes": most, "seconds": statistics.median(times)})
    return out


if __name__ == "__main__":
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    print(json.dumps((measure_memory if request["what"] == "memory" else measure_run)(request)))
