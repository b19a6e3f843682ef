"""Langevin dynamics of many copies of the molecule at once, each held near its own point of the (phi, psi) plane.

The network is fastest on many molecules in one graph, and umbrella sampling wants many windows. The reference
method goes through the same code, one molecule after another.

Bias of a window: ``U = k [2 - cos(phi - phi0) - cos(psi - psi0)]``, periodic and smooth everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from ase.calculators.calculator import Calculator
from ase.data import atomic_masses, atomic_numbers
from ase.units import fs
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate
from egnn_md.models import Potential, evaluate
from egnn_md.units import BOLTZMANN_EV_PER_K

from .molecule import BONDS, INDEX, PHI, PSI, SYMBOLS, dihedral

Array = NDArray[np.float64]
#: Positions (M, 22, 3), Å, to energies (M,), eV, and forces (M, 22, 3), eV/Å.
Evaluator = Callable[[Array], tuple[Array, Array]]

NUMBERS = np.array([atomic_numbers[symbol] for symbol in SYMBOLS])
HEAVY_HYDROGEN = 4.0  # u; mass moved from the bonded atom, which changes no ensemble of positions


def masses(heavy_hydrogens: bool = False) -> Array:
    """(22,) masses, u; with ``heavy_hydrogens`` repartitioned so that longer timesteps are stable."""
    out = atomic_masses[NUMBERS].copy()
    if heavy_hydrogens:
        for first, second in BONDS:
            for hydrogen, other in ((first, second), (second, first)):
                if SYMBOLS[INDEX[hydrogen]] == "H":
                    out[INDEX[other]] -= HEAVY_HYDROGEN - out[INDEX[hydrogen]]
                    out[INDEX[hydrogen]] = HEAVY_HYDROGEN
    return out


def dihedral_gradient(positions: Array, four: tuple[int, int, int, int]) -> Array:
    """(M, 4, 3) gradient of a dihedral angle in radians per Å (Blondel and Karplus, J. Comput. Chem. 17, 1132)."""
    i, j, k, m = (positions[:, index] for index in four)
    f, g, h = i - j, j - k, m - k
    a, b = np.cross(f, g), np.cross(h, g)
    length = np.linalg.norm(g, axis=1, keepdims=True)
    aa, bb = np.sum(a * a, 1, keepdims=True), np.sum(b * b, 1, keepdims=True)
    first, last = -length / aa * a, length / bb * b
    shared = np.sum(f * g, 1, keepdims=True) / (aa * length) * a - np.sum(h * g, 1, keepdims=True) / (bb * length) * b
    return np.stack([first, shared - first, -shared - last, last], axis=1)


def umbrella(positions: Array, centres: Array, strength: float) -> tuple[Array, Array]:
    """Bias energies (M,), eV, and forces (M, 22, 3), eV/Å.

    Args:
        positions: (M, 22, 3), Å.
        centres: (M, 2), phi0 and psi0 in degrees.
        strength: k, eV.
    """
    energies, forces = np.zeros(len(positions)), np.zeros_like(positions)
    for column, four in enumerate((PHI, PSI)):
        away = np.radians(dihedral(positions, four) - centres[:, column])
        energies += strength * (1.0 - np.cos(away))
        slope = strength * np.sin(away)
        forces[:, list(four)] -= slope[:, None, None] * dihedral_gradient(positions, four)
    return energies, forces


def model_evaluator(model: Potential) -> Evaluator:
    """The network on all molecules as one graph, every pair inside a molecule an edge (the cutoff is the model's)."""
    model = accelerate(model)
    atoms = len(SYMBOLS)
    receivers, senders = np.nonzero(~np.eye(atoms, dtype=bool))
    graphs: dict[int, ParticleGraph] = {}

    def graph_of(count: int, positions: Array) -> ParticleGraph:
        if count not in graphs:
            first = atoms * np.arange(count)[:, None]
            edges = np.stack([(receivers + first).ravel(), (senders + first).ravel()])
            graphs[count] = ParticleGraph(
                positions=torch.zeros(count * atoms, 3, dtype=model.dtype),
                species=torch.as_tensor(np.tile(NUMBERS, count)),
                edge_index=torch.as_tensor(edges),
                cell_shifts=torch.zeros(edges.shape[1], 3, dtype=model.dtype),
                cell=torch.zeros(count, 3, 3, dtype=model.dtype),
                pbc=torch.zeros(count, 3, dtype=torch.bool),
                batch=torch.arange(count).repeat_interleave(atoms),
            )
        known = graphs[count]
        centred = positions - positions.mean(1, keepdims=True)
        return replace(known, positions=torch.as_tensor(centred.reshape(-1, 3), dtype=model.dtype))

    def run(positions: Array) -> tuple[Array, Array]:
        out = evaluate(model, graph_of(len(positions), positions))
        return out["energy"].numpy(), out["forces"].double().numpy().reshape(positions.shape)

    return run


def calculator_evaluator(calculator: Calculator) -> Evaluator:
    """Any ASE calculator, one molecule after another."""
    from ase import Atoms

    atoms = Atoms("".join(SYMBOLS), np.zeros((len(SYMBOLS), 3)), calculator=calculator)

    def run(positions: Array) -> tuple[Array, Array]:
        energies, forces = np.zeros(len(positions)), np.zeros_like(positions)
        for index, frame in enumerate(positions):
            atoms.positions = frame
            energies[index], forces[index] = atoms.get_potential_energy(), atoms.get_forces()
        return energies, forces

    return run


@dataclass
class Swarm:
    """BAOAB Langevin dynamics (Leimkuhler and Matthews, Appl. Math. Res. eXpress 2013, 34) of M copies.

    Args:
        evaluator: the potential.
        positions: (M, 22, 3), Å; changed in place.
        temperature: K, one for all or (M,).
        centres: (M, 2) of the umbrella, degrees; None leaves the copies free.
        strength: k of the umbrella, eV.
        timestep: fs.
        friction: 1/fs.
        heavy_hydrogens: see :func:`masses`.
        seed: of velocities and noise.
    """

    evaluator: Evaluator
    positions: Array
    temperature: float | Array
    centres: Array | None = None
    strength: float = 0.3
    timestep: float = 0.5
    friction: float = 0.01
    heavy_hydrogens: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        if self.positions.ndim != 3 or self.positions.shape[1:] != (len(SYMBOLS), 3):
            raise InputError(f"positions have shape {self.positions.shape}; a swarm needs (M, {len(SYMBOLS)}, 3)")
        if self.centres is not None and self.centres.shape != (len(self.positions), 2):
            raise InputError(f"centres have shape {self.centres.shape}; {len(self.positions)} molecules need that many")
        self.rng = np.random.default_rng(self.seed)
        self.mass = masses(self.heavy_hydrogens)[None, :, None]
        kt = BOLTZMANN_EV_PER_K * np.broadcast_to(np.asarray(self.temperature, float), len(self.positions))
        self.thermal = np.sqrt(kt[:, None, None] / self.mass)  # of ASE's velocity unit
        self.velocities = self.thermal * self.rng.normal(size=self.positions.shape)
        self.energies, self.forces = self._forces()

    def _forces(self) -> tuple[Array, Array]:
        energies, forces = self.evaluator(self.positions)
        if self.centres is not None:
            forces = forces + umbrella(self.positions, self.centres, self.strength)[1]
        return energies, forces

    def run(self, steps: int) -> None:
        """Advance all copies; ``energies`` (M,), eV, without the bias, are those of the last positions."""
        step = self.timestep * fs
        keep = np.exp(-self.friction * self.timestep)
        noise = np.sqrt(1.0 - keep**2)
        for _ in range(steps):
            self.velocities += 0.5 * step * self.forces / self.mass
            self.positions += 0.5 * step * self.velocities
            fresh = self.rng.normal(size=self.positions.shape)
            self.velocities = keep * self.velocities + noise * self.thermal * fresh
            self.positions += 0.5 * step * self.velocities
            self.energies, self.forces = self._forces()
            self.velocities += 0.5 * step * self.forces / self.mass
