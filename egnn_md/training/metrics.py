"""Errors of a potential on labelled structures, in the units that the field reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models import Potential, evaluate
from egnn_md.units import GPA_PER_EV_PER_CUBIC_ANGSTROM

MEV = 1000.0


def measure_errors(
    model: Potential,
    graphs: Sequence[ParticleGraph],
    *,
    batch_size: int = 8,
    stress: bool = True,
    evaluator: Callable[..., dict[str, Tensor]] = evaluate,
) -> dict[str, float]:
    """Energy, force and stress errors of ``model`` on labelled graphs.

    Energies are compared an atom. ``offset`` is the mean signed error an atom over the structures; the
    ``..._centred`` errors are those left after taking it away: a constant offset moves no atom, and a
    reference method's zero is arbitrary.

    Args:
        model: a potential (evaluated on its own device and in its own precision).
        graphs: with the labels ``energy``, ``forces`` and, where known, ``stress`` (NaN elsewhere).
        batch_size: graphs evaluated together.
        stress: measure the stress too, where there is a reference.
        evaluator: called as :func:`egnn_md.models.evaluate`; that of a model spread over ranks is another one.

    Returns:
        ``structures``, ``atoms``; meV/atom: ``energy_mae``, ``energy_rmse``, ``energy_offset``,
        ``energy_mae_centred``, ``energy_rmse_centred``; meV/Å: ``force_mae``, ``force_rmse``,
        ``force_max`` (largest component's error), ``force_rms_reference``; GPa: ``stress_mae``,
        ``stress_rmse`` if known.

    Raises:
        InputError: no graph, or one without labels.
    """
    if not graphs:
        raise InputError("there is no structure to measure errors on")
    for index, graph in enumerate(graphs):
        if "energy" not in graph.labels or "forces" not in graph.labels:
            raise InputError(f"structure {index} has no reference energy or forces to compare with")
    parameter = next(iter(model.parameters()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = graphs[0].positions.dtype if parameter is None else parameter.dtype
    energy_errors, force_errors, force_references, stress_errors = [], [], [], []
    for start in range(0, len(graphs), batch_size):
        graph = ParticleGraph.join(graphs[start : start + batch_size]).to(device=device, dtype=dtype)
        reference_stress = graph.labels.get("stress")
        with_stress = stress and reference_stress is not None and bool(torch.isfinite(reference_stress).any())
        result = evaluator(model, graph, forces=True, stress=with_stress)
        atoms = torch.bincount(graph.batch, minlength=graph.num_graphs)
        energy_errors.append(((result["energy"].detach() - graph.labels["energy"]) / atoms).double().cpu())
        reference = graph.labels["forces"].double()
        force_errors.append((result["forces"].detach().double() - reference).cpu())
        force_references.append(reference.cpu())
        if with_stress and reference_stress is not None:
            known = torch.isfinite(reference_stress).all(dim=2).all(dim=1)
            stress_errors.append((result["stress"].detach() - reference_stress)[known].double().cpu())
    energy = torch.cat(energy_errors) * MEV
    forces = torch.cat(force_errors) * MEV
    centred = energy - energy.mean()
    out = {
        "structures": float(len(graphs)),
        "atoms": float(len(forces)),
        "energy_mae": float(energy.abs().mean()),
        "energy_rmse": float(energy.pow(2).mean().sqrt()),
        "energy_offset": float(energy.mean()),
        "energy_mae_centred": float(centred.abs().mean()),
        "energy_rmse_centred": float(centred.pow(2).mean().sqrt()),
        "force_mae": float(forces.abs().mean()),
        "force_rmse": float(forces.pow(2).mean().sqrt()),
        "force_max": float(forces.abs().max()),
        "force_rms_reference": float(torch.cat(force_references).pow(2).mean().sqrt()) * MEV,
    }
    if stress_errors:
        components = torch.cat(stress_errors) * GPA_PER_EV_PER_CUBIC_ANGSTROM
        out["stress_mae"] = float(components.abs().mean())
        out["stress_rmse"] = float(components.pow(2).mean().sqrt())
    return out
