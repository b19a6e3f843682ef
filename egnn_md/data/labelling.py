"""Label structures with any ASE calculator: parallel, resumable after a kill, failures recorded.

The output is one extended XYZ file that only ever grows by whole frames. Every frame carries the
digest of the geometry it labels, so that a second run of the same command skips what is there.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from ase import Atoms
from ase.io.extxyz import write_extxyz

from egnn_md.data.calculators import make_calculator
from egnn_md.data.frames import FrameScan, scan_frames
from egnn_md.data.structures import CHARGE_KEY, total_charge
from egnn_md.data.workers import StopFlag, label_stream, stop_on_signals
from egnn_md.errors import InputError, LabellingError

ID_KEY = "structure_id"
TEACHER_KEY = "teacher"
OPTIONS_KEY = "teacher_options"
#: Characters that the comment line of an extended XYZ file would not give back as they were.
UNQUOTED = str.maketrans({'"': None, "'": None, "\\": "/"})


def structure_id(atoms: Atoms) -> str:
    """Digest of elements, positions (to 1e-6 Å), cell, periodicity and total charge: the same system, the same id.

    A charge of zero adds nothing to it, so that a neutral structure has the same id whether it says so or not.
    """
    digest = hashlib.sha256()
    digest.update(np.asarray(atoms.numbers, dtype="<i4").tobytes())
    digest.update(np.round(atoms.positions / 1e-6).astype("<i8").tobytes())
    digest.update(np.round(atoms.cell.array / 1e-6).astype("<i8").tobytes())
    digest.update(np.asarray(atoms.pbc, dtype="u1").tobytes())
    try:
        charge = str(total_charge(atoms) or "")
    except InputError:  # labelling refuses it and records that under this id
        charge = repr(atoms.info.get(CHARGE_KEY))
    if charge:
        digest.update(f"charge {charge}".encode())
    return digest.hexdigest()[:16]


@dataclass
class LabelSummary:
    """What one call of :func:`label` did."""

    labelled: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    interrupted: bool = False  #: a signal ended the call early; the same call goes on from here


def describe_options(options: dict[str, Any]) -> str:
    """Options of a reference method as one word for a comment line; empty without options."""
    return ";".join(f"{key}:{json.dumps(options[key])}" for key in sorted(options)).translate(UNQUOTED)


def label(
    structures: Iterable[Atoms],
    output: str | Path,
    method: str = "gfn2-xtb",
    *,
    options: dict[str, Any] | None = None,
    processes: int = 1,
    threads: int = 1,
    retry_failed: bool = False,
    progress: Callable[[LabelSummary], None] | None = None,
) -> LabelSummary:
    """Append the labels of ``structures`` to ``output`` (extended XYZ; eV, eV/Å, eV/Å³).

    SIGINT and SIGTERM stop it cleanly: what is being computed is finished and written, nothing new begins
    (``summary.interrupted``). A second SIGINT raises KeyboardInterrupt at once.

    Args:
        structures: any iterable; read lazily, so a generator that samples may feed it.
        output: file that grows by whole frames. ``<output>.failures.jsonl`` records what failed.
        method: a name known to :func:`egnn_md.data.calculators.make_calculator`.
        options: keyword options of that calculator.
        processes: structures labelled at the same time; 0 works inside this process, where a crash of the
            method ends everything. A process that dies (a crash inside the method)
            is a failure of the structure it worked on, and is replaced.
        threads: OpenMP threads inside each process.
        retry_failed: try again what an earlier run recorded as failed.
        progress: called after every structure that was labelled, failed or skipped.

    Returns:
        Counts of labelled, skipped (already there) and failed structures.

    Raises:
        LabellingError: ``output`` holds something that is not a label file or comes from another method,
            another process is writing to it, or it cannot be written (a full disk).
        InputError: an unknown method, or an option that it does not take.
        MissingDependencyError: the package behind the method is missing.
    """
    if processes < 0 or threads < 1:
        raise InputError(f"processes = {processes} must not be negative, and threads = {threads} at least 1")
    output = Path(output)
    options = dict(options or {})
    _try_method(method, options)
    output.parent.mkdir(parents=True, exist_ok=True)
    summary = LabelSummary()
    with _locked(output) as file, stop_on_signals() as stop:
        done = _prepare(output, file, method, options)
        failures = FailureLog(Path(f"{output}.failures.jsonl"), method)
        if retry_failed:
            failures.forget()
        done |= failures.ids()
        todo = _new_ones(structures, done, summary, stop, progress)
        for atoms, result in label_stream(todo, method, options, processes, threads, stop):
            identity = structure_id(atoms)
            if isinstance(result, Exception):  # one bad structure must not end the run
                summary.failed += 1
                summary.failures.append(failures.append(identity, result))
            else:
                result.info[ID_KEY] = identity
                result.info[TEACHER_KEY] = method.lower()
                if options:
                    result.info[OPTIONS_KEY] = describe_options(options)
                _append(file, output, result)
                summary.labelled += 1
            if progress is not None:
                progress(summary)
        summary.interrupted = stop.is_set()
    return summary


def _try_method(method: str, options: dict[str, Any]) -> None:
    """Fail now, with one message, rather than once a structure."""
    try:
        make_calculator(method, **options)
    except (TypeError, ValueError, KeyError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the reference method {method} does not take the options {options}: {error}"
        ) from error


def _new_ones(
    structures: Iterable[Atoms],
    done: set[str],
    summary: LabelSummary,
    stop: StopFlag,
    progress: Callable[[LabelSummary], None] | None,
) -> Iterator[Atoms]:
    for atoms in structures:
        if stop.is_set():
            return
        identity = structure_id(atoms)
        if identity in done:
            summary.skipped += 1
            if progress is not None:
                progress(summary)
            continue
        done.add(identity)
        yield atoms.copy()


def _append(file: TextIO, path: Path, atoms: Atoms) -> None:
    text = StringIO()
    write_extxyz(text, [atoms])
    try:
        file.write(text.getvalue())
        file.flush()
        os.fsync(file.fileno())
    except OSError as error:
        raise LabellingError(
            f"{path} cannot be written: {error}; everything before this structure is there. Make room and "
            "run the same command again"
        ) from error


@contextmanager
def _locked(path: Path) -> Iterator[TextIO]:
    """The open file, ours alone: two writers would tear each other's frames."""
    try:
        file = path.open("a")
    except OSError as error:
        raise LabellingError(f"{path} cannot be opened for writing: {error}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LabellingError(
                f"another process is labelling into {path}; wait for it, or choose another output"
            ) from error
        except OSError:  # a file system without locks: go on without
            pass
        yield file


def _prepare(path: Path, file: TextIO, method: str, options: dict[str, Any]) -> set[str]:
    """Check that the file is ours, cut an unfinished last frame, and return the ids of the complete ones."""
    scan = _scan(path)
    done: set[str] = set()
    for index, comment in enumerate(scan.comments):
        if ID_KEY not in comment:
            raise LabellingError(
                f"{path}: frame {index} has no {ID_KEY}, so it is not a file that `egnn-md label` wrote; "
                "choose another output"
            )
        wanted = {TEACHER_KEY: method.lower(), OPTIONS_KEY: describe_options(options)}
        for key, value in wanted.items():
            if comment.get(key, "") != value:
                raise LabellingError(
                    f"{path}: frame {index} has {key} {comment.get(key, '')!r}, but this run has {value!r}; "
                    "labels of different methods must not be mixed in a file: choose another output"
                )
        done.add(comment[ID_KEY])
    if scan.end < path.stat().st_size:
        file.truncate(scan.end)
    if scan.end:
        with path.open("rb") as binary:
            binary.seek(scan.end - 1)
            if binary.read(1) != b"\n":
                file.write("\n")
                file.flush()
    return done


def _scan(path: Path) -> FrameScan:
    try:
        return scan_frames(path)
    except InputError as error:
        raise LabellingError(f"{error}; move the file away or choose another output") from error


class FailureLog:
    """Structures that a method could not label: one JSON object a line.

    Args:
        path: the file; it is made when the first failure comes.
        method: failures of other methods are kept, but do not count.
    """

    def __init__(self, path: Path, method: str) -> None:
        self.path = path
        self.method = method

    def _entries(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        entries = []
        for line in self.path.read_text().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # cut short by a kill
                continue
            if isinstance(entry, dict) and ID_KEY in entry:
                entries.append(entry)
        return entries

    def ids(self) -> set[str]:
        """Ids of the structures that failed with this method."""
        return {str(e[ID_KEY]) for e in self._entries() if e.get("method") == self.method}

    def forget(self) -> None:
        """Drop this method's entries, because the structures are tried again."""
        kept = [entry for entry in self._entries() if entry.get("method") != self.method]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept))
        temporary.replace(self.path)

    def append(self, identity: str, error: Exception) -> str:
        """Record a failure and return its text."""
        message = f"{type(error).__name__}: {error}"
        entry = {ID_KEY: identity, "method": self.method, "error": message}
        whole = not self.path.exists() or self.path.read_bytes()[-1:] in (b"", b"\n")
        with self.path.open("a") as log:
            log.write(("" if whole else "\n") + json.dumps(entry) + "\n")
        return message
