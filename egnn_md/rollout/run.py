"""``egnn-md rollout``: a rollout on disk, from its start or its last checkpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from egnn_md.errors import DeviceError, InputError, OutputError
from egnn_md.rollout.directory import RolloutCheckpoint, RolloutDirectory, StartFiles, Writing, log_units
from egnn_md.rollout.engine import open_engine
from egnn_md.rollout.guards import Guards, RolloutError
from egnn_md.rollout.models import open_propagator
from egnn_md.rollout.progress import StrideProgress
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.starts import Starts, read_starts
from egnn_md.rollout.state import State
from egnn_md.rollout.stepper import Stepper, config_of
from egnn_md.rollout.topology import check_cell, make_topology, rounding_note, write_pdb
from egnn_md.rollout.units import EngineUnits, engine_units
from egnn_md.simulation.driver import now
from egnn_md.simulation.files import write_atomic, writing
from egnn_md.simulation.interrupts import Interrupts
from egnn_md.simulation.machine import machine, versions
from egnn_md.simulation.models import closing_models
from egnn_md.simulation.progress import duration, say

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class RolloutRun:
    """How a rollout ended: ``status`` finished, interrupted or failed; strides done; exit code for a shell."""

    run: RolloutDirectory
    status: str
    steps: int
    exit_code: int


def run_rollout(
    request: RolloutRequest,
    *,
    model: nn.Module | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> RolloutRun:
    """Roll out, writing as it goes.

    Args:
        request: what to do; to resume, the request that ``RolloutDirectory(path).rollout_request()`` gives.
        model: a propagator to use instead of the one that ``request.model`` names.
        resume: go on from the checkpoint in ``request.output``.
        overwrite: replace a rollout that is already there.
        console: where progress goes; standard error by default.

    Raises:
        InputError, ModelFileError, MissingDependencyError: the request cannot be done; nothing was written.
        RolloutError: a guard stopped the rollout (of several starts: at least one; the others are complete);
            everything before is on disk.
        OutputError: a file could not be written; the rollout resumes from its last checkpoint.
    """
    console = console or Console(stderr=True)
    run = RolloutDirectory(request.output)
    with Interrupts() as interrupts, closing_models() as note:
        try:
            return _Loop(request, run, model, console, interrupts, resume, overwrite, note).run()
        finally:
            run.unlock()


def _names(request: RolloutRequest) -> list[str]:
    trajectories = len(request.trajectory_index) > 1
    return [
        f"start-{index:05d}-{frame:05d}" if trajectories else f"start-{frame:05d}"
        for index in request.trajectory_index
        for frame in request.starts
    ]


class _Loop:
    def __init__(
        self,
        request: RolloutRequest,
        run: RolloutDirectory,
        model: nn.Module | None,
        console: Console,
        interrupts: Interrupts,
        resume: bool,
        overwrite: bool,
        note: Callable[[Any], Any],
    ) -> None:
        self.request, self.directory, self.console, self.interrupts = request, run, console, interrupts
        record = self._check_resumable() if resume else None
        if resume and not run.checkpoint.exists():
            overwrite, record = True, None  # killed before its first checkpoint: nothing to lose
        checkpoint = None if record is None else RolloutCheckpoint.load(run.checkpoint)
        if checkpoint is None:
            run.check_free(overwrite=overwrite)
        propagator, description = open_propagator(request, model)
        if model is None:
            note(propagator)
        self.config = config_of(propagator)
        if record is not None and record["model"]["digest"] != description["digest"]:
            raise InputError(
                f"the model {request.model} changed since the rollout in {run.path} began (digest "
                f"{description['digest'][:12]}, was {str(record['model']['digest'])[:12]}); restore it, or start a "
                "new rollout"
            )
        starts = self._starts(checkpoint, record)
        guards = Guards(
            request.max_displacement, request.min_distance, request.wall_tolerance, request.max_crowding
        )
        self.stepper = Stepper(propagator, starts.states, skin=request.skin, guards=guards, seed=request.seed)
        self.engine = open_engine(request.engine, self.stepper, starts.units)
        self.names = _names(request)
        self.step = 0 if checkpoint is None else checkpoint.step
        self.seconds = 0.0 if checkpoint is None else checkpoint.seconds
        self.checkpointed = self.step if checkpoint is not None else -1
        folders = run.folders(self.names)
        if checkpoint is None:
            self._create(folders, starts, description, overwrite)
        else:
            self.stepper.failures = list(checkpoint.failures)
            for index, memory in enumerate(checkpoint.memories):
                self.stepper.remember(index, memory)
            run.lock()
        shared = Writing(request, starts.units, self.config.stride, self.config.system)
        kept: list[dict[str, Any] | None] = [None] * len(folders) if checkpoint is None else list(checkpoint.files)
        self.files = [
            StartFiles(folder, state, shared, lengths)
            for folder, state, lengths in zip(folders, starts.states, kept, strict=True)
        ]
        self.resumed = checkpoint is not None
        self._clock = self._saved = time.perf_counter()

    def _check_resumable(self) -> dict[str, Any]:
        run, request = self.directory, self.request
        record = run.read()
        if record.get("kind") != "rollout":
            raise InputError(f"{run.path} holds no rollout")
        if record.get("status") == "failed":
            reasons = "; ".join(failure["reason"] for failure in record.get("failures", []))
            raise InputError(f"the rollout in {run.path} failed ({reasons}) and would fail again; start a new one")
        done = int(record.get("steps_done", 0))
        if record.get("status") == "finished" and done >= request.steps:
            raise InputError(f"the rollout in {run.path} is finished ({done} strides); give more with --steps")
        if done > request.steps:
            raise InputError(f"--steps {request.steps}, but {run.path} has done {done} strides; give more")
        return record

    def _starts(self, checkpoint: RolloutCheckpoint | None, record: dict[str, Any] | None) -> Starts:
        if checkpoint is not None:
            assert record is not None
            length = None if record["unit_length"] is None else float(record["unit_length"])
            return Starts(checkpoint.states, engine_units(self.config, length), None)
        starts = read_starts(self.request, self.config)
        for state in starts.states:
            if "dcd" in self.request.formats:
                check_cell(state, "--format dcd")
            elif "xtc" in self.request.formats and any(state.pbc) and not all(state.pbc):
                check_cell(state, "--format xtc")
        return starts

    def _create(self, folders: list[Any], starts: Starts, description: dict[str, Any], overwrite: bool) -> None:
        topologies = [make_topology(state, starts.units, starts.topology) for state in starts.states]
        note = rounding_note(starts.states[0], self.config, starts.units) if "xtc" in self.request.formats else None
        if note is not None:
            say(self.console, note)
        self.directory.create(overwrite=overwrite)
        units: EngineUnits = starts.units
        self.directory.write(
            {
                "kind": "rollout",
                "status": "running",
                "request": self.request.model_dump(mode="json"),
                "model": description,
                "engine": self.engine.describe(),
                "units": {**self.config.units, **log_units(units, self.config.units)},
                "unit_length": None if units.physical else units.length,
                "stride": self.config.stride,
                "starts": [
                    {
                        "folder": folder.name if len(folders) > 1 else ".",
                        "name": state.name,
                        "particles": len(state),
                        "periodic": any(state.pbc),
                        "start_time": state.start_time,
                    }
                    for folder, state in zip(folders, starts.states, strict=True)
                ],
                "versions": versions(),
                "machine": machine(self.request.device),
                "segments": [{"step": 0, "started": now()}],
                "steps_done": 0,
            }
        )
        for folder, state, topology in zip(folders, starts.states, topologies, strict=True):
            path, temporary = folder / "topology.pdb", folder / "new-topology.pdb"
            with writing(path):
                folder.mkdir(exist_ok=True)
                write_pdb(temporary, topology, state, units)
                write_atomic(path, temporary.read_bytes())
                temporary.unlink()

    def run(self) -> RolloutRun:
        """Until the end, a signal or a failure of the last start."""
        try:
            return self._run()
        except (OutputError, DeviceError) as error:
            self.directory.try_update(status="stopped", error=str(error), ended=now(), steps_done=self.step)
            raise type(error)(
                f"{error}. Everything up to step {max(self.checkpointed, 0)} is safe, and the rollout goes on from "
                f"there with\n  {self._resume_command()}"
            ) from error
        except KeyboardInterrupt:
            self.directory.try_update(status="interrupted", ended=now())
            raise
        except Exception as error:
            if not isinstance(error, RolloutError):
                self.directory.try_update(status="error", error=f"{type(error).__name__}: {error}", ended=now())
            raise
        finally:
            for files in self.files:
                files.close()

    def _resume_command(self) -> str:
        return f"egnn-md rollout --resume --output {self.directory.path}"

    def _run(self) -> RolloutRun:
        request, stepper, first = self.request, self.stepper, self.step
        if self.resumed:
            segments = [*self.directory.read()["segments"], {"step": self.step, "started": now()}]
            self.directory.update(
                status="running", segments=segments, request=request.model_dump(mode="json"), versions=versions()
            )
            say(self.console, f"resuming {self.directory.path} at step {self.step} of {request.steps}")
        else:
            for index, state in enumerate(stepper.states):
                self.files[index].write_row(state, 0.0, 0)
                self.files[index].write_frame(state)
            self._checkpoint()
        with StrideProgress(self.console, request.steps, self.step, f"rollout ({request.engine})") as progress:
            while self.step < request.steps and stepper.active and not self.interrupts.requested:
                self._stride()
                progress.update(self.step, self._status())
                if self._checkpoint_due():
                    self._checkpoint()
        if self.checkpointed != self.step:
            self._checkpoint()
        return self._finish(first)

    def _stride(self) -> None:
        request, stepper, active = self.request, self.stepper, self.stepper.active
        try:
            self.engine.advance()
        except RolloutError as error:
            if stepper.failures[0] is not error.failure:
                raise
        self.step += 1
        for index in active:
            failure, state = stepper.failures[index], stepper.states[index]
            if failure is not None:
                say(self.console, f"stopped: {failure}")
                continue
            if self.step % request.log_interval == 0:
                self.files[index].write_row(state, stepper.displacements[index], stepper.rebuilds(index))
            if self.step % request.every == 0:
                self.files[index].write_frame(state)

    def _status(self) -> str:
        stepper = self.stepper
        moved = max((stepper.displacements[index] for index in stepper.active), default=0.0)
        failed = len(stepper) - len(stepper.active)
        return f"moved {moved:.3g}" + (f", {failed} of {len(stepper)} stopped" if failed else "")

    def _checkpoint_due(self) -> bool:
        interval = self.request.checkpoint_interval
        if interval is not None and self.step % interval == 0:
            return True
        return time.perf_counter() - self._saved >= self.request.checkpoint_seconds

    def _checkpoint(self) -> None:
        self.seconds += time.perf_counter() - self._clock
        self._clock = self._saved = time.perf_counter()
        stepper = self.stepper
        checkpoint = RolloutCheckpoint(
            states=stepper.states,
            failures=stepper.failures,
            files=[files.sync() for files in self.files],
            memories=[stepper.memory(index) for index in range(len(stepper))],
            step=self.step,
            seconds=self.seconds,
        )
        write_atomic(self.directory.checkpoint, checkpoint.to_bytes())
        self.checkpointed = self.step
        self.directory.update(steps_done=self.step, seconds=self.seconds)

    def _finish(self, first: int) -> RolloutRun:
        run, stepper = self.directory, self.stepper
        failures = [failure for failure in stepper.failures if failure is not None]
        ended = self.step >= self.request.steps or not stepper.active
        status = "interrupted" if not ended else "failed" if failures else "finished"
        if ended:
            for files, state in zip(self.files, stepper.states, strict=True):
                files.write_final(state)
        run.update(
            status=status,
            ended=now(),
            strides_per_second=self.step / self.seconds if self.seconds else None,
            frames=[files.frames for files in self.files],
            rebuilds=[stepper.rebuilds(index) for index in range(len(stepper))],
            good_steps=[state.step for state in stepper.states],
            failures=[asdict(failure) for failure in failures],
        )
        if status == "interrupted":
            say(self.console, f"stopped after {self.step} strides. Continue with\n  {self._resume_command()}")
            return RolloutRun(run, status, self.step, self.interrupts.exit_code)
        if failures:
            raise RolloutError(failures[0], self._failure_message(failures))
        say(
            self.console,
            f"{self.step} strides in {run.path}: {self.step - first} now, {duration(self.seconds)} in all",
        )
        return RolloutRun(run, status, self.step, 0)

    def _failure_message(self, failures: list[Any]) -> str:
        lines = []
        for index, failure in enumerate(self.stepper.failures):
            if failure is None:
                continue
            files = self.files[index]
            where = files.folder / f"trajectory.{self.request.formats[0]}"
            lines.append(
                f"{failure} (exact state: {files.folder / 'final.extxyz'}; last frame written: {files.frames - 1} of "
                f"{where}, step {files.last_frame})"
            )
        others = len(self.stepper) - len(failures)
        more = f"\n{others} other starts are complete" if others else ""
        return "\n".join(lines) + more


def starts_of(run: RolloutDirectory) -> list[State]:
    """The last good states of a rollout on disk."""
    return RolloutCheckpoint.load(run.checkpoint).states
