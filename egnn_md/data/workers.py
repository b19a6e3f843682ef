"""Worker processes for labelling, each with its own queue, so that a death names its structure."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egnn_md.data.calculators import make_calculator, set_total_charge
from egnn_md.data.structures import CHARGE_KEY, total_charge
from egnn_md.errors import LabellingError

QUEUE_DEPTH = 2  # one that is computed and one that waits: no pause while the parent samples or writes
StopFlag = threading.Event


@contextmanager
def stop_on_signals() -> Iterator[StopFlag]:
    """A flag that SIGINT and SIGTERM set; a second SIGINT raises. Earlier handlers are given back."""
    flag = StopFlag()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def stop(number: int, frame: Any) -> None:
        if flag.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _start_worker() -> None:
    """Leave Ctrl-C to the parent, and do not outlive it (a killed parent cannot say goodbye)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def label_one(atoms: Atoms, method: str, options: dict[str, Any]) -> Atoms:
    """``atoms`` with energy, forces and, in a full cell, stress of the reference method.

    A total charge (``info["charge"]`` or the initial charges) is what the method computes, and stands in ``info``.

    Raises:
        LabellingError: the method returned a value that is not finite.
        InputError: the total charge is no whole number, or the method cannot have it.
    """
    calculator = make_calculator(method, **options)
    named = CHARGE_KEY in atoms.info or atoms.has("initial_charges")
    charge = set_total_charge(calculator, method, total_charge(atoms) if named else None)
    work = atoms.copy()
    work.calc = calculator
    energy = float(work.get_potential_energy())
    forces = np.array(work.get_forces())
    results: dict[str, Any] = {"energy": energy, "forces": forces}
    if work.pbc.all() and "stress" in calculator.implemented_properties:
        results["stress"] = np.array(work.get_stress())
    for name, value in results.items():
        if not np.all(np.isfinite(value)):
            raise LabellingError(f"{method} returned a {name} that is not finite")
    labelled = atoms.copy()
    if charge:
        labelled.info[CHARGE_KEY] = charge
    labelled.calc = SinglePointCalculator(labelled, **results)
    return labelled


class _Slot:
    """One worker process and what was given to it, in order."""

    def __init__(self, method: str, options: dict[str, Any]) -> None:
        self.method = method
        self.options = options
        self.jobs: deque[tuple[Atoms, Future[Atoms]]] = deque()
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pool = ProcessPoolExecutor(1, mp_context=context, initializer=_start_worker)
        self.greeting = self.pool.submit(os.getpid)

    def check_started(self) -> None:
        """Wait for a sign of life, so that a worker that cannot even start is not taken for a bad structure.

        Raises:
            LabellingError
        """
        try:
            self.greeting.result()
        except BrokenProcessPool as error:
            raise LabellingError(
                "worker processes die while they start; a script that calls label() needs the guard "
                "`if __name__ == '__main__':` around it"
            ) from error

    def submit(self, atoms: Atoms) -> None:
        self.jobs.append((atoms, self._send(atoms)))

    def _send(self, atoms: Atoms) -> Future[Atoms]:
        try:
            return self.pool.submit(label_one, atoms, self.method, self.options)
        except BrokenProcessPool:  # it died while nothing was waiting for it
            self._restart()
            return self.pool.submit(label_one, atoms, self.method, self.options)

    def _restart(self) -> None:
        self.pool.shutdown(wait=False)
        self._start()
        self.check_started()

    def finished(self) -> Iterator[tuple[Atoms, Atoms | Exception]]:
        """Results of jobs that are over. After a death the oldest one is at fault; the rest is sent again."""
        while self.jobs and self.jobs[0][1].done():
            atoms, future = self.jobs.popleft()
            if future.cancelled():
                continue
            result: Atoms | Exception
            try:
                result = future.result()
            except CancelledError:
                continue
            except BrokenProcessPool:
                self._restart()
                waiting = [job for job, _ in self.jobs]
                self.jobs = deque((job, self._send(job)) for job in waiting)
                result = LabellingError(
                    f"the process that ran {self.method} died (a crash inside the method, or out of memory)"
                )
            except Exception as error:
                result = error
            yield atoms, result

    def drop_waiting(self) -> None:
        """Take back what has not begun."""
        for _, future in self.jobs:
            future.cancel()


def _inside(
    structures: Iterator[Atoms], method: str, options: dict[str, Any], stop: StopFlag
) -> Iterator[tuple[Atoms, Atoms | Exception]]:
    for atoms in structures:
        result: Atoms | Exception
        try:
            result = label_one(atoms, method, options)
        except Exception as error:
            result = error
        yield atoms, result
        if stop.is_set():
            return


def label_stream(
    structures: Iterator[Atoms],
    method: str,
    options: dict[str, Any],
    processes: int,
    threads: int,
    stop: StopFlag,
) -> Iterator[tuple[Atoms, Atoms | Exception]]:
    """Pairs of a structure and its labelled copy (or what went wrong), as they finish.

    Once ``stop`` is set nothing new is begun; what is being computed is still given.
    """
    if processes == 0:
        yield from _inside(structures, method, options, stop)
        return
    first = next(structures, None)
    if first is None or stop.is_set():
        return  # starting processes takes seconds: not for nothing
    structures = chain([first], structures)
    inherited = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read by the spawned children when they load OpenMP
    slots = [_Slot(method, options) for _ in range(processes)]
    exhausted = False
    try:
        for slot in slots:
            slot.check_started()
        while True:
            while not exhausted and not stop.is_set():
                slot = min(slots, key=lambda s: len(s.jobs))
                if len(slot.jobs) >= QUEUE_DEPTH:
                    break
                atoms = next(structures, None)
                if atoms is None:
                    exhausted = True
                else:
                    slot.submit(atoms)
            if stop.is_set():
                for slot in slots:
                    slot.drop_waiting()
            pending = [slot.jobs[0][1] for slot in slots if slot.jobs]
            if not pending:
                return
            wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
            for slot in slots:
                yield from slot.finished()
    finally:
        for slot in slots:
            slot.drop_waiting()
            slot.pool.shutdown(wait=True, cancel_futures=True)
        if inherited is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = inherited
