"""Capped peptides of all 20 residues with GFN2-xTB labels: builder, sampling, and the shipped weights."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``peptide`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "peptide.safetensors"
