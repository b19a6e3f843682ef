"""Chignolin in C-alpha beads: a coarse-grained potential by force matching from an all-atom simulation."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``chignolin-cg`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "chignolin-cg.safetensors"


def prior_path() -> Path:
    """Path of ``prior.json``, the energy terms that the shipped network is to be added to."""
    return Path(__file__).parent / "prior.json"
