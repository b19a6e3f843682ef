"""The ML/MM command: solvated, run, gone on with bit by bit, and told apart from a run of the model alone."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egnn_md.checkpoint import save_model
from egnn_md.errors import ConfigError, InputError
from egnn_md.simulation.readers import read_structure
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.testing import random_potential
from egnn_md.units import BOLTZMANN_EV_PER_K

pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'egnn-md[openmm]'")

from egnn_md_systems.alanine_dipeptide import structure_path
from egnn_md_systems.ml_mm import solvate as solvate_module
from egnn_md_systems.ml_mm.engine import MixedRequest, MixedRun, build, run_mixed
from egnn_md_systems.ml_mm.observe import describe, populations
from egnn_md_systems.ml_mm.run import start_path
from egnn_md_systems.ml_mm.solvate import solvate

CUTOFF = 7.0  # Å: a box of 17 Å is enough
FILES = ("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("start") / "water.pdb"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solvate_module, "SETTLE_ITERATIONS", 20)
        return solvate(structure_path(), path, edge=17.0, equilibrate=0.02, cutoff=CUTOFF, force_field=FILES)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(random_potential((1, 6, 7, 8)), tmp_path_factory.mktemp("model") / "random.safetensors")


def request(start: Path, model: Path, output: Path, steps: int) -> MixedRequest:
    options: dict[str, Any] = {
        "structure": str(start),
        "model": str(model),
        "output": output,
        "steps": steps,
        "ensemble": "npt",
        "timestep": 0.25,
        "cutoff": CUTOFF,
        "force_field": FILES,
        "platform": "Reference",
        "implementation": "python",
        "dtype": "float64",
        "minimize": False,
        "log_interval": 2,
        "frame_interval": 2,
        "check_interval": 2,
        "checkpoint_interval": 4,
    }
    return MixedRequest.parse(options)


def test_run_and_resume(start: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """4 steps and 4 more are 8 steps to the last bit; temperature counts rigid water; the record says what it is."""
    straight = request(start, model, tmp_path / "straight", 8)
    result = run_mixed(straight)
    assert (result.status, result.steps) == ("finished", 8)
    run_mixed(request(start, model, tmp_path / "halves", 4))
    halves = MixedRun(tmp_path / "halves")
    run_mixed(halves.request().changed({"steps": 8}), resume=True)
    first, second = (RunDirectory(tmp_path / name).load_checkpoint()[0] for name in ("straight", "halves"))
    assert np.array_equal(first.positions, second.positions)
    assert np.array_equal(first.velocities, second.velocities)
    assert np.array_equal(first.cell, second.cell)

    run = MixedRun(tmp_path / "straight")
    record = run.read()
    assert record["engine"]["ml_atoms"] == 22
    waters = record["system"]["molecules"] - 1
    assert record["engine"]["constraints"] == 3 * waters
    with run.log.open(newline="") as file:
        row = list(csv.DictReader(file))[-1]
    degrees = 3 * (22 + 3 * waters) - 3 * waters
    assert float(row["temperature_K"]) == pytest.approx(
        2 * float(row["kinetic_eV"]) / (degrees * BOLTZMANN_EV_PER_K), rel=1e-5
    )
    assert 0.5 < float(row["density_g_cm3"]) < 1.1

    told = describe(run, straight)
    assert "density" in told
    assert "basins" in told
    assert sum(json.loads((run.path / "observed.json").read_text())["basins"].values()) == pytest.approx(1.0)
    rows = (run.path / "dihedrals.csv").read_text().splitlines()
    assert len(rows) == 1 + 5
    # C7eq, where the molecule began, is a matter of degrees; the force field has moved it a little
    phi, psi = (float(x) for x in rows[1].split(",")[2:])
    assert phi == pytest.approx(-83.0, abs=25.0)
    assert psi == pytest.approx(75.0, abs=35.0)

    # the model alone is another system: egnn-md md does not go on from here
    with pytest.raises(ConfigError, match="--force-field is no option of a run"):
        RunDirectory(tmp_path / "straight").request()
    assert "python -m egnn_md_systems.ml_mm.run --resume" in run_command(run)


def run_command(run: RunDirectory) -> str:
    from egnn_md.simulation.driver import resume_command

    return resume_command(run)


def test_basins() -> None:
    """Psi goes on over 180 degrees."""
    angles = np.array([[-80.0, 75.0], [-70.0, 150.0], [-150.0, -170.0], [-65.0, -40.0], [60.0, 45.0]])
    assert populations(angles[:, None]) == {"beta and PPII": 0.6, "alpha R": 0.2, "phi > 0": 0.2}


def test_wrong_input(start: Path, model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--edge 15 Å is too small.*cutoff of 7 Å"):
        solvate(structure_path(), tmp_path / "x.pdb", edge=15.0, cutoff=CUTOFF)
    broken = tmp_path / "broken.pdb"
    broken.write_text("ATOM  this is no atom\n")
    with pytest.raises(InputError, match=r"broken\.pdb cannot be read as a PDB file"):
        solvate(broken, tmp_path / "x.pdb")
    with pytest.raises(InputError, match="needs a structure with a periodic"):
        run_mixed(request(structure_path(), model, tmp_path / "open", 2))
    structure = read_structure(str(start))
    with pytest.raises(InputError, match=r"the ML region are \d\.\d Å apart, more than half the box's smallest height"):
        build(structure.with_state(structure.positions, structure.cell * 0.8), request(start, model, tmp_path / "x", 2))
    with pytest.raises(ConfigError, match=r"--timestep 0\.5 differs from this mixed run's 0\.25"):
        request(start, model, tmp_path / "other", 4).changed({"timestep": 0.5})
    assert start_path(tmp_path / "a") == tmp_path / "a-start.pdb"
