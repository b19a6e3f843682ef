"""Times of several candidates in interleaved repeats: a busy machine hits all of them alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from egnn_md.errors import InputError

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Clock:
    """Seconds of ``read()``, and how they are to be understood."""

    read: Callable[[], float]
    name: str


def choose_clock(device: str, *, wall: bool = False) -> Clock:
    """Processor time where torch has one CPU thread (another process does not count), wall time elsewhere."""
    count = torch.get_num_threads()
    if device == "cpu" and count == 1 and not wall:
        return Clock(time.process_time, "processor time, one thread")
    return Clock(time.perf_counter, f"wall time, {count} thread{'s' if count > 1 else ''}")


def wait(device: str) -> None:
    """Until the card has done all that it was given."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(torch.device(device))


def rotation(names: Sequence[Name], number: int) -> list[Name]:
    """The order of round ``number``: each name is first, second... equally often."""
    if not names:
        return []
    start = number % len(names)
    return [*names[start:], *names[:start]]


def interleaved(
    candidates: Mapping[Name, Callable[[], Any]],
    repeats: int,
    *,
    warmup: int = 1,
    device: str = "cpu",
    clock: Clock | None = None,
) -> dict[Name, list[float]]:
    """Seconds of every call: one of every candidate in turn, the order rotated from round to round.

    Args:
        candidates: what to call, by name.
        repeats: rounds that count.
        warmup: rounds before, thrown away.
        device: waited for on both sides of a call.
        clock: by default :func:`choose_clock`'s.

    Returns:
        ``repeats`` times for each name, in rounds.
    """
    clock = clock or choose_clock(device)
    times: dict[Name, list[float]] = {name: [] for name in candidates}
    for number in range(-warmup, repeats):
        for name in rotation(list(candidates), number):
            wait(device)
            start = clock.read()
            candidates[name]()
            wait(device)
            taken = clock.read() - start
            if number >= 0:
                times[name].append(taken)
    return times


def summary(times: Sequence[float]) -> dict[str, Any]:
    """``median``, ``low`` and ``high`` (quartiles), ``spread`` (their distance over the median), ``times``, in s."""
    median = statistics.median(times)
    low, high = (
        (statistics.quantiles(times, n=4, method="inclusive")[k] for k in (0, 2))
        if len(times) > 1
        else (median, median)
    )
    spread = (high - low) / median if median > 0 else 0.0
    return {"median": median, "low": low, "high": high, "spread": spread, "times": list(times)}


@contextmanager
def torch_threads(number: int | None) -> Iterator[None]:
    """torch's thread count for this block only; None leaves it alone."""
    before = torch.get_num_threads()
    if number is not None:
        if number < 1:
            raise InputError(f"--threads is {number}; it must be at least 1")
        torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
