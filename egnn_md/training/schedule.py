"""Learning rate as a pure function of step and elapsed time."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class CosineSchedule:
    """Factor on the learning rate: linear warm-up, then half a cosine from 1 down to ``floor``.

    Progress is ``step / max_steps``, or ``elapsed / budget`` when the run is limited by wall time, or the
    larger of the two. With a time budget the curve depends on the machine's speed, so such a run cannot be
    repeated bit by bit; one limited by steps can.
    """

    warmup_steps: int
    floor: float
    max_steps: int | None = None
    budget_seconds: float | None = None

    def progress(self, step: int, elapsed: float) -> float:
        """Fraction of the run that is over, 0 to 1."""
        fractions = [0.0]
        if self.max_steps is not None:
            span = max(1, self.max_steps - self.warmup_steps)
            fractions.append((step - self.warmup_steps) / span)
        if self.budget_seconds is not None:
            fractions.append(elapsed / self.budget_seconds)
        return min(1.0, max(fractions))

    def factor(self, step: int, elapsed: float) -> float:
        """Factor for the optimizer's step number ``step`` (from 0) after ``elapsed`` seconds."""
        warmup = min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else 1.0
        cosine = 0.5 * (1.0 + math.cos(math.pi * self.progress(step, elapsed)))
        return warmup * (self.floor + (1.0 - self.floor) * cosine)

    def finished(self, step: int, elapsed: float) -> bool:
        """True once a limit is reached; ``step`` counts the steps that were made."""
        return (self.max_steps is not None and step >= self.max_steps) or (
            self.budget_seconds is not None and elapsed >= self.budget_seconds
        )
