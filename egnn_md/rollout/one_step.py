"""One-step errors: the number of the paper's tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from egnn_md.data.trajectories import TrajectorySet
from egnn_md.data.windows import WindowSet
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import FastEGNNPropagator
from egnn_md.models.reference_propagators import Linear, StayStill
from egnn_md.rollout.plan import EvaluationSettings

EDGES_AT_ONCE = 400_000  # of the windows in a batch
STILL, LINEAR = StayStill.name, Linear.name

Progress = Callable[[str, int, int], None]


def one_step(
    models: dict[str, FastEGNNPropagator], data: TrajectorySet, settings: EvaluationSettings, notes: list[str],
    note: Progress,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Errors over the same windows for every model and the two baselines, and a description of the windows."""
    windows = {
        name: WindowSet(data, model.config, starts=settings.frames, seed=settings.seed)
        for name, model in models.items()
    }
    common = sorted(set.intersection(*(set(each.index) for each in windows.values())))
    total = len(common)
    if settings.windows and total > settings.windows:
        picked = np.random.default_rng(settings.seed).permutation(total)[: settings.windows]
        common = [common[i] for i in sorted(picked)]
        notes.append(f"One-step errors are over {len(common)} of {total} windows, drawn with seed {settings.seed}.")
    results: dict[str, Any] = {}
    for number, (name, model) in enumerate(models.items()):
        each = windows[name]
        each.index = common
        predictors: dict[str, Any] = {name: model}
        if number == 0:
            predictors |= {STILL: StayStill(model.config), LINEAR: Linear(model.config)}
        sums = {key: np.zeros(3) for key in predictors}
        values, seconds = 0, 0.0
        for graphs in _batches(each, f"one step of {name}", note):
            moving = ~torch.isin(graphs.species, torch.tensor(model.config.static_species, dtype=torch.long))
            values += 3 * int(moving.sum())
            for key, predictor in predictors.items():
                started = time.perf_counter()
                errors = _errors(predictor, graphs)
                if key == name:
                    seconds += time.perf_counter() - started
                sums[key] += [float((e[moving] ** power).sum()) for e, power in errors]
        for key, found in sums.items():
            mean = found / max(values, 1)
            results[key] = {"one_step": {"mse": mean[0], "mae": mean[1], "velocity_mse": mean[2]}}
        results[name]["seconds_per_window"] = seconds / len(common)
    described = {"used": len(common), "of": total, "digest": next(iter(windows.values())).digest()}
    return results, described


def _errors(model: Any, graph: ParticleGraph) -> list[tuple[torch.Tensor, int]]:
    """Position error, its absolute value and velocity error (N, 3), float64 on the CPU, with the powers to sum."""
    device = getattr(model, "wall_normals", torch.zeros(())).device
    with torch.no_grad():
        prediction = model.predict(graph.to(device))
    position = prediction.positions.cpu().double() - graph.labels["targets"][:, 0].double()
    velocity = prediction.velocities.cpu().double() - graph.labels["target_velocities"][:, 0].double()
    return [(position, 2), (position.abs(), 1), (velocity, 2)]


def _batches(windows: WindowSet, text: str, note: Progress) -> Iterator[ParticleGraph]:
    batch: list[ParticleGraph] = []
    edges = 0
    for index in range(len(windows)):
        graph = windows[index]
        if batch and edges + graph.num_edges > EDGES_AT_ONCE:
            yield ParticleGraph.join(batch)
            batch, edges = [], 0
        batch.append(graph)
        edges += graph.num_edges
        note(text, index + 1, len(windows))
    yield ParticleGraph.join(batch)
