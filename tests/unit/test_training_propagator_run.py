"""Whole small trainings of propagators: they learn, resume bit by bit, and say what they measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from propagator_cases import INTERVAL, attracting, tiny, write_toy

from egnn_md.checkpoint import load_model, read_header
from egnn_md.data.trajectories import open_trajectories
from egnn_md.data.windows import WindowSet
from egnn_md.errors import TrainingError
from egnn_md.training.batches import WindowBatches
from egnn_md.training.logs import read_csv
from egnn_md.training.propagator_metrics import one_step_errors
from egnn_md.training.tasks import load_any_config, run_training
from egnn_md.training.train_propagator import PropagatorModule, train_propagator


class KilledError(RuntimeError):
    """Stands for a kill."""


EVERYTHING_RANDOM: dict[str, Any] = {
    "model": {"hidden": 8, "layers": 2, "virtual_nodes": 2, "drop": "random", "drop_fraction": 0.4},
    "loss": {"mmd": 0.03, "sigma": 1.5, "samples": 3, "velocity": 0.5},
    "noise": {"positions": 0.02, "velocities": 0.05},
    "unroll": {"strides": 3, "ramp": 10},
}


def rows(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "elapsed"} for row in read_csv(path)]


def assert_same_run(first: Path, second: Path) -> None:
    for log in ("train.csv", "valid.csv"):
        assert rows(first / log) == rows(second / log)
    one, two = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (first, second))
    assert one["global_step"] == two["global_step"]
    assert all(torch.equal(tensor, two["state_dict"][name]) for name, tensor in one["state_dict"].items())
    states = [c["optimizer_states"][0]["state"] for c in (one, two)]
    for index, entry in states[0].items():
        assert all(torch.equal(tensor, states[1][index][name]) for name, tensor in entry.items())
    for file in ("best.safetensors", "model.safetensors"):
        a, b = load_model(first / file).state_dict(), load_model(second / file).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("stop_at", [3, 6, 9])
def test_killed_and_resumed_is_uninterrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """With noise, sampled MMD, random edges and a growing number of strides."""
    whole = train_propagator(tiny(tmp_path, output=str(tmp_path / "whole"), log_every=3, **EVERYTHING_RANDOM))
    assert whole.finished
    assert whole.steps == 12
    original = PropagatorModule.training_step

    def dying(self: PropagatorModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == stop_at:
            raise KilledError
        return original(self, batch, batch_idx)

    config = tiny(tmp_path, output=str(tmp_path / "parts"), log_every=3, **EVERYTHING_RANDOM)
    with monkeypatch.context() as patch:
        patch.setattr(PropagatorModule, "training_step", dying)
        with pytest.raises(KilledError):
            train_propagator(config)
    torch.rand(100)  # the caller's random state is nothing that a run may lean on
    assert train_propagator(config, resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_a_tiny_system_is_learned(tmp_path: Path) -> None:
    result = train_propagator(
        tiny(
            tmp_path,
            data={"directory": str(write_toy(tmp_path / "data"))},
            model={"hidden": 16, "layers": 2, "virtual_nodes": 1},
            stride_frames=3,
            loss={"mmd": 0.0, "velocity": 0.1},
            optimizer={"lr": 1e-2},
            schedule={"warmup_steps": 10},
            max_steps=150,
            validate_every=150,
            checkpoint_every=150,
            batch_size=6,
        )
    )
    for part in ("valid", "test"):
        errors = result.errors[part]
        assert errors["mse"] < 0.25 * errors["linear"]
        assert errors["velocity_mse"] < 0.6 * errors["linear_velocity"]
        assert errors["linear"] < errors["still"]


def test_reference_errors_are_those_of_numpy(tmp_path: Path) -> None:
    result = train_propagator(tiny(tmp_path, data={"directory": str(write_toy(tmp_path / "data"))}, max_steps=1))
    still, linear, bent = [], [], []
    for trajectory in attracting(2, 2):
        x, v = trajectory.positions, trajectory.velocities
        still.append(x[2:] - x[:-2])
        linear.append(x[2:] - x[:-2] - 2 * INTERVAL * v[:-2])
        bent.append(2 * INTERVAL * (v[2:] - v[:-2]))
    errors = result.errors["test"]
    assert errors["still"] == pytest.approx(np.mean(np.square(still)), rel=1e-5)  # float32 samples
    assert errors["linear"] == pytest.approx(np.mean(np.square(linear)), rel=1e-5)
    assert errors["linear_velocity"] == pytest.approx(np.mean(np.square(bent)), rel=1e-5)


def test_the_model_file_says_what_was_measured_and_on_what(tmp_path: Path) -> None:
    config = tiny(tmp_path, loss={"mmd": 0.03, "sigma": 1.5, "velocity": 0.5, "scale": 2.0})
    result = train_propagator(config)
    assert result.model is not None
    header = read_header(result.model)
    card, model = header["card"], load_model(result.model)
    data = open_trajectories(tmp_path / "data", "test")
    batches = WindowBatches(WindowSet(data, model.config, every=2), model.config)
    again = one_step_errors({"model": model}, batches, 3)["model"]
    assert header["kind"] == "propagator"
    assert card["measured"]["test_mse"] == pytest.approx(again["mse"], rel=1e-5)
    assert card["measured"]["test_velocity_mse"] == pytest.approx(again["velocity_mse"], rel=1e-5)
    assert card["measured"]["valid_linear"] > 0
    assert card["units"]["length"] == "angstrom"
    assert card["units"]["velocity"] == "angstrom per femtosecond"
    assert card["training_data"]["stride"] == pytest.approx(2 * INTERVAL)
    assert card["training_data"]["windows"] == 4 * 5
    assert len(card["training_data"]["digest"]) == 64
    budget = card["measured"]["budget"]
    assert budget["steps"] == 12
    assert budget["samples_seen"] == 48
    assert budget["seconds"] > 0
    assert "host" not in budget["machine"]
    assert model.config.system == "toy"
    assert model.config.frame_interval == pytest.approx(INTERVAL)
    assert model.config.node_features == 1
    last = read_csv(tmp_path / "run" / "valid.csv")[-1]
    expected = (float(last["mse"]) + 0.5 * float(last["velocity_mse"])) / 4
    assert float(last["loss"]) == pytest.approx(expected, rel=1e-5)
    assert "one-step MSE" in result.summary[1]
    assert json.loads((tmp_path / "run" / "errors.json").read_text())["test"]["mse"] > 0


def test_going_on_from_a_model_with_more_strides(tmp_path: Path) -> None:
    first = train_propagator(tiny(tmp_path, output=str(tmp_path / "first")))
    section = {"start_from": str(first.model)}
    second = train_propagator(
        tiny(tmp_path, model=section, unroll={"strides": 2}, optimizer={"lr": 1e-12}, output=str(tmp_path / "second"))
    )
    assert second.errors["valid"]["mse"] == pytest.approx(first.errors["valid"]["mse"], rel=1e-4)
    assert second.model is not None
    assert first.model is not None
    assert load_model(second.model).config == load_model(first.model).config


def test_adam_and_adamw_differ_in_decay_only(tmp_path: Path) -> None:
    kinds = {}
    for kind in ("adam", "adamw"):
        for decay in (0.0, 0.3):
            optimizer = {"kind": kind, "lr": 1e-2, "weight_decay": decay}
            config = tiny(tmp_path, optimizer=optimizer, max_steps=4, output=str(tmp_path / f"{kind}{decay}"))
            kinds[kind, decay] = train_propagator(config).errors["valid"]["mse"]
    assert kinds["adam", 0.0] == pytest.approx(kinds["adamw", 0.0], rel=1e-6)
    assert kinds["adam", 0.3] != pytest.approx(kinds["adamw", 0.3], rel=1e-4)


def test_a_loss_that_is_not_finite_stops_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = PropagatorModule.training_step

    def broken(self: PropagatorModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 2:
            with torch.no_grad():
                next(self.propagator.parameters()).fill_(np.nan)
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PropagatorModule, "training_step", broken)
    with pytest.raises(TrainingError, match=r"step 2: the mse error is nan.*optimizer\.lr"):
        train_propagator(tiny(tmp_path))


def test_the_written_configuration_is_one_that_can_be_run(tmp_path: Path) -> None:
    config = tiny(tmp_path, **EVERYTHING_RANDOM)
    train_propagator(config)
    again = load_any_config(tmp_path / "run" / "config.yaml")
    assert again == config
    assert run_training(again, resume=True).finished
