"""Molecular dynamics of a protein with OpenMM, kept as blocks of frames and resumable after any kill.

The velocities of a frame belong to the frame's time. OpenMM's Langevin integrator is a leapfrog: the velocities that
it reports are half a step older than the positions. The mean of those before and after a step is the velocity at the
positions between them (it is exactly the one of velocity Verlet), so every frame takes its velocities from both
sides of one step. At 4 fs that mean damps the stiffest vibrations: a mode of angular frequency ``w`` keeps
``1 - (w dt/2)²`` of its kinetic energy, and the whole protein seems to be at 260 K when it is at 300 K. The
temperatures that are reported and stored are those of the half-step velocities, which this integrator samples right.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from egnn_md.errors import InputError, SimulationError
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.interrupts import Interrupts
from egnn_md.simulation.machine import processor, versions
from egnn_md.simulation.progress import RunProgress, say
from egnn_md.simulation.rundir import RunDirectory
from egnn_md_systems.adk.blocks import PATTERN, Block, block_files, read_block, write_block
from egnn_md_systems.adk.selection import select_atoms
from egnn_md_systems.adk.settings import MDSettings
from egnn_md_systems.adk.system import build_system, charges_of, choose_platform, import_openmm, start_file

GAS_CONSTANT = 0.00831446261815324  # kJ/(mol K)
FORMAT = 1


@dataclass
class RunResult:
    """What a call of :func:`generate` left behind."""

    output: Path
    frames: int
    exit_code: int  # 0, or 128 + signal


def generate(
    settings: MDSettings,
    output: Path | str,
    *,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run (or go on with) the simulation that ``settings`` describes in the directory ``output``.

    Raises:
        InputError: the start, the directory or a setting cannot be used.
        SimulationError: a position or velocity became NaN; all earlier frames are on disk.
    """
    console = console or Console(stderr=True)
    run = ProteinRun(settings, Path(output), console)
    directory = RunDirectory(run.output)
    if resume:
        if not run.record.is_file():
            raise InputError(f"--resume: {run.output} holds no run.json; leave --resume out to start one")
        directory.lock()
    else:
        _make_free(run.output, overwrite)
        directory.lock()
    try:
        with Interrupts() as interrupts:
            run.prepare(resume)
            run.advance(interrupts)
            return RunResult(run.output, run.frame, interrupts.exit_code)
    finally:
        directory.unlock()


def stored_settings(output: Path | str) -> MDSettings:
    """Settings of the run in ``output``. Raises InputError if there is none or it ended with an error."""
    path = Path(output) / "run.json"
    try:
        record = json.loads(path.read_text())
        settings = MDSettings.parse(record["settings"])
    except FileNotFoundError:
        raise InputError(f"{output} holds no run.json: it is no run of `egnn-md generate adk`") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error})") from error
    if record.get("status") == "failed":
        raise InputError(
            f"the run in {output} broke down ({record.get('failure')}); its frames can be used, not resumed"
        )
    return settings


class ProteinRun:
    """One run: a directory, an OpenMM context, and the frames since the last block."""

    def __init__(self, settings: MDSettings, output: Path, console: Console) -> None:
        self.settings = settings
        self.output = output
        self.console = console
        self.record = output / "run.json"
        self.frame = 0  # frames on disk
        self.blocks = 0

    def prepare(self, resume: bool) -> None:
        """Build or read the system, then minimise and equilibrate, or load the last checkpoint."""
        openmm, app, _ = import_openmm()
        files = block_files(self.output) if resume else []
        if not resume or not files:
            self._start_new()
            return
        self.topology = app.PDBFile(str(self.output / "topology.pdb")).topology
        self.system = openmm.XmlSerializer.deserialize((self.output / "system.xml").read_text())
        self.kept = select_atoms(_mdtraj_topology(self.topology), self.settings.save)
        last = read_block(files[-1])
        self.frame, self.blocks = last.first_frame + len(last), len(files)
        # noise that starts anew must not repeat the noise of the run's beginning
        self._make_context(self.settings.friction, seed=self.settings.seed + 7919 * self.blocks)
        checkpoint = self.output / f"checkpoint-{self.blocks - 1:05d}"
        try:
            self.context.loadCheckpoint(checkpoint.with_suffix(".chk").read_bytes())
        except Exception as error:  # another platform, another OpenMM: the portable state still fits
            say(self.console, f"binary checkpoint not usable here ({error}); going on from {checkpoint.name}.xml")
            try:
                state = openmm.XmlSerializer.deserialize(checkpoint.with_suffix(".xml").read_text())
            except Exception as problem:
                raise InputError(f"{checkpoint}.chk and .xml cannot be read ({problem}); start again") from problem
            self.context.setState(state)
        self._update_record(status="running", settings=self.settings.model_dump())
        say(self.console, f"going on after frame {self.frame}, {self.frame * self.settings.frame_interval / 1000:g} ps")

    def _start_new(self) -> None:
        openmm, app, unit = import_openmm()
        settings, said = self.settings, self.console
        self.topology, positions, self.system = build_system(
            start_file(settings.start),
            cutoff=settings.cutoff,
            hydrogen_mass=settings.hydrogen_mass,
            platform=choose_platform(settings.platform, settings.threads)[0],
            seed=settings.seed,
        )
        mdtraj_topology = _mdtraj_topology(self.topology)
        self.kept = select_atoms(mdtraj_topology, settings.save)
        say(said, f"{settings.start}: {self.system.getNumParticles()} atoms, {len(self.kept)} kept ({settings.save})")
        self._make_context(settings.equilibration_friction, seed=settings.seed)
        say(said, f"platform {self.context.getPlatform().getName()}")
        self.context.setPositions(positions)
        if settings.minimize:
            begin = time.perf_counter()
            openmm.LocalEnergyMinimizer.minimize(self.context, maxIterations=settings.minimize)
            say(said, f"minimised, {settings.minimize} iterations, {time.perf_counter() - begin:.0f} s")
        self.context.setVelocitiesToTemperature(settings.temperature, settings.seed + 1)
        steps = round(1000 * settings.equilibrate / settings.timestep)
        with Interrupts() as interrupts, RunProgress(said, max(steps, 1), 0, "equilibration") as progress:
            for first in range(0, steps, 50):
                self.integrator.step(min(50, steps - first))
                progress.update(min(first + 50, steps), self._state().temperature, None, None)
                if interrupts.requested:
                    raise KeyboardInterrupt
        self.integrator.setFriction(settings.friction / unit.picosecond)
        self.context.setTime(0.0)
        self.context.setStepCount(0)
        now = self.context.getState(getPositions=True).getPositions(asNumpy=True)
        with writing(self.output):
            with open(self.output / "topology.pdb", "w") as file:
                app.PDBFile.writeFile(self.topology, now, file, keepIds=True)
            _write_kept(mdtraj_topology, now.value_in_unit(unit.nanometer), self.kept, self.output / "kept.pdb")
            write_atomic(self.output / "system.xml", openmm.XmlSerializer.serialize(self.system).encode())
        charges = charges_of(self.system)
        write_json(
            self.record,
            {
                "format": FORMAT,
                "status": "running",
                "settings": settings.model_dump(),
                "atoms": self.system.getNumParticles(),
                "charges": [charges[i] for i in self.kept],
                "units": {"length": "angstrom", "time": "femtosecond"},
                "platform": self.context.getPlatform().getName(),
                "processor": processor(),
                "versions": versions(),
            },
        )

    def _make_context(self, friction: float, *, seed: int) -> None:
        openmm, _, unit = import_openmm()
        settings = self.settings
        platform, properties = choose_platform(settings.platform, settings.threads)
        self.integrator = openmm.LangevinMiddleIntegrator(
            settings.temperature, friction / unit.picosecond, 0.001 * settings.timestep
        )
        self.integrator.setRandomNumberSeed(1 + seed % (2**31 - 2))  # 0 would mean: by the clock
        self.context = openmm.Context(self.system, self.integrator, platform, properties)
        masses = [self.system.getParticleMass(i).value_in_unit(unit.amu) for i in range(self.system.getNumParticles())]
        self.masses = np.asarray(masses)
        removes_drift = any(isinstance(f, openmm.CMMotionRemover) for f in self.system.getForces())
        self.freedoms = 3 * len(masses) - self.system.getNumConstraints() - 3 * removes_drift

    def _state(self) -> _State:
        _, _, unit = import_openmm()
        state = self.context.getState(getPositions=True, getVelocities=True)
        positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        velocities = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
        kinetic = 0.5 * float((self.masses[:, None] * velocities**2).sum())
        return _State(positions, velocities, 2 * kinetic / (self.freedoms * GAS_CONSTANT))

    def advance(self, interrupts: Interrupts) -> None:
        """Run to the end, or until a signal; blocks and checkpoints on the way.

        Between frames the context stands one step after the last frame, whose velocity that step completed.
        """
        settings = self.settings
        total, between = settings.frames, settings.steps_per_frame
        begin, first = time.perf_counter(), self.frame
        pending: list[tuple[np.ndarray, np.ndarray, float]] = []
        with RunProgress(self.console, max(total, 1), self.frame, "frame") as progress:
            while self.frame + len(pending) < total and not interrupts.requested:
                try:
                    if self.frame + len(pending) > 0:
                        self.integrator.step(between - 1)
                    pending.append(self._take_frame())
                except Exception as error:  # OpenMM reports NaN as a bare exception of its own
                    if not isinstance(error, SimulationError) and "NaN" not in str(error):
                        raise
                    self._fail(pending, error)
                done = self.frame + len(pending)
                speed = (done - first) * settings.frame_interval * 86400e-6 / (time.perf_counter() - begin)
                progress.update(done, pending[-1][2], None, speed)
                if len(pending) == settings.block or done == total:
                    self._write(pending)
                    pending = []
            if pending:
                self._write(pending)
        status = "finished" if self.frame >= total else "interrupted"
        self._update_record(status=status)
        say(self.console, f"{status}: {self.frame} frames, {self.frame * settings.frame_interval / 1000:g} ps")

    def _take_frame(self) -> tuple[np.ndarray, np.ndarray, float]:
        before = self._state()
        self.integrator.step(1)
        after = self._state()
        positions = 10.0 * before.positions[self.kept]
        velocities = 0.01 * 0.5 * (before.velocities + after.velocities)[self.kept]
        if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
            raise SimulationError("positions or velocities are NaN")
        return positions.astype(np.float32), velocities.astype(np.float32), before.temperature

    def _write(self, pending: list[tuple[np.ndarray, np.ndarray, float]], *, checkpoint: bool = True) -> None:
        """A checkpoint, then the block that makes it valid, then the older checkpoint goes."""
        openmm, _, _ = import_openmm()
        name = self.output / f"checkpoint-{self.blocks:05d}"
        if checkpoint:
            write_atomic(name.with_suffix(".chk"), self.context.createCheckpoint())
            state = self.context.getState(getPositions=True, getVelocities=True)
            write_atomic(name.with_suffix(".xml"), openmm.XmlSerializer.serialize(state).encode())
        frames = self.frame + np.arange(len(pending))
        positions, velocities, temperatures = (np.stack(values) for values in zip(*pending, strict=True))
        times = frames * self.settings.frame_interval
        write_block(self.output, self.blocks, Block(self.frame, times, positions, velocities, temperatures))
        for suffix in (".chk", ".xml"):
            older = self.output / f"checkpoint-{self.blocks - 1:05d}{suffix}"
            if checkpoint:
                older.unlink(missing_ok=True)
        self.frame += len(pending)
        self.blocks += 1

    def _fail(self, pending: list[tuple[np.ndarray, np.ndarray, float]], error: Exception) -> None:
        kept = self.frame + len(pending)
        if pending:
            self._write(pending, checkpoint=False)
        text = f"{error} before frame {kept} ({kept * self.settings.frame_interval / 1000:g} ps)"
        self._update_record(status="failed", failure=text)
        raise SimulationError(
            f"{text}; the {kept} frames before it are in {self.output}; try a smaller --timestep than "
            f"{self.settings.timestep:g} fs, more --minimize, or a larger --cutoff"
        ) from error

    def _update_record(self, **changes: Any) -> None:
        write_json(self.record, {**json.loads(self.record.read_text()), "frames": self.frame, **changes})


@dataclass
class _State:
    positions: np.ndarray  # nm
    velocities: np.ndarray  # nm/ps
    temperature: float


def _mdtraj_topology(topology: Any) -> Any:
    import mdtraj

    return mdtraj.Topology.from_openmm(topology)


def _write_kept(topology: Any, positions: np.ndarray, kept: np.ndarray, path: Path) -> None:
    import mdtraj

    mdtraj.Trajectory(positions[None], topology).atom_slice(kept).save_pdb(str(path))


def _make_free(output: Path, overwrite: bool) -> None:
    """Make the directory; an old run in it goes with ``overwrite``, and nothing else ever."""
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a directory")
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
    holds_run = (output / "run.json").exists()
    others = [path for path in output.iterdir() if path.suffix not in (".log", ".lock")]
    if holds_run and not overwrite:
        raise InputError(
            f"--output {output} already holds a run; continue it with --resume, or replace it by --overwrite"
        )
    if others and not holds_run and not _is_start(others):
        raise InputError(
            f"--output {output} is not empty and holds no run ({others[0].name}, ...); give a new directory"
        )
    for pattern in (PATTERN, "checkpoint-*", "run.json", "topology.pdb", "kept.pdb", "system.xml", "*.tmp"):
        for path in output.glob(pattern):
            path.unlink()


def _is_start(paths: list[Path]) -> bool:
    return all(path.name in ("topology.pdb", "kept.pdb", "system.xml") for path in paths)


def digest(output: Path | str) -> str:
    """SHA-256 of the names and sizes of a run's blocks: what a data set was made from."""
    text = "\n".join(f"{path.name} {path.stat().st_size}" for path in block_files(Path(output)))
    return hashlib.sha256(text.encode()).hexdigest()
