"""Scripted against eager on random structures: the check that an artefact must pass to be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from egnn_md.errors import ExportError
from egnn_md.export.artefact import Verification
from egnn_md.graph import ParticleGraph
from egnn_md.models import Potential, evaluate
from egnn_md.neighbors import neighbor_list

#: Largest difference allowed between scripted and eager, relative to the largest force of the structure.
#: float32: both sum the same terms in another order, a few units in the seventh digit that steep forces
#: amplify. float64: the same, with five orders to spare for steep random contacts.
TOLERANCES = {torch.float32: 2e-5, torch.float64: 1e-9}
#: The scale is taken as at least this, so that structures without forces are compared as well: eV/Å for
#: forces; 1 eV for an atom's energy, whose own size means nothing (it holds the reference energies).
SMALLEST_FORCE = 1e-3
SMALLEST_ENERGY = 1.0
#: Larger systems are checked on this many of their atoms: the code is the same, the time is not.
MAXIMUM_ATOMS = 512


@dataclass(frozen=True)
class Structure:
    """Random positions (N, 3) with their cell (3, 3), rows, both Å, float64."""

    positions: Tensor
    cell: Tensor


def random_structures(count: int, cutoff: float, *, seed: int = 0) -> list[Structure]:
    """Dense, open and scattered jittered lattices of ``count`` atoms in skewed cells.

    The spacings give contacts of a solid, of a liquid, and of a gas in which no pair is within ``cutoff`` (so
    that a graph without edges is exercised too).
    """
    generator = np.random.default_rng(seed)
    side = max(math.ceil(count ** (1 / 3)), 1)
    sites = np.stack(np.meshgrid(*[np.arange(side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    structures = []
    for spacing, jitter in ((2.0, 0.15), (2.8, 0.2), (1.6 * cutoff, 0.05)):
        chosen = sites[generator.permutation(len(sites))[:count]]
        moved = chosen + 0.5 + generator.uniform(-jitter, jitter, chosen.shape)
        cell = np.diag(side * spacing * np.array([1.0, 1.05, 1.1]))
        cell[1, 0], cell[2, 0], cell[2, 1] = 0.15 * cell[0, 0], -0.1 * cell[0, 0], 0.2 * cell[1, 1]
        structures.append(Structure(torch.from_numpy(moved / side @ cell), torch.from_numpy(cell)))
    return structures


def subsample(numbers: Sequence[int], *, seed: int = 0) -> list[int]:
    """At most ``MAXIMUM_ATOMS`` of the atomic numbers, every element among them."""
    if len(numbers) <= MAXIMUM_ATOMS:
        return list(numbers)
    array = np.asarray(numbers)
    first = np.unique(array, return_index=True)[1]
    rest = np.setdiff1d(np.arange(len(array)), first)
    others = np.random.default_rng(seed).choice(rest, MAXIMUM_ATOMS - len(first), replace=False)
    return [int(z) for z in array[np.sort(np.concatenate([first, others]))]]


def eager_reference(
    model: Potential, numbers: Sequence[int], structure: Structure, periodic: bool, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """Energy (eV) and forces (N, 3), eV/Å, of the eager model through the package's own neighbour list."""
    positions, cell = structure.positions.to(dtype), structure.cell.to(dtype)
    pbc = torch.full((3,), periodic)
    edge_index, cell_shifts = neighbor_list(positions, cell, pbc, model.cutoff)
    graph = ParticleGraph(
        positions=positions,
        species=torch.tensor(list(numbers)),
        edge_index=edge_index,
        cell_shifts=cell_shifts,
        cell=(cell if periodic else torch.zeros_like(cell))[None],
        pbc=pbc[None],
        batch=torch.zeros(len(positions), dtype=torch.long),
    )
    result = evaluate(model, graph)
    return float(result["energy"]), result["forces"].double()


def exported_result(
    module: torch.jit.ScriptModule, positions: Tensor, cell: Tensor, periodic: bool
) -> tuple[float, Tensor]:
    """Energy and forces of an exported module as an engine gets them, in its units."""
    x = positions.detach().clone().requires_grad_(True)
    energy = module(x, cell) if periodic else module(x)
    gradient = torch.autograd.grad(energy, x, allow_unused=True)[0] if energy.requires_grad else None
    return float(energy.detach()), torch.zeros_like(x) if gradient is None else -gradient


def verify(
    module: torch.jit.ScriptModule,
    model: Potential,
    numbers: Sequence[int],
    *,
    periodic: bool,
    length: float,
    energy: float,
    dtype: torch.dtype,
) -> Verification:
    """Compare ``module`` (as read back from the file) with the eager ``model`` on random structures.

    The exported side is given its atoms displaced by whole lattice vectors and scattered among particles that
    it must ignore, so conversion, selection, wrapping and the sign of the shifts are all part of the check.
    A system above ``MAXIMUM_ATOMS`` is checked on a sample of its atoms, with the species of the module
    exchanged for those of the sample.

    Args:
        module: takes particles in the engine's units.
        model: eager potential in ``dtype``.
        numbers: atomic numbers of the particles that the potential acts on.
        periodic: which form was exported.
        length: Å in one length unit of the module.
        energy: energy units of the module in one eV.
        dtype: floating type of the model.

    Raises:
        ExportError: the two differ by more than ``TOLERANCES``, or the eager result is not finite.
    """
    sample = subsample(numbers)
    atoms, particles = module.atoms, int(module.particles)
    if len(sample) != len(numbers):
        atoms, particles = torch.arange(len(sample)), len(sample)
        module.species, module.atoms = torch.tensor(sample), atoms
        module.batch, module.particles = torch.zeros(len(sample), dtype=torch.long), particles
    tolerance = TOLERANCES[dtype]
    generator = torch.Generator().manual_seed(0)
    worst_energy = worst_force = scale = 0.0
    structures = random_structures(len(sample), model.cutoff)
    for index, structure in enumerate(structures):
        reference, forces = eager_reference(model, sample, structure, periodic, dtype)
        if not (math.isfinite(reference) and bool(torch.isfinite(forces).all())):
            raise ExportError(
                f"the eager model gives energy {reference} eV on random structure {index} of {len(sample)} "
                "atoms; a model that is not finite is not exported"
            )
        steps = torch.randint(-1, 2, structure.positions.shape, generator=generator).double()
        moved = structure.positions + (steps @ structure.cell if periodic else 3.0)
        scattered = torch.rand(particles, 3, dtype=torch.float64, generator=generator)
        scattered[atoms] = moved / length
        try:
            found, gradient = exported_result(module, scattered, structure.cell / length, periodic)
        except RuntimeError as error:
            raise ExportError(
                f"the scripted model fails on random structure {index} of {len(sample)} atoms, where the "
                f"eager one does not; nothing was saved: {error}"
            ) from error
        difference = abs(found / energy - reference) / len(sample)
        all_forces = torch.zeros(particles, 3, dtype=torch.float64)
        all_forces[atoms] = forces
        # written so that NaN counts as different
        apart = float((gradient / energy / length - all_forces).abs().max())
        largest = float(forces.abs().max())
        energy_limit = tolerance * max(SMALLEST_ENERGY, largest)
        force_limit = tolerance * max(SMALLEST_FORCE, largest)
        if not (difference <= energy_limit and apart <= force_limit):
            raise ExportError(
                f"the scripted model differs from the eager one on random structure {index} of "
                f"{len(sample)} atoms: energy by {difference:.3e} eV/atom (allowed: {energy_limit:.1e}), "
                f"forces by {apart:.3e} eV/Å (allowed: {force_limit:.1e}, the largest is {largest:.3g}); "
                "nothing was saved. Check that forward() does the same when scripted, and sees pairs only"
            )
        worst_energy, worst_force = max(worst_energy, difference), max(worst_force, apart)
        scale = max(scale, largest)
    return Verification(
        structures=len(structures),
        largest_energy_difference=worst_energy,
        largest_force_difference=worst_force,
        largest_force=scale,
        tolerance=tolerance,
    )
