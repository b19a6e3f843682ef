"""How the validators ask a model: one structure in, plain float64 numbers out."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from ase import Atoms
from torch import Tensor

from egnn_md.data.structures import graph_from_atoms
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import evaluate
from egnn_md.testing.result import (
    ENERGY_TOLERANCE,
    FORCE_TOLERANCE,
    STRESS_TOLERANCE,
    CheckResult,
    measured,
    scale,
)


@dataclass(frozen=True)
class Evaluated:
    """Energy (eV), energies (N,), forces (N, 3) eV/Å, stress (3, 3) eV/Å³ or None; float64 on the CPU."""

    energy: float
    energies: Tensor
    forces: Tensor
    stress: Tensor | None

    @property
    def largest_force(self) -> float:
        """Largest force component, eV/Å; 0 without atoms."""
        return float(self.forces.abs().max()) if len(self.forces) else 0.0


def copy_of(model: Potential, dtype: torch.dtype) -> Potential:
    """An independent copy in ``dtype``, ready to be evaluated; the caller's model stays as it is."""
    return copy.deepcopy(model).to(dtype).eval()


def in_float64(model: Potential) -> Potential:
    """The model itself if it computes in float64 already, else a copy that does."""
    return model if model.dtype == torch.float64 else copy_of(model, torch.float64)


def graph_of(model: Potential, atoms: Atoms, dtype: torch.dtype, backend: str = "vesin") -> ParticleGraph:
    """The model's graph of ``atoms``: neighbours found in float64, then everything in ``dtype``."""
    graph = graph_from_atoms(atoms, model.cutoff, backend=backend, dtype=torch.float64)
    return graph.to(device=model.device, dtype=dtype)


def numbers_of(result: dict[str, Tensor]) -> Evaluated:
    """The answer of :func:`egnn_md.models.evaluate` for one graph."""
    plain = {name: value.detach().double().cpu() for name, value in result.items()}
    stress = plain["stress"][0] if "stress" in plain else None
    return Evaluated(float(plain["energy"][0]), plain["energies"], plain["forces"], stress)


def ask(
    model: Potential, atoms: Atoms, dtype: torch.dtype | None = None, *, backend: str = "vesin"
) -> Evaluated:
    """Energy, energies, forces, and stress where all three directions are periodic."""
    graph = graph_of(model, atoms, dtype or model.dtype, backend)
    return numbers_of(evaluate(model, graph, forces=True, stress=bool(atoms.pbc.all())))


def energy_of(model: Potential, atoms: Atoms, dtype: torch.dtype | None = None) -> float:
    """Energy alone, eV."""
    return float(evaluate(model, graph_of(model, atoms, dtype or model.dtype), forces=False)["energy"][0])


def deviation(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference; NaN wins, so that it cannot hide; 0 for empty tensors."""
    return float((first - second).abs().max()) if first.numel() else 0.0


def compare(name: str, expected: Evaluated, found: Evaluated, dtype: torch.dtype) -> list[CheckResult]:
    """Results ``name: energy``, ``name: forces`` and, where both have one, ``name: stress``.

    The energy row bounds the total an atom and every single atom's energy.
    """
    count = max(len(expected.energies), 1)
    total = abs(expected.energy - found.energy) / count
    each = deviation(expected.energies, found.energies)
    size = scale(expected.largest_force)
    # the atoms' reference energies are exact, but a sum of thousands of eV has its own float64 rounding
    offset = 1e-14 * float(expected.energies.abs().sum())
    results = [
        measured(
            f"{name}: energy",
            # max() would drop a NaN in second place
            total + each if total != total or each != each else max(total, each),
            ENERGY_TOLERANCE[dtype] * size + offset,
            "eV/atom",
        ),
        measured(
            f"{name}: forces",
            deviation(expected.forces, found.forces),
            FORCE_TOLERANCE[dtype] * size,
            "eV/Å",
        ),
    ]
    if expected.stress is not None and found.stress is not None:
        results.append(
            measured(
                f"{name}: stress",
                deviation(expected.stress, found.stress),
                STRESS_TOLERANCE[dtype] * size,
                "eV/Å³",
            )
        )
    return results
