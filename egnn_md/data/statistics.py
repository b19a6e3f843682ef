"""What a data set says about itself: reference energies of the elements, force scale, neighbour count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph


@dataclass(frozen=True)
class DatasetStatistics:
    """Counts and scales of a labelled set (eV, eV/Å)."""

    structures: int
    atoms: int
    elements: list[int]  #: sorted atomic numbers
    atomic_energies: list[float]  #: E0, eV, one an element
    force_rms: float  #: root mean square of the force components, eV/Å
    mean_neighbors: float  #: directed edges an atom, within the cutoff the graphs were made with

    def as_dict(self) -> dict[str, Any]:
        """Plain values for a model card."""
        return asdict(self)


def fit_atomic_energies(graphs: Sequence[ParticleGraph]) -> tuple[list[int], list[float]]:
    """Least-squares reference energy of each element: ``E ≈ Σ_elements count · E0``, in float64.

    Every structure weighs the same whatever its size: each row is divided by its number of atoms. Where the
    compositions do not determine the energies (pure water), the solution of the smallest norm is taken: it
    reproduces the mean energies just as well, only its split between the elements is arbitrary.

    Returns:
        Sorted atomic numbers, and E0 in eV in that order.

    Raises:
        InputError: there is no graph, or one without a reference energy.
    """
    if not graphs:
        raise InputError("there is no structure to fit atomic energies to")
    for index, graph in enumerate(graphs):
        if "energy" not in graph.labels:
            raise InputError(f"structure {index} has no reference energy")
    elements = sorted({int(z) for graph in graphs for z in graph.species.unique()})
    column = {z: k for k, z in enumerate(elements)}
    counts = torch.zeros(len(graphs), len(elements), dtype=torch.float64)
    energies = torch.empty(len(graphs), dtype=torch.float64)
    for row, graph in enumerate(graphs):
        numbers, occurrences = graph.species.unique(return_counts=True)
        for z, occurrence in zip(numbers.tolist(), occurrences.tolist(), strict=True):
            counts[row, column[z]] = occurrence
        energies[row] = float(graph.labels["energy"].sum())
    atoms = counts.sum(1)
    solution = torch.linalg.lstsq(counts / atoms[:, None], (energies / atoms)[:, None], driver="gelsd")
    return elements, solution.solution[:, 0].tolist()


def dataset_statistics(graphs: Sequence[ParticleGraph]) -> DatasetStatistics:
    """Statistics of labelled single graphs.

    Raises:
        InputError: there is no graph, or one without labels.
    """
    elements, atomic_energies = fit_atomic_energies(graphs)
    atoms = sum(graph.num_nodes for graph in graphs)
    squares = sum(float(graph.labels["forces"].double().pow(2).sum()) for graph in graphs)
    return DatasetStatistics(
        structures=len(graphs),
        atoms=atoms,
        elements=elements,
        atomic_energies=atomic_energies,
        force_rms=(squares / (3 * atoms)) ** 0.5,
        mean_neighbors=sum(graph.num_edges for graph in graphs) / atoms,
    )
