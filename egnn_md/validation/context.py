"""What the parts of a validation share: model, reference method, structures, runs and labels, each made once."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from rich.console import Console

from egnn_md.data.labelling import LabelSummary, label
from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import LabellingError
from egnn_md.learning.sampling import write_frames
from egnn_md.models import evaluate
from egnn_md.models.base import Potential
from egnn_md.simulation.files import write_json
from egnn_md.simulation.progress import duration
from egnn_md.simulation.readers import read_structure
from egnn_md.simulation.structure import Structure
from egnn_md.validation.report_part import Skipped
from egnn_md.validation.request import TEACHER_SHARES, Budget, ValidateRequest
from egnn_md.validation.runs import FinishedRun, InterruptedRun, ensure_run
from egnn_md.validation.teacher import TeacherPotential

WARMING_FRICTION = 20.0  # 1/ps, of the equilibration
LOST_SECONDS = 60.0  # of the reference method's work between two checkpoints


@dataclass
class Context:
    """One validation under way.

    Attributes:
        model: the potential, where and as precise as the request says.
        given: what runs are handed: None where they load the model by its name.
        teacher: the reference method, if one was named.
        folder: of the page; ``folder/work`` holds runs, labels and finished parts.
        console: where progress goes.
    """

    request: ValidateRequest
    model: Potential
    given: Potential | None
    teacher: TeacherPotential | None
    folder: Path
    console: Console

    @property
    def work(self) -> Path:
        """Everything that a second call goes on with."""
        return self.folder / "work"

    @property
    def plan(self) -> Budget:
        """How much is run."""
        return self.request.plan

    @property
    def temperature(self) -> float:
        """K of the parts that are measured at one temperature: the first that was named."""
        return self.request.temperatures[0]

    def say(self, text: str) -> None:
        """A line of progress."""
        self.console.print(f"  {text}", highlight=False, markup=False, soft_wrap=True)

    def structure_path(self, small: bool = False) -> str:
        """Of the structure, or of the smaller one for the reference method if there is one."""
        path = (self.request.teacher_structure if small else None) or self.request.structure
        assert path is not None  # the request refuses parts that would need one
        return path

    def structure(self, small: bool = False) -> Structure:
        """The same, read."""
        return read_structure(self.structure_path(small))

    def needs_cell(self, what: str) -> None:
        """Raise Skipped unless the structure repeats in all three directions."""
        if not self.structure().periodic:
            raise Skipped(f"{what}: the structure has no periodic cell, so this does not apply")

    def need_teacher(self, what: str) -> TeacherPotential:
        """The reference method. Raises Skipped without one."""
        if self.teacher is None:
            raise Skipped(f"{what}: name a reference method with --against")
        return self.teacher

    def _base(self, steps: int, seed: int) -> dict[str, Any]:
        request = self.request
        return {
            "model": request.model, "engine": request.engine, "device": request.device, "dtype": request.dtype,
            "timestep": request.timestep, "friction": request.friction, "pressure": request.pressure,
            "steps": steps, "seed": (request.seed + seed) % 2**31,
        }  # fmt: skip

    def run(self, name: str, steps: int, seed: int = 0, *, may_fail: bool = False, **values: Any) -> FinishedRun:
        """A run of the model; ``values`` are fields of an :class:`egnn_md.simulation.MDRequest`."""
        folder = self.work / "runs" / name
        if not (folder / "final.extxyz").exists():
            self.say(f"{name}: {steps:,} steps")
        return ensure_run(folder, {**self._base(steps, seed), **values}, self.given, may_fail=may_fail)

    def teacher_run(self, name: str, steps: int, seed: int, **values: Any) -> FinishedRun:
        """The same of the reference method, which only ASE runs."""
        teacher = self.need_teacher(name)
        base = self._base(steps, seed) | {"engine": "ase", "device": "cpu", "dtype": "float64"}
        # as many steps as may be lost in a kill
        interval = max(min(int(LOST_SECONDS / self.teacher_seconds(small=True)), steps), 1)
        self.say(f"{name}: {steps:,} steps of {teacher.method}")
        return ensure_run(
            self.work / "runs" / name, {**base, "checkpoint_interval": interval, **values}, teacher
        )

    def equilibrated(self, kelvin: float, small: bool = False) -> FinishedRun:
        """NVT from the minimised structure."""
        name = f"equilibration-{kelvin:g}K" + ("-small" if self._apart(small) else "")
        steps = self.request.steps(self.plan.equilibration)
        # half of the first velocities goes into the minimised structure's potential energy: it is brought back fast
        return self.run(
            name, steps, structure=self.structure_path(small), ensemble="nvt", temperature=kelvin,
            friction=max(self.request.friction, WARMING_FRICTION),
        )  # fmt: skip

    def nvt(self, kelvin: float, small: bool = False) -> FinishedRun:
        """NVT from there: what averages and frames are taken from."""
        before = self.equilibrated(kelvin, small)
        name = f"nvt-{kelvin:g}K" + ("-small" if self._apart(small) else "")
        return self.run(
            name, self.request.steps(self.plan.length), 1, ensemble="nvt", temperature=kelvin,
            continue_from=before.directory.path, minimize=False,
        )  # fmt: skip

    def _apart(self, small: bool) -> bool:
        return small and self.request.teacher_structure is not None

    def frames(self, kelvin: float, count: int, small: bool = False) -> list[Atoms]:
        """``count`` structures (or as many as there are), evenly out of that run."""
        run = self.nvt(kelvin, small)
        moving = run.frames
        # the last of each of `count` stretches: as far apart as the run allows
        chosen = np.unique(np.linspace(0, len(moving.steps) - 1, count + 1).round().astype(int)[1:])
        found = []
        for index in chosen:
            atoms = run.structure.to_atoms()
            atoms.set_positions(moving.positions[index])
            if moving.cells is not None:
                atoms.set_cell(moving.cells[index])
            atoms.info = {"temperature": float(kelvin), "step": int(moving.steps[index])}
            atoms.info["charge"] = self.request.charge
            found.append(atoms)
        return found

    def own_labels(self, kelvin: float) -> Path:
        """Frames of the model's own run at ``kelvin`` with the reference method's energies, forces and stress.

        Raises:
            Skipped: no reference method, or not one frame fits into its time.
            LabellingError: it failed for every frame.
        """
        teacher = self.need_teacher("labels of the model's own frames")
        path = self.work / f"labels-{kelvin:g}K.extxyz"
        minutes = self.plan.teacher_minutes * TEACHER_SHARES["errors"] / len(self.request.temperatures)
        each = self.teacher_seconds()
        count = min(self.plan.frames, int(60 * minutes * max(self.request.processes, 1) / each))
        if count < 1:
            raise Skipped(
                f"a label takes {each:.3g} s, and the labels at a temperature may take {60 * minutes:.3g} s; give more "
                "--teacher-minutes, or --labels that exist"
            )
        frames = self.frames(kelvin, count)
        self.say(f"labels at {kelvin:g} K: {len(frames)} of {teacher.method}, about {duration(each * len(frames))}")
        done: LabelSummary = label(
            frames, path, teacher.method, options=teacher.options, processes=self.request.processes,
            threads=self.request.threads,
        )  # fmt: skip
        if done.interrupted:
            raise InterruptedRun
        if not path.exists() or path.stat().st_size == 0:
            reason = done.failures[0] if done.failures else f"see {path}.failures.jsonl"
            raise LabellingError(f"{teacher.method} failed for all {len(frames)} frames: {reason}")
        return path

    def teacher_seconds(self, small: bool = False) -> float:
        """Seconds of one evaluation of the reference method, timed once and remembered: plans must not change."""
        teacher = self.need_teacher("timing")
        return self._timed("teacher-small" if self._apart(small) else "teacher", teacher.results, small)

    def model_seconds(self, small: bool = False) -> float:
        """The same of the model."""

        def once(atoms: Atoms) -> None:
            model = self.model
            evaluate(model, graph_from_atoms(atoms, model.cutoff, dtype=model.dtype, device=model.device))

        return self._timed("model-small" if self._apart(small) else "model", once, small)

    def _timed(self, name: str, once: Any, small: bool) -> float:
        path = self.work / "seconds.json"
        known: dict[str, float] = json.loads(path.read_text()) if path.exists() else {}
        if name not in known:
            atoms = self.structure(small).to_atoms()
            begun = time.perf_counter()
            once(atoms)
            if time.perf_counter() - begun < 5.0:  # the first call loads and compiles
                atoms.rattle(1e-3, seed=0)  # a calculator remembers the same positions, and answers at once
                begun = time.perf_counter()
                once(atoms)
            known[name] = time.perf_counter() - begun
            write_json(path, known)
        return known[name]

    def energy_and_forces(self, atoms: Atoms) -> tuple[float, np.ndarray]:
        """The model's energy (eV) and forces (N, 3) eV/Å."""
        model = self.model
        graph = graph_from_atoms(atoms, model.cutoff, dtype=model.dtype).to(model.device)
        found = evaluate(model, graph)
        return float(found["energy"][0]), found["forces"].detach().double().cpu().numpy()

    def start_file(self, name: str, atoms: Atoms) -> str:
        """``atoms`` as a file that runs can begin with."""
        path = self.work / "starts" / f"{name}.extxyz"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_frames(path, [atoms])
        return str(path)
