"""Mistakes in the configuration of a propagator's training: a typo, or data of another world."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from propagator_cases import METADATA, attracting, tiny

from egnn_md.cli.main import main
from egnn_md.data.trajectories import write_trajectories
from egnn_md.errors import ConfigError, InputError
from egnn_md.training.tasks import load_any_config
from egnn_md.training.train_propagator import train_propagator

GOOD = """\
task: propagator
data: {directory: data}
stride_frames: 2
max_steps: 10
output: run
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task=propagate", r"task = 'propagate'; known: potential, propagator"),
        ("model.virtual_node=3", r"unknown key 'virtual_node' in section 'model' \(did you mean 'virtual_nodes'\?\)"),
        ("unrol={strides: 2}", r"unknown key 'unrol' at the top level \(did you mean 'unroll'\?\)"),
        ("loss.mmd=0.1", r"loss\.mmd = 0\.1 needs loss\.sigma"),
        ("loss={mmd: 0.1, sigma: 0}", r"loss\.sigma = 0"),
        ("loss.kernel=rbf", r"loss\.kernel = 'rbf'"),
        ("noise.positions=-1", r"noise\.positions = -1"),
        ("unroll.strides=0", r"unroll\.strides = 0"),
        ("data={directory: data, starts: [3], every: 2}", r"data\.starts or data\.every"),
        ("optimizer.kind=sgd", r"optimizer\.kind = 'sgd'"),
        ("model={start_from: m.safetensors, hidden: 3}", r"model\.hidden cannot be chosen beside model\.start_from"),
        ("max_steps=null", "the run needs an end"),
    ],
)
def test_a_mistake_names_file_key_and_value(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_any_config(write(tmp_path, GOOD), [override])
    assert "train.yaml" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"units": {"length": "nanometer", "time": "femtosecond"}}}, r"model\.units = .*nanometer.*angstrom"),
        ({"model": {"system": "adk"}}, r"model\.system = 'adk' contradicts the data"),
        ({"model": {"stride": 0.3}}, r"model\.stride = 0\.3 contradicts stride_frames = 2"),
        ({"model": {"frame_interval": 0.2}}, r"model\.frame_interval = 0\.2"),
        ({"model": {"node_features": 2}}, r"model\.node_features = 2"),
        ({"model": {"species": [1]}}, r"model\.species = \[1\] lacks the particle types \[0\]"),
        ({"model": {"cutoff": -1}}, r"cutoff = -1.*section 'model'"),
        ({"model": {"virtual_nodes": 0}}, r"loss\.mmd = 0\.03: the model has no virtual nodes.*loss\.mmd: 0"),
        ({"model": {"velocity": "forward"}, "unroll": {"strides": 2}}, r"unroll\.strides = 2: a forward difference"),
    ],
)
def test_a_model_of_another_world_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_propagator(tiny(tmp_path, **changes))
    assert not (tmp_path / "run").exists()


def test_velocity_true_may_be_written_without_quotes(tmp_path: Path) -> None:
    assert train_propagator(tiny(tmp_path, model={"velocity": True, "hidden": 4}, max_steps=1)).finished


def test_periodic_data_have_no_mmd(tmp_path: Path) -> None:
    metadata = METADATA.model_copy(
        update={"periodic_boundary_conditions": [True] * 3, "bounds": [[0, 4]] * 3, "default_connectivity_radius": 2.0}
    )
    write_trajectories(tmp_path / "data", metadata, {"train": attracting(1), "valid": attracting(1)})
    with pytest.raises(ConfigError, match=r"loss\.mmd = 0\.03: in a periodic system .* loss\.mmd: 0"):
        train_propagator(tiny(tmp_path))
    result = train_propagator(tiny(tmp_path, loss={}, max_steps=2))
    assert result.errors.keys() == {"valid"}  # this set has no test part


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride_frames": 12}, r"frames"),
        ({"unroll": {"strides": 6}}, r"frames"),
        ({"data": {"directory": "nowhere"}}, r"nowhere"),
    ],
)
def test_data_that_do_not_reach(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_propagator(tiny(tmp_path, **changes))


def test_missing_velocities_are_named(tmp_path: Path) -> None:
    trajectories = attracting(2)
    for trajectory in trajectories:
        trajectory.velocities = None
    write_trajectories(tmp_path / "data", METADATA, {"train": trajectories, "valid": trajectories})
    with pytest.raises(InputError, match=r"no velocities.*backward"):
        train_propagator(tiny(tmp_path))
    assert train_propagator(tiny(tmp_path, model={"velocity": "backward", "hidden": 4}, max_steps=1)).finished


def test_going_on_with_data_in_other_units(tmp_path: Path) -> None:
    first = train_propagator(tiny(tmp_path, max_steps=1))
    other = METADATA.model_copy(update={"units": {"length": "nanometer", "time": "femtosecond"}})
    write_trajectories(tmp_path / "other", other, {"train": attracting(1), "valid": attracting(1)})
    section = {"start_from": str(first.model)}
    with pytest.raises(ConfigError, match=r"start_from.*nanometer.*angstrom"):
        train_propagator(
            tiny(tmp_path, model=section, data={"directory": str(tmp_path / "other")}, output=str(tmp_path / "second"))
        )
    with pytest.raises(ConfigError, match=r"stride_frames = 3.* is 2 frames"):
        train_propagator(tiny(tmp_path, model=section, stride_frames=3, output=str(tmp_path / "third")))


def test_the_command_trains_a_propagator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tiny(tmp_path, max_steps=2)
    path = write(tmp_path, yaml.safe_dump(config.model_dump(mode="json")))
    monkeypatch.setattr(sys, "argv", ["egnn-md", "train", str(path)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "test: one-step MSE" in text
    assert "model.safetensors" in text
