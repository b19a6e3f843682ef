"""The known part of the coarse-grained energy: bonds, angles, dihedrals and excluded volume, from Boltzmann inversion.

======================================================  ===================================================
U = Σ k_b/2 (r - r0)²          (neighbours)             ``bond_length`` Å, ``bond_stiffness`` eV/Å²
  + Σ k_a/2 (θ - θ0)²          (three in a row)         ``angle`` rad, ``angle_stiffness`` eV/rad²
  + Σ k_d [1 - cos(φ - φ0)]    (four in a row)          ``dihedral`` rad, ``dihedral_strength`` eV
  + Σ kT (σ/r)^12              (|i - j| of 3 and more)  ``diameter`` Å, ``kt`` eV
======================================================  ===================================================

The fit inverts the distribution of each term alone, p(r) ∝ r² exp(-U/kT), p(θ) ∝ sin θ exp(-U/kT) and
p(φ) ∝ exp(-U/kT) (Reith, Pütz and Müller-Plathe 2003, J. Comput. Chem. 24, 1624). What the terms count twice or miss is
the network's to learn; what they are there for is that chains stay chains where no data tell the network so (Wang et
al. 2019, ACS Cent. Sci. 5, 755). The dihedrals have a second duty: the network's energy does not change under
reflection, so handedness comes from them alone.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import i0e, i1e
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.units import BOLTZMANN_EV_PER_K, KJ_PER_MOL_PER_EV

SEPARATION = 3  #: beads at least so far along the chain repel each other
CLOSEST = 1e-3  #: fraction of the distances of repelling pairs that are shorter than the diameter
MAXIMUM_CONCENTRATION = 50.0  #: of a von Mises distribution; stiffer dihedrals than 8 degrees are not made


@dataclass(frozen=True)
class Prior:
    """Parameters of the terms, one number a bond, angle and dihedral along the chain; units in the module's table."""

    bond_length: tuple[float, ...]
    bond_stiffness: tuple[float, ...]
    angle: tuple[float, ...]
    angle_stiffness: tuple[float, ...]
    dihedral: tuple[float, ...]
    dihedral_strength: tuple[float, ...]
    diameter: float
    kt: float

    @property
    def beads(self) -> int:
        """Number of beads."""
        return len(self.bond_length) + 1

    def energy(self, positions: Tensor) -> Tensor:
        """(frames,) in eV from (frames, beads, 3) in Å.

        Raises:
            InputError: another number of beads.
        """
        if positions.shape[1:] != (self.beads, 3):
            raise InputError(f"positions {tuple(positions.shape)} are not (frames, {self.beads}, 3)")
        steps = positions[:, 1:] - positions[:, :-1]

        def row(values: tuple[float, ...]) -> Tensor:
            return positions.new_tensor(values)

        energy = (0.5 * row(self.bond_stiffness) * (steps.norm(dim=-1) - row(self.bond_length)).square()).sum(-1)
        bend = 0.5 * row(self.angle_stiffness) * (angles(positions) - row(self.angle)).square()
        twist = row(self.dihedral_strength) * (1.0 - torch.cos(dihedrals(positions) - row(self.dihedral)))
        first, second = pairs(self.beads)
        distance = (positions[:, first] - positions[:, second]).norm(dim=-1)
        return energy + bend.sum(-1) + twist.sum(-1) + (self.kt * (self.diameter / distance) ** 12).sum(-1)

    def forces(self, positions: NDArray[np.floating]) -> NDArray[np.float64]:
        """(frames, beads, 3) in eV/Å, float64."""
        x = torch.from_numpy(np.array(positions, dtype=np.float64)).requires_grad_(True)
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(self.energy(x).sum(), x)
        return np.asarray(-gradient.numpy())

    def add_to(self, system: Any, first: int = 0) -> None:
        """Add the terms to an OpenMM system, for the beads from particle ``first`` on.

        Raises:
            InputError: the system has fewer particles.
        """
        import openmm

        if system.getNumParticles() < first + self.beads:
            raise InputError(
                f"{self.beads} beads from particle {first} on do not fit into {system.getNumParticles()} particles"
            )
        per_area = 100.0 * KJ_PER_MOL_PER_EV  # eV/Å² in kJ/mol/nm²
        bonds, bends = openmm.HarmonicBondForce(), openmm.HarmonicAngleForce()
        twists = openmm.PeriodicTorsionForce()
        repulsion = openmm.CustomBondForce("strength * (diameter / r)^12")
        for i, (length, k) in enumerate(zip(self.bond_length, self.bond_stiffness, strict=True), first):
            bonds.addBond(i, i + 1, 0.1 * length, k * per_area)
        for i, (angle, k) in enumerate(zip(self.angle, self.angle_stiffness, strict=True), first):
            bends.addAngle(i, i + 1, i + 2, angle, k * KJ_PER_MOL_PER_EV)
        for i, (phase, k) in enumerate(zip(self.dihedral, self.dihedral_strength, strict=True), first):
            twists.addTorsion(i, i + 1, i + 2, i + 3, 1, phase + np.pi, k * KJ_PER_MOL_PER_EV)
        repulsion.addGlobalParameter("strength", self.kt * KJ_PER_MOL_PER_EV)
        repulsion.addGlobalParameter("diameter", 0.1 * self.diameter)
        for i, j in zip(*pairs(self.beads), strict=True):
            repulsion.addBond(first + i, first + j, [])
        for force, name in ((bonds, "bonds"), (bends, "angles"), (twists, "dihedrals"), (repulsion, "repulsion")):
            force.setName(f"prior {name}")
            system.addForce(force)

    def save(self, path: str | Path) -> None:
        """Write the parameters as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Prior:
        """Read what :meth:`save` wrote.

        Raises:
            InputError: no such file, or not these parameters.
        """
        try:
            read = json.loads(Path(path).read_text())
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in read.items()}
            return cls(**values)
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise InputError(f"{path} holds no prior: {error}") from error


def pairs(beads: int) -> tuple[list[int], list[int]]:
    """The repelling pairs, i < j."""
    first, second = np.triu_indices(beads, SEPARATION)
    return first.tolist(), second.tolist()


def angles(positions: Tensor) -> Tensor:
    """(frames, beads - 2) angles in radians."""
    before = positions[:, :-2] - positions[:, 1:-1]
    after = positions[:, 2:] - positions[:, 1:-1]
    return torch.atan2(torch.linalg.cross(before, after).norm(dim=-1), (before * after).sum(-1))


def dihedrals(positions: Tensor) -> Tensor:
    """(frames, beads - 3) dihedrals in radians, IUPAC sign: positive clockwise along the middle bond."""
    steps = positions[:, 1:] - positions[:, :-1]
    a, b, c = steps[:, :-2], steps[:, 1:-1], steps[:, 2:]
    left, right = torch.linalg.cross(a, b), torch.linalg.cross(b, c)
    return torch.atan2((torch.linalg.cross(left, right) * b).sum(-1) / b.norm(dim=-1), (left * right).sum(-1))


def concentration(resultant: float) -> float:
    """κ of the von Mises distribution exp(κ cos φ) whose mean resultant length is given, at most 50."""
    if resultant >= i1e(MAXIMUM_CONCENTRATION) / i0e(MAXIMUM_CONCENTRATION):
        return MAXIMUM_CONCENTRATION
    return float(brentq(lambda k: i1e(k) / i0e(k) - resultant, 0.0, MAXIMUM_CONCENTRATION))


def fit_prior(positions: NDArray[np.floating], temperature: float) -> Prior:
    """Parameters from a trajectory by Boltzmann inversion of each term's own distribution.

    Args:
        positions: (frames, beads, 3), Å.
        temperature: K, of the trajectory.

    Raises:
        InputError: fewer than 5 beads or 100 frames.
    """
    if positions.ndim != 3 or positions.shape[1] < 5 or len(positions) < 100:
        raise InputError(f"positions {positions.shape} are not at least 100 frames of at least 5 beads")
    x = torch.from_numpy(np.array(positions, dtype=np.float64))
    kt = BOLTZMANN_EV_PER_K * temperature
    lengths = (x[:, 1:] - x[:, :-1]).norm(dim=-1).numpy()
    r0, width = _gaussian(lengths, lengths**-2.0)
    bends = angles(x).numpy()
    theta0, spread = _gaussian(bends, 1.0 / np.sin(bends))
    mean = np.exp(1j * dihedrals(x).numpy()).mean(axis=0)
    first, second = pairs(x.shape[1])
    return Prior(
        bond_length=tuple(r0.tolist()),
        bond_stiffness=tuple((kt / width).tolist()),
        angle=tuple(theta0.tolist()),
        angle_stiffness=tuple((kt / spread).tolist()),
        dihedral=tuple(np.angle(mean).tolist()),
        dihedral_strength=tuple(kt * concentration(abs(value)) for value in mean),
        diameter=float(np.quantile((x[:, first] - x[:, second]).norm(dim=-1).numpy(), CLOSEST)),
        kt=kt,
    )


def _gaussian(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[Any, Any]:
    """Weighted mean and variance of each column."""
    mean = (
        np.average(values, axis=0, weights=weights) if weights.ndim == 1 else (values * weights).sum(0) / weights.sum(0)
    )
    return mean, ((values - mean) ** 2 * weights).sum(0) / weights.sum(0)
