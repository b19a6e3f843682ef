"""egnn_md's models in ASE."""

from egnn_md_ase.calculator import FastEGNNCalculator

__all__ = ["FastEGNNCalculator"]
