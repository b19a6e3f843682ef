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
from egnn_md.rollout.one_step import LINEAR, STILL, Progress, one_step
from egnn_md.rollout.plan import EvaluationSettings, describe_world, left_out, plan_starts, read_case
from egnn_md.rollout.scores import Case, Score, World, combine, pairs_of, score, score_reference

if TYPE_CHECKING:
    from egnn_md.report.pairs import PairFunction

POSITIONS_AT_ONCE = 3_000_000  # frames times particles of the starts that are held together
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
        models: name → model; the first one's velocities are those of the linear baseline.
        data: the part.
        settings: see :class:`EvaluationSettings`.
        progress: called with a text, what is done and how much there is.

    Raises:
        InputError: no model, models of different strides, data of another system or unit, too few frames.
    """
    settings = settings or EvaluationSettings()
    note = progress or (lambda text, done, total: None)
    config = _check(models, data)
    began = time.perf_counter()
    notes: list[str] = []
    results, windows = one_step(models, data, settings, notes, note)
    world = describe_world(config, data)
    chosen, length = plan_starts([model.config for model in models.values()], data, settings)
    used = [horizon for horizon in settings.horizons if horizon <= length]
    evaluation = Evaluation({}, config, world, Shown(), {})
    rolling = {name: model for name, model in models.items() if model.config.velocity != "forward"}
    for name in models:
        if name not in rolling:
            notes.append(
                f"{name} takes forward differences, which are made from the next frame: no rollout is possible, and "
                "its one-step error holds part of the answer."
            )
    runs = _Runs(rolling, config, data, evaluation, settings, note)
    scores, cases = runs.all(chosen, length, used)
    for name, found in scores.items():
        results.setdefault(name, {}).update(combine(found, used, config.stride, reference=name == REFERENCE))
        evaluation.pairs[name] = pairs_of(world, cases, found)
    _compare_pairs(results, evaluation.pairs)
    for name, seconds in runs.speeds().items():
        results[name]["seconds_per_stride"] = seconds
    evaluation.record = {
        "format": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "system": config.system or data.metadata.system,
        "kind": world.kind,
        "units": config.units,
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
            "left_out": left_out(settings, data, config, length),
            "walls": None if world.walls is None else [list(pair) for pair in world.walls],
            "radius": world.radius,
        },
        "notes": notes,
        "results": results,
        "seconds": round(time.perf_counter() - began, 2),
    }
    return evaluation


def _check(models: dict[str, FastEGNNPropagator], data: TrajectorySet) -> PropagatorConfig:
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
    return first


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
        for first in range(0, len(starts), at_once):
            part = starts[first : first + at_once]
            held = [read_case(self.data, self.config, first + i, start, length) for i, start in enumerate(part)]
            runs = {name: self._run(name, part, length, first, len(starts)) for name in self.models}
            for place, case in enumerate(held):
                self.note("metrics", case.number + 1, len(starts))
                rows = {name: run[place] for name, run in runs.items()} | self._baselines(case, length)
                for name, (positions, velocities) in rows.items():
                    scores[name].append(score(self.evaluation.world, case, positions, velocities, horizons))
                scores[REFERENCE].append(score_reference(self.evaluation.world, case))
                if case.number == 0:
                    shown = {REFERENCE: case.positions, **{name: rows[name][0] for name in self.models}}
                    self.evaluation.shown = Shown(case, shown)
                # the frames of a large liquid must not pile up
                bare = replace(case, positions=case.positions[:1].copy(), velocities=case.velocities[:1].copy())
                cases.append(bare)
        return scores, cases

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


def _compare_pairs(results: dict[str, Any], pairs: dict[str, list[PairFunction]]) -> None:
    from egnn_md.rollout.metrics_molecular import pair_difference

    for name, found in pairs.items():
        if found and name != REFERENCE:
            results[name]["pair_difference"] = pair_difference(found, pairs[REFERENCE])


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
