"""What is measured of a trajectory of water, on motions whose numbers can be written down."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest

from egnn_md_systems import water
from egnn_md_systems.water_propagator import measure as module
from egnn_md_systems.water_propagator.measure import Run, bonds_of, cut_where_broken, mean_of, measure

EXACT = 1e-12  # float64, a handful of operations
FOURIER = 1e-9  # relative; displacements come out of transforms of squared positions that are 1e4 times larger
OXYGEN, HYDROGEN = 15.999, 1.008  # amu
#: Å/fs of two hydrogens of one water that fly apart, the oxygen at rest: 300 K, with 3·3 - 3 degrees of freedom.
#: 2 · ½ · 1.008 amu v² · 103.64270 eV/(amu Å²/fs²) = 6 · ½ · 8.617333e-5 eV/K · 300 K
SPEED = 0.02724633


def one_molecule(kelvin: list[float]) -> Run:
    """A water that has those temperatures, frame by frame, and keeps its place."""
    still = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    apart = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]])
    return Run(
        positions=np.repeat(still[None], len(kelvin), 0),
        velocities=np.stack([SPEED * math.sqrt(value / 300.0) * apart for value in kelvin]),
        interval=1.0,
        species=np.array([8, 1, 1]),
        cell=np.diag([10.0, 10.0, 10.0]),
        bonds=np.array([[0, 1], [0, 2]]),
    )


def test_temperatures_leave_the_momentum_out_of_the_degrees_of_freedom() -> None:
    """Six of the nine are left; with nine the same velocities would have 200 and 600 K."""
    cut = cut_where_broken(one_molecule([300.0, 300.0, 900.0]))
    assert cut.steps == 1
    assert cut.failure == "the temperature went from 300 to 900 K"


@pytest.mark.parametrize("start", [200.0, 300.0, 400.0])
def test_the_limits_are_half_and_twice_the_temperature_of_the_start(start: float) -> None:
    inside = one_molecule([start, 1.99 * start, 0.51 * start, start])
    assert cut_where_broken(inside) is inside
    for factor in (2.01, 0.49):
        cut = cut_where_broken(one_molecule([start, start, start, factor * start, start]))
        assert cut.steps == 2
        assert cut.failure == f"the temperature went from {start:.0f} to {factor * start:.0f} K"


def test_a_mean_over_runs_has_the_error_of_a_sample() -> None:
    """2, 4 and 6: the squared deviations 4 + 0 + 4 count as of two, since the mean is their own."""
    found = mean_of([2.0, float("nan"), 4.0, 6.0])  # a run without the number is left out
    assert found is not None
    assert found.value == pytest.approx(4.0, rel=EXACT)
    assert found.spread == pytest.approx(2.0, rel=EXACT)
    assert found.error == pytest.approx(2.0 / math.sqrt(3), rel=EXACT)
    alone = mean_of([5.0])
    assert alone is not None
    assert (alone.value, alone.spread) == (5.0, 0.0)
    assert math.isnan(alone.error)
    assert mean_of([float("nan")]) is None


def drifting(frames: int, pull: float) -> Run:
    """64 waters, 2 fs a frame: all atoms drift along y, and oxygens move with ``pull`` Å/fs along x besides."""
    atoms: Any = ase.io.read(Path(water.__path__[0]) / "water64.pdb")
    velocities = np.zeros((len(atoms), 3))
    velocities[:, 1] = 0.3
    velocities[atoms.numbers == 8, 0] = pull
    cell = np.asarray(atoms.cell.array)
    return Run(
        positions=atoms.positions + 2.0 * np.arange(frames)[:, None, None] * velocities,
        velocities=np.repeat(velocities[None], frames, 0),
        interval=2.0,
        species=atoms.numbers,
        cell=cell,
        bonds=bonds_of(atoms.positions, atoms.numbers, cell),
    )


def test_displacement_is_of_oxygen_against_the_centre_of_mass_of_all_atoms(monkeypatch: pytest.MonkeyPatch) -> None:
    """The drift does not show; of the pull the hydrogens' share of the mass is left, for they stay behind."""
    monkeypatch.setattr(module, "potential_energies", lambda _, positions, *__: np.zeros(len(positions)))
    found = measure("straight", [drifting(12, 0.4), drifting(9, 0.8)], None)
    assert found.displacement is not None
    times, squares = found.displacement
    np.testing.assert_allclose(times, [0.0, 0.002, 0.004, 0.006], rtol=EXACT)  # ps, half of the shorter run
    share = 2 * HYDROGEN / (OXYGEN + 2 * HYDROGEN)
    expected = [(share * 2.0 * k) ** 2 * (0.4**2 + 0.8**2) / 2 for k in range(4)]
    np.testing.assert_allclose(squares[1:], expected[1:], rtol=FOURIER)
    assert abs(squares[0]) < FOURIER * expected[1]
    # speed of the centre of mass over that of the first run's oxygens
    centre = [math.hypot(0.3, pull * (1 - share)) for pull in (0.4, 0.8)]
    assert found.centre_speed == pytest.approx(sum(centre) / 2 / math.hypot(0.3, 0.4), rel=EXACT)
