"""One-step errors: the number of the paper's tables."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.data.trajectories import TrajectorySet
from egnn_md.data.windows import WindowSet
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import FastEGNNPropagator
from egnn_md.models.reference_propagators import Linear, StayStill
from egnn_md.rollout.definitions import BLOCKS
from egnn_md.rollout.plan import EvaluationSettings

EDGES_AT_ONCE = 400_000  # of the windows in a batch
STILL, LINEAR = StayStill.name, Linear.name

Progress = Callable[[str, int, int], None]


def one_step(
    models: dict[str, FastEGNNPropagator], data: TrajectorySet, settings: EvaluationSettings, notes: list[str],
    note: Progress, base: str | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Errors over the same windows for every model and the two baselines, and a description of the windows.

    The baselines take the velocities of the model ``base`` (the first one if None).
    """
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
    base = base or next(iter(models))
    for name, model in models.items():
        each = windows[name]
        each.index = common
        predictors: dict[str, Any] = {name: model}
        if name == base:
            predictors |= {STILL: StayStill(model.config), LINEAR: Linear(model.config)}
        # of each window: the sums of the three errors, and how many numbers they are of
        sums: dict[str, list[NDArray]] = {key: [] for key in predictors}
        values: list[NDArray] = []
        seconds = 0.0
        for graphs in _batches(each, f"one step of {name}", note):
            moving = ~torch.isin(graphs.species, torch.tensor(model.config.static_species, dtype=torch.long))
            window = graphs.batch.numpy()
            values.append(3 * np.bincount(window, moving.numpy(), graphs.num_graphs))
            for key, predictor in predictors.items():
                started = time.perf_counter()
                errors = _errors(predictor, graphs)
                if key == name:
                    seconds += time.perf_counter() - started
                of_particles = [torch.where(moving, (e**power).sum(1), 0.0).numpy() for e, power in errors]
                sums[key].append(np.stack([np.bincount(window, e, graphs.num_graphs) for e in of_particles], 1))
        counts = np.concatenate(values)
        for key, batches in sums.items():
            found = np.concatenate(batches)
            mse, mae, velocity_mse = (float(total / max(counts.sum(), 1)) for total in found.sum(axis=0))
            error = standard_error(found[:, 0], counts, np.array([trajectory for trajectory, _ in common]))
            results[key] = {"one_step": {"mse": mse, "mse_error": error, "mae": mae, "velocity_mse": velocity_mse}}
        results[name]["seconds_per_window"] = seconds / len(common)
    described = {"used": len(common), "of": total, "digest": next(iter(windows.values())).digest()}
    return results, described


def standard_error(sums: NDArray, counts: NDArray, trajectories: NDArray) -> float:
    """Standard error of ``Σ sums / Σ counts`` over windows (W,): neighbours in time are not independent.

    The windows are grouped, by trajectory, or in ``BLOCKS`` parts of successive ones if there are fewer
    trajectories than that; the ratio's variance is that of the groups' residuals (Cochran, Sampling Techniques,
    section 6.4). NaN of a single group.
    """
    groups = np.unique(trajectories, return_inverse=True)[1]
    if groups.max(initial=0) + 1 < BLOCKS:
        groups = np.arange(len(sums)) * min(BLOCKS, len(sums)) // max(len(sums), 1)
    number = int(groups.max(initial=0)) + 1
    if number < 2 or counts.sum() == 0:
        return float("nan")
    residuals = np.bincount(groups, sums - sums.sum() / counts.sum() * counts)
    return float(np.sqrt(number / (number - 1) * (residuals**2).sum()) / counts.sum())


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
