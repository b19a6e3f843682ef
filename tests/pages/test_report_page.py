"""The report: one page that opens offline, pictures beside it, and numbers that are right."""

from __future__ import annotations

import base64
import configparser
import io
import json
import re
from pathlib import Path
from typing import Any

import ase
import mdtraj
import numpy as np
import pytest
from ase.build import bulk, molecule
from rich.console import Console
from typer.testing import CliRunner

from egnn_md.errors import InputError
from egnn_md.models import HarmonicTether, LennardJones
from egnn_md.models.base import Potential
from egnn_md.report import write_report
from egnn_md.report.load import load_run
from egnn_md.report.page import script_json
from egnn_md.report.pairs import largest_distance, pair_functions
from egnn_md.report.statistics import average, correlation_factor, drift, running_mean
from egnn_md.report.viewer import STEPS, viewer_data
from egnn_md.simulation import MDRequest, RunDirectory, simulate


def water_box() -> ase.Atoms:
    """27 waters on a grid, some across the faces of the cell."""
    atoms = ase.Atoms(cell=[9.3, 9.3, 9.3], pbc=True)
    for i in range(27):
        one = molecule("H2O")
        one.rotate(40 * i, (1, i, 2))
        one.positions += np.array([i % 3, i // 3 % 3, i // 9]) * 3.1 - one.positions[0]
        atoms += one
    atoms.wrap()
    return atoms


def make_run(folder: Path, name: str, atoms: ase.Atoms, model: Potential, **changes: Any) -> Path:
    """A short run by ASE."""
    atoms.write(folder / f"{name}.extxyz")
    values: dict[str, Any] = {
        "structure": str(folder / f"{name}.extxyz"),
        "engine": "ase",
        "ensemble": "nve",
        "steps": 120,
        "timestep": 0.25,
        "dtype": "float64",
        "temperature": 100.0,
        "minimize": False,
        "frame_interval": 10,
        "log_interval": 1,
        "output": folder / name,
        **changes,
    }
    if "continue_from" in changes:
        values.pop("structure")
    simulate(MDRequest.parse(values), model=model, console=Console(file=io.StringIO()))
    return folder / name


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """NVT, NPT (XTC) and NVE of water held together by springs."""
    folder = tmp_path_factory.mktemp("runs")
    model = HarmonicTether(5.0, 1.2, 2.0)
    nvt = make_run(folder, "nvt", water_box(), model, ensemble="nvt", steps=40)
    npt = make_run(folder, "npt", water_box(), model, ensemble="npt", steps=40, trajectory="xtc")
    nve = make_run(folder, "nve", water_box(), model, continue_from=nvt)
    return [nvt, npt, nve]


def outside_scripts(page: str) -> str:
    return re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)


def test_one_run_makes_a_page_pictures_and_numbers(runs: list[Path]) -> None:
    report = write_report([runs[2]])
    assert report.page == runs[2] / "report.html"
    page = report.page.read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", outside_scripts(page))
    assert "@import" not in page.partition("</style>")[0]
    assert page.count("<html") == 1
    assert page.count("plotly.js v") == 1
    for text in ("nve", "finished", "meV/atom/ps", "HarmonicTether", "velocity Verlet", "Pair distribution"):
        assert text in outside_scripts(page)
    assert {p.name for p in report.pictures} == {
        "energy.png", "drift.png", "temperature.png", "rdf.png", "speed.png",
    }  # fmt: skip
    assert all(p.read_bytes().startswith(b"\x89PNG") for p in report.pictures)
    numbers = json.loads(report.numbers.read_text())["runs"][0]
    assert numbers["steps"] == 120
    assert numbers["frames"] == 13
    assert abs(numbers["drift_meV_atom_ps"]["slope"]) < 50
    assert numbers["pair_peaks_A"].keys() == {"O-O", "O-H", "H-H"}
    assert numbers["speed_ns_day"] > 0


def test_several_runs_are_sections_of_one_page(runs: list[Path], tmp_path: Path) -> None:
    answer = CliRunner().invoke(
        _app(), ["report", *map(str, runs), "--output", str(tmp_path / "all.html"), "--title", "A <b>title</b>"]
    )
    assert answer.exit_code == 0, answer.output
    page = (tmp_path / "all.html").read_text()
    assert page.count("plotly.js v") == 1
    assert page.count('<section class="run"') == 3
    assert "A &lt;b&gt;title&lt;/b&gt;" in page
    assert (tmp_path / "nvt-energy.png").exists()
    assert (tmp_path / "npt-density.png").exists()
    numbers = json.loads((tmp_path / "all.json").read_text())["runs"]
    assert [n["ensemble"] for n in numbers] == ["nvt", "npt", "nve"]
    assert numbers[1]["density_g_cm3"]["mean"] > 0
    assert numbers[0]["drift_meV_atom_ps"] is None
    assert write_report(runs).page == runs[0].parent / "report.html"


def _app() -> Any:
    from egnn_md.cli.main import app

    return app


def test_everything_in_the_page_can_be_parsed(runs: list[Path]) -> None:
    page = write_report([runs[1]]).page.read_text()
    blocks = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.DOTALL)
    values = [json.loads(block) for block in blocks]
    viewers = [v for v in values if "symbols" in v]
    assert len(viewers) == 1
    assert len(values) == 1 + 5  # energy, temperature, density, pair functions, speed
    assert script_json({"a": "</script><b>"}) == '{"a":"\\u003c/script>\\u003cb>"}'


def test_the_view_shows_whole_molecules_inside_the_cell(runs: list[Path]) -> None:
    run = load_run(runs[1])
    data = viewer_data(run)
    assert data is not None
    coded = np.frombuffer(base64.b64decode(data["positions"]), "<u2").reshape(len(data["times"]), -1, 3)
    positions = np.array(data["low"]) + coded / STEPS * np.array(data["scale"])
    assert data["symbols"].count("O") == 27
    bonds = np.array(data["bonds"])
    assert len(bonds) == 54
    lengths = np.linalg.norm(positions[:, bonds[:, 0]] - positions[:, bonds[:, 1]], axis=2)
    assert lengths.max() < 1.6
    cells = np.array(data["cells"]).reshape(-1, 3, 3)
    centres = positions.reshape(len(cells), 27, 3, 3).mean(axis=2)
    fractional = np.einsum("fmi,fij->fmj", centres, np.linalg.inv(cells))
    assert fractional.min() > -0.01
    assert fractional.max() < 1.01


def test_pair_functions_are_mdtrajs(runs: list[Path]) -> None:
    run = load_run(runs[0])
    found = {p.name: p for p in pair_functions(run)}
    trajectory = mdtraj.load(str(runs[0] / "trajectory.dcd"), top=str(runs[0] / "topology.pdb"))
    kept = trajectory[run.frames.times >= run.settled]
    pairs = kept.topology.select_pairs("element O", "element H")
    bins = len(found["O-H"].r)
    r, g = mdtraj.compute_rdf(kept, pairs, r_range=(0, bins * 0.004), n_bins=bins)
    np.testing.assert_allclose(found["O-H"].r, r * 10, atol=1e-6)
    np.testing.assert_allclose(found["O-H"].g, g, atol=1e-2 * g.max())
    assert 0.9 < found["O-H"].bonded < 1.7
    assert found["O-O"].bonded == 0
    assert found["O-O"].r[-1] < 9.3 / 2
    assert largest_distance(np.diag([8.0, 30.0, 30.0])[None]) == pytest.approx(4.0)


def test_an_open_molecule_a_failed_and_a_running_run(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "open", molecule("C2H6"), HarmonicTether(5.0, 1.1, 1.8), steps=30)
    page = write_report([folder]).page.read_text()
    assert "an open system has no g(r)" in page
    directory = RunDirectory(folder)
    directory.update(status="failed", error="atom 3 <O> was thrown")
    assert "atom 3 &lt;O&gt; was thrown" in write_report([folder]).page.read_text()
    (folder / "trajectory.dcd").write_bytes((folder / "trajectory.dcd").read_bytes()[:-7])  # cut short
    assert load_run(folder).frames.total == 3
    (folder / "trajectory.dcd").unlink()
    assert "Pair distribution" not in outside_scripts(write_report([folder]).page.read_text())


def test_a_single_atom_and_an_element_without_a_colour(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "one", ase.Atoms("U"), LennardJones(), steps=5)
    assert write_report([folder]).page.exists()
    folder = make_run(
        tmp_path, "many", bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2), LennardJones(0.01, 3.4, 5.0),
        steps=4, trajectory="extxyz", frame_interval=2,
    )  # fmt: skip
    assert load_run(folder).frames.positions.shape == (3, 32, 3)


def test_the_page_s_parts_are_packaged() -> None:
    root = Path(__file__).parents[2]
    config = configparser.ConfigParser()
    config.read(root / "setup.cfg", encoding="utf-8")
    patterns = config["options.package_data"].get("egnn_md.report", "").split(",")
    for asset in (root / "egnn_md" / "report" / "assets").iterdir():
        assert any(Path("assets", asset.name).match(p.strip()) for p in patterns if p), asset


def test_what_is_no_run_is_refused(tmp_path: Path, runs: list[Path]) -> None:
    with pytest.raises(InputError, match="is no run directory"):
        write_report([tmp_path])
    with pytest.raises(InputError, match="at least one run"):
        write_report([])


def test_statistics_know_of_correlation() -> None:
    rng = np.random.default_rng(0)
    white = rng.normal(size=20000)
    assert correlation_factor(white) == pytest.approx(1.0, abs=0.2)
    correlated = np.zeros(200000)
    for i in range(1, len(correlated)):  # AR(1): g = (1 + a) / (1 - a) = 19
        correlated[i] = 0.9 * correlated[i - 1] + rng.normal()
    assert correlation_factor(correlated) == pytest.approx(19, rel=0.15)
    found = average(np.append(white, np.nan))
    assert found is not None
    assert found.error == pytest.approx(1 / np.sqrt(20000), rel=0.15)
    assert average(np.array([np.nan])) is None
    time = np.linspace(0, 10, 20000)
    fit = drift(time, 0.3 * time + 2 + 0.1 * white)
    assert fit is not None
    assert abs(fit.slope - 0.3) < 4 * fit.error
    assert fit.scatter == pytest.approx(0.1, rel=0.05)
    assert drift(time[:2], time[:2]) is None
    np.testing.assert_allclose(running_mean(np.arange(5.0), 3), [0.5, 1, 2, 3, 3.5])
