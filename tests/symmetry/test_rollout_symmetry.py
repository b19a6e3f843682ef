"""Turning, shifting, reflecting or renumbering the start does the same to the whole rollout."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from egnn_md import FastEGNNPropagator, PropagatorConfig
from egnn_md.rollout import State, rollout

STEPS = 8
TOLERANCE = 1e-11  # float64, eight strides
CELL = np.array([[9.0, 0.0, 0.0], [1.5, 8.5, 0.0], [-1.0, 0.7, 8.0]])
SYSTEMS: dict[str, dict[str, Any]] = {
    "open": {"node_features": 1, "edge_inputs": ("distance", "feature_product")},
    "dropped": {"node_features": 1, "drop": "longest", "drop_fraction": 0.5},
    "periodic": {"cutoff": 3.0, "species": (1, 8)},
    "walls": {
        "cutoff": 1.5,
        "species": (0, 5),
        "static_species": (0,),
        "walls": ((0.0, 8.0), (-1.0, 9.0), (0.0, 7.0)),
        "gravity": (0.0, -0.02, 0.0),
        "linear_start": False,  # which would leave the pushes along walls and gravity at zero
    },
}


def model(name: str) -> FastEGNNPropagator:
    """A random one in float64."""
    config = PropagatorConfig(system=name, frame_interval=1.0, stride=2.0, hidden=8, layers=2, **SYSTEMS[name])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11)
        return FastEGNNPropagator(config).double().eval()


def start(name: str, chosen: FastEGNNPropagator) -> State:
    """25 particles that move by about a tenth of a length unit a stride."""
    rng = np.random.default_rng(1)
    species = rng.choice(chosen.config.species, 25)
    velocities = rng.normal(size=(25, 3)) * 0.05
    velocities[np.isin(species, chosen.config.static_species)] = 0.0
    return State(
        positions=rng.random((25, 3)) * 7,
        velocities=velocities,
        species=species,
        features=rng.choice([-1.0, 1.0], (25, 1)) if chosen.config.node_features else None,
        cell=CELL if name == "periodic" else None,
        pbc=(name == "periodic",) * 3,
    )


def turned(state: State, rotation: np.ndarray, shift: np.ndarray) -> State:
    """x → x Rᵀ + t."""
    return state.replace(
        positions=state.positions @ rotation.T + shift,
        velocities=state.velocities @ rotation.T,
        cell=None if state.cell is None else state.cell @ rotation.T,
    )


def orthogonal(seed: int, sign: float) -> np.ndarray:
    """A random rotation (sign 1) or one with a reflection (sign -1)."""
    q, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(3, 3)))
    return q if np.linalg.det(q) * sign > 0 else -q


@pytest.mark.parametrize("name", ["open", "dropped", "periodic"])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_turned_and_shifted_start_gives_the_turned_and_shifted_rollout(name: str, sign: float):
    chosen = model(name)
    state, rotation, shift = start(name, chosen), orthogonal(3, sign), np.array([3.0, -7.0, 0.4])
    one, other = rollout(chosen, state, STEPS), rollout(chosen, turned(state, rotation, shift), STEPS)
    assert one.failure is None
    np.testing.assert_allclose(other.positions, one.positions @ rotation.T + shift, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(other.velocities, one.velocities @ rotation.T, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("axes", [(1, 2, 0), (2, 1, 0)])
def test_a_box_turned_with_its_content_gives_the_turned_rollout(axes: tuple[int, int, int]):
    """Walls along the axes: a rotation by a right angle (or a reflection) permutes box, gravity and start."""
    chosen = model("walls")
    state, rotation, shift = start("walls", chosen), np.eye(3)[list(axes)], np.array([3.0, -7.0, 0.5])
    config = chosen.config
    walls = tuple((config.walls[a][0] + shift[k], config.walls[a][1] + shift[k]) for k, a in enumerate(axes))
    gravity = tuple(config.gravity[a] for a in axes)
    moved = FastEGNNPropagator(PropagatorConfig(**{**config.model_dump(), "walls": walls, "gravity": gravity}))
    moved.load_state_dict(chosen.state_dict())
    moved = moved.double().eval()
    one, other = rollout(chosen, state, STEPS), rollout(moved, turned(state, rotation, shift), STEPS)
    assert one.failure is None
    # gravity is kept in single precision until the model is cast: the two casts agree to the last digit
    np.testing.assert_allclose(other.positions, one.positions @ rotation.T + shift, rtol=0, atol=TOLERANCE)
    # the walls are felt: shifting the content alone is something else
    alone = rollout(chosen, state.replace(positions=state.positions + 0.5), STEPS)
    assert np.abs(alone.positions - 0.5 - one.positions).max() > 1e-4


@pytest.mark.parametrize("name", list(SYSTEMS))
def test_renumbered_particles_give_the_renumbered_rollout(name: str):
    chosen = model(name)
    state, order = start(name, chosen), np.random.default_rng(2).permutation(25)
    other = state.replace(
        positions=state.positions[order],
        velocities=state.velocities[order],
        species=state.species[order],
        features=None if state.features is None else state.features[order],
    )
    one, two = rollout(chosen, state, STEPS), rollout(chosen, other, STEPS)
    np.testing.assert_allclose(two.positions, one.positions[:, order], rtol=0, atol=TOLERANCE)


def test_particles_moved_by_lattice_vectors_stay_moved_by_them():
    chosen = model("periodic")
    state = start("periodic", chosen)
    lattice = np.random.default_rng(4).integers(-2, 3, (25, 3)) @ CELL
    one, two = rollout(chosen, state, STEPS), rollout(chosen, state.replace(positions=state.positions + lattice), STEPS)
    np.testing.assert_allclose(two.positions, one.positions + lattice, rtol=0, atol=TOLERANCE)
