"""The shipped water model: errors on held-out boxes, and energy conservation of its own dynamics."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from egnn_md import load_model
from egnn_md.data.structures import read_labelled
from egnn_md.testing import run_checks
from egnn_md.training.metrics import measure_errors
from egnn_md_ase import FastEGNNCalculator

DATA = Path(__file__).parents[2] / "systems" / "water" / "data"
FORCE_LIMIT = 40.0  # meV/Å, what the model was asked to reach
ENERGY_LIMIT = 1.0  # meV/atom, after removing the mean offset
DRIFT_LIMIT = 0.2  # meV/atom/ps


def test_errors_on_held_out_boxes() -> None:
    """16 boxes of 60 waters at 300 and 400 K from another force field; none is in the training set."""
    model = load_model("water")
    held_out = read_labelled([DATA / "test.extxyz.xz"], model.cutoff)
    errors = measure_errors(model, held_out.graphs)
    assert errors["structures"] == 16
    assert errors["force_rms_reference"] > 1000, "the reference forces are those of real, warm water"
    assert errors["force_rmse"] < FORCE_LIMIT
    assert errors["energy_rmse_centred"] < ENERGY_LIMIT
    # the card says what is measured here
    assert model.card.measured["test_force_rmse"] == pytest.approx(errors["force_rmse"], rel=1e-3)


def test_no_held_out_box_was_trained_on() -> None:
    trained = read_labelled([DATA / "train.extxyz.xz"], 2.0)
    held_out = read_labelled([DATA / "test.extxyz.xz"], 2.0)
    assert load_model("water").card.training_data["structures"] <= len(trained) == 1730
    assert not {i["structure_id"] for i in trained.info} & {i["structure_id"] for i in held_out.info}


def test_every_validator_passes() -> None:
    failed = [f"{r.name}: {r.value} > {r.tolerance}" for r in run_checks(load_model("water")) if not r.passed]
    assert not failed


def conserved(timestep: float, duration: float) -> np.ndarray:
    """Total energies (eV/atom) of NVE with the 64-water box, ``duration`` and ``timestep`` in fs."""
    atoms = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
    atoms.calc = FastEGNNCalculator("water", dtype="float64")
    MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy() / len(atoms)), interval=1)
    dynamics.run(round(duration / timestep))
    return np.array(energies)


@pytest.mark.slow
def test_fluctuation_shrinks_as_the_square_of_the_timestep() -> None:
    """Velocity Verlet: halving the step quarters the fluctuation of the total energy (within a third)."""
    wide, narrow = (conserved(step, 100.0)[round(20 / step) :].std() for step in (0.5, 0.25))
    assert 2.7 < wide / narrow < 5.3


@pytest.mark.slow
def test_energy_drift_in_openmm(tmp_path: Path) -> None:
    """64 molecules, 0.5 fs, 5 ps after warming up: the drift of the total energy stays under its limit."""
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md.simulation import MDRequest, simulate

    box = str(files("egnn_md_systems.water") / "water64.pdb")
    common = {"model": "water", "engine": "openmm"}
    warm, measured = tmp_path / "nvt", tmp_path / "nve"
    simulate(MDRequest(structure=box, ensemble="nvt", friction=10.0, steps=3000, output=warm, **common))
    simulate(
        MDRequest(continue_from=warm, minimize=False, ensemble="nve", steps=10_000, output=measured, **common)
    )
    log = np.genfromtxt(measured / "log.csv", delimiter=",", names=True)
    time, total = log["time_ps"], log["total_eV"]
    assert time[-1] - time[0] > 4.9
    slope = np.polyfit(time, total, 1)[0]
    assert abs(slope) * 1000 / 192 < DRIFT_LIMIT
