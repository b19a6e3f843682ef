"""Validation as a command: labels, the card, a committee, bad input."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import pytest
import torch
from ase.build import molecule
from typer.testing import CliRunner
from validation_cases import crystal, labelled, mark, number, run

from egnn_md import evaluate_spread, make_committee
from egnn_md.checkpoint import ModelCard, load_model, model_digest, read_header, save_model
from egnn_md.cli.main import app
from egnn_md.data.structures import read_labelled
from egnn_md.errors import ConfigError, InputError, ModelFileError
from egnn_md.testing import random_potential
from egnn_md.validation import write_card


def test_the_command_on_labels_writes_the_card_and_keeps_the_digest(tmp_path: Path):
    labels = labelled(tmp_path)
    path = save_model(
        random_potential(elements=[18]), tmp_path / "m.safetensors", ModelCard(name="argon", measured={"old": 1.0})
    )
    digest = read_header(path)["digest"]
    words = ["validate", str(path), "--labels", str(labels), "--output", str(tmp_path / "v"), "--write-card"]
    done = CliRunner().invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert "Force RMSE, given labels" in done.output
    assert "holds these numbers now" in done.output
    header = read_header(path)
    assert header["digest"] == digest == model_digest(load_model(path, kernels="plain"))
    measured = header["card"]["measured"]
    assert measured["old"] == 1.0
    record = json.loads((tmp_path / "v" / "validation.json").read_text())
    assert record["model"]["digest"] == digest
    value = next(row["value"] for row in record["parts"][0]["numbers"] if row["quantity"] == "force_rmse")
    found = measured["validation"]["force_rmse_meV_per_A, given labels"]
    assert found == pytest.approx(value, rel=1e-4)
    groups = {row["of"] for row in record["parts"][0]["numbers"]}
    assert {"given labels, 50 K", "given labels, 90 K", "given labels, Ar"} <= groups
    assert "validation" in CliRunner().invoke(app, ["info", str(path)]).output
    # another model in the file's place is not given these numbers
    save_model(random_potential(elements=[18], seed=5), path)
    with pytest.raises(ModelFileError, match=r"was validated: the file changed since; validate it again"):
        write_card(str(path), record)


def test_a_committees_spread_is_set_beside_its_errors(tmp_path: Path):
    model = make_committee([random_potential(elements=[18], seed=seed) for seed in (0, 1)])
    files = (str(labelled(tmp_path)),)
    result = run(tmp_path / "v", model, labels=files)
    assert result.failed == []
    rho = number(result, "rank_correlation_force", "given labels")
    assert -1 <= rho <= 1
    assert mark(result, "Spread ranks errors") == ("good" if rho >= 0.5 else "look")
    spread = number(result, "mean_force_spread", "given labels")
    found = read_labelled(files, model.cutoff, dtype=model.dtype)
    every = torch.cat([evaluate_spread(model, graph).force_std for graph in found.graphs])
    assert spread == pytest.approx(1000 * float(every.pow(2).mean().sqrt()), rel=1e-4)
    rows = {row["quantity"]: row["unit"] for part in result.parts for row in part.numbers}
    assert (rows["mean_force_spread"], rows["mean_force_error"]) == ("meV/Å", "meV/Å")


def test_bad_input_of_the_command(tmp_path: Path):
    path = save_model(random_potential(elements=[18]), tmp_path / "m.safetensors")

    def fails(kind: type[Exception], message: str, *words: str) -> None:
        command = ["validate", str(path), "--output", str(tmp_path / "v"), *words]
        with pytest.raises(kind, match=message):
            CliRunner().invoke(app, command, catch_exceptions=False)

    structure = ["--structure", crystal(tmp_path)]
    fails(InputError, "unknown reference method 'gfn9-xtb'; known here", "--against", "gfn9-xtb", *structure)
    fails(InputError, "has no option 'accuracyy'", "--against", "lj", "--against-option", "accuracyy=1", *structure)
    fails(InputError, "there is no file .*missing.extxyz", "--labels", str(tmp_path / "missing.extxyz"))
    fails(ConfigError, "--temperatures takes numbers .* not 'hot'", "--temperatures", "hot", *structure)
    fails(InputError, "knows only Ar", "--structure", str(_water(tmp_path)))
    fails(InputError, "knows no total charge", "--against", "lj", "--charge", "1", *structure)


def _water(folder: Path) -> Path:
    ase.io.write(folder / "water.xyz", molecule("H2O"))
    return folder / "water.xyz"
