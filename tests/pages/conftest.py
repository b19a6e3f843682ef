"""The model that pages are run with: the shipped water, or a small random stand-in before there is one."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def water(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of the shipped model; a path of a random one for H and O while no weights are shipped."""
    from egnn_md_systems.water import weights_path

    if weights_path().exists():
        return "water"
    import torch

    from egnn_md.checkpoint import save_model
    from egnn_md.models import FastEGNNPotential, PotentialConfig

    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = FastEGNNPotential(PotentialConfig(elements=(1, 8), hidden=8, layers=2, scale=0.1))
    return str(save_model(model, tmp_path_factory.mktemp("model") / "water.safetensors"))


@pytest.fixture
def short_environment(water: str) -> Callable[[], dict[str, str]]:
    """Environment of a page's process: the short form, one thread."""
    return lambda: {**os.environ, "EGNN_MD_SHORT": "1", "EGNN_MD_MODEL": water, "OMP_NUM_THREADS": "1"}
