"""A small world of attracting particles, and propagator trainings of a second on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, TrajectorySet, write_trajectories
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.training.config_file import validate
from egnn_md.training.propagator_config import PropagatorTrainConfig

INTERVAL = 0.1
METADATA = TrajectoryMetadata(
    system="toy", units={"length": "angstrom", "time": "femtosecond"}, dt=INTERVAL / 10, write_every=10
)


def attracting(count: int, seed: int = 0, particles: int = 6, frames: int = 12) -> list[Trajectory]:
    """Unit masses with softened gravity, leapfrog; node features are their (different) charges to each other."""
    rng = np.random.default_rng(seed)
    out = []
    for number in range(count):
        x = rng.normal(size=(particles, 3))
        v = 0.5 * rng.normal(size=(particles, 3))
        weight = rng.choice([0.5, 1.0], size=particles)

        def force(x: np.ndarray, weight: np.ndarray = weight) -> np.ndarray:
            pair = x[None] - x[:, None]
            squared = (pair**2).sum(-1) + 0.5
            return (weight[None, :, None] * pair / squared[..., None] ** 1.5).sum(1)

        positions, velocities = [x.copy()], [v.copy()]
        step = INTERVAL / 10
        for _ in range(frames - 1):
            for _ in range(10):
                v = v + 0.5 * step * force(x)
                x = x + step * v
                v = v + 0.5 * step * force(x)
            positions.append(x.copy())
            velocities.append(v.copy())
        out.append(
            Trajectory(
                positions=np.stack(positions),
                velocities=np.stack(velocities),
                species=np.zeros(particles, dtype=np.int64),
                features=weight[:, None],
                name=f"toy/{number}",
            )
        )
    return out


def toy_set(count: int = 3, **changes: Any) -> TrajectorySet:
    """In memory; ``changes`` replace fields of the metadata."""
    return TrajectorySet(METADATA.model_copy(update=changes), attracting(count))


def write_toy(directory: Path, **changes: Any) -> Path:
    """A data set of three parts."""
    if not (directory / "metadata.json").exists():
        parts = {"train": attracting(4, 0), "valid": attracting(2, 1), "test": attracting(2, 2)}
        write_trajectories(directory, METADATA.model_copy(update=changes), parts)
    return directory


def model_config(**changes: Any) -> PropagatorConfig:
    """A propagator of the toy world, two frames a stride, small."""
    base: dict[str, Any] = {
        "system": "toy",
        "units": METADATA.units,
        "frame_interval": INTERVAL,
        "stride": 2 * INTERVAL,
        "node_features": 1,
        "hidden": 8,
        "layers": 2,
        "virtual_nodes": 2,
    }
    return PropagatorConfig(**{**base, **changes})


def small_model(dtype: torch.dtype = torch.float64, **changes: Any) -> FastEGNNPropagator:
    """With weights that do something: maps that start tiny or at zero are drawn anew."""
    torch.manual_seed(0)
    model = FastEGNNPropagator(model_config(**changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.to(dtype)


def tiny(directory: Path, **changes: Any) -> PropagatorTrainConfig:
    """Configuration of a run of a second; ``changes`` replace top-level keys."""
    content: dict[str, Any] = {
        "task": "propagator",
        "data": {"directory": str(write_toy(directory / "data")), "every": 2},
        "model": {"hidden": 8, "layers": 2, "virtual_nodes": 2},
        "stride_frames": 2,
        "loss": {"mmd": 0.03, "sigma": 1.5, "samples": 3},
        "optimizer": {"lr": 1e-2},
        "schedule": {"warmup_steps": 3},
        "ema_decay": 0.9,
        "max_steps": 12,
        "validate_every": 5,
        "checkpoint_every": 4,
        "log_every": 1,
        "batch_size": 4,
        "tensorboard": False,
        "output": str(directory / "run"),
        **changes,
    }
    return validate(PropagatorTrainConfig, content, "test")
