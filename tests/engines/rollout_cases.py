"""Three small worlds with random propagators: a periodic one in Å, an open one without units, walls in metres."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from egnn_md import FastEGNNPropagator, PropagatorConfig, save_model
from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, write_trajectories
from egnn_md.rollout import State

WORLDS = ["molecules", "charges", "splash"]
PHYSICAL = {"length": "angstrom", "time": "femtosecond"}
CELL = np.array([[9.0, 0.0, 0.0], [1.5, 8.5, 0.0], [-1.0, 0.7, 8.0]])

_CONFIGS: dict[str, dict[str, Any]] = {
    "molecules": {"units": PHYSICAL, "cutoff": 3.0, "species": (1, 8), "frame_interval": 2.0, "stride": 4.0},
    "charges": {
        "node_features": 1,
        "edge_inputs": ("distance", "feature_product"),
        "frame_interval": 0.1,
        "stride": 0.5,
    },
    "splash": {
        "units": {"length": "m", "time": "s"},
        "cutoff": 0.3,
        "species": (0, 5),
        "static_species": (0,),
        "walls": ((0.0, 1.0), (0.0, 1.0), (0.0, 1.0)),
        "gravity": (0.0, -2.0, 0.0),
        "length_scale": 0.1,
        "frame_interval": 0.02,
        "stride": 0.04,
    },
}


@functools.cache
def world(name: str, particles: int = 30) -> State:
    """A start: positions spread out, velocities that use a skin of a tenth of the cutoff up in a few strides."""
    config = model_config(name)
    rng = np.random.default_rng(WORLDS.index(name))
    size = {"molecules": 8.0, "charges": 3.0, "splash": 1.0}[name]
    positions = rng.random((particles, 3)) * size
    species = rng.choice(config.species, particles)
    speed = 0.006 if name == "splash" else 0.02  # nothing pushes a random network's particles back into the box
    velocities = rng.normal(size=(particles, 3)) * speed * size / config.stride
    velocities[np.isin(species, config.static_species)] = 0.0
    return State(
        positions=positions,
        velocities=velocities,
        species=species,
        features=rng.choice([-1.0, 1.0], (particles, 1)) if config.node_features else None,
        cell=CELL if name == "molecules" else None,
        pbc=(name == "molecules",) * 3,
        name=name,
    )


def model_config(name: str, **changes: Any) -> PropagatorConfig:
    """Configuration of a small propagator of that world."""
    return PropagatorConfig(**{"system": name, "hidden": 8, "layers": 2, **_CONFIGS[name], **changes})


def propagator(name: str, dtype: torch.dtype = torch.float64, **changes: Any) -> FastEGNNPropagator:
    """A random one; the user's random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        return FastEGNNPropagator(model_config(name, **changes)).to(dtype).eval()


def write_world(folder: Path, name: str, frames: int = 4) -> tuple[Path, Path]:
    """A data set of two trajectories with frames that drift apart, and a model file. Returns both paths."""
    start, config = world(name), model_config(name)
    rng = np.random.default_rng(5)
    steps = rng.normal(size=(frames, len(start), 3)) * 1e-2 * np.ptp(start.positions)
    steps[:, np.isin(start.species, config.static_species)] = 0.0
    steps[0] = 0.0
    trajectory = Trajectory(
        positions=np.clip(start.positions + steps, 0.0, start.positions.max()),
        species=start.species,
        velocities=np.repeat(start.velocities[None], frames, 0),
        features=start.features,
        cell=start.cell,
    )
    other = Trajectory(**{**vars(trajectory), "velocities": 0.5 * trajectory.velocities})
    metadata = TrajectoryMetadata(
        system=name,
        units=dict(config.units),
        dt=config.frame_interval,
        bounds=[[0.0, 1.0]] * 3 if config.walls else None,
        periodic_boundary_conditions=list(start.pbc),
    )
    data = write_trajectories(folder / name, metadata, {"test": [trajectory, other]})
    return data, save_model(propagator(name, torch.float32), folder / f"{name}.safetensors")


class Breaking(torch.nn.Module):
    """Linear motion, until ``victim`` gets ``value`` added to its position once it has gone further than ``reach``."""

    def __init__(self, config: PropagatorConfig, victim: int, reach: float, value: float = float("nan")) -> None:
        super().__init__()
        from egnn_md.models.reference_propagators import Linear

        self.config, self.victim, self.reach, self.value = config, victim, reach, value
        self.linear = Linear(config)

    def predict(self, graph: Any) -> Any:
        """See the class."""
        found = self.linear.predict(graph)
        first = [int((graph.batch == index).nonzero()[0]) for index in range(graph.num_graphs)]
        for row in first:
            if row + self.victim < graph.num_nodes and float(graph.positions[row + self.victim, 0]) > self.reach:
                found.positions[row + self.victim] += self.value
        return found
