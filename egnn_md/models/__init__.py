"""Potentials behind one contract, and the one place that turns energies into forces and stress."""

from egnn_md.models.analytic import HarmonicTether, LennardJones
from egnn_md.models.base import Potential
from egnn_md.models.committee import CommitteePotential, Spread, evaluate_spread, make_committee
from egnn_md.models.evaluate import evaluate
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig

__all__ = [
    "CommitteePotential",
    "FastEGNNPotential",
    "HarmonicTether",
    "LennardJones",
    "Potential",
    "PotentialConfig",
    "Spread",
    "evaluate",
    "evaluate_spread",
    "make_committee",
]
