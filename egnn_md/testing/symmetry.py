"""Laws that hold exactly: rotation, reflection, translation, permutation, lattice moves, copies of a cell.

Every function takes a potential and an ASE structure and returns :class:`CheckResult` rows. ``dtype`` is that
of the calculation (default: the model's own); the model's weights must have it already.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from ase import Atoms

from egnn_md.models.base import Potential
from egnn_md.testing.probe import Evaluated, ask, compare
from egnn_md.testing.result import FORCE_TOLERANCE, CheckResult, measured, scale


def random_rotation(seed: int = 0) -> np.ndarray:
    """(3, 3) proper rotation, uniform over all of them (QR of a normal matrix, signs fixed)."""
    q, r = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    if np.linalg.det(q) < 0:
        q[:, 0] = -q[:, 0]
    return q


def _transformed(atoms: Atoms, matrix: np.ndarray) -> Atoms:
    """Positions and cell rows times ``matrix`` (rows transform as v → v @ matrix)."""
    moved = atoms.copy()
    moved.positions = atoms.positions @ matrix
    moved.cell = atoms.cell.array @ matrix
    return moved


def _orthogonal(
    name: str, model: Potential, atoms: Atoms, matrix: np.ndarray, dtype: torch.dtype
) -> list[CheckResult]:
    reference = ask(model, atoms, dtype)
    turn = torch.as_tensor(matrix)
    stress = None if reference.stress is None else turn.T @ reference.stress @ turn
    expected = replace(reference, forces=reference.forces @ turn, stress=stress)
    return compare(name, expected, ask(model, _transformed(atoms, matrix), dtype), dtype)


def check_rotation(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None, seed: int = 0
) -> list[CheckResult]:
    """A rotated structure (cell included) has the same energies, and forces and stress rotated with it."""
    return _orthogonal("rotation", model, atoms, random_rotation(seed), dtype or model.dtype)


def check_reflection(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None, seed: int = 0
) -> list[CheckResult]:
    """A mirror image has the same energies, and forces and stress mirrored with it."""
    normal = np.random.default_rng(seed).normal(size=3)
    normal /= np.linalg.norm(normal)
    mirror = np.eye(3) - 2 * np.outer(normal, normal)
    return _orthogonal("reflection", model, atoms, mirror, dtype or model.dtype)


def check_translation(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None, seed: int = 0
) -> list[CheckResult]:
    """Moving everything by one vector (up to 5 Å a component) changes nothing."""
    dtype = dtype or model.dtype
    moved = atoms.copy()
    moved.positions = atoms.positions + np.random.default_rng(seed).uniform(-5, 5, size=3)
    return compare("translation", ask(model, atoms, dtype), ask(model, moved, dtype), dtype)


def check_permutation(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None, seed: int = 0
) -> list[CheckResult]:
    """Another order of the atoms gives the same energy, and energies and forces in that order."""
    dtype = dtype or model.dtype
    order = np.random.default_rng(seed).permutation(len(atoms))
    reference = ask(model, atoms, dtype)
    index = torch.as_tensor(order)
    expected = replace(reference, energies=reference.energies[index], forces=reference.forces[index])
    return compare("permutation", expected, ask(model, atoms[order], dtype), dtype)


def check_lattice_moves(
    model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None, seed: int = 0
) -> list[CheckResult]:
    """Moving single atoms by lattice vectors (up to two in each periodic direction) changes nothing."""
    dtype = dtype or model.dtype
    rng = np.random.default_rng(seed)
    steps = rng.integers(-2, 3, size=(len(atoms), 3)) * atoms.pbc
    moved = atoms.copy()
    moved.positions = atoms.positions + steps @ atoms.cell.array
    return compare("lattice moves", ask(model, atoms, dtype), ask(model, moved, dtype), dtype)


def check_copies(model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None) -> list[CheckResult]:
    """A 2×2×2 copy of a periodic cell has 8 times the energy, the same forces in each copy, the same stress.

    In a cell with open directions only the periodic ones are doubled.
    """
    dtype = dtype or model.dtype
    repeats = [2 if periodic else 1 for periodic in atoms.pbc]
    copies = int(np.prod(repeats))
    reference = ask(model, atoms, dtype)
    expected = Evaluated(
        reference.energy * copies,
        reference.energies.repeat(copies),
        reference.forces.repeat(copies, 1),
        reference.stress,
    )
    return compare("2×2×2 copies", expected, ask(model, atoms.repeat(repeats), dtype), dtype)


def check_balance(model: Potential, atoms: Atoms, *, dtype: torch.dtype | None = None) -> list[CheckResult]:
    """Forces add up to zero, and in an open system so do their torques about the mean position."""
    dtype = dtype or model.dtype
    result = ask(model, atoms, dtype)
    tolerance = FORCE_TOLERANCE[dtype] * scale(result.largest_force) * max(len(atoms), 1)
    rows = [measured("net force", float(result.forces.sum(0).norm()), tolerance, "eV/Å")]
    if not atoms.pbc.any() and len(atoms):
        arms = torch.as_tensor(atoms.positions - atoms.positions.mean(0))
        torque = torch.linalg.cross(arms, result.forces).sum(0).norm()
        reach = max(1.0, float(arms.norm(dim=1).max()))
        rows.append(measured("net torque", float(torque), tolerance * reach, "eV"))
    return rows
