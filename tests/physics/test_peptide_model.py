"""The shipped peptide model: errors on unseen sequences and on a size it has not seen, and its own dynamics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from egnn_md import load_model
from egnn_md.data.structures import read_labelled
from egnn_md.errors import EgnnMdError
from egnn_md.testing import run_checks
from egnn_md.training.metrics import measure_errors

DATA = Path(__file__).parents[2] / "systems" / "peptide" / "data"
FORCE_LIMIT = 100.0  # meV/Å on unseen sequences, what the model was asked to reach
CHIGNOLIN_LIMIT = 120.0  # meV/Å, a molecule three times as large as any it was trained on
ENERGY_LIMIT = 4.0  # meV/atom, after removing the mean offset


def test_errors_on_unseen_sequences() -> None:
    """Every fifth of the held-out structures; the card holds what all of them gave."""
    model = load_model("peptide")
    held_out = read_labelled([DATA / "test.extxyz.xz"], model.cutoff)
    some = held_out.take(range(0, len(held_out), 5))
    assert {info["temperature"] for info in some.info} == {300.0, 500.0}
    errors = measure_errors(model, some.graphs)
    assert errors["force_rms_reference"] > 800, "the reference forces are those of warm molecules"
    assert errors["force_rmse"] < FORCE_LIMIT
    assert errors["energy_rmse_centred"] < ENERGY_LIMIT
    assert model.card.measured["test_force_rmse"] == pytest.approx(errors["force_rmse"], rel=0.15)


def test_errors_on_chignolin() -> None:
    model = load_model("peptide")
    frames = read_labelled([DATA / "chignolin.extxyz.xz"], model.cutoff)
    errors = measure_errors(model, frames.take(range(0, len(frames), 4)).graphs)
    assert errors["force_rmse"] < CHIGNOLIN_LIMIT


def test_the_card_says_what_it_was_trained_on() -> None:
    model = load_model("peptide")
    assert model.card.training_data["charges"] == [-1, 0, 1]
    assert model.config.elements == (1, 6, 7, 8, 16)
    assert "proton" in model.card.limits
    assert not model.long_range, "chosen without virtual nodes: the energy of a long chain is a sum of local ones"


def test_every_validator_passes() -> None:
    failed = [f"{r.name}: {r.value} > {r.tolerance}" for r in run_checks(load_model("peptide")) if not r.passed]
    assert not failed


@pytest.mark.slow
def test_chignolin_runs_two_picoseconds(tmp_path: Path) -> None:
    """A fifth of what the README reports: no failure, the right temperature, every bond kept."""
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    import mdtraj

    from egnn_md.simulation import MDRequest, simulate

    structure = str(files("egnn_md_systems.peptide") / "chignolin-capped.pdb")
    request = MDRequest(
        model="peptide",
        engine="openmm",
        structure=structure,
        ensemble="nvt",
        temperature=300.0,
        friction=5.0,
        steps=4000,
        output=tmp_path / "nvt",
    )
    try:
        simulate(request)
    except EgnnMdError as error:  # a guard's word is the failure that this test is about
        pytest.fail(str(error))
    log = np.genfromtxt(tmp_path / "nvt" / "log.csv", delimiter=",", names=True)
    late = log["temperature_K"][log["time_ps"] > 1.0]
    # 447 degrees of freedom: the kinetic temperature of one frame scatters by 300·sqrt(2/447) = 20 K
    assert abs(late.mean() - 300.0) < 25.0
    trajectory = mdtraj.load(str(tmp_path / "nvt" / "trajectory.dcd"), top=structure)
    bonds = np.array([(bond[0].index, bond[1].index) for bond in trajectory.topology.bonds])
    lengths = mdtraj.compute_distances(trajectory, bonds, periodic=False)
    assert (lengths / lengths[0]).max() < 1.25  # heat does that much; 1.13 was seen in 10 ps
