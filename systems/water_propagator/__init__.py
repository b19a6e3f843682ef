"""Propagators of liquid water with strides of 2, 4 and 8 fs, learned from the dynamics of the potential ``water``."""

from __future__ import annotations

from pathlib import Path

STRIDES = (2, 4, 8)  # fs


def weights_path(stride: int) -> Path:
    """Path of the shipped propagator with that stride in fs."""
    return Path(__file__).parent / "weights" / f"water-{stride}fs.safetensors"


def weights_path_2fs() -> Path:
    """Path of the shipped model file (entry point ``water-2fs`` of the group ``egnn_md.models``)."""
    return weights_path(2)


def weights_path_4fs() -> Path:
    """Path of the shipped model file (entry point ``water-4fs`` of the group ``egnn_md.models``)."""
    return weights_path(4)


def weights_path_8fs() -> Path:
    """Path of the shipped model file (entry point ``water-8fs`` of the group ``egnn_md.models``)."""
    return weights_path(8)
