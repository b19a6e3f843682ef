"""Validation where the answer is known: Lennard-Jones against ASE's own, a wrong one, one that explodes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from torch import Tensor
from validation_cases import CUTOFF, EPSILON, QUIET, SIGMA, cluster, crystal, mark, number, run, teacher

from egnn_md.errors import ConfigError, SimulationError
from egnn_md.models import HarmonicTether, LennardJones
from egnn_md.validation import ValidateRequest, Validation, validate
from egnn_md.validation import runs as runs_module
from egnn_md.validation.page import TITLES
from egnn_md.validation.teacher import TeacherPotential


@pytest.fixture(scope="module")
def same(tmp_path_factory: pytest.TempPathFactory) -> Validation:
    """The same potential on both sides, all parts."""
    folder = tmp_path_factory.mktemp("same")
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    return run(folder / "v", model, **teacher(), structure=crystal(folder), temperatures=(40.0, 60.0))


def test_the_same_potential_has_no_errors(same: Validation):
    assert same.failed == []
    assert {part.name: part.status for part in same.parts} == dict.fromkeys(TITLES, "measured")
    for kelvin in ("40", "60"):
        own = f"own frames at {kelvin} K"
        assert number(same, "force_rms_reference", own) > 1.0  # meV/Å: there is something to be wrong about
        # meV/Å; a label file keeps eight decimals of eV/Å and Å
        assert number(same, "force_rmse", own) < 1e-4
        assert number(same, "force_rmse", f"{own}, Ar") < 1e-4
        assert number(same, "energy_rmse", own) < 1e-4
        assert number(same, "stress_rmse", own) < 1e-6
        assert abs(number(same, "pressure_difference", f"{kelvin} K")) < 1e-6


def test_the_same_potential_is_conservative_stable_and_additive(same: Validation):
    assert number(same, "failed") == 0
    assert number(same, "steps_survived", "seed 1") == 60
    assert abs(number(same, "copy_energy_change")) < 1e-6
    assert number(same, "force_rmse", "64 atoms") < 1e-6
    assert mark(same, "Long runs") == "good"
    assert 1.0 < number(same, "density") < 2.2  # solid argon: 1.6 g/cm³
    assert number(same, "element_temperature", "Ar at 40 K") == pytest.approx(40, rel=0.35)


def test_the_same_potential_has_the_same_structure(same: Validation):
    assert number(same, "chance", "g(r) Ar-Ar") >= 0.05
    assert number(same, "overlap", "g(r) Ar-Ar") > 0.9
    assert mark(same, "Distributions") == "good"


def test_page_json_and_csv_of_all_parts(same: Validation):
    page = same.written.page.read_text()
    for name, title in TITLES.items():
        assert f'id="{name}"' in page
        assert title.replace("'", "&#39;") in page
    assert "http" not in re.sub(r"<script>.*?</script>", "", page, flags=re.S)  # opens offline; plotly itself has links
    for text in re.findall(r'<script type="application/json">(.*?)</script>', page, re.S):
        json.loads(text)
    record = json.loads(same.written.numbers.read_text())
    assert record["model"]["kind"] == "LennardJones"
    assert record["request"]["against"] == "lj"
    assert record["versions"]["ase"]
    assert [part["name"] for part in record["parts"]] == list(TITLES)
    pictures = [name for part in record["parts"] for name in part["pictures"]]
    assert len(pictures) >= 8
    assert all((same.written.page.parent / name).stat().st_size > 1000 for name in pictures)
    rows = list(csv.DictReader(same.written.table.open()))
    drift = next(row for row in rows if row["quantity"] == "nve_drift")
    assert drift["unit"] == "meV/atom/ps"
    assert float(drift["value"]) == pytest.approx(number(same, "nve_drift"))


def test_what_is_done_is_not_done_again(same: Validation, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a run was made again")

    monkeypatch.setattr(runs_module, "simulate", refuse)
    request = ValidateRequest.parse(same.record["request"])
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    again = validate(request, model=model, console=QUIET)
    assert [part.as_dict() for part in again.parts] == [part.as_dict() for part in same.parts]
    # a part that is lost is measured again from the runs that are there
    (Path(request.output) / "work" / "parts" / "nve.json").unlink()
    once_more = validate(request, model=model, console=QUIET)
    assert number(once_more, "nve_drift") == number(same, "nve_drift")


def test_another_setting_or_model_is_refused(same: Validation):
    request = ValidateRequest.parse({**same.record["request"], "timestep": 4.0})
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    with pytest.raises(ConfigError, match=r"other settings \(timestep was 5.0, not 4.0\); give --overwrite"):
        validate(request, model=model, console=QUIET)
    with pytest.raises(ConfigError, match="model digest was"):
        validate(ValidateRequest.parse(same.record["request"]), model=LennardJones(), console=QUIET)


def test_a_radius_three_per_cent_too_large_is_detected_in_an_open_cluster(tmp_path: Path):
    model = LennardJones(EPSILON, 1.03 * SIGMA, 20.0, smooth=False)
    values = {**teacher(cutoff=20.0), "structure": cluster(tmp_path), "temperatures": (10.0,), "friction": 5.0}
    result = run(tmp_path / "v", model, **values, length=1.5, parts=("errors", "structure", "diffusion", "density"))
    assert result.failed == []
    status = {part.name: part.status for part in result.parts}
    assert status["density"] == "skipped"
    assert "no periodic cell" in next(part.reason for part in result.parts if part.name == "density")
    assert "diffusion" not in {row["quantity"] for part in result.parts for row in part.numbers}
    # its atoms sit where the reference's feel a push outwards twice the size of the thermal forces
    assert number(result, "force_rmse") > 5.0
    assert number(result, "chance", "g(r) Ar-Ar") < 0.05
    assert mark(result, "Distributions") == "look"
    # 78 distances of an icosahedron with a bond of 3.8 Å are 5.0 Å on average: 3 % of that
    assert number(result, "mean_shift", "g(r) Ar-Ar") == pytest.approx(0.149, abs=0.04)


def test_a_wrong_radius_is_as_wrong_in_a_larger_cell(tmp_path: Path):
    model = LennardJones(EPSILON, 1.03 * SIGMA, CUTOFF, smooth=False)
    values = {**teacher(), "structure": crystal(tmp_path), "temperatures": (30.0,), "equilibration": 0.1, "length": 0.1}
    result = run(tmp_path / "v", model, **values, parts=("size",))
    assert result.failed == []
    small, large = (number(result, "energy_error", f"{count} atoms") for count in (32, 64))
    assert abs(small) > 1.0  # meV/atom
    assert large == pytest.approx(small, rel=0.1)  # the same frame twice, rattled by 0.02 Å
    assert number(result, "force_rmse", "64 atoms") > 1.0
    assert number(result, "force_rmse_ratio") == pytest.approx(1.0, abs=0.3)
    assert abs(number(result, "copy_energy_change")) < 1e-6


def test_scatter_of_a_smooth_potential_falls_four_times(tmp_path: Path):
    model = HarmonicTether(stiffness=0.5, length=3.8, cutoff=6.5)
    values = {"structure": crystal(tmp_path), "temperatures": (30.0,), "parts": ("nve",), "timestep": 8.0}
    result = run(tmp_path / "v", model, **values, length=1.2, nve=1.2)
    assert result.failed == []
    assert number(result, "scatter_ratio") == pytest.approx(4.0, abs=0.6)
    assert abs(number(result, "nve_drift")) < 0.026
    assert {mark(result, "Energy drift"), mark(result, "Energy scatter")} == {"good"}


class Explodes(LennardJones):
    """Lennard-Jones until two atoms come closer than ``limit``; then every pair pushes without end."""

    limit = 3.4

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        energies = super().forward(positions, species, edge_index, shifts, batch, periodic)
        pair = positions.index_select(0, edge_index[0]) - positions.index_select(0, edge_index[1]) + shifts
        close = (self.limit - torch.linalg.vector_norm(pair, dim=1)).clamp(min=0.0)
        return energies - 1e3 * (close**2).sum() / len(energies)  # the closer, the lower: nothing holds it


def test_an_exploding_model_says_at_which_step_and_other_parts_are_done(tmp_path: Path):
    model = Explodes(EPSILON, SIGMA, CUTOFF)
    values = {"structure": crystal(tmp_path), "temperatures": (10.0, 200.0), "equilibration": 0.1, "length": 0.1}
    result = run(tmp_path / "v", model, **values, nve=0.1, stability_steps=400, parts=("nve", "stability"))
    assert number(result, "failed") == 2
    steps = [number(result, "steps_survived", f"seed {seed}") for seed in (0, 1)]
    assert all(0 < step < 400 for step in steps)
    long = next(part for part in result.parts if part.name == "stability")
    assert long.status == "measured"
    assert long.verdicts[0]["value"] == "2 of 2 failed in 400 steps"
    assert f"the earliest at step {min(steps)}" in long.verdicts[0]["reading"]
    assert re.search(r"atom \d+ \(Ar\)", long.verdicts[0]["reading"])  # the guard's own words
    statuses = {part.name: part.status for part in result.parts}
    assert statuses["nve"] == "measured"  # 10 K is calm
    page = result.written.page.read_text()
    assert "2 of 2 failed in 400 steps" in page


def test_a_part_that_fails_is_reported_and_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def broken(_: Any) -> Any:
        raise SimulationError("atom 3 (Ar) was thrown away")

    module = validate.__globals__
    values = {"structure": crystal(tmp_path), "parts": ("nve", "stability"), "stability_steps": 20, "seeds": 1}
    values |= {"equilibration": 0.1, "length": 0.1, "nve": 0.1, "temperatures": (30.0,)}
    model = LennardJones(EPSILON, SIGMA, CUTOFF)
    with monkeypatch.context() as patch:
        patch.setitem(module["MEASURES"], "nve", broken)
        result = run(tmp_path / "v", model, **values)
    assert result.failed == ["nve"]
    assert [part.status for part in result.parts] == ["failed", "measured"]
    assert "atom 3 (Ar) was thrown away" in result.written.page.read_text()
    assert run(tmp_path / "v", model, **values).failed == []


def test_a_killed_run_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    values = {"structure": crystal(tmp_path), "parts": ("stability",), "stability_steps": 60, "seeds": 1}
    values |= {"temperatures": (30.0,), "budget": "short"}
    model = LennardJones(EPSILON, SIGMA, CUTOFF)
    whole = run(tmp_path / "whole", model, **values)

    class Killed(BaseException):
        pass

    original, calls = LennardJones.forward, 0

    def dies(self: LennardJones, *arguments: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        # FIRE, then 60 steps: past the first checkpoint of the run, which is made every 15
        if RunState.begun(tmp_path / "killed") and calls > 5:
            raise Killed
        return original(self, *arguments)

    class RunState:
        @staticmethod
        def begun(folder: Path) -> bool:
            path = folder / "work" / "runs" / "stability-0" / "run.json"
            return path.exists() and json.loads(path.read_text()).get("steps_done", 0) >= 15

    with monkeypatch.context() as patch:
        patch.setattr(LennardJones, "forward", dies)
        with pytest.raises(Killed):
            run(tmp_path / "killed", model, **values)
    after = run(tmp_path / "killed", model, **values)
    assert after.failed == []
    logs = [
        (folder / "work" / "runs" / "stability-0" / "final.extxyz").read_text()
        for folder in (tmp_path / "whole", tmp_path / "killed")
    ]
    assert logs[0] == logs[1]
    record = json.loads((tmp_path / "killed" / "work" / "runs" / "stability-0" / "run.json").read_text())
    assert len(record["segments"]) == 2
    assert after.parts[0].numbers == whole.parts[0].numbers


def test_a_reference_that_is_too_dear_is_skipped_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from egnn_md.validation.context import Context

    monkeypatch.setattr(Context, "teacher_seconds", lambda self, small=False: 3600.0)
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    values = {**teacher(), "structure": crystal(tmp_path), "equilibration": 0.1, "length": 0.1, "temperatures": (30.0,)}
    result = run(tmp_path / "v", model, **values, parts=("errors", "structure", "size"))
    assert result.failed == []
    reasons = {part.name: (part.status, part.reason) for part in result.parts}
    assert reasons["errors"][0] == reasons["structure"][0] == "skipped"
    assert "a label takes 3.6e+03 s" in reasons["errors"][1]
    assert re.search(r"give --teacher-minutes \d+, or a smaller --teacher-structure", reasons["structure"][1])
    assert reasons["size"][0] == "measured"  # its own additivity needs no reference
    assert "no larger cell fits" in reasons["size"][1]


def test_own_frames_are_far_apart_and_numbered(same: Validation):
    frames = ase.io.read(Path(same.record["request"]["output"]) / "work" / "labels-40K.extxyz", ":")
    steps = [atoms.info["step"] for atoms in frames]
    assert steps == sorted(steps)
    assert len(steps) == 3
    assert np.diff(steps).min() > 35  # of 120 steps
    assert {float(atoms.info["temperature"]) for atoms in frames} == {40.0}


def test_the_reference_method_is_timed_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE's calculators answer at once for positions that they know; such a time would promise everything."""
    seen: list[np.ndarray] = []
    original = TeacherPotential.results

    def results(self: TeacherPotential, atoms: Atoms, **values: Any) -> dict[str, Any]:
        seen.append(atoms.positions.copy())
        return original(self, atoms, **values)

    monkeypatch.setattr(TeacherPotential, "results", results)
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    run(tmp_path / "v", model, **teacher(), structure=crystal(tmp_path), parts=("size",))
    assert 0 < np.abs(seen[1] - seen[0]).max() < 0.01
