"""Devices, precisions and what fits into memory."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from egnn_md.errors import InputError

GB = 1e9
RESERVE = 0.9  # of what is free: the system and the libraries want some of it


def available_memory(device: torch.device) -> int:
    """Bytes that a measurement may use: what the system (and a container's limit) or the card has free."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * RESERVE)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    except OSError:
        pass
    try:  # a container may have less than its host
        limit = int(Path("/sys/fs/cgroup/memory.max").read_text())
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
        free = min(free, limit - used)
    except (OSError, ValueError):
        pass
    return int(free * RESERVE)


def check_fits(what: str, needed: float, device: torch.device, remedy: str = "") -> None:
    """Refuse a measurement before it is tried.

    Args:
        what: size, path and quantity, for the message.
        needed: bytes, estimated (:func:`egnn_md_benchmarks.estimate.peak_bytes`).
        device: where it would run.
        remedy: what else could be done.

    Raises:
        InputError: it would not fit.
    """
    free = available_memory(device)
    if needed > free:
        raise InputError(
            f"{what} needs about {needed / GB:.1f} GB, and {free / GB:.1f} GB are to be had on {device}; "
            f"choose a smaller size with --sizes{remedy}"
        )
