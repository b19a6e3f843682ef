"""Bonds of fixed length, masses moved onto hydrogens, and the degrees of freedom that are left."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.mechanics import remove_drift
from egnn_md.simulation.molecules import minimum_image
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.structure import Structure

HYDROGEN = 1


@dataclass(frozen=True)
class Constraints:
    """Pairs (M, 2) of atoms, int64, and the distances (M,) in Å that they keep."""

    pairs: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.pairs)


def bonds_to_hydrogen(structure: Structure) -> np.ndarray:
    """Bonds (M, 2) with a hydrogen in them."""
    return structure.bonds[(structure.numbers[structure.bonds] == HYDROGEN).any(axis=1)]


def constraints_of(structure: Structure, request: MDRequest) -> Constraints:
    """What ``--constraints`` fixes, at the lengths that ``structure`` has.

    A potential has no list of bond lengths. All bonds of a kind get the mean of theirs in the structure (relaxed, if
    the run minimises); bonds are of one kind if their heavier atoms are the same element with the same neighbours.

    Raises:
        InputError: there is no bond to a hydrogen.
    """
    if request.constraints == "none":
        return Constraints(np.zeros((0, 2), dtype=np.int64), np.zeros(0))
    pairs = bonds_to_hydrogen(structure)
    if not len(pairs):
        raise InputError(
            f"--constraints {request.constraints}: {structure.formula} has no bond to a hydrogen; leave it out, "
            "or give a --topology with bonds"
        )
    around: dict[int, list[int]] = defaultdict(list)
    for first, second in structure.bonds.tolist():
        around[first].append(int(structure.numbers[second]))
        around[second].append(int(structure.numbers[first]))
    heavy = np.where(structure.numbers[pairs[:, 0]] == HYDROGEN, pairs[:, 1], pairs[:, 0])
    kinds = [(int(structure.numbers[atom]), tuple(sorted(around[int(atom)]))) for atom in heavy]
    measured = np.linalg.norm(
        minimum_image(structure.positions[pairs[:, 1]] - structure.positions[pairs[:, 0]], structure.box), axis=1
    )
    lengths = np.empty(len(pairs))
    for kind in set(kinds):
        members = np.array([k == kind for k in kinds])
        lengths[members] = measured[members].mean()
    return Constraints(pairs, lengths)


def with_hydrogen_mass(structure: Structure, mass: float | None) -> Structure:
    """Copy in which every hydrogen bonded to a heavier atom weighs ``mass`` (u), which that atom gives.

    The total mass stays the same. Averages over positions do not depend on masses; motions of hydrogens become slower,
    which allows a longer time step (Hopkins et al., J. Chem. Theory Comput. 11, 1864, 2015).

    Raises:
        InputError: no such hydrogen, or a heavy atom would be left lighter than its hydrogens.
    """
    if mass is None:
        return structure
    masses = structure.masses.copy()
    moved = 0
    for first, second in bonds_to_hydrogen(structure).tolist():
        light, heavy = (first, second) if structure.numbers[first] == HYDROGEN else (second, first)
        if structure.numbers[heavy] == HYDROGEN:
            continue
        masses[heavy] -= mass - masses[light]
        masses[light] = mass
        moved += 1
    if not moved:
        raise InputError(
            f"--hydrogen-mass {mass:g}: {structure.formula} has no hydrogen bonded to a heavier atom; leave it out"
        )
    heavy_atoms = structure.numbers != HYDROGEN
    if np.any(masses[heavy_atoms] < mass):
        atom = int(np.flatnonzero(heavy_atoms & (masses < mass))[0])
        raise InputError(
            f"--hydrogen-mass {mass:g} would leave atom {atom} ({structure.symbols[atom]}) with {masses[atom]:.3f} u; "
            "a smaller mass is needed"
        )
    return replace(structure, masses=masses)


def carried_over(velocities: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Velocities (N, 3) of a run with masses ``old`` (N,) for one with masses ``new``.

    Each is scaled by sqrt(old/new), so that every atom keeps its kinetic energy and a Maxwell-Boltzmann distribution
    stays one.
    """
    if np.array_equal(old, new):
        return velocities
    scaled = velocities * np.sqrt(old / new)[:, None]
    return remove_drift(new, scaled) if len(new) > 1 else scaled


def conserves_momentum(request: MDRequest) -> bool:
    """Whether the total momentum stays zero: a Langevin thermostat moves the whole system, the others do not."""
    return request.ensemble == "nve" or request.thermostat == "nose-hoover"


def degrees_of_freedom(request: MDRequest, atoms: int, constraints: int = 0) -> int:
    """3 N, less one a constraint, less 3 where the momentum is conserved (of more than one atom)."""
    fixed = 3 if conserves_momentum(request) and atoms > 1 else 0
    return max(3 * atoms - constraints - fixed, 0)
