"""``egnn-md evaluate`` from data to page, on tiny data of every kind."""

from __future__ import annotations

import base64
import csv
import json
import re
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch
from ase.build import molecule
from typer.testing import CliRunner

from egnn_md.checkpoint import ModelCard, save_model
from egnn_md.data.trajectories import Trajectory, TrajectoryMetadata, open_trajectories, write_trajectories
from egnn_md.errors import ConfigError, InputError
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.report.animation import BYTES_PER_POSITION, MAX_BYTES, animation_data
from egnn_md.report.charts import Chart, to_plotly, to_png
from egnn_md.report.evaluation import _table, number, write_evaluation
from egnn_md.report.viewer import STEPS
from egnn_md.rollout.evaluate import REFERENCE, Evaluation, evaluate, evaluate_files
from egnn_md.rollout.metrics_molecular import element_temperatures
from egnn_md.rollout.plan import EvaluationSettings, plan_starts

SMALL = {"hidden": 4, "layers": 1, "virtual_nodes": 1}
RNG = np.random.default_rng
SI = {"length": "m", "time": "s"}
SINGLE = 1e-10  # squared rounding of single precision positions of order one


def uniform(frames: int = 14, particles: int = 6, seed: int = 0) -> Trajectory:
    x, v = RNG(seed).normal(size=(2, particles, 3))
    times = 0.5 * np.arange(frames)[:, None, None]
    return Trajectory(
        x + times * 0.2 * v, np.zeros(particles, dtype=np.int64), velocities=np.tile(0.2 * v, (frames, 1, 1))
    )


def make_model(seed: int = 0, **changes: Any) -> FastEGNNPropagator:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FastEGNNPropagator(PropagatorConfig(**{**SMALL, "frame_interval": 0.5, "stride": 1.0, **changes})).eval()


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are described and named but not drawn, which is half a second each, but for two of them."""

    def write(chart: Chart, path: Path, heading: str) -> None:
        assert to_plotly(chart)["data"]
        draw = to_png if chart.key in ("mse", "running") else lambda *_: path.write_bytes(b"")
        draw(chart, path, heading)

    monkeypatch.setattr("egnn_md.report.evaluation.to_png", write)


@pytest.fixture(scope="module")
def free(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Particles in uniform motion: the linear baseline is exact."""
    folder = tmp_path_factory.mktemp("free")
    metadata = TrajectoryMetadata(system="free", dt=0.25, write_every=2)
    write_trajectories(folder, metadata, {"test": [uniform(seed=i) for i in range(3)], "train": [uniform(seed=9)]})
    save_model(make_model(system="free", linear_start=False), folder / "random.safetensors", ModelCard(name="random"))
    save_model(make_model(system="free", seed=1, velocity="backward"), folder / "back.safetensors")
    save_model(make_model(system="free", seed=2, velocity="forward"), folder / "forward.safetensors")
    return folder


@pytest.fixture(scope="module")
def freely(free: Path) -> Evaluation:
    settings = EvaluationSettings(starts=4, horizons=(1, 2, 5, 50))
    return evaluate_files([str(free / "random.safetensors")], str(free), settings)


def test_linear_is_exact_and_the_horizons_fit(freely: Evaluation):
    record = freely.record
    results = record["results"]
    assert list(results) == ["random", "stay still", "linear", REFERENCE]
    assert results["linear"]["one_step"]["mse"] < SINGLE
    assert results["random"]["one_step"]["mse"] > 1e-6
    assert record["stride_frames"] == 2
    rollouts = record["rollouts"]
    assert rollouts["strides"] == 5
    assert rollouts["horizons"] == [1, 2, 5]
    assert [row["strides"] for row in rollouts["left_out"]] == [50]
    assert "needs 100 frames" in rollouts["left_out"][0]["reason"]
    assert len(rollouts["starts"]) == 4
    for row in results["linear"]["horizons"]:
        assert row["mse"] < SINGLE
        assert row["sinkhorn"] < 1e-9
        assert row["centre_of_mass_error"] < 1e-5
        assert row["momentum_drift"] < 1e-12
        assert row["starts"] == 4
    still = [row["mse"] for row in results["stay still"]["horizons"]]
    np.testing.assert_allclose(np.array(still) / still[0], [1, 4, 25], rtol=1e-5)
    assert results["linear"]["failure"]["strides_until_failure"]["failed"] == 0
    for name in ("linear", "stay still"):  # not worse than itself, by rounding
        assert results[name]["failure"]["worse_than_" + name.split()[-1]]["failed"] == 0
    assert results["random"]["seconds_per_stride"] > 0


def test_one_step_error_is_torch_s_over_the_same_windows(free: Path, freely: Evaluation):
    from egnn_md.checkpoint import load_model
    from egnn_md.data.windows import WindowSet
    from egnn_md.graph import ParticleGraph

    model = load_model(free / "random.safetensors")
    windows = WindowSet(open_trajectories(free, "test"), model.config)
    batch = ParticleGraph.join([windows[i] for i in range(len(windows))])
    expected = torch.nn.functional.mse_loss(model.predict(batch).positions, batch.labels["targets"][:, 0])
    assert freely.record["results"]["random"]["one_step"]["mse"] == pytest.approx(float(expected), rel=1e-5)
    assert freely.record["data"]["windows"] == {
        "used": len(windows), "of": len(windows), "digest": windows.digest(),
    }  # fmt: skip
    # the first horizon is the same error, over the starts
    assert freely.record["results"]["random"]["horizons"][0]["mse"] == pytest.approx(float(expected), rel=0.9)


def test_the_page_holds_the_numbers_of_metrics_json(freely: Evaluation, tmp_path: Path, undrawn: None):
    freely.record["command"] = "egnn-md evaluate x"
    written = write_evaluation(freely, tmp_path / "results", "A <b>title</b>")
    page = written.page.read_text()
    visible = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    record = json.loads(written.numbers.read_text())
    assert "A &lt;b&gt;title&lt;/b&gt;" in visible
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", visible)
    for name in ("random", "stay still", "linear"):
        found = record["results"][name]
        for value in found["one_step"].values():
            assert f">{number(value)}</td>" in visible
        for row in found["horizons"]:
            for metric in ("mse", "mae", "sinkhorn", "kinetic_energy_error", "centre_of_mass_error"):
                assert f">{number(row[metric])}</td>" in visible
    assert record["rollouts"]["left_out"][0]["reason"] in visible
    for name, definition in record["definitions"].items():
        if name in ("mse", "sinkhorn", "worse_than_still", "momentum_drift"):
            assert definition["text"].replace("'", "&#39;") in visible
    assert record["definitions"]["mse"]["unit"] == "L²"
    assert written.page.stat().st_size < 10_000_000
    rows = list(csv.DictReader(written.table.read_text().splitlines()))
    mse = {(r["model"], int(r["strides"])): r["value"] for r in rows if r["metric"] == "mse"}
    assert float(mse["random", 5]) == record["results"]["random"]["horizons"][2]["mse"]
    assert {p.name for p in written.pictures} >= {"mse.png", "kinetic_energy.png", "sinkhorn.png"}
    assert (tmp_path / "results/mse.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_compares_models(free: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undrawn: None):
    from egnn_md.cli.main import app

    monkeypatch.chdir(tmp_path)
    arguments = [str(free / "random.safetensors"), str(free), "--compare", str(free / "back.safetensors")]
    arguments += ["--compare", str(free / "forward.safetensors"), "--horizons", "1,3", "--starts", "2"]
    answer = CliRunner().invoke(app, ["evaluate", *arguments, "--windows", "5", "--output", "out"])
    assert answer.exit_code == 0, answer.output
    record = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(record["results"]) == ["random", "back", "forward", "stay still", "linear", REFERENCE]
    assert "random cannot be trusted: after a single stride it is not clearly nearer" in answer.output
    assert [model["name"] for model in record["models"]] == ["random", "back", "forward"]
    assert all(len(model["digest"]) == 64 for model in record["models"])
    assert "horizons" not in record["results"]["forward"]
    assert any("forward takes forward differences" in note for note in record["notes"])
    assert any("5 of" in note for note in record["notes"])
    assert any(note.startswith("back takes and predicts backward velocities") for note in record["notes"])
    assert "trust" not in record["results"]["forward"]
    assert record["machine"]["cores"] >= 1
    assert min(frame for _, frame in record["rollouts"]["starts"]) >= 1  # backward differences need a frame before
    with pytest.raises(ConfigError, match="--horizons"):
        CliRunner().invoke(app, ["evaluate", *arguments, "--horizons", "1,x"], catch_exceptions=False)


def test_frames_to_start_from_and_strides(free: Path):
    data = open_trajectories(free, "test")
    model = make_model(system="free")
    settings = EvaluationSettings(frames=(3,), horizons=(1,), starts=2)
    evaluation = evaluate({"m": model}, data, settings)
    assert [frame for _, frame in evaluation.record["rollouts"]["starts"]] == [3, 3]
    assert evaluation.record["data"]["windows"]["of"] == 3
    starts, length = plan_starts([model.config], data, EvaluationSettings(horizons=(1, 2), strides=4, starts=100))
    assert length == 4
    assert len(starts) == 3 * (14 - 8)
    # what the data end at has a row, if a horizon had to be left out
    short = evaluate({"m": model}, data, EvaluationSettings(horizons=(1, 50), starts=2)).record
    assert short["rollouts"]["horizons"] == [1, 6]
    assert [row["strides"] for row in short["results"]["m"]["horizons"]] == [1, 6]
    # one request too long: the longest that the data have, unless a horizon comes near it
    assert plan_starts([model.config], data, EvaluationSettings(horizons=(1, 50)))[1] == 6
    assert plan_starts([model.config], data, EvaluationSettings(horizons=(1, 5, 50)))[1] == 5


def test_velocities_are_compared_with_those_of_the_same_kind(tmp_path: Path):
    """In accelerated motion the difference to the frame before is not the velocity now."""
    times = 0.5 * np.arange(8)[:, None, None]
    x, a = RNG(4).normal(size=(2, 5, 3))
    falling = Trajectory(x + times**2 * a / 2, np.zeros(5, dtype=np.int64), velocities=times * a)
    metadata = TrajectoryMetadata(system="fall", dt=0.5)
    data = open_trajectories(write_trajectories(tmp_path, metadata, {"test": [falling]}))
    true, back = make_model(system="fall"), make_model(system="fall", velocity="backward")
    settings = EvaluationSettings(frames=(2,), horizons=(2,))
    both, alone = evaluate({"true": true, "back": back}, data, settings), evaluate({"back": back}, data, settings)
    for metric in ("velocity_mse", "kinetic_energy_error", "mse"):
        expected = alone.record["results"]["back"]["horizons"][0][metric]
        assert both.record["results"]["back"]["horizons"][0][metric] == pytest.approx(expected, rel=1e-9)
        assert expected > 0
    # the baselines go with the first model's: x + v t misses a t² / 2 of true velocities
    mse = both.record["results"]["linear"]["horizons"][0]["mse"]
    assert mse == pytest.approx((2**2 / 2) ** 2 * (a**2).mean(), rel=1e-6)


def test_what_does_not_fit_is_refused(free: Path, tmp_path: Path):
    data = open_trajectories(free, "test")
    with pytest.raises(InputError, match="'free', but the propagator is one of 'adk'"):
        evaluate({"m": make_model(system="adk")}, data)
    units = {"length": "angstrom", "time": "femtosecond"}
    with pytest.raises(InputError, match="unit 'none', but the propagator was made for 'angstrom'"):
        evaluate({"m": make_model(system="free", units=units)}, data)
    with pytest.raises(InputError, match=r"b has a stride of 0.5"):
        evaluate({"a": make_model(system="free"), "b": make_model(system="free", stride=0.5)}, data)
    with pytest.raises(InputError, match="name at least one model"):
        evaluate({}, data)
    with pytest.raises(InputError, match="no sample fits"):
        evaluate({"m": make_model(system="free", stride=20.0)}, data)
    with pytest.raises(InputError, match="horizons must ascend"):
        EvaluationSettings(horizons=(5, 1))
    with pytest.raises(InputError, match="no registered system"):
        evaluate_files([str(free / "random.safetensors")], "nothing-there", EvaluationSettings())
    with pytest.raises(InputError, match="evaluate is for propagators"):
        evaluate_files(["water"], str(free), EvaluationSettings())


def explode(model: FastEGNNPropagator, factor: float) -> FastEGNNPropagator:
    """Every stride multiplies the velocity: a rollout that leaves the walls and then every bound."""
    with torch.no_grad():
        model.velocity_head.bias.fill_(factor)  # type: ignore[union-attr]
    return model


@pytest.fixture(scope="module")
def liquid(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    """A drop that falls in a box, and a propagator that throws it out."""
    rng = RNG(1)
    frames = 0.02 * np.arange(12)[:, None, None]
    x = np.concatenate([rng.random((60, 3)) * 0.4 + 0.3, [[0.5, 0, 0.5]]])
    fall = np.array([0, 0, -1.0]) * (np.arange(61) < 60)[:, None]
    trajectory = Trajectory(x + frames * fall, np.array([0] * 60 + [3]), velocities=np.tile(fall, (12, 1, 1)))
    metadata = TrajectoryMetadata(
        system="drop", units=SI, dt=0.02, bounds=[[0, 1]] * 3, default_connectivity_radius=0.2, gravity=[0, 0, -9.81]
    )
    folder = write_trajectories(tmp_path_factory.mktemp("drop"), metadata, {"test": [trajectory]})
    # it knows of no walls, so that nothing holds its particles back: the box is that of the data
    model = make_model(
        system="drop", units=SI, frame_interval=0.02, stride=0.02, cutoff=0.2, species=(0, 3), static_species=(3,)
    )
    model = explode(model, 3.0)
    return evaluate({"wild": model}, open_trajectories(folder), EvaluationSettings(horizons=(1, 5, 10), starts=1))


def test_a_liquid_that_leaves_its_box(liquid: Evaluation, tmp_path: Path, undrawn: None):
    assert liquid.world.kind == "liquid"
    assert liquid.world.up == 2
    results = liquid.record["results"]
    wild = results["wild"]
    assert wild["failure"]["strides_until_failure"]["failed"] == 1
    stop = wild["failure"]["strides_until_failure"]["earliest"]
    assert 1 < stop < 10
    assert wild["failure"]["worse_than_still"]["earliest"] <= stop
    assert wild["horizons"][2]["mse"] != wild["horizons"][2]["mse"]  # NaN after the stop
    assert wild["horizons"][2]["starts"] == 0
    assert wild["trust"]["strides"] < stop
    assert wild["trust"]["ended_by"] is not None
    assert wild["series"]["running"][-1] == 0
    linear = results["linear"]["horizons"][2]
    assert (linear["grid_density_error"], linear["local_density_error"], linear["local_density_ratio"]) == (0, 0, 1)
    assert results[REFERENCE]["series"]["kinetic_energy"][0] == pytest.approx(0.5)  # ½ v² of the 60 that move
    assert results["stay still"]["horizons"][2]["grid_density_error"] > 0
    assert results["linear"]["series"]["outside"] == [0] * 11
    assert results[REFERENCE]["series"]["outside"] == [0] * 11
    # the boundary particle is left out of the mean: (1·t)² / 3
    still = results["stay still"]["horizons"][0]["mse"]
    assert still == pytest.approx(0.02**2 / 3, rel=1e-4)
    written = write_evaluation(liquid, tmp_path)
    record = json.loads(written.numbers.read_text())
    assert record["results"]["wild"]["horizons"][2]["mse"] is None
    page = written.page.read_text()
    assert "MSE / m²" in page
    assert f"After 10 strides, {number(0.2)} s" in page
    assert record["results"]["wild"]["trust"]["text"] in page
    assert next(p for p in written.pictures if p.name == "running.png").stat().st_size > 5000


def test_the_animation_shows_reference_and_rollout(liquid: Evaluation):
    data = animation_data(liquid)
    assert data is not None
    assert [panel["name"] for panel in data["panels"]] == [REFERENCE, "wild"]
    clouds = []
    for panel in data["panels"]:
        coded = np.frombuffer(base64.b64decode(panel["positions"]), "<u2").reshape(len(data["times"]), -1, 3)
        clouds.append(np.array(data["low"]) + coded / STEPS * np.array(data["scale"]))
        assert len(panel["positions"]) <= MAX_BYTES / 2
    assert liquid.shown.case is not None
    turned = liquid.shown.case.positions[:, :, [1, 2, 0]]  # the height is the view's y
    np.testing.assert_allclose(clouds[0], turned, atol=2 * max(data["scale"]) / STEPS)
    np.testing.assert_allclose(clouds[1][-1], clouds[1][-2])  # it stands where it was stopped
    assert data["symbols"].count("boundary") == 1
    assert np.array(data["cells"]).shape == (11, 9)
    assert data["shown"] == data["particles"] == 61


def test_a_large_liquid_is_thinned_out(liquid: Evaluation):
    from egnn_md.report.animation import _chosen

    kept = _chosen(113_000, 51, 2)
    assert len(kept) * 51 * 2 * BYTES_PER_POSITION <= MAX_BYTES
    assert len(np.unique(kept)) == len(kept) > 3000


def test_means_over_survivors_are_starred_and_do_not_compete():
    models = {"a": {"mse": 1.0, "starts": 2}, "b": {"mse": 2.0, "starts": 4}, "c": {"mse": 3.0, "starts": 4}}
    table = _table("t", ["mse", "starts"], models, {})
    assert table["rows"][0] == ("MSE / L²", [("1*", False), ("2", True), ("3", False)])
    assert [text for text, _ in table["rows"][1][1]] == ["2", "4", "4"]
    assert "flatter" in table["note"]
    assert "flatter" not in _table("t", ["mse", "starts"], {"b": models["b"], "c": models["c"]}, {})["note"]


def test_a_protein(tmp_path: Path, undrawn: None):
    chain = molecule("C3H8")
    rng = RNG(2)
    frames = chain.positions + 0.02 * rng.normal(size=(16, 11, 3)) + 5.0
    units = {"length": "angstrom", "time": "picosecond"}
    metadata = TrajectoryMetadata(system="adk", units=units, dt=1.0)
    write_trajectories(tmp_path, metadata, {"test": [Trajectory(frames, chain.numbers)]})
    chain.write(tmp_path / "backbone.pdb")
    model = make_model(
        system="adk", units=units, frame_interval=1.0, stride=2.0, velocity="backward", species=(1, 6), cutoff=3.0
    )
    evaluation = evaluate({"m": model}, open_trajectories(tmp_path), EvaluationSettings(horizons=(1, 5), starts=2))
    assert evaluation.world.kind == "protein"
    results = evaluation.record["results"]
    last = results["stay still"]["horizons"][1]
    assert 0.005 < last["rmsd"] < 0.1
    assert last["bond_violations"] == 0
    assert results["linear"]["horizons"][1]["bond_violations"] > 0.3  # thermal velocities, straight on
    assert results[REFERENCE]["horizons"][1]["radius_of_gyration"] == pytest.approx(last["radius_of_gyration"], rel=0.1)
    profile = np.array(results[REFERENCE]["rmsf"])
    assert profile.shape == (11,)
    assert 0.005 < profile.mean() < 0.06
    assert max(results["stay still"]["rmsf"]) < 2e-3
    assert results["stay still"]["rmsf_error"] == pytest.approx(np.sqrt((profile**2).mean()), rel=0.05)
    assert "rmsf_correlation" not in results["stay still"]
    assert results["m"]["rmsf_correlation"] == pytest.approx(np.corrcoef(results["m"]["rmsf"], profile)[0, 1])
    written = write_evaluation(evaluation, tmp_path / "out")
    assert {"rmsd.png", "rmsf.png", "bond_violations.png"} <= {p.name for p in written.pictures}
    assert json.loads(written.numbers.read_text())["definitions"]["rmsd"]["unit"] == "Å"


def test_molecular_water(tmp_path: Path, undrawn: None):
    water = ase.Atoms()
    for i in range(8):
        one = molecule("H2O")
        one.positions += 3.2 * np.array([i % 2, i // 2 % 2, i // 4])
        water += one
    rng = RNG(3)
    cell = np.diag([6.4] * 3)
    velocities = 0.01 * rng.normal(size=(1, 24, 3)).repeat(30, 0)
    positions = water.positions + np.arange(30)[:, None, None] * velocities
    wrapped = positions % 6.4
    units = {"length": "angstrom", "time": "femtosecond"}
    metadata = TrajectoryMetadata(system="water", units=units, dt=1.0, periodic_boundary_conditions=[True] * 3)
    data = {"test": [Trajectory(wrapped, water.numbers, velocities=velocities, cell=cell)]}
    write_trajectories(tmp_path, metadata, data)
    model = make_model(
        system="water", units=units, frame_interval=1.0, stride=1.0, species=(1, 8), cutoff=3.0, edge_inputs=(),
        edge_basis=4,
    )  # fmt: skip
    settings = EvaluationSettings(horizons=(1, 20, 25), starts=2)
    evaluation = evaluate({"m": model}, open_trajectories(tmp_path), settings)
    assert evaluation.world.kind == "molecular"
    results = evaluation.record["results"]
    assert results["linear"]["horizons"][2]["mse"] < 1e-9  # frames that were wrapped run on
    expected = element_temperatures(velocities[:1], water.numbers, water.get_masses())
    for symbol in ("H", "O"):
        assert results[REFERENCE]["series"][f"temperature_{symbol}"][-1] == pytest.approx(expected[symbol][0], rel=1e-5)
    water.set_velocities(velocities[0] / ase.units.fs)
    kinetic = results[REFERENCE]["series"]["kinetic_energy"][0]
    assert kinetic == pytest.approx(water.get_kinetic_energy() / len(water), rel=1e-5)  # eV
    assert results["linear"]["pair_difference"]["O-O"] == pytest.approx(0, abs=1e-6)
    assert results["stay still"]["pair_difference"]["O-O"] > 0
    assert results[REFERENCE]["diffusion"]["value"] > 0
    assert abs(results["stay still"]["diffusion"]["value"]) < 1e-9
    written = write_evaluation(evaluation, tmp_path / "out")
    assert {"g-O-O.png", "temperature.png"} <= {p.name for p in written.pictures}
    assert "Temperature of O / K" in written.page.read_text()
