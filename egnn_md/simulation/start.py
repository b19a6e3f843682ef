"""How a run begins: from a structure, from another run's end, or from its own checkpoint."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from egnn_md.errors import InputError
from egnn_md.simulation.constraints import carried_over, conserves_momentum, constraints_of, with_hydrogen_mass
from egnn_md.simulation.engine import Engine, EngineError, EngineFactory, Observation
from egnn_md.simulation.files import write_atomic, writing
from egnn_md.simulation.guards import GuardError, Guards, Instant
from egnn_md.simulation.interrupts import Interrupts
from egnn_md.simulation.machine import machine, versions
from egnn_md.simulation.mechanics import maxwell_boltzmann, remove_drift
from egnn_md.simulation.progress import say
from egnn_md.simulation.readers import file_digest, read_structure
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import Checkpoint, RunDirectory
from egnn_md.simulation.structure import Structure


@dataclass(frozen=True)
class Start:
    """An engine in its first state. ``checkpoint`` is set if that state continues files on disk."""

    engine: Engine
    structure: Structure
    step: int
    seconds: float
    checkpoint: Checkpoint | None
    constraints: int
    identity: dict[str, Any]


def identity_of(request: MDRequest, structure: Structure, model: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint belongs to: JSON values, each of which a run that goes on from it must have too."""
    keys = ("timestep", "ensemble", "thermostat", "constraints", "engine", "seed")
    return {
        "model": model.get("digest"),
        "system": structure.digest,
        **{key: getattr(request, key) for key in keys},
    }


def check_same_structure(run: RunDirectory, path: str | None) -> None:
    """Raise InputError if a resumed run is given a STRUCTURE that holds something else than when it began."""
    if path is None or not Path(path).is_file():
        return
    begun = run.read().get("structure_sha256")
    if begun is not None and begun != file_digest(Path(path)):
        raise InputError(
            f"STRUCTURE {path} changed since the run in {run.path} began; leave it out (the run keeps a copy of its "
            "own), or start a new run in another directory"
        )


def begin(
    build: EngineFactory,
    request: MDRequest,
    run: RunDirectory,
    resume: bool,
    overwrite: bool,
    console: Console,
    interrupts: Interrupts,
) -> Start | None:
    """Prepare the engine and the directory. None if a signal came before the first step."""
    if resume:
        record = run.read()
        _check_resumable(record, request, run)
        run.lock()
        if run.checkpoint.exists():
            return _resume(build, request, run, record, console)
        overwrite = True  # killed before its first checkpoint: nothing to lose
    return _new(build, request, run, overwrite, console, interrupts)


def _check_resumable(record: dict[str, Any], request: MDRequest, run: RunDirectory) -> None:
    done = int(record.get("steps_done", 0))
    if record.get("status") == "failed":
        raise InputError(
            f"the run in {run.path} failed ({record.get('failure', {}).get('reason', 'see run.json')}) "
            f"and would fail again; start a new one from its last checkpoint with {run.onward}"
        )
    if record.get("status") == "finished" and done >= request.steps:
        raise InputError(
            f"the run in {run.path} is finished ({done} steps); give more with --steps, "
            f"or start a new one with {run.onward}"
        )
    step = run.load_checkpoint()[0].step if run.checkpoint.exists() else 0
    if step > request.steps or (step == request.steps and record.get("status") == "finished"):
        raise InputError(f"--steps {request.steps}, but {run.path} has done {step} steps; give more")


def _check_shape(structure: Structure, request: MDRequest) -> None:
    if request.ensemble == "npt" and not structure.periodic:
        raise InputError("--ensemble npt needs a structure with a periodic cell in all three directions")


def _record(request: MDRequest, info: dict[str, Any], engine: Engine, structure: Structure) -> dict[str, Any]:
    return {
        "status": "starting",
        "request": request.model_dump(mode="json"),
        "model": info,
        "engine": engine.describe(),
        "system": {
            "atoms": len(structure),
            "formula": structure.formula,
            "molecules": structure.molecules.count,
            "periodic": structure.periodic,
        },
        "versions": versions(),
        "machine": machine(request.device),
        "segments": [{"step": 0, "started": _now()}],
        "steps_done": 0,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _new(
    build: EngineFactory,
    request: MDRequest,
    run: RunDirectory,
    overwrite: bool,
    console: Console,
    interrupts: Interrupts,
) -> Start | None:
    run.check_free(overwrite=overwrite)
    structure, velocities = _first_structure(request, run)
    _check_shape(structure, request)
    constraints_of(structure, request)  # whether there is anything to fix, before anything is written
    engine, info = build(structure, request)
    run.create(overwrite=overwrite)
    record = _record(request, info, engine, structure)
    if request.structure is not None and Path(request.structure).is_file():
        record["structure_sha256"] = file_digest(Path(request.structure))
    run.write(record)
    say(
        console,
        f"{structure.formula}: {len(structure)} atoms in {structure.molecules.count} molecules, "
        f"model {info.get('source')}, {_one_line(engine.describe())}",
    )
    still = np.zeros_like(structure.positions)
    engine.place(structure.positions, still if velocities is None else velocities, structure.cell)
    seen = _observe_sound(engine, structure, request, run)
    if request.minimize:
        record["minimisation"] = _minimise(engine, request, seen, console, interrupts)
        if interrupts.requested:
            return None
        seen = _observe_sound(engine, structure, request, run)
        structure = structure.with_state(seen.positions, structure.cell)
    if velocities is None:
        velocities = maxwell_boltzmann(structure.masses, request.temperature, np.random.default_rng(request.seed))
    elif conserves_momentum(request):
        velocities = remove_drift(structure.masses, velocities) if len(structure) > 1 else velocities
    constraints = constraints_of(structure, request)
    engine.constrain(constraints.pairs, constraints.lengths)
    engine.place(structure.positions, velocities, structure.cell)
    # as it was before bonds were brought to their lengths, so that a resumed run finds the same lengths
    _write_structure(run, structure)
    identity = identity_of(request, structure, info)
    run.write({**record, "status": "running"})
    return Start(engine, structure, 0, 0.0, None, len(constraints), identity)


def _one_line(details: dict[str, Any]) -> str:
    keys = ("engine", "platform", "integrator", "device")
    return ", ".join(str(details[key]) for key in keys if details.get(key))


def _write_structure(run: RunDirectory, structure: Structure) -> None:
    # through temporary files, so that a resume never meets half a structure
    for path, save in ((run.structure, structure.save), (run.topology, structure.write_pdb)):
        temporary = path.with_name("new-" + path.name)
        with writing(path):
            save(temporary)
            write_atomic(path, temporary.read_bytes())
            temporary.unlink()


def _first_structure(request: MDRequest, run: RunDirectory) -> tuple[Structure, np.ndarray | None]:
    """The structure, and velocities if another run hands them over."""
    given = None if request.structure is None else read_structure(request.structure, request.topology)
    if request.continue_from is None:
        assert given is not None  # MDRequest refuses a request without both
        return with_hydrogen_mass(given, request.hydrogen_mass), None
    other = RunDirectory(request.continue_from)
    other.read()
    if other.path.resolve() == run.path.resolve():
        raise InputError("--continue-from and --output name the same directory; did you mean --resume?")
    if not other.checkpoint.exists():
        raise InputError(f"--continue-from {other.path}: this run has no checkpoint yet")
    structure, checkpoint = Structure.load(other.structure), other.load_checkpoint()[0]
    if given is not None and not given.same_atoms(structure):
        raise InputError(
            f"STRUCTURE {request.structure} ({given.formula}) differs from the atoms of --continue-from "
            f"{other.path} ({structure.formula}); leave STRUCTURE out"
        )
    heavier = with_hydrogen_mass(structure, request.hydrogen_mass)
    velocities = carried_over(checkpoint.velocities, structure.masses, heavier.masses)
    return heavier.with_state(checkpoint.positions, checkpoint.cell), velocities


def _minimise(
    engine: Engine, request: MDRequest, before: Observation, console: Console, interrupts: Interrupts
) -> dict[str, Any]:
    with console.status("minimising") if console.is_terminal else nullcontext():
        iterations = engine.minimize(request.minimize_steps, request.minimize_force, lambda: interrupts.requested)
    after = engine.observe()
    assert after.forces is not None  # a full observation has them
    force = float(np.linalg.norm(after.forces, axis=1).max())
    say(
        console,
        f"minimised in {iterations} iterations: {before.energy:.4f} to {after.energy:.4f} eV, "
        f"largest force {force:.3f} eV/Å",
    )
    return {
        "iterations": iterations,
        "energy_before": before.energy,
        "energy_after": after.energy,
        "largest_force": force,
    }


def _observe_sound(engine: Engine, structure: Structure, request: MDRequest, run: RunDirectory) -> Observation:
    """The state, or InputError for a structure whose very first forces are no numbers."""
    guards = Guards(
        structure.symbols,
        structure.masses,
        request.timestep,
        3 * len(structure),
        structure.periodic,
        reference_temperature=1.0,
        max_displacement=np.inf,
    )
    try:
        seen = engine.observe()
        still = np.zeros_like(seen.positions)
        guards.check(Instant(0, seen.positions, still, seen.forces, seen.energy, seen.cell))
    except (GuardError, EngineError) as error:
        message = (
            f"{error} before the first step: the model cannot evaluate this structure; "
            "look for overlapping atoms or a structure far from those it was trained on"
        )
        run.try_update(status="failed", error=message, failure={"reason": str(error), "step": 0})
        raise InputError(message) from error
    return seen


def _resume(
    build: EngineFactory, request: MDRequest, run: RunDirectory, record: dict[str, Any], console: Console
) -> Start:
    structure = Structure.load(run.structure)
    checkpoint, damage = run.load_checkpoint()
    if damage is not None:
        say(console, f"{damage}; going on from the checkpoint before it (step {checkpoint.step})")
    engine, info = build(structure, request)
    old, new = record["model"].get("digest"), info.get("digest")
    if old != new:
        raise InputError(
            f"the model {request.model} changed since the run in {run.path} began "
            f"(digest {str(new)[:12]}, was {str(old)[:12]}); restore it, or start "
            f"a new run with --continue-from {run.path}"
        )
    identity = identity_of(request, structure, info)
    _check_identity(run, checkpoint, identity, structure)
    constraints = constraints_of(structure, request)
    engine.constrain(constraints.pairs, constraints.lengths)
    engine.place(checkpoint.positions, checkpoint.velocities, checkpoint.cell)
    try:
        engine.restore(checkpoint.engine_state)
    except ValueError as error:
        say(
            console,
            f"the engine's own state does not fit here ({error}); going on from positions and velocities "
            "with other random numbers",
        )
        engine.place(checkpoint.positions, checkpoint.velocities, checkpoint.cell)
    say(console, f"resuming {run.path} at step {checkpoint.step} of {request.steps}")
    segments = [*record.get("segments", []), {"step": checkpoint.step, "started": _now()}]
    record = {key: value for key, value in record.items() if key not in ("error", "ended", "failure", "format")}
    run.write(
        {
            **record,
            "request": request.model_dump(mode="json"),
            "engine": engine.describe(),
            "versions": versions(),
            "machine": machine(request.device),
            "status": "running",
            "segments": segments,
        }
    )
    return Start(engine, structure, checkpoint.step, checkpoint.seconds, checkpoint, len(constraints), identity)


def _check_identity(
    run: RunDirectory, checkpoint: Checkpoint, identity: dict[str, Any], structure: Structure
) -> None:
    """Raise InputError where the checkpoint is of another model, system, time step or ensemble."""
    for what, value in identity.items():
        stored = checkpoint.identity.get(what, value)  # those before format 2 do not say
        if stored != value:
            short = [str(v)[:12] for v in (stored, value)]
            raise InputError(
                f"{run.checkpoint} was written with another {what} ({short[0]}) than run.json and structure.npz say "
                f"({short[1]}): files of another run, or a run.json that was edited; bring the right ones back"
            )
    if checkpoint.positions.shape != structure.positions.shape:
        raise InputError(
            f"{run.checkpoint} holds {len(checkpoint.positions)} atoms, but {run.structure} {len(structure)}; "
            "they belong to different runs"
        )
