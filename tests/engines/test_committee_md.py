"""Runs of ``egnn-md md`` with a committee: a column of the log, uncertain structures, an end in time, and a resume."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from md_cases import request, run
from rich.console import Console

from egnn_md import make_committee
from egnn_md.cli.md import run as run_command
from egnn_md.errors import ConfigError, InputError
from egnn_md.models import CommitteePotential, LennardJones
from egnn_md.simulation import MDRequest, RunDirectory, simulate
from egnn_md.simulation.recorder import WATCHED_COLUMNS, read_log
from egnn_md.simulation.spread import SpreadEvaluator

ENGINES = ["ase", "openmm"]


def committee() -> CommitteePotential:
    """Argon of two depths, whose forces differ by a tenth of their mean."""
    return make_committee([LennardJones(0.0104, 3.4, 5.0), LennardJones(0.0094, 3.4, 5.0)])


def hot(folder: Path, name: str, **changes: Any) -> MDRequest:
    return request(folder, name, **{"temperature": 200.0, "trajectory": "extxyz", **changes})


def frames_of(path: Path) -> list[Any]:
    return ase.io.read(path, ":", format="extxyz")


def same_but_for_speed(first: Path, second: Path) -> None:
    logs = [[line.rpartition(",")[0] for line in (p / "log.csv").read_text().splitlines()] for p in (first, second)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_log_has_the_spread_where_somebody_looked(tmp_path: Path, engine: str):
    wanted = hot(tmp_path, "run", engine=engine, uncertainty_interval=10, frame_interval=10)
    run(wanted, committee())
    log = read_log(tmp_path / "run" / "log.csv")
    assert tuple(log) == WATCHED_COLUMNS
    looked = log["step"] % 10 == 0
    assert np.isfinite(log["max_force_std_eV_A"][looked]).all()
    assert np.isnan(log["max_force_std_eV_A"][~looked]).all()
    # what the frames say, evaluated again from the file
    frames = frames_of(tmp_path / "run" / "trajectory.extxyz")
    evaluate = SpreadEvaluator(committee(), frames[0].numbers, frames[0].pbc, dtype="float64")
    for row, frame in zip(np.flatnonzero(looked), frames, strict=True):
        spread = evaluate(frame.positions, frame.cell.array)
        assert log["max_force_std_eV_A"][row] == pytest.approx(spread.worst()[1], abs=2e-8)
        assert log["energy_std_eV"][row] == pytest.approx(float(spread.energy_std[0]), abs=2e-8)
        # and the dynamics is that of the mean
        assert log["potential_eV"][row] == pytest.approx(float(spread.energy[0]), abs=1e-6)
    assert not (tmp_path / "run" / "uncertain.extxyz").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_looking_changes_nothing(tmp_path: Path, engine: str):
    often, never = (hot(tmp_path, str(n), engine=engine, uncertainty_interval=n) for n in (1, 1000))
    run(often, committee())
    run(never, committee())
    assert (tmp_path / "1/trajectory.extxyz").read_bytes() == (tmp_path / "1000/trajectory.extxyz").read_bytes()
    # the mean of the two is argon of the mean depth
    run(hot(tmp_path, "mean", engine=engine), LennardJones(0.0099, 3.4, 5.0))
    assert len(read_log(tmp_path / "mean/log.csv")) == len(WATCHED_COLUMNS) - 2
    ours, plain = (read_log(tmp_path / name / "log.csv")["total_eV"] for name in ("1", "mean"))
    np.testing.assert_allclose(ours, plain, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_one_member_drives_while_all_look(tmp_path: Path, engine: str):
    run(hot(tmp_path, "first", engine=engine, drive="first"), committee())
    run(hot(tmp_path, "alone", engine=engine), LennardJones(0.0104, 3.4, 5.0))
    assert (tmp_path / "first/final.extxyz").read_bytes() == (tmp_path / "alone/final.extxyz").read_bytes()
    log = read_log(tmp_path / "first/log.csv")
    looked = np.isfinite(log["max_force_std_eV_A"])
    assert log["step"][looked].tolist() == [0, 40]  # every 20 steps a member
    assert log["max_force_std_eV_A"][looked][1] > 1e-3


@pytest.mark.parametrize("engine", ENGINES)
def test_recording_writes_every_structure_above_and_goes_on(tmp_path: Path, engine: str):
    limits = {"max_uncertainty": 0.009, "on_uncertainty": "record", "uncertainty_interval": 5}
    result = run(hot(tmp_path, "run", engine=engine, frame_interval=5, **limits), committee())
    assert (result.status, result.exit_code) == ("finished", 0)
    log = read_log(result.run.log)
    above = log["step"][log["max_force_std_eV_A"] > 0.009]
    assert 1 < len(above) < len(log["step"])
    frames = frames_of(result.run.uncertain)
    assert [frame.info["step"] for frame in frames] == above.tolist()
    trajectory = {frame.info["step"]: frame for frame in frames_of(result.run.trajectory("extxyz"))}
    for frame in frames:
        same = trajectory[frame.info["step"]]
        np.testing.assert_array_equal(frame.positions, same.positions)
        np.testing.assert_array_equal(frame.cell.array, same.cell.array)
        worst = int(frame.arrays["force_std"].argmax())
        assert frame.info["uncertain_atom"] == worst
        assert frame.info["max_force_std"] == pytest.approx(frame.arrays["force_std"][worst], abs=1e-8)
        assert frame.calc is None  # nothing that a reader would take for labels


@pytest.mark.parametrize("engine", ENGINES)
def test_stopping_names_atom_value_and_step_and_can_be_overruled(tmp_path: Path, engine: str):
    limits = {"max_uncertainty": 0.009, "uncertainty_interval": 5}
    said = io.StringIO()
    wanted = hot(tmp_path, "run", engine=engine, **limits)
    result = simulate(wanted, model=committee(), console=Console(file=said, width=400))
    assert (result.status, result.exit_code) == ("uncertain", 3)
    assert 0 < result.steps < 40
    assert result.steps % 5 == 0
    (frame,) = frames_of(result.run.uncertain)
    value, atom = frame.info["max_force_std"], frame.info["uncertain_atom"]
    assert f"disagree by {value:.3g} eV/Å about the force on atom {atom} (Ar) at step {result.steps}" in said.getvalue()
    assert "--max-uncertainty X" in said.getvalue()
    record = result.run.read()
    assert record["status"] == "uncertain"
    assert record["uncertainty"]["members"] == 2
    assert f"atom {atom} (Ar) at step {result.steps}" in record["uncertainty"]["stopped"]
    more = run(result.run.request().changed({"max_uncertainty": 10.0}), committee(), resume=True)
    assert more.status == "finished"
    run(hot(tmp_path, "whole", engine=engine, max_uncertainty=10.0, uncertainty_interval=5), committee())
    whole = read_log(tmp_path / "whole/log.csv")["total_eV"]
    np.testing.assert_allclose(read_log(result.run.log)["total_eV"], whole, atol=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_resumed_run_has_each_uncertain_structure_once(tmp_path: Path, engine: str):
    limits = {"max_uncertainty": 0.009, "on_uncertainty": "record", "uncertainty_interval": 5, "engine": engine}
    first = run(hot(tmp_path, "run", **limits), committee())
    before = first.run.uncertain.read_bytes()
    # what a kill after the checkpoint of step 40 leaves: frames that will come again, and half a frame
    text = before.decode()
    later = text[text.rindex("32\n") :].replace("step=40 ", "step=45 ")
    assert "step=45 " in later
    first.run.uncertain.write_text(text + later + later[: len(later) // 2])
    longer = first.run.request().changed({"steps": 80})
    run(longer, committee(), resume=True)
    run(hot(tmp_path, "whole", steps=80, **limits), committee())
    assert first.run.uncertain.read_bytes() == (tmp_path / "whole/uncertain.extxyz").read_bytes()
    same_but_for_speed(tmp_path / "run", tmp_path / "whole")
    # a new run in the same place does not inherit them
    run(hot(tmp_path, "run", engine=engine), committee(), overwrite=True)
    assert not first.run.uncertain.exists()


def test_a_first_structure_that_is_uncertain_stops_at_once(tmp_path: Path):
    structure = tmp_path / "squeezed.extxyz"
    atoms = ase.io.read(hot(tmp_path, "x").structure)
    atoms.rattle(0.3, seed=1)
    atoms.write(structure)
    result = run(hot(tmp_path, "run", structure=str(structure), max_uncertainty=0.01), committee())
    assert (result.status, result.steps, result.exit_code) == ("uncertain", 0, 3)
    assert result.run.checkpoint.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_uncertainty": 0.1}, "--max-uncertainty needs a committee on one device, and the model is a Lenn"),
        ({"uncertainty_interval": 10}, "--uncertainty-interval needs a committee"),
        ({"drive": "first"}, "--drive first needs a committee"),
    ],
)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_single_model_cannot_be_unsure(tmp_path: Path, engine: str, options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        run(hot(tmp_path, "run", engine=engine, **options))
    assert not (tmp_path / "run").exists()


def test_options_are_checked_by_name(tmp_path: Path):
    output = tmp_path / "run"
    for given, message in (
        ({"max_uncertainty": -1.0}, "--max-uncertainty -1.0"),
        ({"max_uncertainty": float("nan")}, "--max-uncertainty nan"),
        ({"on_uncertainty": "panic"}, "--on-uncertainty panic"),
        ({"uncertainty_interval": 0}, "--uncertainty-interval 0"),
        ({"drive": "last"}, "--drive last"),
    ):
        with pytest.raises(ConfigError, match=message):
            run_command({"structure": "a.pdb", "steps": 1, "output": output, **given}, resume=False, overwrite=False)
    run(hot(tmp_path, "run"), committee())
    with pytest.raises(ConfigError, match="--drive first differs from this run's mean"):
        RunDirectory(output).request().changed({"drive": "first"})
