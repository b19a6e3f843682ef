"""The runs of a round: molecular dynamics with the committee, each in its own resumable directory."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from rich.console import Console

from egnn_md.data.structures import CHARGE_KEY, read_frames, total_charge
from egnn_md.errors import InputError, SimulationError
from egnn_md.learning.config import LearnConfig
from egnn_md.simulation import MDRequest, RunDirectory, simulate
from egnn_md.simulation.interrupts import Interrupted

OVER = ("finished", "failed", "uncertain")  # a run with such a status is not gone on with


@dataclass(frozen=True)
class Plan:
    """One run: where, from which structure, at which temperature (K), with which engine and seed."""

    folder: Path
    start: int
    temperature: float
    engine: str
    seed: int


@dataclass(frozen=True)
class Candidate:
    """A structure that a run came to; ``time`` in fs, ``why``: trajectory, uncertain or failure."""

    atoms: Atoms
    run: str
    time: float
    temperature: float
    why: str


def plan_runs(config: LearnConfig, folder: Path, round_number: int, starts: int) -> list[Plan]:
    """All runs of a round; the same configuration and round, the same runs."""
    section = config.run
    wanted = [
        (start, temperature)
        for start in range(starts)
        for temperature in section.temperatures
        for _ in range(section.repeats)
    ]
    seeds = np.random.SeedSequence([config.seed, round_number]).generate_state(len(wanted)) // 2
    return [
        Plan(folder / f"run-{index:03d}", start, temperature, engine, int(seed))
        for index, ((start, temperature), engine, seed) in enumerate(
            zip(wanted, cycle(section.engines), seeds, strict=False)
        )
    ]


def run_all(config: LearnConfig, plans: list[Plan], files: list[Path], committee: Path, console: Console) -> None:
    """Run what is not over yet. A run that fails is an answer, not an error.

    Raises:
        Interrupted: a signal came; runs go on from their checkpoints.
        ModelFileError, MissingDependencyError, OutputError: nothing can be run here.
    """
    for plan in plans:
        directory = RunDirectory(plan.folder)
        begun = directory.record.exists()
        if begun and directory.read()["status"] in OVER:
            continue
        request = _request(config, plan, files[plan.start], committee)
        try:
            result = simulate(request, resume=begun, console=Console(quiet=True))
        except (SimulationError, InputError) as error:
            # of both kinds only those that the run itself has recorded are the committee's fault
            if not directory.record.exists() or directory.read()["status"] != "failed":
                raise
            console.print(f"  {plan.folder.name} failed: {error}"[:300], highlight=False, markup=False, soft_wrap=True)
            continue
        if result.status == "interrupted":
            raise Interrupted(result.exit_code)


def _request(config: LearnConfig, plan: Plan, structure: Path, committee: Path) -> MDRequest:
    section = config.run
    limits: dict[str, Any] = {}
    if section.stop_above is not None:
        limits = {"max_uncertainty": section.stop_above, "on_uncertainty": "stop"}
    if section.uncertainty_interval is not None:
        limits["uncertainty_interval"] = section.uncertainty_interval
    return MDRequest.parse(
        {
            "structure": str(structure),
            "model": str(committee),
            "engine": plan.engine,
            "ensemble": section.ensemble,
            "steps": section.steps,
            "timestep": section.timestep,
            "temperature": plan.temperature,
            "friction": section.friction,
            "pressure": section.pressure,
            "seed": plan.seed,
            "drive": section.drive,
            "minimize": section.minimize,
            "trajectory": "extxyz",
            "frame_interval": section.frame_interval,
            "log_interval": section.frame_interval,
            "output": plan.folder,
            **limits,
        }
    )


def candidates(config: LearnConfig, plans: list[Plan], starts: list[Atoms]) -> list[Candidate]:
    """Structures of all runs: frames of the trajectories, those above the limit, and the last before a failure."""
    found: list[Candidate] = []
    for plan in plans:
        directory = RunDirectory(plan.folder)
        charge = total_charge(starts[plan.start])
        sources = [
            ("trajectory", directory.trajectory("extxyz"), None),
            ("uncertain", directory.uncertain, None),
            ("failure", directory.failure, config.select.before_failure),
        ]
        seen: set[int] = {0}  # the first structure is known
        for why, path, last in sources:
            frames = read_frames(path) if path.exists() and path.stat().st_size else []
            for atoms in frames if last is None else frames[len(frames) - min(last, len(frames)) :]:
                step = int(atoms.info["step"])
                if step in seen or not np.isfinite(atoms.positions).all():
                    continue
                seen.add(step)
                bare = Atoms(
                    numbers=atoms.numbers,
                    positions=atoms.positions,
                    cell=atoms.cell if atoms.pbc.any() else None,
                    pbc=atoms.pbc,
                    info={CHARGE_KEY: charge} if charge else None,
                )
                found.append(Candidate(bare, plan.folder.name, step * config.run.timestep, plan.temperature, why))
    return found


def outcomes(plans: list[Plan]) -> dict[str, Any]:
    """How the runs ended: counts by status, steps done of those asked for, and the reasons of failures."""
    counts = dict.fromkeys(OVER, 0)
    steps, reasons = 0, []
    for plan in plans:
        record = RunDirectory(plan.folder).read()
        counts[record["status"]] = counts.get(record["status"], 0) + 1
        steps += int(record.get("steps_done", 0))
        if record["status"] == "failed":
            reason = (record.get("failure") or {}).get("reason", record.get("error", ""))
            reasons.append(f"{plan.folder.name}: {reason}")
    return {"runs": len(plans), **counts, "steps": steps, "reasons": reasons}
