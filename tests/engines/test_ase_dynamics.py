"""FastEGNNCalculator inside ASE's own machinery: dynamics, optimisers, cell filters, vibrations, phonons."""

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.filters import FrechetCellFilter, UnitCellFilter
from ase.md.langevin import Langevin
from ase.md.melchionna import MelchionnaNPT
from ase.md.nose_hoover_chain import IsotropicMTKNPT, NoseHooverChainNVT
from ase.md.nptberendsen import NPTBerendsen
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS, FIRE, LBFGS
from ase.phonons import Phonons
from ase.vibrations import Vibrations

from egnn_md.models import HarmonicTether, LennardJones
from egnn_md.testing import random_potential
from egnn_md_ase import FastEGNNCalculator

EPSILON, SIGMA = 0.0104, 3.4
# ASE 3.29 renames the velocity distribution; both names work with what setup.cfg allows
pytestmark = pytest.mark.filterwarnings("ignore:Use thermalize_momenta:DeprecationWarning")
SPACING = 5.26  # Å, lattice constant of solid argon


def crystal(kelvin: float = 40.0, calculator: FastEGNNCalculator | None = None) -> Atoms:
    atoms = bulk("Ar", "fcc", a=SPACING, cubic=True) * 2
    rng = np.random.default_rng(1)
    atoms.rattle(0.02, rng=rng)
    if kelvin:
        MaxwellBoltzmannDistribution(atoms, temperature_K=kelvin, rng=rng)
        Stationary(atoms)
    atoms.calc = calculator or FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 7.0), dtype="float64")
    return atoms


def total_energies(timestep: float, picoseconds: float = 1.0) -> np.ndarray:
    atoms = crystal()
    dynamics = VelocityVerlet(atoms, timestep * units.fs)
    energies = []
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=1)
    dynamics.run(round(1000 * picoseconds / timestep))
    return np.array(energies) / len(atoms)


def test_nve_conserves_energy_and_fluctuates_as_the_square_of_the_timestep():
    coarse, fine = total_energies(8.0), total_energies(4.0)
    assert coarse.std() / fine.std() == pytest.approx(4.0, rel=0.25)
    time = np.linspace(0, 1, len(fine))
    drift = np.polyfit(time, fine, 1)[0]  # eV an atom and picosecond
    assert abs(drift) < 2e-6
    assert fine.std() < 1e-5


def test_the_skin_changes_nothing_but_the_number_of_lists():
    """Hot liquid-like motion with a skin, beside a calculator that makes every list anew."""
    atoms = crystal(kelvin=600.0)
    lazy, fresh = atoms.calc, FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 7.0), dtype="float64", skin=0.0)
    dynamics = VelocityVerlet(atoms, 5 * units.fs)

    def compare():
        again = atoms.copy()
        np.testing.assert_allclose(fresh.get_property("forces", again), atoms.get_forces(), atol=1e-12)
        assert fresh.get_property("energy", again) == pytest.approx(atoms.get_potential_energy(), abs=1e-11)

    dynamics.attach(compare, interval=1)
    dynamics.run(120)
    statistics = lazy.neighbor_statistics
    assert statistics.updates == 121
    assert 2 < statistics.rebuilds < 60  # it was used up several times, and spared most of the work
    assert fresh.neighbor_statistics.rebuilds == 121


def test_the_skin_follows_a_breathing_and_shearing_cell():
    atoms = crystal(kelvin=0)
    lazy, fresh = atoms.calc, FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 7.0), dtype="float64", skin=0.0)
    cell = atoms.cell.array.copy()
    for step in range(40):
        strain = (
            np.array([[0.03, 0.05, 0.0], [0.0, -0.04, 0.0], [0.02, 0.0, 0.06]]) * np.sin(0.2 * step) * 2.5
        )
        atoms.set_cell(cell @ (np.eye(3) + strain), scale_atoms=True)
        for name in ("forces", "stress"):
            np.testing.assert_allclose(
                fresh.get_property(name, atoms.copy()), lazy.get_property(name, atoms), atol=1e-12
            )
    assert 1 < lazy.neighbor_statistics.rebuilds < 40


def test_wrapping_the_atoms_in_the_middle_of_a_run_is_harmless():
    atoms = crystal(kelvin=300.0)
    VelocityVerlet(atoms, 5 * units.fs).run(50)
    before = atoms.get_potential_energy(), atoms.get_forces()
    outside = (atoms.get_scaled_positions(wrap=False) < 0).any()
    atoms.wrap()
    assert outside
    assert atoms.get_potential_energy() == pytest.approx(before[0], abs=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), before[1], atol=1e-12)


THERMOSTATS = {
    "langevin": lambda a: Langevin(
        a, 4 * units.fs, temperature_K=60, friction=0.01 / units.fs, rng=np.random.default_rng(2)
    ),
    "nose-hoover": lambda a: NoseHooverChainNVT(a, 4 * units.fs, temperature_K=60, tdamp=100 * units.fs),
    "mtk-npt": lambda a: IsotropicMTKNPT(
        a, 4 * units.fs, temperature_K=60, pressure_au=0.0, tdamp=100 * units.fs, pdamp=5000 * units.fs
    ),
    "berendsen-npt": lambda a: NPTBerendsen(
        a, 4 * units.fs, temperature_K=60, pressure_au=0.0, compressibility_au=1e-4 / units.bar
    ),
    "melchionna-npt": lambda a: MelchionnaNPT(
        a, 4 * units.fs, temperature_K=60, externalstress=0.0, ttime=100 * units.fs,
        pfactor=0.02 * (500 * units.fs) ** 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(THERMOSTATS))
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_ensembles_of_ase(name):
    atoms = crystal(kelvin=60.0)
    volume = atoms.get_volume()
    THERMOSTATS[name](atoms).run(60)
    assert np.isfinite(atoms.get_potential_energy())
    assert 10 < atoms.get_temperature() < 150
    moved = "npt" in name
    assert (abs(atoms.get_volume() / volume - 1) > 1e-6) == moved
    assert atoms.get_volume() / volume == pytest.approx(1.0, abs=0.1)
    statistics = atoms.calc.neighbor_statistics
    # one pass a step, stress included; Berendsen moves the cell and then the atoms
    assert statistics.updates <= (125 if name == "berendsen-npt" else 63)
    assert statistics.rebuilds < 20


def test_network_runs_a_molecule_and_keeps_its_energy():
    """Strong random weights make a rough landscape; the energy that it conserves is smooth all the same."""
    spreads = []
    for timestep in (0.5, 0.25):
        atoms = molecule("H2O", calculator=FastEGNNCalculator(random_potential(seed=3), dtype="float64"))
        MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=np.random.default_rng(0))
        energies = []
        dynamics = VelocityVerlet(atoms, timestep * units.fs)
        dynamics.attach(lambda e=energies, a=atoms: e.append(a.get_total_energy()), interval=1)
        dynamics.run(round(30 / timestep))
        spreads.append(np.std(energies))
    assert spreads[0] / spreads[1] == pytest.approx(4.0, rel=0.3)


@pytest.mark.parametrize("optimiser", [BFGS, LBFGS, FIRE])
def test_optimisers_find_the_ground_state_of_a_cluster(optimiser):
    """LJ13: the icosahedron, -44.326801 ε (Hoare and Pal 1971)."""
    golden = (1 + 5**0.5) / 2
    corners = [(0, s, t * golden) for s in (1, -1) for t in (1, -1)]
    points = [(0, 0, 0), *[np.roll(c, k) for c in corners for k in range(3)]]
    atoms = Atoms("Ar13", np.array(points, dtype=float) * 0.57 * SIGMA)
    atoms.rattle(0.1, rng=np.random.default_rng(0))
    atoms.calc = FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 40.0), dtype="float64")
    assert optimiser(atoms, logfile=None).run(fmax=1e-5, steps=500)
    assert atoms.get_potential_energy() / EPSILON == pytest.approx(-44.326801, abs=1e-4)


@pytest.mark.parametrize("cell_filter", [FrechetCellFilter, UnitCellFilter])
def test_cell_relaxation_removes_the_stress(cell_filter):
    atoms = bulk("Ar", "fcc", a=5.0, cubic=True)
    atoms.set_cell(atoms.cell.array @ [[1.03, 0.02, 0], [0, 0.98, 0.01], [0, 0, 1.05]], scale_atoms=True)
    atoms.calc = FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 9.0), dtype="float64")
    before = abs(atoms.get_stress()).max()
    assert before > 1e-3
    calls = atoms.calc.neighbor_statistics.updates
    optimiser = BFGS(cell_filter(atoms), logfile=None)
    assert optimiser.run(fmax=1e-5, steps=200)
    after = abs(atoms.get_stress()).max()
    assert after < 1e-6
    # an fcc crystal again: 12 neighbours at one distance
    distances = np.sort((atoms * 3).get_all_distances(mic=True)[0])[1:13]
    assert np.ptp(distances) < 1e-2
    assert atoms.calc.neighbor_statistics.updates - calls <= optimiser.nsteps + 2


def test_pressure_has_the_sign_of_ase():
    atoms = bulk("Ar", "fcc", a=4.8, cubic=True)
    atoms.calc = FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 9.0))
    assert atoms.get_stress()[:3].max() < 0  # compressed
    atoms.set_cell(atoms.cell.array * 1.2, scale_atoms=True)
    assert atoms.get_stress()[:3].min() > 0  # under tension


def test_vibrations_of_a_pair(tmp_path):
    """One frequency: sqrt(k/μ), with the spring's own stiffness faded by the cutoff."""
    stiffness, length, cutoff = 30.0, 1.2, 6.0
    atoms = Atoms("N2", [[0, 0, 0], [length, 0, 0]])
    atoms.calc = FastEGNNCalculator(HarmonicTether(stiffness, length, cutoff), dtype="float64")
    vibrations = Vibrations(atoms, name=str(tmp_path / "vib"), delta=1e-3)
    vibrations.run()
    frequencies = np.sort(abs(vibrations.get_energies()))
    curvature = stiffness * (1 - (length / cutoff) ** 2) ** 3
    expected = units._hbar * np.sqrt(curvature * units._e * 1e20 / (14.007 / 2 * units._amu)) / units._e
    assert frequencies[-1] == pytest.approx(expected, rel=1e-4)
    assert frequencies[:5].max() < 1e-3 * expected


def test_phonons_equal_those_of_ase(tmp_path):
    """A cutoff longer than the supercell, so that images count: the same bands as ASE's Lennard-Jones."""
    bands = {}
    for name, calculator in {
        "ours": FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 6.0, smooth=False), dtype="float64"),
        "ase": AseLennardJones(epsilon=EPSILON, sigma=SIGMA, rc=6.0),
    }.items():
        atoms = bulk("Ar", "fcc", a=SPACING)
        phonons = Phonons(atoms, calculator, supercell=(2, 2, 2), delta=0.01, name=str(tmp_path / name))
        phonons.run()
        phonons.read(acoustic=True)
        path = atoms.cell.bandpath("GXL", npoints=9)
        bands[name] = phonons.get_band_structure(path, verbose=False).energies
    assert bands["ase"].max() > 1e-3
    np.testing.assert_allclose(bands["ours"], bands["ase"], atol=1e-9)
    assert abs(bands["ours"][0, 0]).max() < 1e-6  # acoustic at Γ


def test_float32_is_good_enough_for_dynamics():
    single = crystal(calculator=FastEGNNCalculator(LennardJones(EPSILON, SIGMA, 7.0), dtype="float32"))
    double = crystal()
    for atoms in (single, double):
        VelocityVerlet(atoms, 4 * units.fs).run(100)
    np.testing.assert_allclose(single.positions, double.positions, atol=1e-4)
    assert single.get_total_energy() == pytest.approx(double.get_total_energy(), abs=1e-5)
