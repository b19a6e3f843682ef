"""Analytic potentials behind the same contract: what engines and validators are tested with."""

import torch
from torch import Tensor

from egnn_md.models.base import Potential
from egnn_md.nn.segment import segment_sum


class LennardJones(Potential):
    """4ε[(σ/r)¹² - (σ/r)⁶], for any element, shifted or smoothly switched off at the cutoff.

    Args:
        epsilon: eV.
        sigma: Å.
        cutoff: Å.
        smooth: False shifts the energy to zero at the cutoff (forces jump there), as ASE's calculator does;
            True multiplies by a switch over the last fifth of the range with two continuous derivatives.
    """

    kind = "lennard-jones"
    smooth: torch.jit.Final[bool]

    def __init__(
        self, epsilon: float = 0.0104, sigma: float = 3.4, cutoff: float = 8.5, *, smooth: bool = True
    ) -> None:
        super().__init__(cutoff, [])
        self.epsilon = float(epsilon)
        self.sigma = float(sigma)
        self.smooth = smooth
        self.onset = 0.8 * float(cutoff)

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """(N,) energies in eV, half of each pair to either atom."""
        everywhere = self.communication.halo([positions])[0]
        pair = (
            everywhere.index_select(0, edge_index[0]) - everywhere.index_select(0, edge_index[1]) + shifts
        ).to(torch.float64)
        squared = (pair * pair).sum(1)
        sixth = (self.sigma**2 / squared) ** 3
        energy = 4.0 * self.epsilon * (sixth * sixth - sixth)
        if self.smooth:
            t = ((squared.sqrt() - self.onset) / (self.cutoff - self.onset)).clamp(0.0, 1.0)
            energy = energy * (1.0 - t**3 * (10.0 - 15.0 * t + 6.0 * t * t))
        else:
            edge = (self.sigma / self.cutoff) ** 6
            energy = energy - 4.0 * self.epsilon * (edge * edge - edge)
        energy = torch.where(squared <= self.cutoff**2, energy, torch.zeros_like(energy))
        return segment_sum(0.5 * energy, edge_index[0], positions.shape[0])


class HarmonicTether(Potential):
    """Every pair closer than the cutoff as a spring of rest length ``length`` that fades out at the cutoff.

    E = Σ_pairs ½ k (r - length)² w(r), w = (1 - (r/cutoff)²)³: two continuous derivatives at the cutoff.

    Args:
        stiffness: k, eV/Å².
        length: Å.
        cutoff: Å.
    """

    kind = "harmonic-tether"

    def __init__(self, stiffness: float = 1.0, length: float = 1.5, cutoff: float = 3.0) -> None:
        super().__init__(cutoff, [])
        self.stiffness = float(stiffness)
        self.length = float(length)

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """(N,) energies in eV, half of each pair to either atom."""
        everywhere = self.communication.halo([positions])[0]
        pair = (
            everywhere.index_select(0, edge_index[0]) - everywhere.index_select(0, edge_index[1]) + shifts
        ).to(torch.float64)
        squared = (pair * pair).sum(1)
        fade = (1.0 - squared / self.cutoff**2).clamp(min=0.0) ** 3
        energy = 0.5 * self.stiffness * (squared.sqrt() - self.length) ** 2 * fade
        return segment_sum(0.5 * energy, edge_index[0], positions.shape[0])
