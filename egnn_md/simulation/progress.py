"""How far a run is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LINE_EVERY = 0.1  # of the run
LINE_SECONDS = 30.0


def duration(seconds: float) -> str:
    """``1:02:03``."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def say(console: Console, text: str) -> None:
    """A plain line: nothing coloured, nothing read as markup, nothing broken to the width of a pipe."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


class RunProgress:
    """Shows step, temperature, energy, ns/day and the time left."""

    def __init__(self, console: Console, total: int, start: int, label: str) -> None:
        self.console = console
        self.total = total
        self.label = label
        self._bar: Progress | None = None
        self._start_time = time.perf_counter()
        self._start = start
        self._energy = ""
        self._last_line = (start, self._start_time)
        if console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[status]}"),
                TimeRemainingColumn(),
                TextColumn("left"),
                console=console,
                refresh_per_second=4,
            )
            self._task = self._bar.add_task(label, total=total, completed=start, status="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, kelvin: float, energy: float | None, ns_per_day: float | None) -> None:
        """Show the state after ``step``: K, potential energy in eV (the last known if None), speed."""
        if energy is not None:
            self._energy = f"{energy:.4f} eV"
        speed = "" if ns_per_day is None else f"{ns_per_day:.3g} ns/day"
        status = f"{kelvin:6.1f} K  {self._energy}  {speed}"
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.perf_counter()
        last_step, last_time = self._last_line
        due = step - last_step >= LINE_EVERY * self.total or now - last_time >= LINE_SECONDS
        if due or step == self.total:
            left = (now - self._start_time) / max(step - self._start, 1) * (self.total - step)
            say(self.console, f"{self.label} {step}/{self.total}  {status}  {duration(left)} left")
            self._last_line = (step, now)
