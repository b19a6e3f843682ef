"""Adenylate kinase and proteins in general: molecular dynamics of a backbone, and trajectories as data sets."""

from __future__ import annotations

from pathlib import Path


def data_path() -> Path:
    """Directory of the small shipped data set (entry point ``adk`` of the group ``egnn_md.systems``)."""
    return Path(__file__).parent / "data"


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``adk`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "adk.safetensors"
