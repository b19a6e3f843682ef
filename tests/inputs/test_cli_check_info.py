"""``egnn-md check`` and ``egnn-md info``: tables, JSON, exit codes."""

import json

import pytest
import torch
from typer.testing import CliRunner

import egnn_md.testing
from egnn_md import FastEGNN, export_torchscript, save_model
from egnn_md.checkpoint import ModelCard, model_digest
from egnn_md.cli.main import app, main
from egnn_md.errors import InputError, ModelFileError
from egnn_md.nn.fast_egnn import FastEGNNConfig
from egnn_md.testing import random_potential
from egnn_md.testing.result import measured

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def model():
    return random_potential(dtype=torch.float32, layers=1, hidden=8)


@pytest.fixture(scope="module")
def path(model, tmp_path_factory):
    card = ModelCard(
        name="trial",
        description="for the tests",
        teacher="gfn2-xtb",
        licence="MIT",
        training_data={"digest": "abc123", "structures": 12},
        measured={"force_rmse": {"300 K": 35.2, "unit": "meV/Å"}},
    )
    return save_model(model, tmp_path_factory.mktemp("models") / "trial.safetensors", card)


def test_check_passes_and_prints_a_table(path):
    result = RUNNER.invoke(app, ["check", str(path)])
    assert result.exit_code == 0, result.output
    for law in (
        "rotation: forces",
        "forces = -dE/dx",
        "no jump at the cutoff: energy",
        "2×2×2 copies: energy",
    ):
        assert law in result.output
    assert "checks hold" in result.output
    assert "FAILS" not in result.output


def test_check_as_json(path):
    result = RUNNER.invoke(app, ["check", str(path), "--json", "--dtype", "float32", "--seed", "2"])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert (report["passed"], report["dtype"], report["seed"]) == (True, "float32", 2)
    assert {"name", "passed", "value", "tolerance", "unit", "note"} == set(report["checks"][0])


def test_check_exits_with_1_when_a_law_is_broken(path, monkeypatch):
    bad = [
        measured("rotation: energy", 0.5, 1e-10, "eV/atom", "crystal"),
        measured("b", float("nan"), 0, "eV"),
    ]
    monkeypatch.setattr(egnn_md.testing, "run_checks", lambda *_, **__: bad)
    result = RUNNER.invoke(app, ["check", str(path)])
    assert result.exit_code == 1
    assert "FAILS" in result.output
    assert "2 of 2 checks fail: rotation: energy, b" in result.output
    result = RUNNER.invoke(app, ["check", str(path), "--json"])
    assert result.exit_code == 1
    assert json.loads(result.stdout)["checks"][1]["value"] is None  # NaN is no JSON


def test_check_refuses_what_it_cannot_check(path, tmp_path):
    network = save_model(FastEGNN(FastEGNNConfig(node_features=1, hidden=4)), tmp_path / "n.safetensors")
    result = RUNNER.invoke(app, ["check", str(network)])
    assert isinstance(result.exception, InputError)
    assert "checks are for potentials" in str(result.exception)
    result = RUNNER.invoke(app, ["check", str(path), "--dtype", "float16"])
    assert "float32 or float64" in str(result.exception)


def test_a_missing_model_ends_in_one_line_and_code_2(monkeypatch, capsys):
    for command in ("check", "info"):
        monkeypatch.setattr("sys.argv", ["egnn-md", command, "nowhere.safetensors"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 2
        error = capsys.readouterr().err.strip()
        assert error.startswith("egnn-md: ModelFileError: there is no model file nowhere.safetensors")
        assert "\n" not in error


def test_info_prints_the_card(path, model):
    result = RUNNER.invoke(app, ["info", str(path)])
    assert result.exit_code == 0, result.output
    parameters = f"{sum(weight.numel() for weight in model.parameters()):,}"
    for text in ("trial", "H, O", "4.0 angstrom", "gfn2-xtb", "MIT", "35.2", "meV/Å", "abc123", parameters):
        assert text in result.output, text
    assert model_digest(model) in result.output  # in one piece, to be copied


def test_info_loads_no_weight(path, monkeypatch):
    monkeypatch.setattr("egnn_md.checkpoint.load_model", lambda *_, **__: pytest.fail("weights were loaded"))
    cut = path.with_name("copy.safetensors")
    cut.write_bytes(path.read_bytes())
    assert RUNNER.invoke(app, ["info", str(cut)]).exit_code == 0


def test_info_as_json(path, model):
    result = RUNNER.invoke(app, ["info", str(path), "--json"])
    described = json.loads(result.stdout)
    assert described["type"] == "model"
    assert described["config"]["elements"] == [1, 8]
    assert described["card"]["training_data"]["structures"] == 12
    assert described["digest"] == model_digest(model)
    assert described["size"] == path.stat().st_size


def test_info_of_an_artefact(model, tmp_path):
    artefact = tmp_path / "water.pt"
    export_torchscript(model, artefact, [8, 1, 1] * 3, periodic=True)
    result = RUNNER.invoke(app, ["info", str(artefact)])
    assert result.exit_code == 0, result.output
    for text in ("artefact", "O ×3, H ×6", "nanometer", "kilojoule_per_mole"):
        assert text in result.output, text


def test_info_of_a_foreign_file(tmp_path):
    foreign = tmp_path / "text.safetensors"
    foreign.write_text("hello")
    assert isinstance(RUNNER.invoke(app, ["info", str(foreign)]).exception, ModelFileError)
