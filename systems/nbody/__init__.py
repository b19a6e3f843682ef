"""Charged particles in open space: the 100-particle benchmark of arXiv 2506.19482, generated."""

from __future__ import annotations

from pathlib import Path


def data_path() -> Path:
    """Directory of the small shipped data set (entry point ``nbody`` of the group ``egnn_md.systems``)."""
    return Path(__file__).parent / "data"


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``nbody`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "nbody.safetensors"
