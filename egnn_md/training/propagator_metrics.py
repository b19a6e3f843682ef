"""One-step errors of propagators beside "stay still" and "linear"."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import Prediction, PropagatorConfig, predict_unchecked
from egnn_md.models.reference_propagators import Linear, StayStill
from egnn_md.training.batches import WindowBatches
from egnn_md.training.propagator_loss import moving_particles


@torch.no_grad()
def one_step_errors(
    models: Mapping[str, nn.Module],
    batches: WindowBatches,
    batch_size: int,
    predictor: Callable[[nn.Module, ParticleGraph], Prediction] = predict_unchecked,
) -> dict[str, dict[str, float]]:
    """Errors after one stride.

    ``mse`` is the paper's number: the mean of the squared differences of positions over all samples, particles (those
    that can move) and the three components. ``velocity_mse`` is the same for velocities times the stride, so both are
    squared lengths. Sums are in float64.

    Args:
        models: propagators by name, on the batches' device, in evaluation mode.
        batches: samples with at least one target.
        batch_size: samples evaluated together.
        predictor: makes a stride; that of a model spread over ranks is another one.

    Returns:
        For each name ``mse`` and ``velocity_mse``.

    Raises:
        InputError: no sample, or none of its particles can move.
    """
    sums = {name: torch.zeros(2, dtype=torch.float64, device=batches.device) for name in models}
    count = 0
    for start in range(0, len(batches), batch_size):
        graph = batches.batch(range(start, min(start + batch_size, len(batches))))
        moving = moving_particles(graph, batches.config)
        target, target_velocities = (graph.labels[name][:, 0] for name in ("targets", "target_velocities"))
        count += 3 * (graph.num_nodes if moving is None else int(moving.sum()))
        for name, model in models.items():
            prediction = predictor(model, graph)
            missed = prediction.velocities - target_velocities
            errors = [prediction.positions - target, batches.config.stride * missed]
            if moving is not None:
                errors = [error[moving] for error in errors]
            sums[name] += torch.stack([error.double().pow(2).sum() for error in errors])
    if count == 0:
        raise InputError("there is no moving particle to measure errors on")
    return {name: dict(zip(("mse", "velocity_mse"), (s / count).tolist(), strict=True)) for name, s in sums.items()}


def references(config: PropagatorConfig) -> dict[str, nn.Module]:
    """``still`` and ``linear``: what every table shows beside a network."""
    return {"still": StayStill(config), "linear": Linear(config)}
