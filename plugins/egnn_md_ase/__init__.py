"""egnn_md's models in ASE: a potential is a calculator, a propagator a dynamics."""

from egnn_md_ase.calculator import FastEGNNCalculator
from egnn_md_ase.propagator import NoPotential, PropagatorDynamics

__all__ = ["FastEGNNCalculator", "NoPotential", "PropagatorDynamics"]
