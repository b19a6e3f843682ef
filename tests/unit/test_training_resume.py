"""A run that was stopped and resumed is the run that was not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from training_cases import argon, tiny, write_labels

from egnn_md.checkpoint import load_model
from egnn_md.errors import ConfigError
from egnn_md.training import train as train_module
from egnn_md.training.logs import read_csv
from egnn_md.training.module import PotentialModule
from egnn_md.training.train import train


class KilledError(RuntimeError):
    """Stands for a kill."""


def rows(path: Path) -> list[dict[str, str]]:
    return [{key: value for key, value in row.items() if key != "elapsed"} for row in read_csv(path)]


def weights(directory: Path) -> dict[str, Any]:
    return torch.load(directory / "last.ckpt", weights_only=True)


def assert_same_run(first: Path, second: Path) -> None:
    assert rows(first / "train.csv") == rows(second / "train.csv")
    assert rows(first / "valid.csv") == rows(second / "valid.csv")
    one, two = weights(first), weights(second)
    assert one["global_step"] == two["global_step"]
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for name, tensor in one["state_dict"].items():
        assert torch.equal(tensor, two["state_dict"][name]), name
    states = [c["optimizer_states"][0]["state"] for c in (one, two)]
    for index, entry in states[0].items():
        for name, tensor in entry.items():
            assert torch.equal(tensor, states[1][index][name]), (index, name)
    for file in ("best.safetensors", "model.safetensors"):
        a, b = load_model(first / file).state_dict(), load_model(second / file).state_dict()
        assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(("stop_at", "saved"), [(4, 4), (7, 5), (9, 8), (10, 10)])
def test_killed_and_resumed_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_at: int, saved: int
) -> None:
    whole = train(tiny(tmp_path, output=str(tmp_path / "whole"), log_every=3))
    assert whole.finished
    assert whole.steps == 12
    assert [row["step"] for row in rows(tmp_path / "whole" / "valid.csv")] == ["5", "10", "12"]

    original = PotentialModule.training_step

    def dying(self: PotentialModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == stop_at:
            raise KilledError
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", dying)
    with pytest.raises(KilledError):
        train(tiny(tmp_path, output=str(tmp_path / "parts"), log_every=3))
    monkeypatch.setattr(PotentialModule, "training_step", original)
    assert weights(tmp_path / "parts")["global_step"] == saved
    assert train(tiny(tmp_path, output=str(tmp_path / "parts"), log_every=3), resume=True).finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_asked_to_stop_in_mid_round_and_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tiny(tmp_path, output=str(tmp_path / "whole"), log_every=3))
    original = PotentialModule.training_step

    def asked(self: PotentialModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step in (2, 6, 7):
            self.stop_requested = True
        return original(self, batch, batch_idx)

    monkeypatch.setattr(PotentialModule, "training_step", asked)
    config = tiny(tmp_path, output=str(tmp_path / "parts"), log_every=3)
    steps = []
    for _ in range(4):
        result = train(config, resume=True)
        steps.append(result.steps)
    assert steps == [3, 7, 8, 12]
    assert result.finished
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def test_resuming_a_finished_run_measures_again_and_changes_nothing(tmp_path: Path) -> None:
    first = train(tiny(tmp_path))
    before = weights(tmp_path / "run")
    second = train(tiny(tmp_path), resume=True)
    assert second.steps == first.steps
    assert second.errors == first.errors
    assert weights(tmp_path / "run")["global_step"] == before["global_step"]


def test_more_steps_continue_a_finished_run(tmp_path: Path) -> None:
    train(tiny(tmp_path))
    result = train(tiny(tmp_path, max_steps=16), resume=True)
    assert result.steps == 16
    assert [int(row["step"]) for row in rows(tmp_path / "run" / "train.csv")] == list(range(1, 17))


def test_a_run_is_not_overwritten(tmp_path: Path) -> None:
    train(tiny(tmp_path))
    with pytest.raises(ConfigError, match="--resume"):
        train(tiny(tmp_path))


def test_resume_refuses_other_settings_and_other_data(tmp_path: Path) -> None:
    train(tiny(tmp_path))
    with pytest.raises(ConfigError, match="batch_size = 4, not 2"):
        train(tiny(tmp_path, batch_size=2), resume=True)
    write_labels(tmp_path / "labels.extxyz", argon(18, seed=5))
    with pytest.raises(ConfigError, match="training data changed"):
        train(tiny(tmp_path), resume=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("content", [b"", b"nonsense", b"\x80\x04\x95"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    config = tiny(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / train_module.CHECKPOINT_NAME).write_bytes(content)
    with pytest.raises(ConfigError, match=r"last\.ckpt"):
        train(config, resume=True)


def test_a_checkpoint_with_code_in_it_is_refused(tmp_path: Path) -> None:
    config = tiny(tmp_path)
    (tmp_path / "run").mkdir()

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"egnn_md": Evil()}, tmp_path / "run" / train_module.CHECKPOINT_NAME)
    with pytest.raises(ConfigError, match=r"last\.ckpt"):
        train(config, resume=True)
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_from_before_there_were_two_tasks_goes_on(tmp_path: Path) -> None:
    """A configuration stored without the key ``task`` is one of a potential."""
    train(tiny(tmp_path))
    path = tmp_path / "run" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    stored = json.loads(state["egnn_md"]["config"])
    assert stored.pop("task") == "potential"
    state["egnn_md"]["config"] = json.dumps(stored)
    torch.save(state, path)
    assert train(tiny(tmp_path, max_steps=14), resume=True).steps == 14
