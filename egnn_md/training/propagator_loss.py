"""Training loss of a propagator: the paper's, with a velocity term, over one stride or several in a row."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import Prediction, PropagatorConfig, predict_unchecked
from egnn_md.training.batches import DROP, SAMPLES, rebuild_edges, step_generator
from egnn_md.training.mmd import mmd_loss
from egnn_md.training.propagator_config import PropagatorLossSection
from egnn_md.training.share import Share

PARTS = ("mse", "velocity_mse", "mmd")


def moving_particles(graph: ParticleGraph, config: PropagatorConfig) -> Tensor | None:
    """(N,) bool, False for particles that never move; None where all do."""
    if not config.static_species:
        return None
    return ~torch.isin(graph.species, torch.tensor(config.static_species, device=graph.species.device))


def squared_error(one: Tensor, other: Tensor, moving: Tensor | None, count: int) -> Tensor:
    """() sum over the own moving particles and the components, over three times their number ``count`` anywhere."""
    error = (one - other).pow(2)
    return (error if moving is None else error[moving]).sum() / (3 * count)


def stride_loss(
    prediction: Prediction,
    target: Tensor,
    target_velocities: Tensor,
    graph: ParticleGraph,
    config: PropagatorConfig,
    settings: PropagatorLossSection,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> dict[str, Tensor]:
    """Loss of one stride.

    =========================================  =====================================================
    symbol                                     variable
    =========================================  =====================================================
    x', v', Z                                  ``prediction``: (N, 3), (N, 3), (G, 3, C)
    y, w                                       ``target``, ``target_velocities`` (N, 3)
    s, λ                                       ``config.stride``, ``settings.mmd``
    L = [⟨|x'-y|²⟩/3 + a ⟨|v'-w|²⟩ s²/3] / scale² + λ MMD(Z, y)   ``loss``
    =========================================  =====================================================

    ⟨·⟩ is over all particles of the batch that can move. The MMD's targets are all particles, or some of them
    (``settings.samples``). Source: arXiv 2506.19482; a = 0 and scale = 1 there.

    With ``share`` everything is of its own particles, and the result is what this rank brings: all ranks' together
    sum up to L.

    Returns:
        ``loss`` and, unweighted, ``mse``, ``velocity_mse`` (of v·s, a squared length), ``mmd`` where λ > 0.
    """
    share = share or Share.all_of(graph)
    moving = moving_particles(share.whole, config)
    count = share.whole.num_nodes if moving is None else int(moving.sum())
    moving = None if moving is None else share.own(moving)
    parts = {"mse": squared_error(prediction.positions, target, moving, count)}
    stride = config.stride
    parts["velocity_mse"] = squared_error(prediction.velocities * stride, target_velocities * stride, moving, count)
    total = parts["mse"]
    if settings.velocity > 0:
        total = total + settings.velocity * parts["velocity_mse"]
    total = total / settings.scale**2
    if settings.mmd > 0:
        assert settings.sigma is not None
        parts["mmd"] = mmd_loss(
            prediction.virtual_positions,
            target,
            graph.batch,
            sigma=settings.sigma,
            kernel=settings.kernel,
            samples=settings.samples,
            generator=generator,
            share=share,
        )
        total = total + settings.mmd * parts["mmd"]
    return {**parts, "loss": total}


def unrolled_loss(
    model: nn.Module,
    graph: ParticleGraph,
    config: PropagatorConfig,
    settings: PropagatorLossSection,
    strides: int,
    *,
    seed: int = 0,
    step: int = 0,
    share: Share | None = None,
) -> dict[str, Tensor]:
    """:func:`stride_loss` averaged over ``strides`` predictions, each from the one before, gradients through all.

    From the second stride on the edges are those of the predicted positions (held fixed for the gradient), dropped
    as ``config`` says; random edges and MMD samples depend on ``seed``, ``step`` and the stride.

    Args:
        model: a propagator.
        graph: a batch with ``targets`` and ``target_velocities`` (N, K, 3), K >= ``strides``.
        config: the model's.
        settings: the loss.
        strides: how many.
        seed: of the run.
        step: of the training.
        share: of a batch that is divided over ranks, ``graph`` being ``share.graph``; they all call this together,
            and what they get sums up to the loss.
    """
    share = share or Share.all_of(graph)
    sums: dict[str, Tensor] = {}
    for stride in range(strides):
        graph = share.graph
        with share.communicating(model):
            prediction = predict_unchecked(model, graph)
        parts = stride_loss(
            prediction,
            graph.labels["targets"][:, stride],
            graph.labels["target_velocities"][:, stride],
            graph,
            config,
            settings,
            step_generator(seed, step, SAMPLES, stride),
            share,
        )
        sums = {name: sums[name] + value if name in sums else value for name, value in parts.items()}
        if stride + 1 < strides:
            edges = partial(rebuild_edges, config=config, generator=step_generator(seed, step, DROP, stride + 1))
            changes = config.cutoff is not None or config.drop_fraction > 0
            share = share.moved(prediction.positions, prediction.velocities, edges if changes else None)
    return {name: value / strides for name, value in sums.items()}
