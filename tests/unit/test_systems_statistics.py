"""The commands behind the figures of the systems' pages, on small input."""

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from egnn_md_systems.adk.statistics import missed
from egnn_md_systems.nbody import statistics

SYSTEMS = 2


def test_straight_motion_is_missed_by_nothing_and_half_the_speed_is_the_best_for_half_the_way() -> None:
    velocities = np.random.default_rng(0).normal(size=(4, 5, 3))
    assert missed(velocities * 2.0, velocities, 2.0) == pytest.approx((0.0, 1.0, 0.0), abs=1e-12)
    straight, best, rest = missed(velocities, velocities, 2.0)
    assert best == pytest.approx(0.5)
    assert rest == pytest.approx(0.0, abs=1e-12)
    assert straight == pytest.approx(np.sqrt((velocities**2).sum(-1).mean()))


def test_nbody_statistics_print_every_figure_of_the_page() -> None:
    pytest.importorskip("numba")
    app = typer.Typer()
    app.command()(statistics.main)
    result = CliRunner().invoke(app, ["--systems", str(SYSTEMS)], catch_exceptions=False)
    lines = result.output.splitlines()
    assert lines[0].startswith(f"{SYSTEMS} systems: energy changes by")
    assert [line.split(":")[0] for line in lines[-3:]] == [
        "stay still", "linear", f"linear with the best single time, {lines[-1].split(':')[0].split()[-1]}",
    ]  # fmt: skip
    still, linear, best = (float(line.split("MSE ")[1].split()[0]) for line in lines[-3:])
    assert best < linear < still
