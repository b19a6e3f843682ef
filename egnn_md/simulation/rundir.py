"""The directory of a run: what is in it, and how it is created, locked and resumed."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import os
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from egnn_md.errors import InputError, OutputError
from egnn_md.simulation.files import keep_as, write_atomic, write_json, writing
from egnn_md.simulation.request import MDRequest

FORMAT = 1  # of run.json
CHECKPOINT_FORMAT = 2  # since 2 a file ends with the digest of all before it
SEAL = b"\negnn-md sha256 "
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
        identity: what the run was begun with and must go on with: digests of model and system, time step, ensemble.
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
    identity: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """An ``.npz`` without pickles, sealed by a digest."""
        buffer = io.BytesIO()
        arrays = {k: v for k, v in vars(self).items() if k not in ("engine_state", "identity")}
        np.savez(
            buffer,
            format=CHECKPOINT_FORMAT,
            **arrays,
            engine_state=np.frombuffer(self.engine_state, dtype=np.uint8),
            identity=np.array(json.dumps(self.identity)),
        )
        return _sealed(buffer.getvalue())

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. Raises InputError if it is damaged or of a newer format."""
        try:
            content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read as a checkpoint: {error.strerror or error}") from error
        inner, sound = _unsealed(content)
        if sound is False:
            raise InputError(f"{path} cannot be read as a checkpoint: it was cut short or changed (its digest differs)")
        try:
            with np.load(io.BytesIO(inner), allow_pickle=False) as archive:
                form = int(archive["format"])
                if form > CHECKPOINT_FORMAT:
                    raise InputError(f"{path} was written by a newer egnn-md; {UPDATE}")
                if form >= 2 and sound is None:
                    raise ValueError("the digest at its end is missing")
                values: dict[str, Any] = {
                    name: archive[name] for name in cls.__dataclass_fields__ if name != "identity" or form >= 2
                }
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read as a checkpoint: {error}") from error
        for name in ("step", "log_size", "trajectory_size", "frames"):
            values[name] = int(values[name])
        values["seconds"] = float(values["seconds"])
        values["engine_state"] = values["engine_state"].tobytes()
        values["identity"] = json.loads(str(values["identity"])) if "identity" in values else {}
        return cls(**values)


def _sealed(content: bytes) -> bytes:
    return content + SEAL + hashlib.sha256(content).hexdigest().encode()


def _unsealed(content: bytes) -> tuple[bytes, bool | None]:
    """What was sealed, and whether it is unchanged: None for a file without a seal (older, or cut short)."""
    start = len(content) - len(SEAL) - 64
    if start < 0 or content[start : start + len(SEAL)] != SEAL:
        return content, None
    inner = content[:start]
    return inner, hashlib.sha256(inner).hexdigest().encode() == content[-64:]


class RunDirectory:
    """Paths and records of one run. Making the object touches nothing on disk."""

    command = "egnn-md md"  #: what its user calls to go on

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.record = self.path / "run.json"
        self.log = self.path / "log.csv"
        self.checkpoint = self.path / "checkpoint.npz"
        self.previous_checkpoint = self.path / "checkpoint.previous.npz"
        self.structure = self.path / "structure.npz"
        self.topology = self.path / "topology.pdb"
        self.final_pdb = self.path / "final.pdb"
        self.final_extxyz = self.path / "final.extxyz"
        self.failure = self.path / "failure.extxyz"
        self.uncertain = self.path / "uncertain.extxyz"
        self._lock_path = self.path / "run.lock"
        self._lock: int | None = None

    @property
    def onward(self) -> str:
        """Option with which a new run begins where this one ended."""
        return f"--continue-from {self.path}"

    def trajectory(self, suffix: str) -> Path:
        """Path of the trajectory in the given format."""
        return self.path / f"trajectory.{suffix}"

    def _own_files(self) -> list[Path]:
        trajectories = [self.trajectory(suffix) for suffix in ("dcd", "xtc", "extxyz")]
        files = [self.record, self.log, self.checkpoint, self.previous_checkpoint, self.structure, self.topology]
        return [*files, self.final_pdb, self.final_extxyz, self.failure, self.uncertain, *trajectories]

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

    def common_request(self) -> MDRequest:
        """What a report needs to know of a run, also of one that another command made with options of its own."""
        asked = {name: value for name, value in self.read()["request"].items() if name in MDRequest.model_fields}
        return MDRequest.parse({**asked, "output": self.path})

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
        """Replace the checkpoint atomically, keeping the one before; log and trajectory must be synced first."""
        if self.checkpoint.exists():
            with writing(self.previous_checkpoint):
                keep_as(self.checkpoint, self.previous_checkpoint)
        write_atomic(self.checkpoint, checkpoint.to_bytes())

    def load_checkpoint(self) -> tuple[Checkpoint, str | None]:
        """The last checkpoint, or, if that is damaged, the one before it and what is wrong with the last.

        Raises:
            InputError: neither can be read.
        """
        try:
            return Checkpoint.load(self.checkpoint), None
        except InputError as error:
            if not self.previous_checkpoint.exists():
                raise
            try:
                return Checkpoint.load(self.previous_checkpoint), str(error)
            except InputError as second:
                raise InputError(f"{error}, and so is the one before it: {second}") from error
