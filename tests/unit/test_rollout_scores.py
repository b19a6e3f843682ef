"""What is said of many rollouts: means over the starts, their errors, how far to trust, units."""

from __future__ import annotations

import numpy as np
import pytest

from egnn_md.rollout.definitions import unit_of
from egnn_md.rollout.metrics import Failures
from egnn_md.rollout.metrics_molecular import Diffusion
from egnn_md.rollout.one_step import standard_error
from egnn_md.rollout.plan import spread
from egnn_md.rollout.scores import Score, combine
from egnn_md.rollout.trust import sentence, trust

EXACT = 1e-12
RNG = np.random.default_rng


def scored(errors: list[float], broken: int | None = None) -> Score:
    return Score(series={"mse": np.array([0.0, *errors])}, failures=Failures(broken, None, None, len(errors)))


def test_a_rollout_is_trusted_until_a_baseline_is_as_near_or_a_start_fails():
    still = [scored([4.0, 8, 12, 16]), scored([4.0, 8, 12, 16])]
    linear = [scored([2.0, 8, 20, 40]), scored([2.0, 8, 20, 40])]
    baselines = {"stay still": still, "linear": linear}
    found = trust([scored([1.0, 2, 3, 4]), scored([1.5, 2, 3, 4])], baselines)
    assert (found["strides"], found["of"], found["ended_by"], found["better"]) == (4, 4, None, 2)
    assert found["ratio"] == 4 / 16
    text = sentence("net", found | {"kinetic_energy_error": 0.934}, 2.0, {"time": "femtosecond"})
    assert "its kinetic energy is 93 % off" in text
    assert "at all 4 strides of the rollouts, 8 fs" in text
    assert "0.25 of that of stay still" in text
    # stride by stride: better again later does not count
    found = trust([scored([1.0, 9, 3, 4]), scored([2.1, 9, 3, 4])], {**baselines, "linear": still})
    assert (found["strides"], found["ended_by"], found["better"]) == (1, "stay still", 2)
    assert "up to stride 1 of 4; after the next it is not clearly nearer than stay" in sentence("net", found, 2.0, {})
    # a gain of 1 in one start and a loss of 0.5 in the other: 0.25 ± 0.75
    found = trust([scored([1.0, 2, 3, 4]), scored([2.5, 2, 3, 4])], baselines)
    assert (found["strides"], found["ended_by"], found["better"], found["ratio"]) == (0, "linear", 1, 1.75 / 2)
    # 1.2 and 0.1: 0.65 ± 0.55
    assert trust([scored([0.8, 2, 3, 4]), scored([1.9, 2, 3, 4])], baselines)["strides"] == 4
    # a start that fails is not averaged away
    nan = float("nan")
    found = trust([scored([1.0, 2, 3, 4]), scored([1.0, 2, nan, nan], 3)], baselines)
    assert (found["strides"], found["ended_by"], found["failed"]) == (2, "failed", 1)
    assert "1 of 2 starts has failed" in sentence("net", found, 2.0, {})
    later = trust([scored([1.0, 2, 3, nan], 4), scored([1.0, 2, nan, nan], 3)], baselines)
    assert (later["strides"], later["failed"]) == (2, 1)  # by the stride after the last trusted one
    found = trust([scored([3.0, 1, 1, 1])], {"stay still": still[:1], "linear": linear[:1]})
    assert (found["strides"], found["ended_by"], found["ratio"]) == (0, "linear", 1.5)
    text = sentence("net", found, 2.0, {})
    assert "cannot be trusted: after a single stride it is not clearly nearer to the reference than linear" in text
    assert "(MSE 1.5 times that of linear); one start only" in text


def test_means_over_starts_say_who_is_left():
    def one(error: float, kinetic: float, deviation: float) -> Score:
        series = {"mse": [0, error], "kinetic_energy_error": [0, deviation], "centre_of_mass_drift": [0, error]}
        return Score(
            series={name: np.array(values) for name, values in series.items()},
            failures=Failures(None if np.isfinite(error) else 1, None, None, 1),
            kinetic=np.array([1.0, kinetic]),
            diffusion=Diffusion(error, 0.3, (1.0, 2.0)),
        )

    nan = float("nan")
    found = combine([one(1.0, 8.0, 2.0), one(3.0, 0.0, 1.0), one(nan, 5.0, nan)], [1], 0.5)
    row = found["horizons"][0]
    assert (row["starts"], row["mse"], row["time"]) == (2, 2.0, 0.5)
    assert row["mse_error"] == pytest.approx(1.0)  # standard deviation sqrt(2) over sqrt(2)
    assert found["series"]["running"] == pytest.approx([1, 2 / 3])
    # relative to the mean of the same starts: one at rest does not make it infinite
    assert row["kinetic_energy_error"] == pytest.approx(3.0 / 8.0)
    # of whole rollouts only, in cm²/s
    assert found["diffusion"]["value"] == pytest.approx(0.2)
    assert found["diffusion"]["starts"] == 2
    assert found["failure"]["not_finite"] == {"failed": 1, "earliest": 1, "median": None}


def test_the_error_of_a_mean_over_windows_that_are_not_independent():
    rng = RNG(10)
    counts = np.full(40, 6.0)
    sums = rng.random(40) + np.repeat(rng.random(20), 2)
    trajectories = np.repeat(np.arange(20), 2)
    means = (sums / counts).reshape(20, 2).mean(1)
    expected = np.std(means, ddof=1) / np.sqrt(20)
    assert standard_error(sums, counts, trajectories) == pytest.approx(expected, rel=EXACT)
    # a few trajectories: ten blocks of successive windows
    blocks = (sums / counts).reshape(10, 4).mean(1)
    expected = np.std(blocks, ddof=1) / np.sqrt(10)
    for few in (np.zeros(40, dtype=int), np.arange(40) // 20):
        assert standard_error(sums, counts, few) == pytest.approx(expected, rel=EXACT)
    assert np.isnan(standard_error(sums[:1], counts[:1], trajectories[:1]))
    assert spread(16, 8) == {0, 2, 4, 6, 9, 11, 13, 15}
    assert spread(3, 8) == {0, 1, 2}


def test_units_of_every_kind_of_data():
    assert unit_of("mse", {"length": "none", "time": "none"}) == "L²"
    assert unit_of("kinetic_energy", {"length": "m", "time": "s"}) == "m²/s²"
    assert unit_of("kinetic_energy", {"length": "angstrom", "time": "femtosecond", "energy": "eV"}) == "eV"
    assert unit_of("momentum_drift", {"length": "m", "time": "s"}) == "m/s"
    assert unit_of("velocity_mse", {"length": "angstrom", "time": "femtosecond"}) == "Å²/fs²"
    assert unit_of("temperature_O", {}) == "K"
    assert unit_of("diffusion", {"length": "nanometer", "time": "picosecond"}) == "cm²/s"
