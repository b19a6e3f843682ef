"""The growing files of a run: log and trajectory, in step with its checkpoints."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.engine import Observation
from egnn_md.simulation.files import AppendFile
from egnn_md.simulation.mechanics import density, kinetic_energy, temperature
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import Checkpoint, RunDirectory
from egnn_md.simulation.structure import Structure
from egnn_md.simulation.trajectory import DCDFormat, ExtxyzFormat, Format, Frame, Trajectory, XTCFormat
from egnn_md.simulation.uncertainty import COLUMNS as UNCERTAINTY_COLUMNS
from egnn_md.simulation.uncertainty import UncertaintyWatch

LOG_COLUMNS = (
    "step",
    "time_ps",
    "potential_eV",
    "kinetic_eV",
    "total_eV",
    "temperature_K",
    "volume_A3",
    "density_g_cm3",
    "speed_ns_day",
)
WATCHED_COLUMNS = (*LOG_COLUMNS[:-1], *UNCERTAINTY_COLUMNS, LOG_COLUMNS[-1])  # of a committee's run


def trajectory_format(request: MDRequest, structure: Structure) -> Format:
    """The chosen trajectory format for this system."""
    if request.trajectory == "dcd":
        return DCDFormat(len(structure), structure.periodic, request.timestep, request.frame_interval)
    if request.trajectory == "xtc":
        return XTCFormat(structure.periodic)
    return ExtxyzFormat(structure.symbols, structure.pbc)


@dataclass(frozen=True)
class LogRow:
    """One row of the log. Volume and density are None in an open system."""

    step: int
    time: float  # fs
    potential: float
    kinetic: float
    temperature: float
    volume: float | None
    density: float | None
    speed: float | None

    @property
    def total(self) -> float:
        """Potential plus kinetic energy, eV."""
        return self.potential + self.kinetic

    def to_csv(self, more: Sequence[str] = ()) -> bytes:
        """A line, with ``more`` before its last cell; energies to 1e-9 eV, so that drifts are not rounded away."""

        def cell(value: float | None, digits: int) -> str:
            return "" if value is None else f"{value:.{digits}f}"

        cells = [
            str(self.step),
            f"{self.time / 1000:.6f}",
            f"{self.potential:.9f}",
            f"{self.kinetic:.9f}",
            f"{self.total:.9f}",
            f"{self.temperature:.4f}",
            cell(self.volume, 5),
            cell(self.density, 7),
            *more,
            "" if self.speed is None else f"{self.speed:.5g}",
        ]
        return (",".join(cells) + "\n").encode()


class Recorder:
    """Writes rows, frames and checkpoints of one run."""

    def __init__(
        self,
        run: RunDirectory,
        request: MDRequest,
        structure: Structure,
        resume: Checkpoint | None,
        watch: UncertaintyWatch | None = None,
        identity: dict[str, Any] | None = None,
    ) -> None:
        """Open new files, or cut those of a run back to what its checkpoint ``resume`` knows."""
        self.run = run
        self.watch = watch
        self.identity = identity or {}
        self.request = request
        self.structure = structure
        form = trajectory_format(request, structure)
        path = run.trajectory(request.trajectory)
        if resume is None:
            self.log = AppendFile(run.log)
            self.log.append((",".join(LOG_COLUMNS if watch is None else WATCHED_COLUMNS) + "\n").encode())
            self.trajectory = Trajectory(path, form)
        else:
            self.log = AppendFile(run.log, keep=resume.log_size)
            self.trajectory = Trajectory(path, form, keep=resume.trajectory_size, frames=resume.frames)
        self.last_frame: int | None = None if resume is None else _last_multiple(resume.step, request.frame_interval)

    def row(self, step: int, seen: Observation, degrees_of_freedom: int, speed: float | None) -> LogRow:
        """What the log would say about ``seen``."""
        assert seen.energy is not None  # the driver looks fully where a row is due
        kinetic = kinetic_energy(self.structure.masses, seen.velocities)
        volume = abs(float(np.linalg.det(seen.cell))) if self.structure.periodic else None
        return LogRow(
            step=step,
            time=step * self.request.timestep,
            potential=seen.energy,
            kinetic=kinetic,
            temperature=temperature(kinetic, degrees_of_freedom),
            volume=volume,
            density=None if volume is None else density(self.structure.masses, volume),
            speed=speed,
        )

    def write_row(self, row: LogRow) -> None:
        """Append to the log."""
        self.log.append(row.to_csv(() if self.watch is None else self.watch.cells(row.step)))

    def write_frame(self, step: int, seen: Observation) -> None:
        """Append to the trajectory."""
        self.trajectory.write(self._frame(step, seen))
        self.last_frame = step

    def _frame(self, step: int, seen: Observation) -> Frame:
        return Frame(
            step=step,
            time=step * self.request.timestep,
            positions=seen.positions,
            velocities=seen.velocities,
            forces=seen.forces,
            energy=seen.energy,
            cell=seen.cell,
        )

    def checkpoint(self, step: int, seen: Observation, engine_state: bytes, seconds: float) -> None:
        """Force log and trajectory to the disk, then replace the checkpoint."""
        self.log.sync()
        self.trajectory.file.sync()
        self.run.save_checkpoint(
            Checkpoint(
                step=step,
                positions=seen.positions,
                velocities=seen.velocities,
                cell=seen.cell,
                log_size=self.log.size,
                trajectory_size=self.trajectory.file.size,
                frames=self.trajectory.frames,
                seconds=seconds,
                engine_state=engine_state,
                identity=self.identity,
            )
        )

    def write_final(self, step: int, seen: Observation) -> None:
        """``final.pdb`` to look at and ``final.extxyz`` in full precision."""
        from egnn_md.simulation.files import write_atomic, writing

        self.write_frames(self.run.final_extxyz, [(step, seen)])
        temporary = self.run.final_pdb.with_name("final.tmp.pdb")
        with writing(self.run.final_pdb):
            self.structure.with_state(seen.positions, seen.cell).write_pdb(temporary)
            write_atomic(self.run.final_pdb, temporary.read_bytes())
            temporary.unlink()

    def write_frames(self, path: Path, frames: list[tuple[int, Observation]]) -> None:
        """Replace ``path`` by frames as extended XYZ."""
        from egnn_md.simulation.files import write_atomic

        form = ExtxyzFormat(self.structure.symbols, self.structure.pbc)
        write_atomic(path, b"".join(form.encode(self._frame(step, seen)) for step, seen in frames))

    def close(self) -> None:
        """Close both files."""
        self.log.close()
        self.trajectory.file.close()


def _last_multiple(step: int, interval: int) -> int:
    return step // interval * interval


def read_log(path: Path) -> dict[str, np.ndarray]:
    """Columns of a log; empty cells are NaN. A last line that a kill cut short is left out.

    Raises:
        InputError: no such file, or not a log.
    """
    try:
        with open(path, newline="") as file:
            lines = file.read().splitlines(keepends=True)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    rows: list[dict[str, Any]] = list(csv.DictReader(lines))
    columns = tuple(lines[0].strip().split(",")) if lines else ()
    if columns not in (LOG_COLUMNS, WATCHED_COLUMNS):
        raise InputError(f"{path} is not the log of a run: its first line should be {','.join(LOG_COLUMNS)}")
    try:
        return {name: np.array([float(row[name] or "nan") for row in rows]) for name in columns}
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
