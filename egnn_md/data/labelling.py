"""Label structures with any ASE calculator: parallel, resumable after a kill, failures recorded.

The output is one extended XYZ file that only ever grows by whole frames. Every frame carries the
digest of the geometry it labels, so that a second run of the same command skips what is there.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.extxyz import write_extxyz

from egnn_md.data.calculators import make_calculator
from egnn_md.errors import LabellingError

ID_KEY = "structure_id"
TEACHER_KEY = "teacher"


def structure_id(atoms: Atoms) -> str:
    """Digest of elements, positions (to 1e-6 Å), cell and periodicity: the same geometry, the same id."""
    digest = hashlib.sha256()
    digest.update(np.asarray(atoms.numbers, dtype="<i4").tobytes())
    digest.update(np.round(atoms.positions / 1e-6).astype("<i8").tobytes())
    digest.update(np.round(atoms.cell.array / 1e-6).astype("<i8").tobytes())
    digest.update(np.asarray(atoms.pbc, dtype="u1").tobytes())
    return digest.hexdigest()[:16]


@dataclass
class LabelSummary:
    """What one call of :func:`label` did."""

    labelled: int = 0
    skipped: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)


def _start_worker(threads: int) -> None:
    """One thread a process unless asked otherwise: parallel structures beat parallel loops inside one."""
    os.environ["OMP_NUM_THREADS"] = str(threads)


def _label_one(atoms: Atoms, method: str, options: dict[str, Any]) -> Atoms:
    calculator = make_calculator(method, **options)
    work = atoms.copy()
    work.calc = calculator
    energy = float(work.get_potential_energy())
    forces = work.get_forces()
    results: dict[str, Any] = {"energy": energy, "forces": forces}
    if work.pbc.all() and "stress" in calculator.implemented_properties:
        results["stress"] = work.get_stress()
    for name, value in results.items():
        if not np.all(np.isfinite(value)):
            raise LabellingError(f"{method} returned a {name} that is not finite")
    labelled = atoms.copy()
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled


def _repair_tail(path: Path) -> set[str]:
    """Cut an unfinished last frame (a kill in mid-write) and return the ids of the complete ones."""
    if not path.exists():
        return set()
    done: set[str] = set()
    good_end = 0
    with path.open("rb") as file:
        while True:
            header = file.readline()
            if not header.strip():
                break
            try:
                count = int(header)
            except ValueError as error:
                raise LabellingError(
                    f"{path}: byte {good_end} should start a frame but holds {header[:40]!r}; "
                    "move the file away or choose another output"
                ) from error
            comment = file.readline().decode()
            lines = [file.readline() for _ in range(count)]
            if not lines[-1].endswith(b"\n"):
                break
            good_end = file.tell()
            for word in comment.split():
                if word.startswith(f"{ID_KEY}="):
                    done.add(word.removeprefix(f"{ID_KEY}="))
    if good_end < path.stat().st_size:
        with path.open("r+b") as file:
            file.truncate(good_end)
    return done


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

    Args:
        structures: any iterable; read lazily, so a generator that samples may feed it.
        output: file that grows by whole frames. ``<output>.failures.jsonl`` records what failed.
        method: a name known to :func:`egnn_md.data.calculators.make_calculator`.
        options: keyword options of that calculator.
        processes: structures labelled at the same time.
        threads: OpenMP threads inside each process.
        retry_failed: try again what an earlier run recorded as failed.
        progress: called after every finished structure.

    Returns:
        Counts of labelled, skipped (already there) and failed structures.

    Raises:
        LabellingError: ``output`` holds something that is not a label file.
    """
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    failure_log = Path(f"{output}.failures.jsonl")
    options = dict(options or {})
    done = _repair_tail(output)
    if failure_log.exists() and not retry_failed:
        done |= {json.loads(line)[ID_KEY] for line in failure_log.read_text().splitlines() if line}
    summary = LabelSummary()
    context = multiprocessing.get_context("spawn")
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the spawned children when they load OpenMP
    try:
        with (
            ProcessPoolExecutor(
                processes, mp_context=context, initializer=_start_worker, initargs=(threads,)
            ) as pool,
            output.open("a") as file,
        ):
            for atoms, future in _bounded(pool, structures, done, summary, method, options, processes):
                try:
                    labelled = future.result()
                except Exception as error:  # one bad structure must not end the run: recorded, then skipped
                    summary.failed += 1
                    message = f"{type(error).__name__}: {error}"
                    summary.failures.append(message)
                    with failure_log.open("a") as log:
                        log.write(
                            json.dumps({ID_KEY: structure_id(atoms), "method": method, "error": message}) + "\n"
                        )
                else:
                    labelled.info[ID_KEY] = structure_id(atoms)
                    labelled.info[TEACHER_KEY] = method.lower()
                    text = StringIO()
                    write_extxyz(text, [labelled])
                    file.write(text.getvalue())
                    file.flush()
                    os.fsync(file.fileno())
                    summary.labelled += 1
                if progress is not None:
                    progress(summary)
    finally:
        if inherited is None:
            del os.environ["OMP_NUM_THREADS"]
        else:
            os.environ["OMP_NUM_THREADS"] = inherited
    return summary


def _bounded(
    pool: ProcessPoolExecutor,
    structures: Iterable[Atoms],
    done: set[str],
    summary: LabelSummary,
    method: str,
    options: dict[str, Any],
    processes: int,
) -> Iterator[tuple[Atoms, Future[Atoms]]]:
    """Keep a few structures in flight, so that a generator is not drained into memory."""
    waiting: dict[Future[Atoms], Atoms] = {}
    for atoms in structures:
        identity = structure_id(atoms)
        if identity in done:
            summary.skipped += 1
            continue
        done.add(identity)
        bare = atoms.copy()
        waiting[pool.submit(_label_one, bare, method, options)] = bare
        if len(waiting) >= 2 * processes:
            finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
            for future in finished:
                yield waiting.pop(future), future
    while waiting:
        finished, _ = wait(waiting, return_when=FIRST_COMPLETED)
        for future in finished:
            yield waiting.pop(future), future
