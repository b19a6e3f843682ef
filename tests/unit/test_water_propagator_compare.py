"""The page that compares propagators of water with their potential."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import numpy as np
import pytest
import torch

from egnn_md.checkpoint import save_model
from egnn_md.data.trajectories import Trajectory, TrajectoryWriter, open_trajectories
from egnn_md.errors import InputError
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.simulation.mechanics import maxwell_boltzmann
from egnn_md_systems import water
from egnn_md_systems.water_propagator.compare import compare, rollouts
from egnn_md_systems.water_propagator.generate import metadata_of


def propagator(stride: float = 2.0, system: str = "water") -> FastEGNNPropagator:
    """Goes straight on, which water does not survive, and pushes a little."""
    torch.manual_seed(0)
    config = PropagatorConfig(
        system=system,
        units={"length": "angstrom", "time": "femtosecond"},
        frame_interval=1.0,
        stride=stride,
        cutoff=2.6,
        species=(1, 8),
        edge_inputs=("distance",),
        hidden=8,
        layers=1,
        virtual_nodes=1,
    )
    return FastEGNNPropagator(config)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two made-up trajectories in straight lines, 24 fs."""
    folder = tmp_path_factory.mktemp("straight")
    atoms = ase.io.read(water.__path__[0] + "/water64.pdb")
    with TrajectoryWriter(folder / "test.h5", metadata_of("water", 64)) as writer:
        for seed in range(2):
            velocities = maxwell_boltzmann(atoms.get_masses(), 300.0, np.random.default_rng(seed))
            positions = atoms.positions + np.arange(25)[:, None, None] * 0.1 * velocities
            writer.add(
                Trajectory(positions, atoms.numbers, np.repeat(velocities[None], 25, 0), cell=atoms.cell.array)
            )
    return folder


def test_one_command_writes_page_picture_numbers_and_table(data: Path, tmp_path: Path) -> None:
    file = save_model(propagator(), tmp_path / "straight.safetensors")
    found = compare(data, tmp_path / "page", models=[str(file)], starts=3, duration=60.0, timing=False)
    assert [m.name for m in found] == ["potential", "straight"]
    assert found[1].failed == 3  # straight lines tear every molecule
    assert all(steps < 30 for steps in found[1].steps)
    record = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert record["steps"]["straight"] == found[1].steps
    assert record["table"]["Rollouts that failed"]["straight"] == "3 of 3"
    middle = record["table"]["Strides until failure, median"]["straight"]
    assert float(middle) == sorted(found[1].steps)[1]
    assert "| Rollouts that failed | – | 3 of 3 |" in (tmp_path / "page" / "compare.md").read_text()
    html = (tmp_path / "page" / "compare.html").read_text()
    assert "Pair distribution O-O" in html
    assert "not that coefficient" in html  # 60 fs are no diffusion, and the page says so
    assert (tmp_path / "page" / "compare.png").read_bytes()[:4] == b"\x89PNG"


def test_momentum_can_be_taken_out_of_a_rollout(data: Path) -> None:
    model = propagator()
    with torch.no_grad():  # oxygens are pushed, so the centre of mass moves
        model.velocity_head.weight.normal_(0, 0.08)
        model.network.layers[0].velocity_mlp[-1].weight.normal_(0, 0.08)
    trajectories = open_trajectories(data, "test")
    for remove in (False, True):
        (run,) = rollouts(model, trajectories, [(0, 0)], 6.0, remove_momentum=remove)
        assert run.steps > 0
        weights = run.masses / run.masses.sum()
        moved = np.linalg.norm(np.einsum("n,fnd->fd", weights, run.positions - run.positions[0]), axis=1)[-1]
        speed = np.linalg.norm(weights @ run.velocities[-1])
        assert (moved < 1e-6 and speed < 1e-9) if remove else (moved > 1e-5 and speed > 1e-6), (moved, speed)


def test_a_potential_is_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a propagator"):
        compare(data, tmp_path, models=["water"], timing=False)
