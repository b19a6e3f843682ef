"""The loop: run, select, label, train, measure. Every stage can be killed and repeated."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ase import Atoms
from rich.console import Console

from egnn_md.checkpoint import load_model
from egnn_md.data.labelling import structure_id
from egnn_md.data.structures import read_frames, read_labelled
from egnn_md.errors import ConfigError, EgnnMdError, LabellingError
from egnn_md.learning.config import LabelledSection, LearnConfig, check_learn_config
from egnn_md.learning.explore import candidates, outcomes, plan_runs, run_all
from egnn_md.learning.measure import compare, measure
from egnn_md.learning.members import COMMITTEE, labelled_count, too_hard, train_members
from egnn_md.learning.report import write_learning_report
from egnn_md.learning.sampling import (
    LABELS,
    first_structures,
    label_frames,
    sample,
    write_frames,
)
from egnn_md.learning.selection import describe, measure_spreads, select
from egnn_md.learning.state import LearnState
from egnn_md.models.committee import CommitteePotential
from egnn_md.simulation.files import locked, write_atomic, write_json
from egnn_md.simulation.interrupts import Interrupted, Interrupts
from egnn_md.simulation.progress import duration
from egnn_md.training.data import expand_files

SELECTED, STRUCTURES = "selected.extxyz", "structures.extxyz"
ROUND_RECORD = "round.json"


@dataclass
class LearnResult:
    """What a call of :func:`learn` left: ``exit_code`` 0, or that of a shell after a signal."""

    directory: Path
    finished: bool
    rounds: int  #: rounds that are over, without the first training
    exit_code: int = 0
    committee: Path | None = None
    report: Path | None = None


def learn(config: LearnConfig, *, console: Console | None = None) -> LearnResult:
    """Run a learning loop, or go on with the one in ``config.output``.

    Stages that are over are not repeated, and one that was cut short goes on where it was (runs and trainings from
    their checkpoints, labels from the last whole frame).

    Args:
        config: of the loop. Only ``rounds`` and the processes may differ from those it was begun with.
        console: where progress goes; None is silent.

    Raises:
        ConfigError: another loop's directory, a file that is not there.
        InputError: unusable structures; another process is learning there.
        LabellingError, TrainingError, ModelFileError, OutputError: a stage failed; the same call tries it again.
    """
    check_learn_config(config)
    folder = Path(config.output)
    console = console or Console(quiet=True)
    with locked(folder / "learn.lock", "learning"), Interrupts() as interrupts:
        state = LearnState.open(folder, config)
        state.status = "running"
        state.save()
        loop = _Loop(config, folder, state, console, interrupts)
        try:
            loop.run()
        except Interrupted as stop:
            state.status = "interrupted"
            state.save()
            console.print("interrupted; the same command goes on from here", highlight=False)
            return LearnResult(folder, False, loop.rounds_done(), interrupts.exit_code or stop.exit_code)
        except EgnnMdError:
            state.status = "stopped"
            state.save()
            raise
        state.status = "finished"
        state.save()
        rounds = loop.rounds_done()
        return LearnResult(folder, True, rounds, 0, folder / COMMITTEE, folder / "report.html")


class _Loop:
    def __init__(
        self, config: LearnConfig, folder: Path, state: LearnState, console: Console, interrupts: Interrupts
    ) -> None:
        self.config, self.folder, self.state = config, folder, state
        self.console, self.interrupts = console, interrupts

    def round_folder(self, number: int) -> Path:
        return self.folder / f"round-{number:02d}"

    def rounds_done(self) -> int:
        """Rounds after the first training that are over."""
        return max((int(name.partition("/")[0]) for name in self.state.done if name.endswith("/report")), default=0)

    def run(self) -> None:
        self.stage("start/labels", lambda: self._prepare("start", self.config.start))
        self.stage("test/labels", lambda: self._prepare("test", self.config.test))
        self._check_apart()
        self.stage("0/train", lambda: self._train(0))
        self.stage("0/measure", lambda: self._measure(0))
        self.stage("0/report", lambda: self._report(0))
        for number in range(1, self.config.rounds + 1):
            self.stage(f"{number}/run", lambda n=number: self._run(n))  # type: ignore[misc]
            self.stage(f"{number}/select", lambda n=number: self._select(n))  # type: ignore[misc]
            self.stage(f"{number}/label", lambda n=number: self._label(n))  # type: ignore[misc]
            self.stage(f"{number}/train", lambda n=number: self._train(n))  # type: ignore[misc]
            self.stage(f"{number}/measure", lambda n=number: self._measure(n))  # type: ignore[misc]
            self.stage(f"{number}/report", lambda n=number: self._report(n))  # type: ignore[misc]

    def stage(self, name: str, work: Callable[[], str]) -> None:
        """Do ``work`` unless it is done, count its time, and say what it says."""
        if name in self.state.done:
            return
        if self.interrupts.requested:
            raise Interrupted(self.interrupts.exit_code)
        with self._timed(name):
            said = work()
        self.state.finish(name)
        self.console.print(
            f"{name}: {said} ({duration(self.state.seconds[name])})", highlight=False, markup=False, soft_wrap=True
        )

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.state.seconds[name] = self.state.seconds.get(name, 0.0) + time.perf_counter() - begun
            self.state.save()

    def _stop(self) -> bool:
        return self.interrupts.requested

    def _prepare(self, name: str, section: LabelledSection) -> str:
        """Label files of the starting or the test set."""
        if section.sample is None:
            files = expand_files(section.labels, f"{name}.labels")
            return f"{sum(len(read_frames(path)) for path in files)} labelled structures"
        folder = self.folder / name
        whole = folder / STRUCTURES
        if not whole.exists():
            sample(section.sample, self.config.label, folder, f"{name}.sample.structures", self._stop)
        label_frames(read_frames(whole), folder / LABELS, self.config.label)
        count = labelled_count(folder / LABELS)
        if not count:
            raise LabellingError(
                f"{self.config.label.method} could not label one structure of {whole}; see "
                f"{folder / LABELS}.failures.jsonl"
            )
        return f"{count} structures sampled and labelled"

    def _set_files(self, name: str) -> list[Path]:
        section: LabelledSection = getattr(self.config, name)
        return [self.folder / name / LABELS] if section.sample else expand_files(section.labels, f"{name}.labels")

    def _check_apart(self) -> None:
        """The test set must not be learned from."""
        sets = [
            {structure_id(atoms) for path in self._set_files(name) for atoms in read_frames(path)}
            for name in ("start", "test")
        ]
        shared = len(sets[0] & sets[1])
        if shared:
            raise ConfigError(
                f"{shared} structures of test are in start too; their errors would mean nothing. Give other files, or "
                "another test.sample.seed"
            )

    def _labels(self, number: int) -> list[Path]:
        """All label files up to round ``number``."""
        files = self._set_files("start")
        for earlier in range(1, number + 1):
            path = self.round_folder(earlier) / LABELS
            if labelled_count(path):
                files.append(path)
        return files

    def _committee(self, number: int) -> CommitteePotential:
        found = load_model(self.round_folder(number) / COMMITTEE)
        assert isinstance(found, CommitteePotential)  # train_members wrote it
        return found

    def _starts(self) -> tuple[list[Atoms], list[Path]]:
        """First structures of the runs, and a file of each, which stays as it was when the loop began."""
        folder = self.folder / "starts"
        if not folder.exists():
            folder.mkdir(parents=True)
        kept = sorted(folder.glob("start-*.extxyz"))
        structures = first_structures(self.config.run.structures, "run.structures")
        if len(kept) != len(structures):
            kept = [folder / f"start-{index:03d}.extxyz" for index in range(len(structures))]
            for path, atoms in zip(kept, structures, strict=True):
                write_frames(path, [atoms])
        return [read_frames(path)[0] for path in kept], kept

    def _run(self, number: int) -> str:
        starts, files = self._starts()
        folder = self.round_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        plans = plan_runs(self.config, folder / "runs", number, len(starts))
        for plan in plans:
            if self._stop():
                raise Interrupted(self.interrupts.exit_code)
            run_all(self.config, [plan], files, self.round_folder(number - 1) / COMMITTEE, self.console)
        found = outcomes(plans)
        self._note(number, runs=found)
        return (
            f"{found['runs']} runs: {found['finished']} finished, {found['uncertain']} stopped above run.stop_above, "
            f"{found['failed']} failed"
        )

    def _select(self, number: int) -> str:
        starts, _ = self._starts()
        plans = plan_runs(self.config, self.round_folder(number) / "runs", number, len(starts))
        found = candidates(self.config, plans, starts)
        values = measure_spreads(self._committee(number - 1), found)
        labelled = [atoms for path in self._labels(number - 1) for atoms in read_frames(path)]
        chosen = select(found, values, self.config.select, labelled, [self.config.seed, number])
        for atoms in chosen.chosen:
            atoms.info["learned_in_round"] = number
        write_frames(self.round_folder(number) / SELECTED, chosen.chosen)
        self._note(number, selection=describe(chosen))
        return f"{len(chosen.chosen)} of {len(found)} candidates"

    def _label(self, number: int) -> str:
        folder = self.round_folder(number)
        chosen = folder / SELECTED
        if not chosen.stat().st_size:
            self._note(number, labels={"new": 0, "failed": 0, "too_hard": 0})
            return "nothing to label"
        frames = read_frames(chosen)
        label_frames(frames, folder / LABELS, self.config.label)
        count = labelled_count(folder / LABELS)
        hard = too_hard(folder / LABELS, self.config.label.max_force)
        self._note(number, labels={"new": count, "failed": len(frames) - count, "too_hard": hard})
        return f"{count} new labels, {len(frames) - count} failed" + (
            f"; {hard} with forces above label.max_force = {self.config.label.max_force:g} eV/Å are not learned from"
            if hard
            else ""
        )

    def _train(self, number: int) -> str:
        folder = self.round_folder(number)
        folder.mkdir(parents=True, exist_ok=True)
        before = self.round_folder(number - 1) if number else None
        if before is not None and not labelled_count(folder / LABELS):
            # nothing new: the round before knows all there is
            for index in range(self.config.committee.members):
                shutil.copytree(before / f"member-{index}", folder / f"member-{index}", dirs_exist_ok=True)
            write_atomic(folder / COMMITTEE, (before / COMMITTEE).read_bytes())
            self._note(number, learned_from=self._read(number - 1).get("learned_from"))
            return "nothing new to learn"
        files = self._labels(number)
        start = before if self.config.committee.start == "last" else None
        train_members(self.config, folder, number, files, start, self.console)
        hardest = self.config.label.max_force
        count = sum((labelled_count(path) or len(read_frames(path))) - too_hard(path, hardest) for path in files)
        self._note(number, learned_from=count)
        return f"{self.config.committee.members} members on {count} structures"

    def _measure(self, number: int) -> str:
        committee = self._committee(number)
        found = measure(committee, self._set_files("test"))
        news = self.round_folder(number) / LABELS
        if number and labelled_count(news):
            # structures that the committee before had not seen when it doubted them
            old = self._committee(number - 1)
            found["new_labels"] = compare(old, read_labelled([news], old.cutoff, dtype=old.dtype).graphs)
        self._note(number, test=found)
        write_atomic(self.folder / COMMITTEE, (self.round_folder(number) / COMMITTEE).read_bytes())
        rho = found["spearman"]["force"]
        return f"force RMSE {found['errors']['force_rmse']:.1f} meV/Å on the test set, rank correlation " + (
            "unknown" if rho is None else f"{rho:.2f}"
        )

    def _report(self, number: int) -> str:
        page = write_learning_report(self.folder, self.config, self.records(number), self.state.seconds)
        return str(page)

    def records(self, last: int) -> list[dict[str, Any]]:
        """What is known of rounds 0 to ``last``."""
        return [self._read(number) for number in range(last + 1)]

    def _read(self, number: int) -> dict[str, Any]:
        path = self.round_folder(number) / ROUND_RECORD
        found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"round": number}
        return found

    def _note(self, number: int, **values: Any) -> None:
        write_json(self.round_folder(number) / ROUND_RECORD, {**self._read(number), **values})
