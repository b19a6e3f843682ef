"""Dynamics and rollouts over several devices follow one process's trajectory, in every engine."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.io import read, write
from rich.console import Console

from egnn_md.checkpoint import save_model
from egnn_md.errors import ConfigError
from egnn_md.models import FastEGNNPotential, PotentialConfig
from egnn_md.rollout.directory import RolloutDirectory
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.run import run_rollout
from egnn_md.simulation import MDRequest, simulate
from egnn_md.simulation.rundir import Checkpoint, RunDirectory

MULTIRANK = pytest.mark.multirank
# Å. Sums in another order differ by 1e-15; a liquid's chaos makes that grow tenfold in some 0.1 ps.
WATER_DRIFT = 1e-11
ARGON_DRIFT = 1e-11
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(3)
    config = PotentialConfig(elements=(18,), cutoff=4.5, hidden=8, layers=2, virtual_nodes=2, vector_channels=2)
    save_model(FastEGNNPotential(config), folder / "argon.safetensors")
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat((2, 2, 2))
    atoms.rattle(0.2, rng=np.random.default_rng(1))
    write(folder / "argon.extxyz", atoms)
    return folder


def request(inputs: Path, output: Path, **changes: Any) -> MDRequest:
    values: dict[str, Any] = {
        "structure": str(inputs / "argon.extxyz"),
        "model": str(inputs / "argon.safetensors"),
        "steps": 40,
        "timestep": 2.0,
        "temperature": 60.0,
        "dtype": "float64",
        "minimize": False,
        "frame_interval": 10,
        "checkpoint_interval": 20,
        "output": output,
    }
    return MDRequest.parse({**values, **changes})


def distance(one: Path, other: Path) -> float:
    """Largest difference of the last positions (and cells), Å; a checkpoint holds them in full."""
    first, second = (Checkpoint.load(RunDirectory(path).checkpoint) for path in (one, other))
    assert first.step == second.step
    return float(max(np.abs(first.positions - second.positions).max(), np.abs(first.cell - second.cell).max()))


@pytest.mark.parametrize(
    ("engine", "ensemble"),
    [
        ("ase", "nve"),
        pytest.param("openmm", "nve", marks=MULTIRANK),
        pytest.param("ase", "npt", marks=MULTIRANK),
        pytest.param("openmm", "npt", marks=MULTIRANK),
    ],
)
def test_argon(inputs: Path, tmp_path: Path, engine: str, ensemble: str) -> None:
    pytest.importorskip("openmm")
    options: dict[str, Any] = {"engine": engine, "ensemble": ensemble}
    if engine == "openmm":
        options["platform"] = "Reference"
    simulate(request(inputs, tmp_path / "one", **options), console=QUIET)
    simulate(request(inputs, tmp_path / "two", devices=2, **options), console=QUIET)
    assert distance(tmp_path / "one", tmp_path / "two") < ARGON_DRIFT
    record = RunDirectory(tmp_path / "two").read()
    assert record["model"]["devices"] == 2
    assert record["model"]["partition"] == "bisection"
    if engine == "openmm":
        assert record["engine"]["force"] == "PythonForce"


@pytest.mark.parametrize("engine", ["ase", "openmm"])
@MULTIRANK
def test_resumed_run_is_the_uninterrupted_one(inputs: Path, tmp_path: Path, engine: str) -> None:
    options: dict[str, Any] = {"engine": engine, "ensemble": "nvt", "devices": 2}
    simulate(request(inputs, tmp_path / "whole", **options), console=QUIET)
    simulate(request(inputs, tmp_path / "parts", steps=20, **options), console=QUIET)
    resumed = RunDirectory(tmp_path / "parts").request().changed({"steps": 40})
    simulate(resumed, resume=True, console=QUIET)
    for name in ("trajectory.dcd", "final.pdb", "final.extxyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@MULTIRANK
def test_resumed_with_other_devices(inputs: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"engine": "ase", "ensemble": "nve"}
    simulate(request(inputs, tmp_path / "whole", **options), console=QUIET)
    simulate(request(inputs, tmp_path / "parts", steps=20, devices=3, **options), console=QUIET)
    simulate(
        RunDirectory(tmp_path / "parts").request().changed({"steps": 40, "devices": 2}), resume=True, console=QUIET
    )
    assert distance(tmp_path / "whole", tmp_path / "parts") < ARGON_DRIFT


def test_clear_errors(inputs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--implementation torch runs on one device"):
        request(inputs, tmp_path / "a", devices=2, implementation="torch")
    with pytest.raises(ConfigError, match="--devices 0"):
        request(inputs, tmp_path / "a", devices=0)
    with pytest.raises(ConfigError, match="--mode quick"):
        request(inputs, tmp_path / "a", mode="quick")
    with pytest.raises(ConfigError, match="--partition magic"):
        request(inputs, tmp_path / "a", partition="magic")


@pytest.mark.parametrize(("system", "model"), [("liquid", "liquid"), ("adk", "adk"), ("nbody", "nbody")])
@pytest.mark.parametrize("engine", ["none", "ase"])
@MULTIRANK
def test_rollouts(tmp_path: Path, system: str, model: str, engine: str) -> None:
    """Own neighbour lists; walls and gravity; all pairs, which are made here and handed round."""
    values = {"system": system, "model": model, "steps": 6, "engine": engine, "dtype": "float64"}
    for devices in (1, 2):
        wanted = RolloutRequest.parse({**values, "devices": devices, "output": tmp_path / str(devices)})
        run_rollout(wanted, console=QUIET)
    one, two = (read(tmp_path / name / "final.extxyz") for name in ("1", "2"))
    assert np.abs(one.positions - two.positions).max() < 1e-10 * max(1.0, np.abs(one.positions).max())


@MULTIRANK
def test_resumed_rollout_is_the_uninterrupted_one(tmp_path: Path) -> None:
    values: dict[str, Any] = {"system": "liquid", "model": "liquid", "devices": 2, "checkpoint_interval": 7}
    run_rollout(RolloutRequest.parse({**values, "steps": 20, "output": tmp_path / "whole"}), console=QUIET)
    run_rollout(RolloutRequest.parse({**values, "steps": 11, "output": tmp_path / "parts"}), console=QUIET)
    resumed = RolloutDirectory(tmp_path / "parts").rollout_request().changed({"steps": 20})
    run_rollout(resumed, resume=True, console=QUIET)
    for name in ("trajectory.dcd", "final.extxyz"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes(), name


@MULTIRANK
def test_several_starts_share_the_ranks(tmp_path: Path) -> None:
    values: dict[str, Any] = {"system": "liquid", "model": "liquid", "steps": 4, "starts": (0, 5), "dtype": "float64"}
    for devices in (1, 2):
        run_rollout(
            RolloutRequest.parse({**values, "devices": devices, "output": tmp_path / str(devices)}), console=QUIET
        )
    for start in ("start-00000", "start-00005"):
        one, two = (read(tmp_path / name / start / "final.extxyz") for name in ("1", "2"))
        assert np.abs(one.positions - two.positions).max() < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ase", "openmm"])
@pytest.mark.parametrize("ensemble", ["nve", "npt"])
def test_water_over_four_ranks(tmp_path: Path, engine: str, ensemble: str) -> None:
    structure = str(files("egnn_md_systems.water") / "water64.pdb")
    values: dict[str, Any] = {
        "structure": structure, "model": "water", "engine": engine, "ensemble": ensemble, "steps": 200,
        "minimize": False, "dtype": "float64",
    }  # fmt: skip
    for devices in (1, 4):
        simulate(MDRequest.parse({**values, "devices": devices, "output": tmp_path / str(devices)}), console=QUIET)
    found = distance(tmp_path / "1", tmp_path / "4")
    print(f"{engine} {ensemble}: {found:.1e} Å apart after 200 steps")
    assert found < WATER_DRIFT
