"""Comparing models: names, equal budgets, what is skipped, the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from propagator_cases import tiny
from typer.testing import CliRunner

from egnn_md.errors import ConfigError
from egnn_md.training import train_propagator as training
from egnn_md_systems import compare
from egnn_md_systems.compare import Variant, make_variants, model_settings, parse_sweep, run_content, run_one

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("name", "messages", "channels", "drop", "fraction"),
    [
        ("egnn", "egnn", 0, "none", 0.0),
        ("egnn-p0.75", "egnn", 0, "longest", 0.75),
        ("egnn-p1", "egnn", 0, "longest", 1.0),
        ("fastegnn-3", "egnn", 3, "none", 0.0),
        ("fastegnn-10-r0.5", "egnn", 10, "random", 0.5),
        ("fastegnn-3-p0", "egnn", 3, "none", 0.0),
        ("rf", "radial-field", 0, "none", 0.0),
        ("rf-3-p1", "radial-field", 3, "longest", 1.0),
        ("cf-3", "continuous-filter", 3, "none", 0.0),
    ],
)
def test_names(name: str, messages: str, channels: int, drop: str, fraction: float) -> None:
    settings = model_settings(name)
    assert settings["model.messages"] == messages
    assert settings["model.virtual_nodes"] == channels
    assert settings["model.drop"] == drop
    assert settings["model.drop_fraction"] == fraction
    assert ("loss.mmd" in settings) == (channels == 0)


@pytest.mark.parametrize("name", ["fastegnn", "fastegnn-0", "egnn-3", "egnn-p1.5", "schnet", "cf-x", ""])
def test_names_that_do_not_exist(name: str) -> None:
    with pytest.raises(ConfigError):
        make_variants([name], [], grid=False)


def test_sweeps() -> None:
    assert parse_sweep("loss.kernel=published,gaussian") == [{"loss.kernel": "published"}, {"loss.kernel": "gaussian"}]
    sweeps = ["loss.mmd=0,0.3", "loss.sigma=1.5"]
    labels = [variant.label for variant in make_variants(["fastegnn-3"], sweeps, grid=False)]
    assert labels == ["fastegnn-3 loss.mmd=0", "fastegnn-3 loss.mmd=0.3", "fastegnn-3 loss.sigma=1.5"]
    both = [variant.changes for variant in make_variants(["fastegnn-3"], sweeps, grid=True)]
    assert both == [{"loss.mmd": 0, "loss.sigma": 1.5}, {"loss.mmd": 0.3, "loss.sigma": 1.5}]
    with pytest.raises(ConfigError, match="--sweep"):
        parse_sweep("loss.mmd")
    with pytest.raises(ConfigError, match="twice"):
        make_variants(["egnn", "egnn"], [], grid=False)
    with pytest.raises(ConfigError, match="at least one"):
        make_variants(["still"], [], grid=False)


def test_every_model_gets_the_same_budget_and_data() -> None:
    base = {"task": "propagator", "data": {"directory": "d"}, "max_time_minutes": 5, "loss": {"mmd": 0.1, "sigma": 1}}
    contents = [
        run_content(base, Variant(name), 70, 3, Path("o")) for name in ("egnn", "fastegnn-3-p0.75", "cf")
    ]
    for content in contents:
        assert (content["max_steps"], content["max_time_minutes"], content["seed"]) == (70, None, 3)
        same = {key: value for key, value in content.items() if key not in ("model", "loss", "name")}
        assert same == {key: value for key, value in contents[0].items() if key not in ("model", "loss", "name")}
    assert contents[1]["loss"] == base["loss"]
    assert contents[0]["loss"]["mmd"] == 0
    assert base["loss"]["mmd"] == 0.1  # the base is left alone


def test_from_configuration_to_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two models and two seeds; a second call trains nothing; another budget is refused."""
    monkeypatch.chdir(tmp_path)
    config = tiny(tmp_path, max_steps=3, validate_every=2)
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    app = compare.typer.Typer()
    app.command()(compare.main)
    words = ["base.yaml", "--models", "still,linear,egnn,fastegnn-2-p0.5", "--steps", "4", "--seeds", "0,1"]
    words += ["--output", "out", "--timing", "1", "--set", "threads=1"]
    answer = CliRunner().invoke(app, words, catch_exceptions=False)
    assert answer.exit_code == 0, answer.output
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["models"]) == ["egnn", "fastegnn-2-p0.5"]
    row = results["models"]["fastegnn-2-p0.5"]
    errors = [
        json.loads((tmp_path / "out" / "runs" / "fastegnn-2-p0.5" / f"seed{seed}" / "errors.json").read_text())
        for seed in (0, 1)
    ]
    assert row["each"] == [e["test"]["mse"] for e in errors]
    assert row["each"][0] != row["each"][1]
    assert row["mse"] == pytest.approx(sum(row["each"]) / 2)
    assert results["models"]["egnn"]["ratio_to_egnn"] == 1.0
    assert row["ratio_to_egnn"] == pytest.approx(row["mse"] / results["models"]["egnn"]["mse"])
    assert results["references"]["linear"]["mse"] == errors[0]["test"]["linear"]
    assert results["budget"]["steps"] == 4
    assert results["models"]["egnn"]["speed"]["forward_ratio"] == 1.0
    assert row["speed"]["num_edges"] == 4 * 16  # pairs stay whole: 14 of 30 edges go, not 15
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| fastegnn-2-p0.5 | 2 | 0.5 |" in text
    assert "| stay still |" in text
    assert "4 steps of 4 samples" in text
    assert (tmp_path / "out" / "results.png").stat().st_size > 5000

    def never(*arguments: Any, **options: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(training, "train_propagator", never)
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["models"]["egnn"]["mse"] == (
        results["models"]["egnn"]["mse"]
    )
    with pytest.raises(ConfigError, match="finished run with other settings"):
        CliRunner().invoke(app, ["5" if word == "4" else word for word in words], catch_exceptions=False)


def test_a_run_that_fails_is_told(tmp_path: Path) -> None:
    base = tiny(tmp_path, optimizer={"lr": 1e30}, clip_norm=None, max_steps=30).model_dump(mode="json")
    content = run_content(base, Variant("egnn"), 30, 0, tmp_path / "out")
    result = run_one(content)
    assert result is not None
    assert "not" not in result["errors"]
    assert "step" in result["failed"]
    from egnn_md_systems.compare_results import collect, table

    variant = Variant("egnn")
    assert "egnn failed: step" in table(collect([variant], {"egnn": [result]}, {}, 30, "command"))


PUBLISHED = [  # C, σ, λ, radius, frames, learning rate: the paper's table and its text
    ("nbody/published.yaml", 3, 1.5, 0.03, None, 10, 5e-4),
    ("adk/published.yaml", 3, 1.0, 0.5, 10.0, 15, 2e-4),
    ("liquid/published-water3d.yaml", 3, 1.5, 0.01, 0.035, 15, 5e-4),
    ("liquid/published-fluid113k.yaml", 3, 3.0, 0.01, 0.075, 20, 5e-4),
]


@pytest.mark.parametrize(("name", "channels", "sigma", "weight", "cutoff", "frames", "lr"), PUBLISHED)
def test_published_settings(
    name: str, channels: int, sigma: float, weight: float, cutoff: float | None, frames: int, lr: float
) -> None:
    config = training.load_propagator_config(ROOT / "systems" / name)
    assert config.model["virtual_nodes"] == channels
    assert config.model["hidden"] == 64
    assert config.model["layers"] == 4
    assert config.model.get("cutoff") == cutoff
    assert (config.loss.sigma, config.loss.mmd, config.loss.kernel) == (sigma, weight, "published")
    assert (config.loss.velocity, config.loss.scale, config.unroll.strides) == (0.0, 1.0, 1)
    assert config.stride_frames == frames
    assert (config.optimizer.kind, config.optimizer.lr, config.schedule.floor) == ("adam", lr, 1.0)


@pytest.mark.parametrize("path", sorted(ROOT.glob("systems/*/reduced*.yaml")), ids=lambda p: p.parent.name)
def test_reduced_settings_can_be_read(path: Path) -> None:
    assert training.load_propagator_config(path).max_steps
