"""SPH liquids by SPlisHSPlasH: random bodies of fluid that fall and splash in a box."""

from __future__ import annotations

from pathlib import Path


def data_path() -> Path:
    """Directory of the small data set that is shipped (entry point ``liquid`` of the group ``egnn_md.systems``)."""
    return Path(__file__).parent / "data"


def weights_path() -> Path:
    """Path of the shipped model file (entry point ``liquid`` of the group ``egnn_md.models``)."""
    return Path(__file__).parent / "weights" / "liquid.safetensors"
