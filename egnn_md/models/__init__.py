"""Potentials behind one contract, and the one place that turns energies into forces and stress."""

from egnn_md.models.analytic import HarmonicTether, LennardJones
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import evaluate
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig

__all__ = [
    "FastEGNNPotential",
    "HarmonicTether",
    "LennardJones",
    "Potential",
    "PotentialConfig",
    "evaluate",
]
