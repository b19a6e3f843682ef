"""The models that pages are run with: the shipped ones, or small random stand-ins before there are any."""

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


@pytest.fixture(scope="session")
def water_8fs(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Name of the shipped propagator; a path of one for H and O that goes straight while none is shipped."""
    from egnn_md_systems.water_propagator import weights_path_8fs

    if weights_path_8fs().exists():
        return "water-8fs"
    from egnn_md import FastEGNNPropagator, PropagatorConfig, save_model

    units = {"length": "angstrom", "time": "femtosecond"}
    config = PropagatorConfig(
        system="water", units=units, species=(1, 8), cutoff=4.0, frame_interval=1.0, stride=8.0, hidden=8, layers=2
    )
    return str(save_model(FastEGNNPropagator(config), tmp_path_factory.mktemp("propagator") / "water.safetensors"))


@pytest.fixture
def short_environment(water: str, water_8fs: str) -> Callable[[], dict[str, str]]:
    """Environment of a page's process: the short form, one thread."""
    models = {"EGNN_MD_MODEL": water, "EGNN_MD_PROPAGATOR": water_8fs}
    return lambda: {**os.environ, **models, "EGNN_MD_SHORT": "1", "OMP_NUM_THREADS": "1"}
