"""A peptide in water for the ML/MM tests, and its energy terms worked out without OpenMM."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from egnn_md.models import FastEGNNPotential
from egnn_md.testing import random_potential
from tests.engines.openmm_cases import eager

Array = NDArray[np.float64]

EDGE = 1.85  # nm
CUTOFF = 0.9  # nm
REGION = list(range(22))
COULOMB = 138.93545764438198  # kJ/mol nm/e², CODATA 2018


@dataclass(frozen=True)
class Case:
    """A topology, positions (N, 3) and box (3, 3) or None, nm."""

    topology: Any
    positions: Array
    box: Array | None

    @property
    def numbers(self) -> list[int]:
        return [atom.element.atomic_number for atom in self.topology.atoms()]


@cache
def network(virtual_nodes: int = 2, fourier_width: float = 0.0) -> FastEGNNPotential:
    """Random weights for H, C, N, O in float64, of which every part is felt."""
    return random_potential((1, 6, 7, 8), virtual_nodes=virtual_nodes, fourier_width=fourier_width)


@cache
def force_field() -> Any:
    from openmm import app

    return app.ForceField("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")


@cache
def peptide_in_water() -> Case:
    """Alanine dipeptide, atoms 0 to 21, in a cube of TIP3P water."""
    from openmm import Vec3, app, unit

    from egnn_md_systems.alanine_dipeptide import structure_path

    pdb = app.PDBFile(str(structure_path()))
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(force_field(), model="tip3p", boxSize=Vec3(EDGE, EDGE, EDGE) * unit.nanometer)
    positions = np.array(modeller.positions.value_in_unit(unit.nanometer))
    return Case(modeller.topology, positions, np.eye(3) * EDGE)


def part(case: Case, atoms: list[int], *, box: bool) -> Case:
    """Some atoms (whole residues) as a system of their own, in the same box or in none."""
    from openmm import app

    keep = set(atoms)
    modeller = app.Modeller(case.topology, case.positions)
    modeller.delete([atom for atom in case.topology.atoms() if atom.index not in keep])
    if not box:
        modeller.topology.setPeriodicBoxVectors(None)
    return Case(modeller.topology, case.positions[sorted(keep)], case.box if box else None)


def droplet(waters: int) -> Case:
    """The peptide and the nearest waters, without a box."""
    case = peptide_in_water()
    oxygen = np.array([a.index for a in case.topology.atoms() if a.residue.name == "HOH" and a.name == "O"])
    gap = np.linalg.norm(case.positions[oxygen][:, None] - case.positions[None, REGION], axis=2).min(axis=1)
    chosen = np.sort(oxygen[np.argsort(gap)[:waters]])
    return part(case, [*REGION, *(int(o) + k for o in chosen for k in range(3))], box=False)


def classical(case: Case, *, tolerance: float = 1e-6, **options: Any) -> Any:
    """The force field's system: PME in a box, without long-range dispersion correction, which is no sum over parts."""
    from openmm import NonbondedForce, app, unit

    settings: dict[str, Any] = {"constraints": None, "rigidWater": True}
    if case.box is not None:
        settings |= {
            "nonbondedMethod": app.PME,
            "nonbondedCutoff": CUTOFF * unit.nanometer,
            "ewaldErrorTolerance": tolerance,
        }
    system = force_field().createSystem(case.topology, **(settings | options))
    for force in system.getForces():
        if isinstance(force, NonbondedForce):
            force.setUseDispersionCorrection(False)
    return system


def parameters(system: Any) -> tuple[Array, Array, Array]:
    """Charges (e), sigma (nm) and epsilon (kJ/mol) of every particle."""
    from openmm import NonbondedForce

    [force] = [force for force in system.getForces() if isinstance(force, NonbondedForce)]
    rows = [[float(x._value) for x in force.getParticleParameters(i)] for i in range(force.getNumParticles())]
    charges, sigma, epsilon = np.array(rows).T
    return charges, sigma, epsilon


def cross_terms(case: Case, system: Any, region: list[int] = REGION) -> tuple[float, float]:
    """Lennard-Jones and Coulomb energy (kJ/mol) between region and rest, Coulomb with all images (Ewald)."""
    charges, sigma, epsilon = parameters(system)
    rest = np.setdiff1d(np.arange(len(charges)), region)
    pairs = case.positions[region][:, None] - case.positions[None, rest]
    if case.box is not None:
        pairs -= np.rint(pairs / EDGE) * EDGE
    r = np.linalg.norm(pairs, axis=2)
    sixth = (0.5 * (sigma[region][:, None] + sigma[None, rest]) / r) ** 6
    lennard_jones = 4.0 * np.sqrt(epsilon[region][:, None] * epsilon[None, rest]) * (sixth**2 - sixth)
    products = charges[region][:, None] * charges[None, rest]
    if case.box is None:
        return float(lennard_jones.sum()), float(COULOMB * (products / r).sum())
    ewald = Ewald(EDGE)
    reciprocal = ewald.reciprocal(charges, case.positions, region, rest)
    coulomb = COULOMB * (products * erfc(ewald.alpha * r) / r).sum() + reciprocal
    return float(lennard_jones[r < CUTOFF].sum()), float(coulomb)


def image_term(case: Case, system: Any, region: list[int] = REGION) -> float:
    """Coulomb energy (kJ/mol) of the region with its own periodic images alone: Ewald less the plain sum over pairs."""
    charges, _, _ = parameters(system)
    ewald = Ewald(EDGE)
    first, second = np.triu_indices(len(region), 1)
    own, places = charges[region], case.positions[region]
    r = np.linalg.norm(places[first] - places[second], axis=1)
    # erfc(alpha r)/r of the nearest image, of which the region's extent below half the box makes sure, less 1/r
    pairs = (own[first] * own[second] * (erfc(ewald.alpha * r) - 1.0) / r).sum()
    itself = -ewald.alpha / np.sqrt(np.pi) * (own**2).sum()
    return float(COULOMB * (pairs + itself) + 0.5 * ewald.reciprocal(charges, case.positions, region, region))


class Ewald:
    """Reciprocal sums in a cube; alpha so large that the real-space sum ends at the nearest image."""

    def __init__(self, edge: float) -> None:
        self.edge = edge
        self.alpha = 9.5 / edge  # erfc(alpha edge / 2) = 2e-11
        most = int(np.ceil(self.alpha * edge * 5.2 / np.pi))
        n = np.stack(np.meshgrid(*[np.arange(-most, most + 1)] * 3, indexing="ij"), -1).reshape(-1, 3)
        n = n[(np.linalg.norm(n, axis=1) <= most) & np.any(n, axis=1)]
        # one of k and -k
        first = np.array([next(x for x in row if x) for row in n.tolist()])
        self.k = 2.0 * np.pi / edge * n[first > 0]
        square = (self.k**2).sum(axis=1)
        self.weights = 2.0 * 4.0 * np.pi / edge**3 * np.exp(-square / (4.0 * self.alpha**2)) / square

    def reciprocal(self, charges: Array, positions: Array, one: Any, other: Any) -> float:
        """sum_k w(k) Re[S_one(k) conj S_other(k)] in kJ/mol: twice the energy if both are the same."""
        modes = [np.exp(1j * (positions[part] @ self.k.T)).T @ charges[part] for part in (one, other)]
        return float(COULOMB * (self.weights * (modes[0] * modes[1].conj()).real).sum())


def network_terms(case: Case, model: FastEGNNPotential, region: list[int] = REGION) -> tuple[float, Array]:
    """Energy and forces of the whole, open region by the eager model; kJ/mol and kJ/mol/nm."""
    numbers = case.numbers
    return eager(model, [numbers[i] for i in region], case.positions[region], None, "float64")


def wrapped(case: Case, atoms: list[int] = REGION, seed: int = 0) -> Array:
    """Positions with every one of ``atoms`` moved by lattice vectors of its own."""
    assert case.box is not None
    out = case.positions.copy()
    out[atoms] += np.random.default_rng(seed).integers(-2, 3, (len(atoms), 3)) @ case.box
    return out
