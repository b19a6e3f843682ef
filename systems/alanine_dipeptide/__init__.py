"""Alanine dipeptide in vacuum with GFN2-xTB labels: sampling, training, free-energy surface, shipped weights."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``alanine-dipeptide`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "alanine-dipeptide.safetensors"


def structure_path() -> Path:
    """Path of ``alanine_dipeptide.pdb``: 22 atoms with the residues ACE, ALA, NME, C7eq, relaxed."""
    return Path(__file__).parent / "alanine_dipeptide.pdb"
