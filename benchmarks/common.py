"""What all benchmarks have in common: their options, the record they begin with, and how sizes are refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from egnn_md.devices import find_device, find_dtype
from egnn_md.errors import InputError
from egnn_md_benchmarks.counts import STATED, Peak, Shape
from egnn_md_benchmarks.device import GB, available_memory, check_fits
from egnn_md_benchmarks.estimate import peak_bytes
from egnn_md_benchmarks.hardware import busy_warning, describe, measure_peak
from egnn_md_benchmarks.results import Record

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Options:
    """Options of ``egnn-md bench``; an empty tuple means a benchmark's default."""

    sizes: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    quantities: tuple[str, ...] = ()
    repeats: int = 5
    warmup: int = 1
    threads: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    model: str = "water"
    output: Path = Path("runs/bench")
    memory: bool = True
    more: dict[str, Any] = field(default_factory=dict)

    def check(self) -> Options:
        """Self. Raises InputError for numbers, devices and precisions that cannot be."""
        if self.repeats < 1 or self.warmup < 0:
            raise InputError(f"--repeats must be at least 1 and --warmup 0, not {self.repeats} and {self.warmup}")
        find_device(self.device)
        find_dtype(self.dtype)
        return self

    def settings(self) -> dict[str, Any]:
        """For the record."""
        plain = asdict(self)
        return {**{k: v for k, v in plain.items() if k not in ("more", "output")}, **self.more}


def begin(name: str, options: Options, *, peaks: bool = True, tell: Tell = print) -> tuple[Record, list[Peak]]:
    """The record, with the machine and its measured ceilings; the ceilings (this machine's first, then the stated)."""
    record = Record(name, options.settings(), describe(options.device))
    record.settings["threads"] = torch.get_num_threads()
    warning = busy_warning(record.machine)
    if warning:
        record.warnings.append(warning)
    found: list[Peak] = []
    if peaks:
        tell("what this machine does at best")
        seconds = float(options.more.get("peak_seconds", 0.5))
        found = [measure_peak(find_device(options.device), find_dtype(options.dtype), seconds), *STATED]
        record.peaks = [asdict(peak) for peak in found]
    return record, found


def too_large(what: str, shape: Shape, path: str, quantity: str, options: Options) -> str | None:
    """Why this would not fit into memory, None if it does."""
    itemsize = find_dtype(options.dtype).itemsize
    needed, device = peak_bytes(shape, path, quantity, itemsize), find_device(options.device)
    free = available_memory(device)
    if needed <= free:
        return None
    return f"needs about {needed / GB:.1f} GB of the {free / GB:.1f} GB to be had"


def refuse(what: str, shape: Shape, path: str, quantity: str, options: Options) -> None:
    """Raise InputError where it would not fit."""
    itemsize = find_dtype(options.dtype).itemsize
    check_fits(
        what,
        peak_bytes(shape, path, quantity, itemsize),
        find_device(options.device),
        ", another path with --paths or another quantity with --quantities",
    )
