"""``egnn-md evaluate``: propagators beside stay still and linear on stored trajectories they have not seen."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.trajectories import TrajectorySet, open_trajectories
from egnn_md.data.windows import check_same_world
from egnn_md.errors import InputError
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.rollout import metrics
from egnn_md.rollout.definitions import SINKHORN_STARTS
from egnn_md.rollout.one_step import LINEAR, STILL, Progress, one_step
from egnn_md.rollout.plan import (
    EvaluationSettings,
    describe_world,
    left_out,
    plan_starts,
    read_case,
    read_velocities,
    spread,
)
from egnn_md.rollout.scores import Case, Score, World, combine, pairs_of, score, score_reference
from egnn_md.rollout.trust import sentence, trust

if TYPE_CHECKING:
    from egnn_md.report.pairs import PairFunction

POSITIONS_AT_ONCE = 3_000_000  # frames times particles of the starts that are held together
SECONDS_A_DAY, FS_PER_NS = 86_400, 1e6
REFERENCE = "reference"
STRIDE_TOLERANCE = 1e-6  # relative


@dataclass
class Shown:
    """Frames of the first start for the page's animation: name → (F, N, 3), the reference first."""

    case: Case | None = None
    positions: dict[str, NDArray] = field(default_factory=dict)


@dataclass
class Evaluation:
    """Everything that was measured. ``record`` is what metrics.json holds."""

    record: dict[str, Any]
    config: PropagatorConfig
    world: World
    shown: Shown
    pairs: dict[str, list[PairFunction]]


def evaluate(
    models: dict[str, FastEGNNPropagator],
    data: TrajectorySet,
    settings: EvaluationSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure propagators of one stride on one part of a data set.

    Args:
        models: name → model; the first one's velocities (the first causal ones) are those of the linear baseline.
        data: the part.
        settings: see :class:`EvaluationSettings`.
        progress: called with a text, what is done and how much there is.

    Raises:
        InputError: no model, models of different strides, data of another system or unit, too few frames.
    """
    settings = settings or EvaluationSettings()
    note = progress or (lambda text, done, total: None)
    _check(models, data)
    began = time.perf_counter()
    rolling = {name: model for name, model in models.items() if model.config.velocity != "forward"}
    base = next(iter(rolling or models))
    config = models[base].config
    notes = _velocity_notes(models, base)
    results, windows = one_step(models, data, settings, notes, note, base)
    world = describe_world(config, data)
    chosen, length = plan_starts([config, *(model.config for model in models.values())], data, settings)
    used = [horizon for horizon in settings.horizons if horizon <= length]
    missing = left_out(settings, data, config, length)
    if missing and length not in used:
        used.append(length)  # the end of what the data allow is worth a table of its own
    evaluation = Evaluation({}, config, world, Shown(), {})
    runs = _Runs(rolling, config, data, evaluation, settings, note)
    scores, cases = runs.all(chosen, length, used)
    for name, found in scores.items():
        results.setdefault(name, {}).update(combine(found, used, config.stride, reference=name == REFERENCE))
        evaluation.pairs[name] = pairs_of(world, cases, found)
    results = {name: results[name] for name in (*models, STILL, LINEAR, REFERENCE)}
    for name in rolling:
        trusted = trust(scores[name], {STILL: scores[STILL], LINEAR: scores[LINEAR]})
        error = results[name]["series"]["kinetic_energy_error"][max(trusted["strides"], 1)]
        trusted["kinetic_energy_error"] = error
        results[name]["trust"] = {**trusted, "text": sentence(name, trusted, config.stride, config.units)}
    _compare_with_reference(results, evaluation.pairs)
    unsolved = sum(one.unconverged for rows in scores.values() for one in rows)
    if unsolved:
        notes.append(f"Sinkhorn's iterations ended short of the tolerance in {unsolved} of the comparisons of clouds.")
    for name, seconds in runs.speeds().items():
        results[name]["seconds_per_stride"] = seconds
        if world.elements:
            results[name]["ns_per_day"] = SECONDS_A_DAY / seconds * config.stride * world.femtosecond / FS_PER_NS
    evaluation.record = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": config.system or data.metadata.system,
        "kind": world.kind,
        "units": config.units | ({"energy": "eV"} if world.elements else {}),
        "stride": config.stride,
        "stride_frames": round(config.stride / data.metadata.frame_interval),
        "data": {
            "path": str(data.path),
            "part": settings.part,
            "trajectories": len(data),
            "particles": sorted({trajectory.num_particles for trajectory in data}),
            "windows": windows,
        },
        "rollouts": {
            "strides": length,
            "starts": [list(start) for start in chosen],
            "horizons": used,
            "left_out": missing,
            "walls": None if world.walls is None else [list(pair) for pair in world.walls],
            "radius": world.radius,
        },
        "notes": notes,
        "results": results,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return evaluation


def _velocity_notes(models: dict[str, FastEGNNPropagator], base: str) -> list[str]:
    """What a reader must know of velocities: peeking ones, and models that take different ones."""
    notes = [
        f"{name} takes forward differences, which are made from the next frame: no rollout is possible, and "
        "its one-step error holds part of the answer."
        for name, model in models.items()
        if model.config.velocity == "forward"
    ]
    taken = models[base].config.velocity
    if taken == "forward":
        notes.append("The linear baseline takes the same forward differences, so it too holds part of the answer.")
    for name, model in models.items():
        if model.config.velocity not in (taken, "forward"):
            notes.append(
                f"{name} takes and predicts {model.config.velocity} velocities; the linear baseline and the kinetic "
                f"energy of the reference are with the {taken} ones of {base}."
            )
    return notes


def _check(models: dict[str, FastEGNNPropagator], data: TrajectorySet) -> None:
    if not models:
        raise InputError("name at least one model to evaluate")
    first = next(iter(models.values())).config
    for name, model in models.items():
        check_same_world(model.config, data.metadata, str(data.path or "the data"))
        if abs(model.config.stride / first.stride - 1) > STRIDE_TOLERANCE:
            raise InputError(
                f"{name} has a stride of {model.config.stride:g}, the first model one of {first.stride:g}; "
                "compare models of one stride"
            )


class _Runs:
    """The rollouts of an evaluation, so many starts at a time as memory takes."""

    def __init__(
        self, models: dict[str, FastEGNNPropagator], config: PropagatorConfig, data: TrajectorySet,
        evaluation: Evaluation, settings: EvaluationSettings, note: Progress,
    ) -> None:  # fmt: skip
        self.models, self.config, self.data = models, config, data
        self.evaluation, self.settings, self.note = evaluation, settings, note
        self.seconds = dict.fromkeys(models, 0.0)
        self.strides = dict.fromkeys(models, 0)

    def speeds(self) -> dict[str, float]:
        """Name → seconds a stride of one start, neighbour lists included."""
        return {name: self.seconds[name] / strides for name, strides in self.strides.items() if strides}

    def all(
        self, starts: list[tuple[int, int]], length: int, horizons: list[int]
    ) -> tuple[dict[str, list[Score]], list[Case]]:
        """Scores of every model, the baselines and the reference, a start after the other; and the bare starts."""
        scores: dict[str, list[Score]] = {name: [] for name in (*self.models, STILL, LINEAR, REFERENCE)}
        cases: list[Case] = []
        largest = max(trajectory.num_particles for trajectory in self.data)
        at_once = max(1, POSITIONS_AT_ONCE // ((length + 1) * largest))
        clouds = spread(len(starts), SINKHORN_STARTS)
        for first in range(0, len(starts), at_once):
            part = starts[first : first + at_once]
            held = [self._case(first + i, start, length, first + i in clouds) for i, start in enumerate(part)]
            runs = {name: self._run(name, part, length, first, len(starts)) for name in self.models}
            for place, case in enumerate(held):
                self.note("metrics", case.number + 1, len(starts))
                rows = {name: run[place] for name, run in runs.items()} | self._baselines(case, length)
                for name, (positions, velocities) in rows.items():
                    same = self._with_velocities_of(name, case, part[place], length)
                    scores[name].append(score(self.evaluation.world, same, positions, velocities, horizons))
                scores[REFERENCE].append(score_reference(self.evaluation.world, case))
                if case.number == 0:
                    shown = {REFERENCE: case.positions, **{name: rows[name][0] for name in self.models}}
                    self.evaluation.shown = Shown(case, shown)
                # the frames of a large liquid must not pile up
                bare = replace(case, positions=case.positions[:1].copy(), velocities=case.velocities[:1].copy())
                cases.append(bare)
        return scores, cases

    def _case(self, number: int, start: tuple[int, int], length: int, sinkhorn: bool) -> Case:
        case = read_case(self.data, self.config, number, start, length)
        straight = self._baselines(case, length)[LINEAR][0]
        linear = metrics.squared_error(straight, case.positions, case.moving)
        return replace(case, linear=linear, sinkhorn=sinkhorn)

    def _with_velocities_of(self, name: str, case: Case, start: tuple[int, int], length: int) -> Case:
        """The reference's velocities are of the kind that a model predicts."""
        if name not in self.models or self.models[name].config.velocity == self.config.velocity:
            return case
        return replace(case, velocities=read_velocities(self.data, self.models[name].config, start, length))

    def _run(
        self, name: str, part: list[tuple[int, int]], length: int, done: int, total: int
    ) -> list[tuple[NDArray, NDArray]]:
        from egnn_md.rollout.core import rollout
        from egnn_md.rollout.state import state_at

        model, many = self.models[name], len(part)
        states = [state_at(self.data, model.config, trajectory=index, frame=frame) for index, frame in part]
        began = time.perf_counter()

        def report(step: int, _: object) -> None:
            self.note(f"rollouts of {name}", done * length + step * many, total * length)

        found = rollout(model, states, length, seed=self.settings.seed, callback=report)
        self.seconds[name] += time.perf_counter() - began
        self.strides[name] += sum(len(result.positions) - 1 for result in found)
        return [(_padded(result.positions, length), _padded(result.velocities, length)) for result in found]

    def _baselines(self, case: Case, length: int) -> dict[str, tuple[NDArray, NDArray]]:
        """As :mod:`egnn_md.models.reference_propagators` roll out, without the loop."""
        start = case.positions[0]
        velocity = np.where(case.moving[:, None], case.velocities[0], 0.0)
        kept = metrics.stay_still(velocity, length + 1)
        straight = metrics.straight_on(start, velocity, self.config.stride, length + 1)
        return {STILL: (metrics.stay_still(start, length + 1), kept), LINEAR: (straight, kept)}


def _padded(frames: NDArray, length: int) -> NDArray:
    """(length + 1, N, 3), NaN after a rollout that was stopped."""
    missing = length + 1 - len(frames)
    if not missing:
        return frames
    return np.concatenate([frames, np.full((missing, *frames.shape[1:]), np.nan)])


def _compare_with_reference(results: dict[str, Any], pairs: dict[str, list[PairFunction]]) -> None:
    """Pair distributions and fluctuations beside the reference's."""
    from egnn_md.rollout.metrics_molecular import pair_difference

    for name, found in pairs.items():
        if found and name != REFERENCE:
            results[name]["pair_difference"] = pair_difference(found, pairs[REFERENCE])
    for name, entry in results.items():
        if "rmsf" not in entry:
            continue
        entry["rmsf_mean"] = float(np.mean(entry["rmsf"]))
        if name != REFERENCE and len(entry["rmsf"]) == len(results[REFERENCE].get("rmsf", ())):
            own, true = np.array(entry["rmsf"]), np.array(results[REFERENCE]["rmsf"])
            entry["rmsf_error"] = float(np.sqrt(((own - true) ** 2).mean()))
            if min(own.std(), true.std()) > 1e-3 * true.mean():  # stay still has no profile
                entry["rmsf_correlation"] = float(np.corrcoef(own, true)[0, 1])


def evaluate_files(
    paths: Sequence[str], system: str, settings: EvaluationSettings, *, device: str = "cpu",
    progress: Progress | None = None,
) -> Evaluation:  # fmt: skip
    """:func:`evaluate` of model files on a data set given by path or registered name.

    Raises:
        InputError: not propagators, or see :func:`evaluate`.
        ModelFileError: a file that cannot be read.
    """
    from egnn_md.checkpoint import ModelCard, load_model, model_digest, resolve_model
    from egnn_md.rollout.starts import resolve_system

    folder = resolve_system(system)
    data = open_trajectories(folder, settings.part if folder.is_dir() else None)
    models: dict[str, FastEGNNPropagator] = {}
    described = []
    for path in paths:
        model = load_model(path, device=device)
        if not isinstance(model, FastEGNNPropagator):
            raise InputError(
                f"{path} is a {type(model).__name__}; evaluate is for propagators (a potential: egnn-md check)"
            )
        card = getattr(model, "card", None) or ModelCard()
        name = card.name or Path(path).stem
        if name in (*models, STILL, LINEAR, REFERENCE):
            name = f"{name} ({len(models) + 1})"
        models[name] = model
        described.append(
            {
                "name": name,
                "file": str(resolve_model(path)),
                "digest": model_digest(model),
                "parameters": sum(parameter.numel() for parameter in model.parameters()),
                "config": json.loads(model.config.model_dump_json()),
                "card": card.model_dump(mode="json"),
            }
        )
    evaluation = evaluate(models, data, settings, progress=progress)
    evaluation.record["models"] = described
    return evaluation
