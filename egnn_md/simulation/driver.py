"""The loop of a run, the same for every engine: step, look, write, checkpoint, stop cleanly."""

from __future__ import annotations

import math
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console

from egnn_md.errors import DeviceError, OutputError, SimulationError
from egnn_md.simulation.constraints import degrees_of_freedom
from egnn_md.simulation.engine import Engine, EngineError, EngineFactory, Observation
from egnn_md.simulation.guards import GuardError, Guards, Instant
from egnn_md.simulation.interrupts import Interrupts
from egnn_md.simulation.mechanics import kinetic_energy, temperature
from egnn_md.simulation.progress import RunProgress, duration, say
from egnn_md.simulation.recorder import Recorder
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.start import Start, begin
from egnn_md.simulation.structure import Structure
from egnn_md.simulation.uncertainty import EXIT_CODE, UncertaintyWatch


@dataclass(frozen=True)
class DriveOptions:
    """How a run is started, as opposed to what it simulates."""

    resume: bool = False
    overwrite: bool = False
    console: Console | None = None


@dataclass(frozen=True)
class RunResult:
    """How a run ended: ``status`` finished, interrupted or uncertain, steps done, exit code for a shell, ns/day."""

    run: RunDirectory
    status: str
    steps: int
    exit_code: int
    ns_per_day: float | None


def resume_command(run: RunDirectory) -> str:
    """What a user types to go on."""
    return f"{run.command} --resume --output {run.path}"


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def drive(build: EngineFactory, request: MDRequest, run: RunDirectory, options: DriveOptions) -> RunResult:
    """Run ``request`` in ``run`` with the engine that ``build`` makes, from its start or its last checkpoint.

    Raises:
        InputError: the structure, model or directory cannot be used; nothing was written.
        SimulationError: a guard stopped the run; the message names atom, element, step and last good frame.
        OutputError, DeviceError: a file could not be written, or devices were lost; the run resumes from its last
            checkpoint.
    """
    console = options.console or Console(stderr=True)
    with Interrupts() as interrupts:
        try:
            start = begin(build, request, run, options.resume, options.overwrite, console, interrupts)
            if start is None:
                run.update(status="interrupted", ended=now())
                say(console, f"stopped before the first step; start again with\n  {resume_command(run)}")
                return RunResult(run, "interrupted", 0, interrupts.exit_code, None)
            return _Loop(request, run, start, console, interrupts).run()
        finally:
            run.unlock()


class _Loop:
    def __init__(
        self, request: MDRequest, run: RunDirectory, start: Start, console: Console, interrupts: Interrupts
    ) -> None:
        self.request, self.directory = request, run
        self.engine: Engine = start.engine
        self.structure: Structure = start.structure
        self.console, self.interrupts = console, interrupts
        # an engine may bring constraints of its own, such as a force field's rigid water
        constraints = start.constraints + getattr(start.engine, "own_constraints", 0)
        self.dof = degrees_of_freedom(request, len(start.structure), constraints)
        self.step = start.step
        self.seconds = start.seconds
        self.resumed = start.checkpoint is not None
        self.watch: UncertaintyWatch | None = getattr(start.engine, "watch", None)
        if self.watch is not None:
            self.watch.open(run, start.step if self.resumed else None)
        self.recorder = Recorder(run, request, start.structure, start.checkpoint, self.watch, start.identity)
        self.seen = self.engine.observe()
        kelvin = temperature(kinetic_energy(start.structure.masses, self.seen.velocities), self.dof)
        self.guards = Guards(
            symbols=start.structure.symbols,
            masses=start.structure.masses,
            timestep=request.timestep,
            degrees_of_freedom=self.dof,
            periodic=start.structure.periodic,
            reference_temperature=max(request.temperature, kelvin if math.isfinite(kelvin) else 0.0),
            max_temperature=request.max_temperature,
            max_force=request.max_force,
            min_distance=request.min_distance,
            pbc=start.structure.pbc,
        )
        self.good: tuple[int, Observation, bytes] = (self.step, self.seen, self.engine.save())
        self._clock = time.perf_counter()
        self._log_clock: tuple[int, float] | None = None
        self._timed: tuple[int, float] | None = None  # first step and time after warming up
        self.checkpointed = self.step if self.resumed else -1

    def run(self) -> RunResult:
        try:
            return self._run()
        except (GuardError, EngineError) as error:
            raise self._fail(error) from error
        except (OutputError, DeviceError) as error:
            self.directory.try_update(status="stopped", error=str(error), ended=now(), **self._speed())
            raise type(error)(
                f"{error}. {self.step} steps were done; everything up to step {max(self.checkpointed, 0)} "
                f"is safe, and the run goes on from there with\n  {resume_command(self.directory)}"
            ) from error
        except KeyboardInterrupt:
            self.directory.try_update(status="interrupted", ended=now())
            raise
        except Exception as error:
            self.directory.try_update(status="error", error=f"{type(error).__name__}: {error}", ended=now())
            raise
        finally:
            self.recorder.close()
            if self.watch is not None:
                self.watch.close()

    def _run(self) -> RunResult:
        request = self.request
        first = self.step
        if not self.resumed:
            self._look()
            self.recorder.write_row(self.recorder.row(self.step, self.seen, self.dof, None))
            self.recorder.write_frame(self.step, self.seen)
            self._checkpoint()
            self.guards.check(self._instant(self.seen))
        else:
            self.guards.rewind(self._instant(self.seen))
        label = f"{request.engine} {request.ensemble}"
        self._clock = time.perf_counter()
        with RunProgress(self.console, request.steps, self.step, label) as progress:
            while self.step < request.steps and not self.interrupts.requested and not self._lost:
                target = self._next_stop()
                self.engine.step(target - self.step)
                self.step = target
                self.seen = self.engine.observe(full=self._writes_at(target))
                self.guards.check(self._instant(self.seen))
                if self._timed is None:
                    self._timed = (self.step, time.perf_counter())
                self.good = (self.step, self.seen, self.engine.save())
                self._look()
                self._write()
                if self.step % request.checkpoint_interval == 0:
                    self._checkpoint()
                kelvin = temperature(kinetic_energy(self.structure.masses, self.seen.velocities), self.dof)
                progress.update(self.step, kelvin, self.seen.energy, self._ns_per_day())
        if self.checkpointed != self.step:
            self._checkpoint()
        return self._finish(first)

    def _next_stop(self) -> int:
        """The next step at which something is looked at or written: multiples of every interval."""
        request = self.request
        intervals = (
            request.check_interval,
            request.log_interval,
            request.frame_interval,
            request.checkpoint_interval,
            *([] if self.watch is None else [self.watch.interval]),
        )
        return min(request.steps, *((self.step // n + 1) * n for n in intervals))

    @property
    def _lost(self) -> str:
        """What a committee's members disagree about too much to go on; empty while they do not."""
        return "" if self.watch is None else self.watch.stopped

    def _look(self) -> None:
        if self.watch is not None:
            self.watch.look(self.step, self.seen)

    def _instant(self, seen: Observation, step: int | None = None) -> Instant:
        step = self.step if step is None else step
        return Instant(step, seen.positions, seen.velocities, seen.forces, seen.energy, seen.cell)

    def _writes_at(self, step: int) -> bool:
        """True where a row, a frame or the end needs energy and forces, which cost an evaluation."""
        request = self.request
        return step % request.log_interval == 0 or step % request.frame_interval == 0 or step == request.steps

    def _write(self) -> None:
        """Log row and frame where they are due."""
        if self.step % self.request.log_interval == 0:
            self.recorder.write_row(self.recorder.row(self.step, self.seen, self.dof, self._interval_speed()))
        if self.step % self.request.frame_interval == 0:
            self.recorder.write_frame(self.step, self.seen)

    def _interval_speed(self) -> float | None:
        """ns/day since the last row of the log."""
        moment = (self.step, time.perf_counter())
        last, self._log_clock = self._log_clock, moment
        if last is None or moment[1] <= last[1]:
            return None
        return (moment[0] - last[0]) * self.request.timestep * 1e-6 / (moment[1] - last[1]) * 86400

    def _ns_per_day(self) -> float | None:
        """ns/day of this process; the first stretch, in which code is being compiled, does not count."""
        if self._timed is None:
            return None
        steps, seconds = self.step - self._timed[0], time.perf_counter() - self._timed[1]
        if steps == 0:
            return None
        return steps * self.request.timestep * 1e-6 / seconds * 86400

    def _speed(self) -> dict[str, Any]:
        speed = self._ns_per_day()
        return {"steps_done": self.step, **({} if speed is None else {"ns_per_day": speed})}

    def _checkpoint(self) -> None:
        self.seconds += time.perf_counter() - self._clock
        self._clock = time.perf_counter()
        self.recorder.checkpoint(self.step, self.seen, self.engine.save(), self.seconds)
        self.checkpointed = self.step
        self.directory.update(steps_done=self.step, seconds=self.seconds)
        self.engine.settle()

    def _finish(self, first: int) -> RunResult:
        request, run = self.request, self.directory
        finished = self.step >= request.steps
        status = "uncertain" if self._lost else "finished" if finished else "interrupted"
        if finished:
            self.recorder.write_final(self.step, self.seen)
        speed = self._ns_per_day()
        run.update(
            status=status,
            ended=now(),
            seconds=self.seconds,
            frames=self.recorder.trajectory.frames,
            **self._speed(),
            **({} if self.watch is None else {"uncertainty": {**self.watch.describe(), "stopped": self._lost}}),
        )
        done = f"{self.step} steps ({self.step * request.timestep / 1000:g} ps)"
        if self._lost:
            say(
                self.console,
                f"stopped after {done}: {self._lost}. The structure is in {run.uncertain}, to be labelled and learned "
                f"from; go on all the same with\n  {resume_command(run)} --max-uncertainty X",
            )
            return RunResult(run, status, self.step, EXIT_CODE, speed)
        if finished:
            pace = "" if speed is None else f", {speed:.3g} ns/day"
            say(
                self.console,
                f"{done} in {run.path}: {self.step - first} now, {duration(self.seconds)} in all{pace}",
            )
        else:
            say(
                self.console,
                f"stopped after {done}; all of it is in {run.path}. Continue with\n  {resume_command(run)}",
            )
        return RunResult(run, status, self.step, 0 if finished else self.interrupts.exit_code, speed)

    def _fail(self, error: GuardError | EngineError) -> SimulationError:
        """Find the exact step by going through the last stretch again, and keep its frames."""
        step, seen, state = self.good
        located: GuardError | None
        if isinstance(error, GuardError) and error.step <= step:  # the first state is already unsound
            located, frames = error, [(step, seen)]
        else:
            located, frames = self._replay(step, seen, state)
        found = located or error
        where = self._last_good_frame()
        kept = f" The steps before it are in {self.directory.failure.name}."
        message = (
            f"{found}. Last good state: step {frames[-1][0]}; last good frame: {where}.{kept} "
            f"Go on from the last checkpoint (step {max(self.checkpointed, 0)}) with a smaller --timestep "
            f"or another model by {self.directory.onward}"
        )
        with suppress(OutputError):
            self.recorder.write_frames(self.directory.failure, frames)
        failure = {
            "reason": str(found),
            "step": getattr(found, "step", self.step),
            "atom": getattr(found, "atom", None),
        }
        self.directory.try_update(
            status="failed",
            error=message,
            failure=failure,
            ended=now(),
            **{**self._speed(), "steps_done": step},
        )
        return SimulationError(message)

    def _replay(
        self, step: int, seen: Observation, state: bytes
    ) -> tuple[GuardError | None, list[tuple[int, Observation]]]:
        frames = [(step, seen)]
        try:
            self.engine.restore(state)
            self.guards.rewind(self._instant(seen, step))
            while step < self.step + self.request.check_interval:
                self.engine.step(1)
                step += 1
                seen = self.engine.observe()
                self.guards.check(self._instant(seen, step))
                frames.append((step, seen))
        except GuardError as error:
            return error, frames
        except EngineError as error:
            return GuardError(f"{error} (at step {step + 1})", step + 1), frames
        except Exception:  # the replay is a service; the failure that was seen first is the one to report
            return None, frames[:1]
        return None, frames[:1]

    def _last_good_frame(self) -> str:
        step = self.recorder.last_frame
        if step is None or self.recorder.trajectory.frames == 0:
            return "none was written"
        index = self.recorder.trajectory.frames - 1
        return (
            f"frame {index} of {self.directory.trajectory(self.request.trajectory).name} "
            f"(step {step}, {step * self.request.timestep / 1000:g} ps)"
        )
