"""Training loss of a potential: squared (or Huber) errors of energy an atom, force and stress."""

from __future__ import annotations

import torch
from torch import Tensor

from egnn_md.graph import ParticleGraph
from egnn_md.training.config import LossSection
from egnn_md.training.share import Share


def _penalty(error: Tensor, settings: LossSection) -> Tensor:
    """() sum over all elements."""
    if settings.kind == "mse":
        return error.pow(2).sum()
    delta = settings.huber_delta
    size = error.abs()
    # twice torch's Huber function, so that small errors weigh the same as under "mse"
    return torch.where(size <= delta, size.pow(2), delta * (2 * size - delta)).sum()


def potential_loss(
    prediction: dict[str, Tensor], graph: ParticleGraph, settings: LossSection, share: Share | None = None
) -> dict[str, Tensor]:
    """Weighted sum and its parts.

    =============================  ===============================================
    symbol                         variable
    =============================  ===============================================
    E (eV), F (eV/Å), σ (eV/Å³)    ``energy`` (G,), ``forces`` (N, 3), ``stress`` (G, 3, 3)
    N_g                            ``atoms`` (G,)
    L = w_E ⟨((E - E*)/N_g)²⟩_g + w_F ⟨(F - F*)²⟩ + w_σ ⟨(σ - σ*)²⟩   ``loss``
    =============================  ===============================================

    The energy difference is taken in float64, before it is divided: totals are kiloelectronvolts, and what
    matters is a millielectronvolt. Graphs whose reference stress is NaN (open ones) do not enter ⟨·⟩_σ.

    Args:
        prediction: of ``graph``, with a gradient.
        graph: with labels.
        settings: weights.
        share: of a batch that is divided over ranks, ``graph`` being ``share.graph``: what this rank brings, which
            all ranks' together sum up to L. None: ``graph`` is the batch.

    Returns:
        ``loss`` and, unweighted, ``energy``, ``forces``, ``stress`` (only those with a weight).
    """
    share = share or Share.all_of(graph)
    whole = share.whole
    parts: dict[str, Tensor] = {}
    total = prediction["energy"].new_zeros(())
    if settings.energy > 0:
        atoms = torch.bincount(whole.batch, minlength=whole.num_graphs).clamp_min(1)[share.graphs]
        error = (prediction["energy"].double() - graph.labels["energy"]) / atoms
        parts["energy"] = _penalty(error, settings) / (whole.num_graphs * share.copies)
        total = total + settings.energy * parts["energy"]
    if settings.forces > 0:
        error = prediction["forces"] - graph.labels["forces"]
        parts["forces"] = _penalty(error, settings) / (3 * whole.num_nodes)
        total = total + settings.forces * parts["forces"]
    if settings.stress > 0:
        known = torch.isfinite(whole.labels["stress"]).all(dim=2).all(dim=1)
        count = int(known.sum())
        if count:
            error = (prediction["stress"] - graph.labels["stress"])[known[share.graphs]]
            parts["stress"] = _penalty(error, settings) / (9 * count * share.copies)
        else:
            parts["stress"] = prediction["energy"].new_zeros(())
        total = total + settings.stress * parts["stress"]
    parts["loss"] = total
    return parts
