"""The command ``egnn-md md``: options, errors that name them, a run from start to finish."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from md_cases import argon, request
from typer.testing import CliRunner

from egnn_md.checkpoint import ModelCard, save_model
from egnn_md.cli.main import app
from egnn_md.cli.md import run as run_command
from egnn_md.errors import ConfigError, EgnnMdError, InputError, ModelFileError
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig
from egnn_md.simulation import MDRequest, RunDirectory
from egnn_md.simulation.engine import load_engine
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.rundir import Checkpoint


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A tiny network with random weights for argon."""
    torch.manual_seed(0)
    config = PotentialConfig(
        elements=(18,), cutoff=4.5, hidden=8, layers=1, virtual_nodes=1, vector_channels=1, basis=4, scale=0.01
    )
    card = ModelCard(name="tiny", description="random weights")
    return str(save_model(FastEGNNPotential(config), tmp_path / "tiny.safetensors", card))


def invoke(*arguments: object) -> None:
    """Run the command in this process; errors come out as they are."""
    result = CliRunner().invoke(app, ["md", *map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_start_continue_and_resume(tmp_path: Path, model: str, engine: str) -> None:
    structure = argon(tmp_path)
    common = ["--timestep", "2", "--log-interval", "5", "--frame-interval", "10", "--checkpoint-interval", "10"]
    invoke(
        structure, "--model", model, "--engine", engine, "--ensemble", "nvt", "--steps", "20", "--temperature", "50",
        "--output", tmp_path / "nvt", "--minimize-steps", "5", *common,
    )  # fmt: skip
    record = RunDirectory(tmp_path / "nvt").read()
    assert record["status"] == "finished"
    assert record["model"]["card"]["name"] == "tiny"
    assert record["model"]["source"] == "tiny.safetensors"
    assert "minimisation" in record
    invoke(
        "--continue-from", tmp_path / "nvt", "--engine", engine, "--ensemble", "nve", "--steps", "20",
        "--output", tmp_path / "nve", *common,
    )  # fmt: skip
    continued = RunDirectory(tmp_path / "nve").request()
    assert (continued.model, continued.minimize) == (model, False)
    invoke("--resume", "--output", tmp_path / "nve", "--steps", "30")
    assert read_log(tmp_path / "nve" / "log.csv")["step"].tolist() == list(range(0, 31, 5))


def test_control_c_ends_the_command_with_130(tmp_path: Path, model: str) -> None:
    folder = tmp_path / "run"
    command = [
        sys.executable, "-c", "from egnn_md.cli.main import main; main()", "md", str(argon(tmp_path)),
        "--model", model, "--engine", "ase", "--steps", "1000000", "--temperature", "5", "--timestep", "1",
        "--output", str(folder), "--no-minimize", "--log-interval", "1",
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    deadline = time.monotonic() + 120
    while not (folder / "log.csv").exists() or (folder / "log.csv").read_bytes().count(b"\n") < 15:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 130, said
    assert f"egnn-md md --resume --output {folder}" in said
    assert Checkpoint.load(folder / "checkpoint.npz").step == RunDirectory(folder).read()["steps_done"] > 0


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "--output is missing"),
        ({"output": "x"}, "--steps is missing"),
        ({"output": "x", "steps": 5}, "STRUCTURE is missing"),
        ({"output": "x", "steps": 0, "structure": "a.pdb"}, "--steps 0: input should be greater than 0"),
        ({"output": "x", "steps": 5, "structure": "a", "engine": "gromacs"}, "--engine gromacs: input should be"),
        ({"output": "x", "steps": 5, "structure": "a", "frame_interval": -1}, "--frame-interval -1: "),
        ({"output": "x", "steps": 5, "structure": "a", "engine": "ase", "platform": "CPU"}, "--platform belongs"),
        ({"output": "x", "steps": 5, "structure": "a", "temperature": 0.0}, "--temperature 0 has no meaning"),
        ({"output": "x", "steps": 5, "continue_from": "y", "minimize": True, "model": "m"}, "--minimize does not"),
        ({"output": "x", "steps": 5, "structure": "a", "colour": "red"}, "--colour is no option"),
    ],
)
def test_errors_name_the_option(given: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        run_command(given, resume=False, overwrite=False)
    assert message in str(caught.value)


def test_other_refusals(tmp_path: Path, model: str) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        run_command({"output": tmp_path}, resume=True, overwrite=True)
    with pytest.raises(InputError, match="is no run directory"):
        run_command({"output": tmp_path / "no"}, resume=True, overwrite=False)
    good = {"output": tmp_path / "run", "steps": 5, "engine": "ase", "structure": str(argon(tmp_path))}
    with pytest.raises(ModelFileError):
        run_command({**good, "model": "nobody-knows-it"}, resume=False, overwrite=False)
    with pytest.raises(InputError, match=r"structure file .*none.pdb does not exist"):
        run_command({**good, "model": model, "structure": "none.pdb"}, resume=False, overwrite=False)
    changes = {"model": model, "engine": "openmm", "platform": "Abacus"}
    with pytest.raises(InputError, match="--platform Abacus is not available here"):
        run_command({**good, **changes}, resume=False, overwrite=False)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; give a directory"):
        run_command({**good, "model": model, "output": tmp_path / "file"}, resume=False, overwrite=False)
    with pytest.raises(InputError, match="--engine gromacs is not installed"):
        load_engine("gromacs")
    with pytest.raises(EgnnMdError):
        run_command({**good, "model": model, "device": "cuda:99"}, resume=False, overwrite=False)
    assert not (tmp_path / "run").exists()


def test_a_request_survives_its_record(tmp_path: Path) -> None:
    wanted = request(tmp_path, "run", max_temperature=500.0)
    assert MDRequest.parse(wanted.model_dump(mode="json")) == wanted
