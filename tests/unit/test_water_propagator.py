"""The data and the measures of the water propagators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from egnn_md.data.trajectories import open_trajectories
from egnn_md.errors import SimulationError
from egnn_md.simulation.mechanics import kinetic_energy, maxwell_boltzmann, temperature
from egnn_md_systems import water
from egnn_md_systems.water_propagator import generate as generator
from egnn_md_systems.water_propagator.compare import start_frames
from egnn_md_systems.water_propagator.measure import Run, bonds_of, cut_where_broken, measure, total_energies

MOLECULES = 64
FRAMES = 12
#: meV an atom over 12 fs; velocities half a step late scatter by several
CONSERVED = 1.5
#: second-order difference over 2 fs against velocities: a share of their spread; half a step late would be 0.2
SAME_TIME = 0.06


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("openmm")
    folder = tmp_path_factory.mktemp("water")
    runs = [generator.Run("test", "00000", 300.0, 5)]
    with pytest.MonkeyPatch.context() as patch:  # the shipped liquid, for a new one takes a while
        patch.setattr(generator, "start_box", lambda *_: ase.io.read(water.__path__[0] + "/water64.pdb"))
        generator.generate(folder, molecules=MOLECULES, frames=FRAMES, equilibration=0, runs=runs)
    return folder


@pytest.fixture(scope="module")
def run(data: Path) -> Run:
    (trajectory,) = open_trajectories(data, "test")
    positions = np.asarray(trajectory.positions[:], dtype=np.float64)
    cell = np.asarray(trajectory.cell)
    return Run(
        positions=positions,
        velocities=np.asarray(trajectory.velocities[:], dtype=np.float64),
        interval=1.0,
        species=trajectory.species,
        cell=cell,
        bonds=bonds_of(positions[0], trajectory.species, cell),
    )


def test_positions_and_velocities_belong_to_the_same_time(run: Run) -> None:
    central = (run.positions[2:] - run.positions[:-2]) / (2 * run.interval)
    assert np.std(central - run.velocities[1:-1]) < SAME_TIME * np.std(run.velocities)


def test_the_total_energy_of_the_stored_frames_stays(run: Run) -> None:
    from egnn_md.checkpoint import load_model

    potential, every = load_model("water"), replace(run, interval=20.0)
    _, energies = total_energies(potential, every)
    assert len(energies) == FRAMES
    assert np.ptp(energies) < CONSERVED
    # velocities half a frame late, as a leapfrog would store them
    late = replace(every, positions=run.positions[:-1], velocities=np.diff(run.positions, axis=0))
    assert np.ptp(total_energies(potential, late)[1]) > 5 * CONSERVED


def test_the_centre_of_mass_rests(run: Run) -> None:
    momenta = np.einsum("n,fnd->fd", run.masses, run.velocities) / run.masses.sum()
    assert np.abs(momenta).max() < 1e-6


def test_a_complete_trajectory_is_not_made_again(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object) -> None:
        raise AssertionError("simulated again")

    monkeypatch.setattr(generator, "_simulate", never)
    runs = [generator.Run("test", "00000", 300.0, 5)]
    generator.generate(data, molecules=MOLECULES, frames=FRAMES, equilibration=0, runs=runs)
    with pytest.raises(AssertionError, match="again"):
        generator.generate(data, molecules=MOLECULES, runs=[generator.Run("test", "00001", 300.0, 6)])


def box() -> Any:
    """The shipped liquid."""
    return ase.io.read(water.__path__[0] + "/water64.pdb")


@pytest.fixture(scope="module")
def dynamics() -> generator.Dynamics:
    pytest.importorskip("openmm")
    return generator.Dynamics(box(), "water", 300.0, 5)


def velocities_at(kelvin: float, masses: np.ndarray) -> np.ndarray:
    """Without momentum and at exactly that temperature."""
    drawn = maxwell_boltzmann(masses, 300.0, np.random.default_rng(1))
    return drawn * np.sqrt(kelvin / temperature(kinetic_energy(masses, drawn), 3 * len(masses) - 3))


def test_a_box_is_good_up_to_1500_kelvin(dynamics: generator.Dynamics) -> None:
    start = box().positions
    dynamics.context.setPositions(start * 0.1)
    warm = velocities_at(1499.0, dynamics.masses)
    dynamics.context.setVelocities(warm * 100.0)
    positions, velocities = dynamics.state()
    np.testing.assert_allclose(positions, start, rtol=1e-12)
    np.testing.assert_allclose(velocities, warm, rtol=1e-12)
    dynamics.context.setVelocities(velocities_at(1501.0, dynamics.masses) * 100.0)
    with pytest.raises(SimulationError, match="the box has 1501 K"):
        dynamics.state()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("what", ["positions", "velocities"])
def test_a_box_that_is_not_finite_is_never_handed_on(
    dynamics: generator.Dynamics, monkeypatch: pytest.MonkeyPatch, what: str, value: float
) -> None:
    arrays = {
        "positions": box().positions,
        "velocities": velocities_at(300.0, dynamics.masses),
    }
    arrays[what][7, 1] = value
    dynamics.context.setPositions(arrays["positions"] * 0.1)
    dynamics.context.setVelocities(arrays["velocities"] * 100.0)
    monkeypatch.setattr(dynamics, "advance", lambda _: None)
    for call in (
        dynamics.state,
        lambda: dynamics.equilibrate(0, lambda _: None),
        lambda: dynamics.frames(1, lambda _: None),
    ):
        with pytest.raises(SimulationError, match="take another seed"):
            call()


def test_the_plan_has_every_part_among_its_first_four() -> None:
    runs = generator.plan()
    assert {run.part for run in runs[:4]} == {"train", "valid", "test"}
    assert len({run.seed for run in runs}) == len(runs)
    assert len({(run.part, run.name) for run in runs}) == len(runs)


def test_a_run_ends_before_a_bond_tears(run: Run) -> None:
    assert cut_where_broken(run).failure is None
    torn = run.positions.copy()
    hydrogen = int(run.bonds[3][np.argmin(run.species[run.bonds[3]])])
    torn[5, hydrogen] += 1.2
    cut = cut_where_broken(replace(run, positions=torn))
    assert cut.steps == 4
    assert "bond" in str(cut.failure)
    # an image of the whole molecule is the same molecule
    wrapped = run.positions.copy()
    wrapped[:, hydrogen] += run.cell[0]
    assert cut_where_broken(replace(run, positions=wrapped)).failure is None


def test_a_run_ends_before_it_is_too_hot_or_frozen(run: Run) -> None:
    for factor in (1.6, 0.6):
        velocities = run.velocities.copy()
        velocities[8:] *= factor
        cut = cut_where_broken(replace(run, velocities=velocities))
        assert cut.steps == 7
        assert "temperature" in str(cut.failure)


def test_measures_tell_a_cold_element_and_a_moving_centre(run: Run) -> None:
    from egnn_md.checkpoint import load_model

    rng = np.random.default_rng(0)
    velocities = np.stack([maxwell_boltzmann(run.masses, 300.0, rng) for _ in range(FRAMES)])
    velocities[:, run.species == 1] *= np.sqrt(0.5)
    velocities += np.array([0.01, 0.0, 0.0])
    found = measure("made up", [replace(run, velocities=velocities)] * 2, load_model("water"))
    hydrogen, oxygen = found.mean_temperatures["H"], found.mean_temperatures["O"]
    assert hydrogen is not None
    assert oxygen is not None
    drift = 0.01**2 / 3 / np.mean(velocities[0][run.species == 1] ** 2)
    assert hydrogen.value == pytest.approx(150.0 * (1 + drift), rel=0.1)
    assert oxygen.value > 1.5 * hydrogen.value
    thermal = np.sqrt((velocities[0][run.species == 8] ** 2).sum(axis=1).mean())
    assert found.centre_speed == pytest.approx(0.01 / thermal, rel=0.15)
    assert {pair.name for pair in found.pairs} == {"O-O", "O-H", "H-H"}


def test_starts_are_spread_over_trajectories_and_time(data: Path) -> None:
    found = start_frames(open_trajectories(data, "test"), 3)
    assert found == [(0, 0), (0, round((FRAMES - 1) / 3)), (0, round(2 * (FRAMES - 1) / 3))]
