"""The directory of a run: what is in it, and how it is created, locked and resumed."""

from __future__ import annotations

import fcntl
import io
import json
import os
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np

from egnn_md.errors import InputError, OutputError
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.request import MDRequest

FORMAT = 1  # of run.json and the checkpoint
UPDATE = "update with pip install -U egnn-md"


@dataclass(frozen=True)
class Checkpoint:
    """Everything that a run needs to go on as if it had never stopped.

    Attributes:
        step: steps done.
        positions, velocities, cell: (N, 3) Å, (N, 3) Å/fs, (3, 3) Å.
        log_size, trajectory_size, frames: bytes of the two files, and frames, that belong to this moment.
        seconds: wall time that the steps took.
        engine_state: the engine's own state, random numbers included.
    """

    step: int
    positions: np.ndarray
    velocities: np.ndarray
    cell: np.ndarray
    log_size: int
    trajectory_size: int
    frames: int
    seconds: float
    engine_state: bytes

    def to_bytes(self) -> bytes:
        """An ``.npz`` without pickles."""
        buffer = io.BytesIO()
        np.savez(
            buffer,
            format=FORMAT,
            **{name: value for name, value in vars(self).items() if name != "engine_state"},
            engine_state=np.frombuffer(self.engine_state, dtype=np.uint8),
        )
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. Raises InputError if it is damaged or of a newer format."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                if int(archive["format"]) > FORMAT:
                    raise InputError(f"{path} was written by a newer egnn-md; {UPDATE}")
                values: dict[str, Any] = {name: archive[name] for name in cls.__dataclass_fields__}
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
        for name in ("step", "log_size", "trajectory_size", "frames"):
            values[name] = int(values[name])
        values["seconds"] = float(values["seconds"])
        values["engine_state"] = values["engine_state"].tobytes()
        return cls(**values)


class RunDirectory:
    """Paths and records of one run. Making the object touches nothing on disk."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.record = self.path / "run.json"
        self.log = self.path / "log.csv"
        self.checkpoint = self.path / "checkpoint.npz"
        self.structure = self.path / "structure.npz"
        self.topology = self.path / "topology.pdb"
        self.final_pdb = self.path / "final.pdb"
        self.final_extxyz = self.path / "final.extxyz"
        self.failure = self.path / "failure.extxyz"
        self._lock_path = self.path / "run.lock"
        self._lock: int | None = None

    def trajectory(self, suffix: str) -> Path:
        """Path of the trajectory in the given format."""
        return self.path / f"trajectory.{suffix}"

    def _own_files(self) -> list[Path]:
        trajectories = [self.trajectory(suffix) for suffix in ("dcd", "xtc", "extxyz")]
        files = [self.record, self.log, self.checkpoint, self.structure, self.topology]
        return [*files, self.final_pdb, self.final_extxyz, self.failure, *trajectories]

    def check_free(self, *, overwrite: bool) -> None:
        """Raise InputError if a new run must not be written here."""
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"--output {self.path} is a file; give a directory")
        if not self.path.is_dir():
            return
        others = [p for p in self.path.iterdir() if p != self._lock_path]
        if self.record.exists() and not overwrite:
            raise InputError(
                f"--output {self.path} already holds a run; continue it with --resume, replace it with "
                "--overwrite, or give another directory"
            )
        if others and not self.record.exists():
            raise InputError(
                f"--output {self.path} is not empty and holds no run ({others[0].name}, ...); give a new directory"
            )

    def create(self, *, overwrite: bool = False) -> None:
        """Make the directory and lock it; with ``overwrite`` the files of an old run go (and no others)."""
        self.check_free(overwrite=overwrite)
        with writing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        self.lock()
        for path in self._own_files():
            path.unlink(missing_ok=True)

    def lock(self) -> None:
        """Keep every other process from writing here until this one ends.

        Raises:
            InputError: another process is running in this directory.
        """
        if self._lock is not None:
            return
        with writing(self._lock_path):
            handle = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise InputError(f"another process is running in {self.path}; wait for it or stop it first") from None
        except OSError:  # a file system without locks: better unlocked than not at all
            os.close(handle)
            return
        self._lock = handle

    def unlock(self) -> None:
        """Let others in; calling it again does nothing."""
        if self._lock is not None:
            self._lock_path.unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def read(self) -> dict[str, Any]:
        """The run record. Raises InputError if there is none, or it is damaged or newer."""
        try:
            record = json.loads(self.record.read_text())
        except FileNotFoundError:
            raise InputError(f"{self.path} is no run directory: it holds no run.json") from None
        except (OSError, ValueError) as error:
            raise InputError(f"{self.record} cannot be read: {error}") from error
        if not isinstance(record, dict) or not isinstance(record.get("request"), dict):
            raise InputError(f"{self.record} is not the record of a run")
        if int(record.get("format", 0)) > FORMAT:
            raise InputError(f"{self.record} was written by a newer egnn-md; {UPDATE}")
        return record

    def request(self) -> MDRequest:
        """The request of the run that is stored here, with this directory as its output."""
        return MDRequest.parse({**self.read()["request"], "output": self.path})

    def write(self, record: dict[str, Any]) -> None:
        """Replace the run record atomically."""
        write_json(self.record, {"format": FORMAT, **record})

    def update(self, **changes: Any) -> None:
        """Change entries of the run record."""
        self.write({**self.read(), **changes})

    def try_update(self, **changes: Any) -> None:
        """``update``, but a full disk is no error (used while reporting one)."""
        try:
            self.update(**changes)
        except OutputError:
            return

    def save_checkpoint(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint atomically; log and trajectory must be synced before."""
        write_atomic(self.checkpoint, checkpoint.to_bytes())
