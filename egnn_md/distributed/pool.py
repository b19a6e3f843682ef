"""Ranks as processes of this machine, watched: a rank that dies or hangs is told of, and replaced.

The driver takes part in no collective, so nothing that happens to a rank can hold it up: it waits for rank 0's answer,
for the end of any process, and for heartbeats that stay away.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from egnn_md import errors
from egnn_md.distributed.channel import RankLostError
from egnn_md.distributed.processes import Worker, check_memory
from egnn_md.distributed.protocol import Answer, to_bytes
from egnn_md.distributed.worker import LOST_PEER, Heartbeat
from egnn_md.errors import DeviceError

LOOK = 0.1  # seconds between two looks at the heartbeats
GRACE = 1.0  # seconds in which the others' ends are awaited once one rank is lost: the first cause is told
PATIENCE = 3  # losses of one rank in one evaluation after which its device is taken as gone
ASLEEP = 2.0  # seconds between two looks after which the one who looks was held up itself (a frozen container)
LARGE = 32_768  # bytes; what is larger may not fit into a pipe, and waits for the other end
START_LIMIT = 120.0  # seconds until all ranks have started and met


class RankLostWarning(UserWarning):
    """A rank died or hung; it was replaced, and what was lost with it is repeated."""


class DeviceLostWarning(UserWarning):
    """A device is gone for good, and the run goes on with fewer."""


class Pool:
    """Processes that serve a coordinator; see :class:`egnn_md.distributed.channel.Channel`.

    Args:
        devices: of the ranks, ``cpu`` as often as wanted.
        backend: of the collectives, ``gloo`` or ``nccl``.
        limit: seconds that one evaluation may take.
        heartbeat: seconds without a sign of life after which a rank is taken as hanging.
        threads: of torch in each rank; the cores (or OMP_NUM_THREADS, if less) are shared out if None.

    Attributes:
        recoveries: what was lost and when: (seconds lost, message).

    Raises:
        InputError: more ranks than this machine's memory can hold.
    """

    def __init__(
        self,
        devices: Sequence[str],
        *,
        backend: str = "gloo",
        limit: float = 600.0,
        heartbeat: float = 15.0,
        threads: int | None = None,
    ) -> None:
        self.devices = list(devices)
        self.backend, self.limit, self.patience = backend, limit, heartbeat
        self.threads = threads
        self.recoveries: list[tuple[float, str]] = []
        self._losses: dict[int, int] = {}
        self._workers: list[Worker] = []
        self._folder: Path | None = None
        self._heartbeat: Heartbeat | None = None
        self._began: float | None = None
        self._generation = 0
        self._asked = False  # and not answered yet
        self._process = os.getpid()
        check_memory(len(self.devices))

    @property
    def size(self) -> int:
        """P, number of ranks."""
        return len(self.devices)

    @property
    def pids(self) -> list[int]:
        """Process numbers by rank; empty before the first call."""
        return [worker.process.pid for worker in self._workers]

    def open(self) -> int:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        if self._process != os.getpid():  # a fork: the ranks are the parent's
            self._process, self._workers, self._folder, self._asked = os.getpid(), [], None, False
        if self._asked:  # Ctrl-C, say: what they were asked then must not be taken for the answer to what comes now
            self._stop()
        if not self._workers:
            self._start()
        return self._generation

    def step(self, frame: Tensor) -> Answer:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        answer = self._ask(("step", frame.numpy()))
        assert answer is not None
        return answer

    def message(self, message: dict[str, Any]) -> Answer | None:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        return self._ask(("message", to_bytes(message).numpy()))

    def succeeded(self) -> None:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        self._losses.clear()
        if self._began is not None:
            self.recoveries[-1] = (time.monotonic() - self._began, self.recoveries[-1][1])
            self._began = None

    def recover(self, error: RankLostError) -> None:
        """New processes with the same devices, or without one that was lost again and again."""
        self._stop()
        if self._began is None:
            self._began = time.monotonic()
        self.recoveries.append((0.0, str(error)))
        for rank in error.ranks:
            self._losses[rank] = self._losses.get(rank, 0) + 1
        gone = [rank for rank, count in self._losses.items() if count >= PATIENCE]
        if gone and len(self.devices) > len(gone):
            names = ", ".join(f"{self.devices[rank]} (rank {rank})" for rank in gone)
            self.devices = [device for rank, device in enumerate(self.devices) if rank not in gone]
            self._losses.clear()
            warnings.warn(
                f"{names} was lost {PATIENCE} times in one evaluation and is taken as gone; going on with "
                f"{len(self.devices)} of {len(self.devices) + len(gone)} ranks. Last loss: {error}",
                DeviceLostWarning,
                stacklevel=2,
            )
        elif gone or sum(self._losses.values()) >= PATIENCE * max(len(self.devices), 1):
            self.close()
            raise DeviceError(
                f"the ranks were lost again and again, and there is none to go on with. Last loss: {error}"
            ) from error
        elif not error.ranks and len(self.recoveries) >= PATIENCE and all(
            not entry[0] for entry in self.recoveries[-PATIENCE:]
        ):
            self.close()
            raise DeviceError(f"{PATIENCE} attempts failed one after another. Last one: {error}") from error
        else:
            warnings.warn(
                f"{error}\nAll ranks are started again and the evaluation is repeated.", RankLostWarning, stacklevel=2
            )

    def close(self) -> None:
        """End the processes; another call starts new ones."""
        if self._process != os.getpid():
            return
        if self._workers and not self._asked and all(worker.process.poll() is None for worker in self._workers):
            try:
                self._workers[0].channel.send(("stop", None))
                for worker in self._workers:
                    worker.process.wait(timeout=GRACE)
            except (OSError, subprocess.TimeoutExpired):
                pass  # _stop kills what is left
        self._stop()

    def _stop(self) -> None:
        for worker in self._workers:
            worker.end()
        self._workers, self._asked = [], False
        self._heartbeat = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None

    def __del__(self) -> None:
        if getattr(self, "_workers", None) and self._process == os.getpid():
            self._stop()

    def _start(self) -> None:
        self._generation += 1
        self._folder = Path(tempfile.mkdtemp(prefix="egnn-md-ranks-"))
        self._heartbeat = Heartbeat(self._folder / "heartbeat", self.size)
        self._heartbeat.times[:] = time.monotonic()
        cores = len(os.sched_getaffinity(0))
        threads = self.threads or max(1, min(_threads_wanted(cores), cores // max(self.size, 1)))
        options = {
            "size": self.size,
            "folder": str(self._folder),
            "backend": self.backend,
            "limit": self.limit,
            "threads": threads,
        }
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        }
        self._workers = [
            Worker(rank, device, self._folder, options, environment) for rank, device in enumerate(self.devices)
        ]
        self._await("ready", self._workers, START_LIMIT, silence=False)

    def _ask(self, request: tuple[str, Any]) -> Answer | None:
        self.open()
        self._asked = True
        with self._watching(self._workers[0], request[1].nbytes):
            try:
                self._workers[0].channel.send(request)
            except OSError:
                raise self._lost(None) from None
            (found,) = self._await("done", self._workers[:1], self.limit)
        self._asked = False
        if found is None:
            return None
        rows, totals, reports = found
        return Answer(
            torch.from_numpy(rows),
            {name: torch.from_numpy(np.asarray(value)) for name, value in totals.items()},
            torch.from_numpy(reports),
        )

    @contextmanager
    def _watching(self, worker: Worker, size: int) -> Iterator[None]:
        """Ends a worker that falls silent while so many bytes are written to it, or read: a pipe has no time limit."""
        if size < LARGE:
            yield
            return
        heartbeat, over, begin = self._heartbeat, threading.Event(), time.monotonic()
        assert heartbeat is not None

        def watch() -> None:
            since = looked = begin
            while not over.wait(LOOK):
                now = time.monotonic()
                since, looked = (now if now - looked > ASLEEP else since), now
                # later than those who look between two messages, and who are there to see it as a rule
                if heartbeat.silence(worker.rank, since) > self.patience + 1.0:
                    worker.ended = f"gave no sign of life for {self.patience:g} s"
                elif now - begin > self.limit + 1.0:
                    worker.ended = f"gave no answer within the time limit of {self.limit:g} s"
                if worker.ended:
                    worker.process.kill()
                    return

        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _await(self, kind: str, wanted: Sequence[Worker], limit: float, *, silence: bool = True) -> list[Any]:
        """What every one of ``wanted`` says under the name ``kind``; ``silence`` heeds missing heartbeats."""
        assert self._heartbeat is not None
        found: dict[int, Any] = {}
        since = looked = time.monotonic()
        end = since + limit
        while len(found) < len(wanted):
            for channel in wait([worker.channel for worker in self._workers], timeout=LOOK):
                worker = next(w for w in self._workers if w.channel is channel)
                try:
                    said = worker.channel.recv()
                except (EOFError, OSError):
                    raise self._lost(None) from None
                if said[0] == "failed":
                    worker.failure = said[1:]
                    raise self._lost(None)
                if said[0] == kind:
                    found[worker.rank] = said[1]
            # libraries that are being loaded hold up the thread that beats
            now = time.monotonic()
            since, looked = (now if now - looked > ASLEEP else since), now
            silent = [w.rank for w in self._workers if self._heartbeat.silence(w.rank, since) > self.patience]
            if silence and silent and len(found) < len(wanted):
                raise self._lost(f"gave no sign of life for {self.patience:g} s", silent)
            if now > end and len(found) < len(wanted):
                raise self._lost(f"no answer within the time limit of {limit:g} s", [])
        return [found[worker.rank] for worker in wanted]

    def _lost(self, reason: str | None, ranks: Sequence[int] = ()) -> RankLostError:
        """The error that tells what happened to which rank, and its last words; raises one that no retry mends."""
        end = time.monotonic() + GRACE
        while reason is None and time.monotonic() < end:
            self._listen()
            if any(w.process.poll() not in (None, LOST_PEER) or self._is_cause(w) for w in self._workers):
                break
            time.sleep(0.02)
        time.sleep(0.05)  # a cause and its consequences come together
        self._listen()
        for worker in self._workers:
            if worker.failure is not None and worker.failure[0] != "lost":
                failure = worker.failure
                log = worker.last_words()
                self._stop()
                raise _final_error(worker.rank, self.size, worker.device, failure, log)
        causes = [w for w in self._workers if w.rank in ranks] if reason else [
            w for w in self._workers if w.process.poll() not in (None, 0, LOST_PEER)
        ]
        if not causes and reason is None:
            causes = [w for w in self._workers if w.process.poll() is not None][:1]
        told = [
            f"rank {w.rank} of {self.size} ({w.device}) {w.ended or reason or _end(w.process.poll())}" for w in causes
        ]
        text = "; ".join(told) or f"{self.size} ranks: {reason or 'the connection was lost'}"
        words = [w.last_words() for w in causes if w.last_words()]
        if words:
            text += "; last lines of its log:\n" + "\n".join(words)
        return RankLostError(text, [w.rank for w in causes])

    def _is_cause(self, worker: Worker) -> bool:
        return worker.failure is not None and worker.failure[0] != "lost"

    def _listen(self) -> None:
        for worker in self._workers:
            try:
                while worker.failure is None and worker.channel.poll():
                    said = worker.channel.recv()
                    if said[0] == "failed":
                        worker.failure = said[1:]
            except (EOFError, OSError):
                continue


def _threads_wanted(cores: int) -> int:
    """What OMP_NUM_THREADS says, all cores if it says nothing usable."""
    said = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return int(said) if said.isdigit() and int(said) > 0 else cores


def _end(code: int | None) -> str:
    if code is None:
        return "stopped answering"
    if code < 0:
        name = signal.Signals(-code).name
        hint = " (the system may have run out of memory)" if -code == signal.SIGKILL else ""
        return f"was ended by {name}{hint}"
    return f"ended with exit code {code}"


def _final_error(rank: int, size: int, device: str, failure: tuple[str, str, str], words: str) -> Exception:
    kind, name, text = failure
    place = f"rank {rank} of {size} ({device})"
    if kind == "memory":
        return DeviceError(
            f"{place} ran out of memory when it asked for {text} more; use more devices, a smaller system or float32"
        )
    found = getattr(errors, name, None)
    if isinstance(found, type) and issubclass(found, errors.EgnnMdError):
        return found(f"{place}: {text}")
    return DeviceError(f"{place} failed with {name}: {text}; last lines of its log:\n{words}")
