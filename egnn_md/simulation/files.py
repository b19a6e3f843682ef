"""Files that survive a kill: atomic replacement, and append-only files that can be cut back."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from egnn_md.errors import InputError, OutputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an OSError inside the block into an OutputError that names the file and the remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            what = "the disk is full" if error.errno == errno.ENOSPC else f"{error.strerror}"
            raise OutputError(f"cannot write {path}: {what}; free some space") from error
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` durable."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_atomic(path: Path, data: bytes) -> None:
    """Replace ``path`` by ``data``: a reader, or a kill at any moment, sees the old or the new file whole.

    Raises OutputError; the old file is then untouched.
    """
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
            sync_directory(path.parent)
        except OSError:
            temporary.unlink(missing_ok=True)
            raise


def keep_as(path: Path, other: Path) -> None:
    """Let ``other`` hold what ``path`` holds now, at every moment one of the two whole; ``path`` stays."""
    temporary = other.with_name(other.name + ".tmp")
    temporary.unlink(missing_ok=True)
    try:
        os.link(path, temporary)
    except OSError:  # a file system without hard links
        write_atomic(other, path.read_bytes())
        return
    os.replace(temporary, other)


@contextmanager
def locked(path: Path, busy: str) -> Iterator[None]:
    """Keep every other process that locks ``path`` out inside the block; its directory is made.

    Raises:
        InputError: another process is there: ``busy`` says doing what.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is {busy} in {path.parent}; wait for it or stop it first") from None
        except OSError:  # a file system without locks: better unlocked than not at all
            pass
        yield
    finally:
        os.close(handle)


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Atomically write ``value`` as readable JSON."""
    write_atomic(path, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


class AppendFile:
    """A file that grows by whole records and can be cut back to a recorded length.

    Records go straight to the operating system, so a SIGKILL loses none that were written; ``sync`` makes
    them survive a power failure too. A record that could not be written whole is removed again.
    """

    def __init__(self, path: Path, *, keep: int | None = None) -> None:
        """Open ``path``: new if ``keep`` is None, else cut back to its first ``keep`` bytes.

        Raises:
            InputError: the file is missing or shorter than ``keep``.
            OutputError: it cannot be opened for writing.
        """
        self.path = path
        if keep is not None:
            if not path.is_file():
                raise InputError(f"{path} is missing, so this run cannot be resumed")
            if path.stat().st_size < keep:
                raise InputError(
                    f"{path} holds {path.stat().st_size} bytes, but the checkpoint knows of {keep}; "
                    "the file was changed and the run cannot be resumed"
                )
        with writing(path):
            flags = os.O_RDWR | (os.O_CREAT | os.O_TRUNC if keep is None else 0)
            self._handle = os.open(path, flags, 0o644)
            if keep is not None:
                os.ftruncate(self._handle, keep)
        self.size = 0 if keep is None else keep

    def append(self, data: bytes) -> None:
        """Write one record at the end. Raises OutputError and leaves the file as it was if that fails."""
        with writing(self.path):
            try:
                self._write_all(data, self.size)
            except OSError:
                os.ftruncate(self._handle, self.size)
                raise
        self.size += len(data)

    def overwrite(self, data: bytes, offset: int) -> None:
        """Replace bytes that are already there (a header's frame count)."""
        with writing(self.path):
            self._write_all(data, offset)

    def _write_all(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._handle, view, offset)
            view, offset = view[written:], offset + written

    def sync(self) -> None:
        """Force everything to the disk."""
        with writing(self.path):
            os.fsync(self._handle)

    def close(self) -> None:
        """Close the file; calling it again does nothing."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1
