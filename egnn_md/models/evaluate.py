"""Energies, forces and stress of any potential by one reverse pass."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from ase.data import chemical_symbols
from torch import Tensor

from egnn_md.errors import InputError, UnknownElementError
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.neighbors import VerletStatistics
from egnn_md.nn.gradients import without_weights
from egnn_md.nn.segment import segment_sum


class EvaluatesItself:
    """A potential that gives energies and forces together, such as one whose atoms are in other processes.

    Calculators and forces ask it by structure, :func:`evaluate` by graph; its device, dtype, neighbour lists and
    kernels are its own.
    """

    def evaluate_graph(self, graph: ParticleGraph, *, forces: bool = True, stress: bool = False) -> dict[str, Tensor]:
        """What :func:`evaluate` gives."""
        raise NotImplementedError

    def evaluate_structure(
        self,
        positions: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        *,
        forces: bool = True,
        stress: bool = False,
    ) -> dict[str, Tensor]:
        """The same of a structure (N, 3), (N,), (3, 3), (3,) whose neighbours it finds itself; all in float64."""
        raise NotImplementedError

    @property
    def neighbor_statistics(self) -> VerletStatistics:
        """Of its neighbour lists."""
        raise NotImplementedError

    def forget(self) -> None:
        """Drop what is kept from one structure to the next."""
        raise NotImplementedError


#: The last species that passed: a weak reference to the tensor, its version, and the elements it was compared with.
_passed: tuple[Any, int, tuple[int, ...]] = (lambda: None, 0, ())


def check_elements(model: Potential, species: Tensor) -> None:
    """Raise UnknownElementError naming the first atom whose element the model was not trained on."""
    global _passed
    if not model.elements:
        return
    elements = tuple(model.elements)
    # a simulation brings the same tensor at every step; the version tells whether it was written into since
    if _passed[0]() is species and _passed[1:] == (species._version, elements):
        return
    known = torch.tensor(model.elements, device=species.device)
    unknown = ~torch.isin(species, known)
    if bool(unknown.any()):
        index = int(unknown.nonzero()[0])
        number = int(species[index])
        symbol = chemical_symbols[number] if 0 < number < len(chemical_symbols) else f"Z = {number}"
        names = ", ".join(chemical_symbols[z] for z in model.elements)
        raise UnknownElementError(
            f"atom {index} is {symbol}, but the model knows only {names}; "
            "choose a model trained on this element or train one"
        )
    _passed = (weakref.ref(species), species._version, elements)


def whole_cells(cell: Tensor, pbc: Tensor) -> Tensor:
    """(G, 3, 3): cells that repeat in all directions, zero for the others; what ``needs_cell`` asks for."""
    return torch.where(pbc.all(dim=1)[:, None, None], cell, torch.zeros_like(cell))


def evaluate(
    model: Potential,
    graph: ParticleGraph,
    *,
    forces: bool = True,
    stress: bool = False,
    training: bool = False,
) -> dict[str, Tensor]:
    """Evaluate ``model`` on a batch.

    F = -dE/dx; stress = (dE/dε) / V for a symmetric strain ε of positions and cell, so it is positive under
    tension, as ASE has it (Knuth et al., Comput. Phys. Commun. 190, 33, 2015).

    Args:
        model: any potential.
        graph: positions in the model's dtype, edges within at least ``model.cutoff``.
        forces: also give forces.
        stress: also give the stress of every graph with a cell (zero elsewhere).
        training: keep the graph of the forces, so that a loss on them can be differentiated.

    Returns:
        ``energy`` (G,) eV and ``energies`` (N,) eV in float64; ``forces`` (N, 3) eV/Å; ``stress``
        (G, 3, 3) eV/Å³.

    Raises:
        UnknownElementError: an element that the model does not know.
    """
    if isinstance(model, EvaluatesItself):
        if training:
            raise InputError(
                f"a {type(model).__name__} cannot be trained through: its ranks keep no graph; "
                "see egnn-md train --devices"
            )
        return model.evaluate_graph(graph, forces=forces, stress=stress)
    check_elements(model, graph.species)
    with torch.set_grad_enabled(training or forces or stress):
        positions, cell = graph.positions, graph.cell
        wanted: list[Tensor] = []
        if forces:
            positions = positions.detach().requires_grad_(True)
            wanted.append(positions)
        strained, strained_cell = positions, cell
        strain: Tensor | None = None
        if stress:
            strain = torch.zeros_like(cell).requires_grad_(True)
            symmetric = 0.5 * (strain + strain.transpose(1, 2))
            strained = positions + torch.einsum("ni,nij->nj", positions, symmetric[graph.batch])
            strained_cell = cell + torch.matmul(cell, symmetric)
            wanted.append(strain)
        if graph.num_graphs == 1:
            shifts = graph.cell_shifts @ strained_cell[0]
        else:
            edge_graph = graph.batch.index_select(0, graph.edge_index[0])
            shifts = torch.einsum("ei,eij->ej", graph.cell_shifts, strained_cell.index_select(0, edge_graph))
        arguments = [strained, graph.species, graph.edge_index, shifts, graph.batch, graph.periodic]
        if model.needs_cell:
            arguments.append(whole_cells(strained_cell, graph.pbc))
        energies = model(*arguments)
        energy = segment_sum(energies, graph.batch, graph.num_graphs)
        strain_gradient = torch.zeros_like(cell)
        result = {"energies": energies}
        if wanted:
            gradients: list[Tensor | None] = [None] * len(wanted)
            if energy.requires_grad:
                with without_weights():
                    # of a split system every part differentiates its own share: the exchange adds up the shares
                    gradients = list(
                        torch.autograd.grad(energy.sum(), wanted, create_graph=training, allow_unused=True)
                    )
            filled = [
                torch.zeros_like(w) if g is None else g for g, w in zip(gradients, wanted, strict=True)
            ]
            if forces:
                result["forces"] = -filled.pop(0)
            if stress:
                strain_gradient = filled.pop(0)
        # the parts' shares add up; alone they are the whole
        result["energy"], total_gradient = model.communication.total([energy, strain_gradient.to(energy.dtype)])
        if stress:
            volume = torch.linalg.det(cell).abs()[:, None, None]
            full = graph.pbc.all(dim=1)[:, None, None] & (volume > 0)
            by_volume = total_gradient.to(cell.dtype) / torch.where(full, volume, torch.ones_like(volume))
            result["stress"] = torch.where(full, by_volume, 0.0)
    if not training:
        result = {name: value.detach() for name, value in result.items()}
    return result
