"""The same question asked in two ways, and the small cases: one atom, no edges, joined graphs, precision."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from ase import Atoms

from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import UnknownElementError
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import evaluate
from egnn_md.neighbors import available_backends
from egnn_md.testing.probe import Evaluated, ask, compare, copy_of, graph_of, numbers_of
from egnn_md.testing.result import (
    ENERGY_TOLERANCE,
    FORCE_TOLERANCE,
    PRECISION_ENERGY_TOLERANCE,
    PRECISION_FORCE_TOLERANCE,
    CheckResult,
    measured,
    scale,
)


def _not_finite(result: Evaluated) -> int:
    values = [torch.tensor([result.energy]), result.energies, result.forces]
    if result.stress is not None:
        values.append(result.stress)
    return sum(int((~torch.isfinite(value)).sum()) for value in values)


def check_one_atom(model: Potential, *, dtype: torch.dtype | None = None) -> list[CheckResult]:
    """One atom, alone or among its own images, has a finite energy and feels no force."""
    dtype = dtype or model.dtype
    broken, force = 0, 0.0
    for number in model.elements or [1]:
        alone = Atoms(numbers=[number], positions=[[0.3, -0.2, 0.1]])
        repeated = alone.copy()
        repeated.cell = 0.9 * model.cutoff * np.array([[1.0, 0, 0], [0.2, 1.0, 0], [0, -0.1, 1.0]])
        repeated.pbc = True
        far = alone.copy()
        far.cell = 3 * model.cutoff * np.eye(3)
        far.pbc = True
        for atoms in (alone, repeated, far):
            result = ask(model, atoms, dtype)
            broken += _not_finite(result)
            if result.largest_force == result.largest_force:  # a NaN is already counted
                force = max(force, result.largest_force)
    return [
        measured("one atom: finite", broken, 0, "count"),
        measured("one atom: force", force, FORCE_TOLERANCE[dtype], "eV/Å"),
    ]


def check_no_edges(model: Potential, *, dtype: torch.dtype | None = None) -> list[CheckResult]:
    """Atoms beyond each other's cutoff give finite numbers; a local model gives the sum of lone atoms.

    Models that say ``long_range`` (virtual nodes see every atom of an open system) may feel more there, but
    not in a periodic cell, whose virtual nodes average features: that is left to :func:`check_copies`.
    """
    dtype = dtype or model.dtype
    numbers = np.resize(model.elements or [1], 2)
    atoms = Atoms(numbers=numbers, positions=[[0, 0, 0], [1.7 * model.cutoff, 0.3, 0]])
    result = ask(model, atoms, dtype)
    rows = [measured("no edges: finite", _not_finite(result), 0, "count")]
    if not model.long_range:
        lone = [ask(model, atoms[[index]], dtype).energy for index in range(2)]
        offset = 1e-14 * sum(abs(energy) for energy in lone)
        rows += [
            measured(
                "no edges: energy of lone atoms",
                abs(result.energy - sum(lone)) / 2,
                ENERGY_TOLERANCE[dtype] + offset,
                "eV/atom",
            ),
            measured("no edges: force", result.largest_force, FORCE_TOLERANCE[dtype], "eV/Å"),
        ]
    return rows


def check_joined(
    model: Potential, structures: Sequence[Atoms], *, dtype: torch.dtype | None = None
) -> list[CheckResult]:
    """Graphs evaluated in one batch give what each of them gives alone, open and periodic ones mixed."""
    dtype = dtype or model.dtype
    graphs = [graph_of(model, atoms, dtype) for atoms in structures]
    together = evaluate(model, ParticleGraph.join(graphs), forces=True)
    together = {name: value.detach().double().cpu() for name, value in together.items()}
    sizes = [len(atoms) for atoms in structures]
    parts = zip(
        structures,
        together["energy"].tolist(),
        together["energies"].split(sizes),
        together["forces"].split(sizes),
        strict=True,
    )
    rows: list[CheckResult] = []
    for atoms, energy, energies, forces in parts:
        found = Evaluated(energy, energies, forces, None)
        rows += compare("joined graphs", ask(model, atoms, dtype), found, dtype)
    return rows


def check_extra_pairs(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None
) -> list[CheckResult]:
    """Pairs beyond the cutoff, which a list with a skin may hold, contribute exactly nothing."""
    dtype = dtype or model.dtype
    wide = graph_from_atoms(atoms, 1.2 * model.cutoff, dtype=torch.float64)
    graph = wide.to(device=model.device, dtype=dtype)
    found = numbers_of(evaluate(model, graph, stress=bool(atoms.pbc.all())))
    return compare("pairs beyond the cutoff", ask(model, atoms, dtype), found, dtype)


def check_precision(model: Potential, atoms: Atoms) -> list[CheckResult]:
    """float32 gives what float64 gives, to float32's rounding."""
    single = ask(copy_of(model, torch.float32), atoms, torch.float32)
    double = ask(copy_of(model, torch.float64), atoms, torch.float64)
    size = scale(double.largest_force)
    force = (single.forces - double.forces).abs().max()
    return [
        measured(
            "float32 = float64: energy",
            abs(single.energy - double.energy) / len(atoms),
            PRECISION_ENERGY_TOLERANCE * size,
            "eV/atom",
        ),
        measured(
            "float32 = float64: forces",
            float(force),
            PRECISION_FORCE_TOLERANCE * size,
            "eV/Å",
        ),
    ]


def check_backends(model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None) -> list[CheckResult]:
    """Every neighbour backend that is installed (and knows this periodicity) gives the same answer."""
    dtype = dtype or model.dtype
    reference = ask(model, atoms, dtype, backend="brute")
    rows: list[CheckResult] = []
    for backend in available_backends():
        if backend == "brute" or (backend == "torch_cluster" and atoms.pbc.any()):
            continue
        rows += compare(f"{backend} = brute", reference, ask(model, atoms, dtype, backend=backend), dtype)
    return rows


def check_unknown_element(model: Potential) -> list[CheckResult]:
    """An element that the model was not trained on is refused, not guessed; models for any element pass."""
    accepted = 0
    if model.elements:
        stranger = next(number for number in range(1, 119) if number not in model.elements)
        atoms = Atoms(
            numbers=[model.elements[0], stranger], positions=[[0, 0, 0], [0.4 * model.cutoff, 0, 0]]
        )
        try:
            ask(model, atoms)
            accepted = 1
        except UnknownElementError:
            pass
    return [measured("unknown element refused", accepted, 0, "count")]
