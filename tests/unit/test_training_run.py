"""Whole small runs: they learn, they stop early, they say what they measured."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from training_cases import argon, tiny, write_labels

from egnn_md.checkpoint import load_model, read_header
from egnn_md.data.structures import read_labelled
from egnn_md.errors import ConfigError, TrainingError, UnknownElementError
from egnn_md.training.logs import read_csv
from egnn_md.training.metrics import measure_errors
from egnn_md.training.module import PotentialModule
from egnn_md.training.train import train
from egnn_md.units import GPA_PER_EV_PER_CUBIC_ANGSTROM


def test_a_tiny_set_is_learned_by_heart(tmp_path: Path) -> None:
    labels = write_labels(tmp_path / "few.extxyz", argon(4, seed=1))
    valid = write_labels(tmp_path / "other.extxyz", argon(2, seed=2))
    config = tiny(
        tmp_path,
        data={"train": str(labels), "valid": str(valid)},
        model={"hidden": 24, "layers": 2, "virtual_nodes": 0, "vector_channels": 4, "basis": 6},
        optimizer={"lr": 1e-2},
        schedule={"warmup_steps": 20},
        loss={"energy": 10.0, "stress": 1000.0},
        max_steps=300,
        validate_every=300,
        checkpoint_every=300,
        log_every=50,
        ema_decay=0.95,
        keep="last",
    )
    result = train(config)
    assert result.model is not None
    model = load_model(result.model)
    graphs = read_labelled([labels], model.cutoff).graphs
    errors = measure_errors(model, graphs)
    stress = torch.cat([graph.labels["stress"] for graph in graphs]) * GPA_PER_EV_PER_CUBIC_ANGSTROM
    assert errors["force_rmse"] < 0.2 * errors["force_rms_reference"]
    assert errors["energy_rmse"] < 3.0
    assert errors["stress_rmse"] < 0.2 * float(stress.pow(2).mean().sqrt())


def test_the_model_file_says_what_was_measured_and_on_what(tmp_path: Path) -> None:
    test = write_labels(tmp_path / "test.extxyz", argon(3, seed=9))
    config = tiny(tmp_path)
    config = config.model_copy(update={"data": config.data.model_copy(update={"test": [str(test)]})})
    result = train(config)
    assert result.model is not None
    card = read_header(result.model)["card"]
    model = load_model(result.model)
    again = measure_errors(model, read_labelled([test], 5.0).graphs)
    assert card["measured"]["test_force_rmse"] == pytest.approx(again["force_rmse"], rel=1e-5)
    assert card["measured"]["valid_force_rmse"] == pytest.approx(
        result.errors["valid"]["force_rmse"], rel=1e-5
    )
    assert card["teacher"] == "lj"
    assert card["training_data"]["structures"] + card["training_data"]["valid_structures"] == 18
    assert len(card["training_data"]["digest"]) == 64
    assert card["measured"]["config"]["batch_size"] == 4
    assert json.loads((tmp_path / "run" / "errors.json").read_text())["test"]["force_rmse"] > 0


def test_the_average_is_what_is_validated_and_saved(tmp_path: Path) -> None:
    config = tiny(tmp_path, keep="last", ema_decay=0.9)
    result = train(config)
    assert result.model is not None
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_model(result.model).state_dict()
    assert all(torch.equal(saved[name], state[f"averaged.module.{name}"]) for name in saved)
    assert any(not torch.equal(saved[name], state[f"potential.{name}"]) for name in saved)
    last = read_csv(tmp_path / "run" / "valid.csv")[-1]
    assert float(last["force_rmse"]) == pytest.approx(result.errors["valid"]["force_rmse"], rel=1e-4)


def test_without_average_the_plain_weights_are_saved(tmp_path: Path) -> None:
    result = train(tiny(tmp_path, keep="last", ema_decay=0.0))
    assert result.model is not None
    state = torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["state_dict"]
    saved = load_model(result.model).state_dict()
    assert all(torch.equal(saved[name], state[f"potential.{name}"]) for name in saved)
    assert not any(name.startswith("averaged") for name in state)


def test_early_stop(tmp_path: Path) -> None:
    config = tiny(
        tmp_path,
        early_stopping={"patience": 2, "min_delta": 1e9},
        max_steps=100,
        validate_every=2,
        checkpoint_every=2,
    )
    result = train(config)
    assert result.finished
    assert result.steps == 6  # the first validation counts as an improvement, the next two do not
    assert train(config, resume=True).steps == 6


def test_time_budget_ends_the_run_and_survives_resume(tmp_path: Path) -> None:
    config = tiny(tmp_path, max_steps=None, max_time_minutes=2.0 / 60, checkpoint_every=2)
    result = train(config)
    assert result.finished
    elapsed = float(read_csv(tmp_path / "run" / "valid.csv")[-1]["elapsed"])
    assert 2.0 <= elapsed < 20.0
    rates = [float(row["lr"]) for row in read_csv(tmp_path / "run" / "train.csv")]
    assert rates[-1] < 0.2 * max(rates)
    assert train(config, resume=True).steps == result.steps


def test_epochs_set_the_number_of_steps(tmp_path: Path) -> None:
    result = train(tiny(tmp_path, max_steps=None, max_epochs=2))
    learned = read_header(tmp_path / "run" / "model.safetensors")["card"]["training_data"]["structures"]
    assert 12 <= learned < 18
    assert result.steps == math.ceil(2 * learned / 4)


def test_fine_tuning_starts_from_the_model_and_can_shift_the_energies(tmp_path: Path) -> None:
    first = train(tiny(tmp_path, output=str(tmp_path / "first")))
    frames = argon(18, seed=3)
    for atoms in frames:
        assert atoms.calc is not None
        atoms.calc.results["energy"] += 100.0 * len(atoms)  # another teacher's zero
    write_labels(tmp_path / "labels.extxyz", frames)
    section = {"start_from": str(first.model), "refit_atomic_energies": True}
    config = tiny(tmp_path, model=section, optimizer={"lr": 1e-12}, output=str(tmp_path / "second"))
    second = train(config)
    assert second.model is not None
    assert first.model is not None
    one, two = load_model(first.model), load_model(second.model)
    assert two.config.atomic_energies[0] == pytest.approx(one.config.atomic_energies[0] + 100.0, abs=0.2)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], tensor)
    assert second.errors["valid"]["energy_rmse"] < 500


def test_fine_tuning_with_another_element_is_refused(tmp_path: Path) -> None:
    first = train(tiny(tmp_path, output=str(tmp_path / "first")))
    frames = argon(18)
    for atoms in frames:
        atoms.numbers[0] = 10
    write_labels(tmp_path / "labels.extxyz", frames)
    with pytest.raises(UnknownElementError, match="Ne"):
        train(tiny(tmp_path, model={"start_from": str(first.model)}, output=str(tmp_path / "second")))


def test_a_loss_that_is_not_finite_stops_with_a_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = PotentialModule.training_step

    def broken(self: PotentialModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 6:
            with torch.no_grad():
                next(iter(self.potential.parameters())).fill_(np.nan)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", broken)
    with pytest.raises(TrainingError, match=r"step 6: .* nan.*optimizer\.lr"):
        train(tiny(tmp_path))
    assert (tmp_path / "run" / "last.ckpt").exists()


def test_the_same_structure_in_training_and_test_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    labels = tmp_path / "labels.extxyz"
    config = config.model_copy(update={"data": config.data.model_copy(update={"test": [str(labels)]})})
    with pytest.raises(ConfigError, match=r"data\.test: \d+ of 18 structures are in the training set"):
        train(config)


def test_double_precision_and_the_callers_settings(tmp_path: Path) -> None:
    threads, dtype, random = torch.get_num_threads(), torch.get_default_dtype(), torch.get_rng_state()
    result = train(tiny(tmp_path, precision="float64", threads=1))
    assert result.model is not None
    assert load_model(result.model).dtype == torch.float64
    assert torch.get_num_threads() == threads
    assert torch.get_default_dtype() == dtype
    assert torch.equal(torch.get_rng_state(), random)
