"""Answers of ranks, made by hand, for the tests of the scaling benchmark."""

from __future__ import annotations

import os
from typing import Any


def answer(rank: int, step: list[float], others: list[float]) -> dict[str, Any]:
    """A rank of two that works all the time on its own core, while others have a share of the machine."""
    cores, rounds = os.cpu_count() or 1, len(step)
    busy = [2 * t + share * cores * t for t, share in zip(step, others, strict=True)]
    return {
        "rank": rank, "alone": [0.5 + rank] * rounds, "alone_cpu": [0.5 + rank] * rounds,
        "alone_busy": [0.5 + rank] * rounds, "step": step, "step_cpu": step, "step_busy": busy,
        "waited": [0.0] * rounds, "memory": 10, "inputs": 5, "traffic": {}, "log": [],
        "pings": [{"kind": "reduction", "number": k, "peers": 1, "bytes": 4 * k, "seconds": 0.1 * k} for k in (1, 5)],
    }  # fmt: skip
