"""Training loss of a potential: squared (or Huber) errors of energy an atom, force and stress."""

from __future__ import annotations

import torch
from torch import Tensor

from egnn_md.graph import ParticleGraph
from egnn_md.training.config import LossSection


def _penalty(error: Tensor, settings: LossSection) -> Tensor:
    if settings.kind == "mse":
        return error.pow(2).mean()
    delta = settings.huber_delta
    size = error.abs()
    # twice torch's Huber function, so that small errors weigh the same as under "mse"
    return torch.where(size <= delta, size.pow(2), delta * (2 * size - delta)).mean()


def potential_loss(
    prediction: dict[str, Tensor], graph: ParticleGraph, settings: LossSection
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

    Returns:
        ``loss`` and, unweighted, ``energy``, ``forces``, ``stress`` (only those with a weight).
    """
    parts: dict[str, Tensor] = {}
    total = prediction["energy"].new_zeros(())
    if settings.energy > 0:
        atoms = torch.bincount(graph.batch, minlength=graph.num_graphs).clamp_min(1)
        error = (prediction["energy"].double() - graph.labels["energy"]) / atoms
        parts["energy"] = _penalty(error, settings)
        total = total + settings.energy * parts["energy"]
    if settings.forces > 0:
        parts["forces"] = _penalty(prediction["forces"] - graph.labels["forces"], settings)
        total = total + settings.forces * parts["forces"]
    if settings.stress > 0:
        reference = graph.labels["stress"]
        known = torch.isfinite(reference).all(dim=2).all(dim=1)
        if bool(known.any()):
            parts["stress"] = _penalty((prediction["stress"] - reference)[known], settings)
        else:
            parts["stress"] = prediction["energy"].new_zeros(())
        total = total + settings.stress * parts["stress"]
    parts["loss"] = total
    return parts
