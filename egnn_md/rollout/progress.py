"""How far a rollout is: a bar on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from egnn_md.simulation.progress import LINE_EVERY, LINE_SECONDS, duration, say


class StrideProgress:
    """Context that shows strides done, a status and the time left."""

    def __init__(self, console: Console, total: int, start: int, label: str) -> None:
        self.console, self.total, self.label = console, total, label
        self._began = self._last_time = time.perf_counter()
        self._start = self._last_step = start
        self._bar: Progress | None = None
        if console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("{task.fields[status]}"), TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task(label, total=total, completed=start, status="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def update(self, step: int, status: str) -> None:
        """Show the state after ``step``."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, status=status)
            return
        now = time.perf_counter()
        if step - self._last_step >= LINE_EVERY * self.total or now - self._last_time >= LINE_SECONDS:
            left = (now - self._began) / max(step - self._start, 1) * (self.total - step)
            say(self.console, f"{self.label} {step}/{self.total}  {status}  {duration(left)} left")
            self._last_step, self._last_time = step, now
