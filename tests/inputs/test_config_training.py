"""Mistakes in a training configuration end in one message that names the key."""

from __future__ import annotations

from pathlib import Path

import pytest

from egnn_md.errors import ConfigError
from egnn_md.training.config_file import apply_overrides, read_yaml
from egnn_md.training.train import load_config

GOOD = """\
data:
  train: labels.extxyz
  valid_fraction: 0.1
model: {hidden: 16}
optimizer: {lr: 3e-3}
max_steps: 100
output: run
"""


def config_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "train.yaml"
    path.write_text(text)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    config = load_config(
        config_file(tmp_path, GOOD), ["optimizer.lr=1e-3", "loss.kind=huber", "data.train=[a,b]"]
    )
    assert config.optimizer.lr == 1e-3
    assert config.loss.kind == "huber"
    assert config.data.train == ["a", "b"]
    assert config.model == {"hidden": 16}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "optimizer.lrr=1",
            r"unknown key 'lrr' in section 'optimizer' \(did you mean 'lr'\?\); .*weight_decay",
        ),
        ("bach_size=3", r"unknown key 'bach_size' at the top level \(did you mean 'batch_size'\?\)"),
        ("model.hiden=3", r"unknown key 'hiden' in section 'model' \(did you mean 'hidden'\?\).*start_from"),
        ("model.hidden=many", r"hidden = 'many'.*section 'model'"),
        ("model.cutoff=-1", r"cutoff = -1: .*greater than 0"),
        ("batch_size=0", r"batch_size = 0: .*greater than 0"),
        ("batch_size=two", r"batch_size = 'two': .*integer"),
        ("optimizer.lr=.nan", r"optimizer\.lr = nan"),
        ("optimizer.betas=[0.9, 1.5]", r"betas .*1\.5.* below 1"),
        ("precision=float16", r"precision = 'float16': .*'float32' or 'float64'"),
        ("device=gpu", r"device = 'gpu'"),
        ("loss={energy: 0, forces: 0}", r"loss: all weights are zero"),
        ("data.valid=v.xyz", r"data: give either data\.valid \(files\) or data\.valid_fraction"),
        ("data.test_fraction=0.95", r"data: .*leave nothing to train on"),
        ("data.train=[]", r"data\.train = \[\]"),
        ("max_steps=null", r"max_steps, max_epochs or max_time_minutes"),
        ("output=''", r"output = ''"),
        ("optimizer=3", r"optimizer = 3: .*dictionary"),
        (
            "model={start_from: m.safetensors, hidden: 3}",
            r"model\.hidden cannot be chosen beside model\.start_from",
        ),
        ("model={refit_atomic_energies: true}", r"refit_atomic_energies goes with model\.start_from"),
    ],
)
def test_a_mistake_names_file_key_and_value(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(config_file(tmp_path, GOOD), [override])
    assert "train.yaml" in str(caught.value)


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(config_file(tmp_path, GOOD), ["batch_size=0", "colour=red"])
    assert "batch_size = 0" in str(caught.value)
    assert "'colour'" in str(caught.value)


def test_a_missing_section_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the key data is missing"):
        load_config(config_file(tmp_path, "max_steps: 3\noutput: x\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3\n", r"'a' stands here twice(.|\n)*line 3"),
        ("a: [1\n", "not valid YAML"),
        ("- a\n", "holds list"),
        ("", "holds NoneType"),
        ("a: !!python/object/apply:os.system [echo]\n", "not valid YAML"),
        ("? [1, 2]\n: x\n", "not valid YAML|unhashable"),
    ],
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_yaml(config_file(tmp_path, text))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml cannot be read"):
        read_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("text", ["lr", "=3", "a..b=1", "optimizer.lr.x=1", "a=[1"])
def test_overrides_that_cannot_be_read(text: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        apply_overrides({"optimizer": {"lr": 1}}, [text])


def test_overrides_leave_the_original_alone() -> None:
    original = {"optimizer": {"lr": 1}}
    assert apply_overrides(original, ["optimizer.lr=2"]) == {"optimizer": {"lr": 2}}
    assert original == {"optimizer": {"lr": 1}}
