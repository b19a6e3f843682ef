"""A small potential and crystals for potentials over several devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import bulk

from egnn_md.graph import ParticleGraph
from egnn_md.models import FastEGNNPotential, PotentialConfig
from egnn_md.neighbors import neighbor_list

TOLERANCE = {"float64": 1e-10, "float32": 1e-5}  # relative; sums in another order


def potential(**changes: Any) -> FastEGNNPotential:
    torch.manual_seed(3)
    options = {"cutoff": 5.0, "hidden": 8, "layers": 2, "virtual_nodes": 2, "vector_channels": 2, **changes}
    return FastEGNNPotential(PotentialConfig(elements=(18,), **options))


def argon(repeats: tuple[int, int, int] = (3, 2, 2), *, pbc: Any = True, skew: float = 0.0) -> Atoms:
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(repeats)
    cell = np.array(atoms.cell)
    cell[1, 0] += skew
    atoms.set_cell(cell, scale_atoms=True)
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    atoms.pbc = pbc
    return atoms


def structure(atoms: Atoms) -> tuple[torch.Tensor, ...]:
    return (
        torch.tensor(atoms.positions), torch.tensor(atoms.numbers),
        torch.tensor(atoms.cell.array), torch.tensor(atoms.pbc),
    )  # fmt: skip


def as_graph(atoms: Atoms, cutoff: float = 5.0) -> ParticleGraph:
    positions, numbers, cell, pbc = structure(atoms)
    edges, steps = neighbor_list(positions, cell, pbc, cutoff)
    return ParticleGraph(
        positions=positions, species=numbers, edge_index=edges, cell_shifts=steps, cell=cell[None], pbc=pbc[None],
        batch=torch.zeros_like(numbers),
    )  # fmt: skip


def agrees(found: dict[str, Any], wanted: dict[str, Any], tolerance: float) -> None:
    for name, value in wanted.items():
        other = torch.as_tensor(found[name]).double()
        value = torch.as_tensor(value).double()
        assert float((other - value).abs().max()) <= tolerance * float(value.abs().max()), name
