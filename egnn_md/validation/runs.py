"""Runs that a validation needs: each in its own directory, gone on with after a kill, never done twice."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from egnn_md.errors import InputError, SimulationError
from egnn_md.models.base import Potential
from egnn_md.simulation import MDRequest, RunDirectory, simulate
from egnn_md.simulation.interrupts import Interrupted
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.structure import Structure

OVER = ("finished", "failed")
FRAMES = 200  # of a run, about
ROWS = 500  # of its log, about


#: What :func:`ensure_run` raises after a signal; the same command goes on from there.
InterruptedRun = Interrupted


@dataclass(frozen=True)
class FinishedRun:
    """A run directory that is complete, or ended where a guard stopped it."""

    directory: RunDirectory

    @cached_property
    def record(self) -> dict[str, Any]:
        """run.json."""
        return self.directory.read()

    @cached_property
    def request(self) -> MDRequest:
        """What was asked for."""
        return self.directory.request()

    @cached_property
    def structure(self) -> Structure:
        """Where it began."""
        return Structure.load(self.directory.structure)

    @cached_property
    def log(self) -> dict[str, np.ndarray]:
        """Columns of the log."""
        return read_log(self.directory.log)

    @property
    def failed(self) -> bool:
        """A guard stopped it."""
        return self.record["status"] == "failed"

    @cached_property
    def frames(self) -> MovingFrames:
        """All frames."""
        return read_moving_frames(self.directory.trajectory("extxyz"), self.structure)


@dataclass(frozen=True)
class MovingFrames:
    """F frames of N atoms: steps (F,), positions and velocities (F, N, 3) Å, Å/fs, cells (F, 3, 3) or None."""

    steps: np.ndarray
    positions: np.ndarray
    velocities: np.ndarray
    cells: np.ndarray | None

    def part(self, start: int, stop: int) -> MovingFrames:
        """Frames from ``start`` to before ``stop``."""
        chosen = slice(start, stop)
        cells = None if self.cells is None else self.cells[chosen]
        return MovingFrames(self.steps[chosen], self.positions[chosen], self.velocities[chosen], cells)

    def without_start(self, share: float) -> MovingFrames:
        """The frames after the first ``share`` of them."""
        return self.part(int(share * len(self.steps)), len(self.steps))


def read_moving_frames(path: Path, structure: Structure) -> MovingFrames:
    """Read a trajectory that a run wrote as extended XYZ. Raises InputError if it is none."""
    atoms = len(structure)
    lines = path.read_text().split("\n")
    total = (len(lines) - 1) // (atoms + 2)
    steps, rows, cells = [], [], []
    for index in range(total):
        block = lines[index * (atoms + 2) : (index + 1) * (atoms + 2)]
        if block[0].strip() != str(atoms) or "step=" not in block[1]:
            raise InputError(f"{path}: frame {index} is not one of {atoms} atoms that a run wrote")
        steps.append(int(block[1].split("step=")[1].split()[0]))
        rows.append([line.split()[1:7] for line in block[2:]])
        if 'Lattice="' in block[1]:
            cells.append(np.array(block[1].split('Lattice="')[1].split('"')[0].split(), dtype=float).reshape(3, 3))
    values = np.array(rows, dtype=float).reshape(total, atoms, 6)
    periodic = structure.periodic and len(cells) == total
    return MovingFrames(
        np.array(steps, dtype=int), values[..., :3], values[..., 3:], np.array(cells) if periodic else None
    )


def ensure_run(folder: Path, values: dict[str, Any], model: Potential | None, *, may_fail: bool = False) -> FinishedRun:
    """Do the run of ``values`` in ``folder``, go on with it, or find it done.

    Args:
        folder: run directory.
        values: fields of an :class:`MDRequest`; intervals are chosen here unless given.
        model: potential to use; None for the one that ``values`` name.
        may_fail: give a run that a guard stopped too.

    Raises:
        InterruptedRun: a signal came.
        SimulationError: a guard stopped it, now or in an earlier call.
        See also :func:`egnn_md.simulation.simulate`.
    """
    directory = RunDirectory(folder)
    begun = directory.record.exists()
    if not (begun and directory.read()["status"] in OVER):
        steps = values["steps"]
        asked = {
            "trajectory": "extxyz",
            "frame_interval": max(steps // FRAMES, 1),
            "log_interval": max(steps // ROWS, 1),
            "checkpoint_interval": min(1000, max(steps // 4, 1)),
            **values,
            "output": folder,
        }
        request = directory.request() if begun else MDRequest.parse(asked)
        try:
            result = simulate(request, model=model, resume=begun, console=Console(quiet=True))
        except SimulationError:
            if not directory.record.exists() or directory.read()["status"] != "failed":
                raise
        else:
            if result.status == "interrupted":
                raise InterruptedRun(result.exit_code)
    run = FinishedRun(directory)
    if run.failed and not may_fail:
        raise SimulationError(f"{folder.name}: {failure_reason(run)}")
    return run


def failure_reason(run: FinishedRun) -> str:
    """What a guard said."""
    return str((run.record.get("failure") or {}).get("reason") or run.record.get("error", "it failed"))


def failure_step(run: FinishedRun) -> int:
    """At which step it failed."""
    return int((run.record.get("failure") or {}).get("step", run.record.get("steps_done", 0)))
