"""Processes of ``egnn-md bench scaling``: peak memory of parts, and real steps of P ranks over gloo."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from egnn_md.errors import EgnnMdError
from egnn_md_benchmarks.scaling_model import Link
from egnn_md_benchmarks.scaling_parts import Collective, Piece
from egnn_md_benchmarks.timing import summary
from egnn_md_benchmarks.workloads import Case

QUIET, LEAST = 0.05, 3  # share of the machine that others may have in a round; rounds that a median needs
LIMIT = 1800.0  # s for a child, and for one of its collectives


class ChildError(EgnnMdError):
    """A process of the benchmark failed; the message has its last line."""


def _start(request: dict[str, Any], folder: Path, name: str) -> tuple[subprocess.Popen[bytes], Path, Path]:
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    # threads are set before any library starts its own
    environment = {**os.environ, "OMP_NUM_THREADS": str(request["threads"])}
    with out.open("wb") as answer, err.open("wb") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "egnn_md_benchmarks.scaling_rank", json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=errors,
            env=environment,
        )
    return process, out, err


def run_children(requests: list[dict[str, Any]], folder: Path, limit: float = LIMIT) -> list[dict[str, Any]]:
    """Answers of processes that run side by side.

    Raises:
        ChildError: one of them failed or took too long; the others are ended, too.
    """
    started = [_start(request, folder, f"child-{k}") for k, request in enumerate(requests)]
    end = time.monotonic() + limit
    try:
        while any(process.poll() is None for process, _, _ in started):
            for k, (process, _, err) in enumerate(started):
                if process.poll() not in (None, 0):
                    lines = err.read_text(errors="replace").strip().splitlines()
                    raise ChildError(
                        f"process {k} of {len(started)} ended with {process.returncode}: "
                        f"{lines[-1] if lines else 'no message'}"
                    )
            if time.monotonic() > end:
                raise ChildError(f"no answer of {len(started)} processes within {limit:g} s")
            time.sleep(0.05)
    finally:
        for process, _, _ in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    for process, _, err in started:
        if process.returncode:
            lines = err.read_text(errors="replace").strip().splitlines()
            raise ChildError(f"a process ended with {process.returncode}: {lines[-1] if lines else 'no message'}")
    return [json.loads(out.read_text().splitlines()[-1]) for _, out, _ in started]


def _request(what: str, case: Case, path: str, quantity: str, threads: int, file: Path) -> dict[str, Any]:
    return {
        "what": what, "case": case.to_dict(), "path": path, "quantity": quantity, "threads": threads,
        "piece": str(file),
    }  # fmt: skip


def part_memory(case: Case, piece: Piece, path: str, quantity: str, threads: int) -> dict[str, Any]:
    """``bytes`` above inputs and weights, ``inputs``, ``weights``, ``method``, in a process that knows the part only.

    Raises:
        ChildError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = piece.save(Path(folder) / "piece.pt")
        return run_children([_request("memory", case, path, quantity, threads, file)], Path(folder))[0]


def real_steps(
    case: Case, parts: list[Piece], path: str, quantity: str, threads: int, repeats: int, warmup: int
) -> list[dict[str, Any]]:
    """What every rank of :func:`egnn_md_benchmarks.scaling_rank.measure_run` saw.

    Raises:
        ChildError: a process failed.
    """
    with tempfile.TemporaryDirectory() as name:
        folder, requests = Path(name), []
        for piece in parts:
            file = piece.save(folder / f"piece-{piece.rank}.pt")
            asked = _request("run", case, path, quantity, threads, file)
            run = {"size": piece.size, "rank": piece.rank, "folder": name, "limit": LIMIT}
            requests.append({**asked, **run, "repeats": repeats, "warmup": warmup})
        return run_children(requests, folder)


def fit_link(pings: list[dict[str, Any]], size: int, name: str = "gloo here") -> Link:
    """Latencies from the smallest exchange and reduction, bandwidth from the largest exchange (or reduction).

    Args:
        pings: of :func:`egnn_md_benchmarks.scaling_rank.pings`.
        size: P.
        name: for tables.
    """
    exchanges = sorted((p for p in pings if p["kind"] == "exchange"), key=lambda p: p["number"])
    reductions = sorted((p for p in pings if p["kind"] == "reduction"), key=lambda p: p["number"])
    low, high = (exchanges or reductions)[0], (exchanges or reductions)[-1]
    beyond, more = high["seconds"] - low["seconds"], high["bytes"] - low["bytes"]
    factor = 1.0 if exchanges else 2 * (size - 1) / size
    bandwidth = factor * more / beyond if beyond > 0 and more > 0 else math.inf
    latency = reductions[0]["seconds"] / (2 * math.log2(size))
    own = exchanges[0]["seconds"] / max(exchanges[0]["peers"], 1) if exchanges else latency
    return Link(name, own, bandwidth, f"measured between {size} processes", latency)


def shares_of_others(answers: list[dict[str, Any]], name: str) -> list[float]:
    """Of every round, processor time of other programs over that of the whole machine (0 to 1; NaN if unknown).

    Args:
        answers: of all ranks, of :func:`egnn_md_benchmarks.scaling_rank.measure_run`.
        name: ``step``; or ``alone``, where ranks take turns: the largest share counts.
    """
    cores = os.cpu_count() or 1
    if name == "alone":
        found = [
            [(busy - own) / (wall * cores) for busy, own, wall in zip(*rows, strict=True)]
            for rows in ((a["alone_busy"], a["alone_cpu"], a["alone"]) for a in answers)
        ]
        return [max(shares) for shares in zip(*found, strict=True)]
    rounds = range(len(answers[0]["step"]))
    own = [sum(answer["step_cpu"][k] for answer in answers) for k in rounds]
    longest = [max((answer["step"][k], answer["step_busy"][k]) for answer in answers) for k in rounds]
    return [(busy - used) / (wall * cores) for (wall, busy), used in zip(longest, own, strict=True)]


def summarise(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Of the answers of all ranks: ``step`` (the slowest rank of every round), ``alone`` (medians), ``memory``...

    Rounds in which other programs had more than ``QUIET`` of the machine, alone or together, do not count as long as
    ``LEAST`` others remain; ``quiet`` says how many there were, ``others`` the shares. ``logs`` are the collectives of
    every rank, ``link`` what :func:`fit_link` makes of the pings.
    """
    found = sorted(found, key=lambda answer: answer["rank"])
    shares = [
        max(pair)
        for pair in zip(shares_of_others(found, "step"), shares_of_others(found, "alone"), strict=True)
    ]
    quiet = [k for k, share in enumerate(shares) if share <= QUIET]
    used = quiet if len(quiet) >= LEAST else list(range(len(shares)))

    def medians(name: str) -> list[float]:
        return [summary([answer[name][k] for k in used])["median"] for answer in found]

    return {
        "step": summary([max(answer["step"][k] for answer in found) for k in used]),
        "all_steps": [max(times) for times in zip(*(answer["step"] for answer in found), strict=True)],
        "others": shares,
        "quiet": len(quiet),
        "rounds": len(shares),
        **{name: medians(name) for name in ("alone", "alone_cpu", "step_cpu", "waited")},
        "memory": [answer["memory"] for answer in found],
        "inputs": [answer["inputs"] for answer in found],
        "traffic": [answer["traffic"] for answer in found],
        "pings": found[0]["pings"],
        "logs": [[Collective(**item) for item in answer["log"]] for answer in found],
        "link": fit_link(found[0]["pings"], len(found)),
    }
