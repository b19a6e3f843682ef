"""Liquid water with GFN2-xTB labels: how it is sampled, labelled, trained, and the shipped weights."""

from __future__ import annotations

from pathlib import Path


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``water`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "water.safetensors"
