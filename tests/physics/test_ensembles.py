"""Averages that statistical mechanics gives exactly, from every ensemble and thermostat that the command offers.

Systems are tiny, so that a wrong count of degrees of freedom is an error of 14 % or more. Error bars are those of
block averages; tolerances are four of them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from rich.console import Console
from scipy.integrate import quad

from egnn_md.errors import ConfigError, InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models import HarmonicTether, LennardJones, evaluate
from egnn_md.models.base import Potential
from egnn_md.neighbors import neighbor_list
from egnn_md.simulation import MDRequest, RunResult, simulate
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.structure import Structure
from egnn_md.units import BAR_PER_EV_PER_CUBIC_ANGSTROM, BOLTZMANN_EV_PER_K

KELVIN, BAR = 60.0, 2000.0
ARGON = LennardJones(0.0104, 3.4, 5.5)
BLOCKS = 12


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def error_bar(values: np.ndarray) -> float:
    """Standard error of the mean from means of blocks."""
    blocks = np.array([part.mean() for part in np.array_split(values, BLOCKS)])
    return float(blocks.std(ddof=1) / np.sqrt(BLOCKS))


def run(folder: Path, model: Potential, structure: Path | None, **changes: Any) -> RunResult:
    values: dict[str, Any] = {
        "structure": None if structure is None else str(structure), "engine": "ase", "ensemble": "nvt",
        "temperature": KELVIN, "pressure": BAR,
        "friction": 5.0, "thermostat_time": 200.0, "dtype": "float64", "minimize": False, "trajectory": "extxyz",
        "checkpoint_interval": 10**6, "check_interval": 100, "output": folder, "seed": 5,
    }  # fmt: skip
    if changes.get("engine") == "openmm":
        values |= {"platform": "Reference", "implementation": "python"}
    return simulate(MDRequest.parse({**values, **changes}), model=model, console=Console(file=io.StringIO()))


def crystal(folder: Path) -> Path:
    """Eight atoms of argon in a rhombohedral cell, near their volume at KELVIN and BAR."""
    path = folder / "argon.extxyz"
    bulk("Ar", "fcc", a=5.15).repeat((2, 2, 2)).write(path)
    return path


def pressure(atoms: Atoms, temperature: float, particles: float) -> float:
    """bar: kinetic part of ``particles`` at ``temperature``, and the virial of the model."""
    x, cell = torch.tensor(atoms.positions), torch.tensor(atoms.cell.array)
    pbc = torch.ones(3, dtype=torch.bool)
    edges, shifts = neighbor_list(x, cell, pbc, ARGON.cutoff)
    graph = ParticleGraph(
        positions=x, species=torch.tensor(atoms.numbers), edge_index=edges, cell_shifts=shifts, cell=cell[None],
        pbc=pbc[None], batch=torch.zeros(len(x), dtype=torch.long),
    )  # fmt: skip
    stress = evaluate(ARGON, graph, stress=True)["stress"][0]
    ideal = particles * BOLTZMANN_EV_PER_K * temperature / atoms.get_volume()
    return (ideal - float(stress.trace()) / 3) * BAR_PER_EV_PER_CUBIC_ANGSTROM


QUICK = [("openmm", "nvt", "nose-hoover")]
SOLIDS = [
    pytest.param(
        engine, ensemble, thermostat, marks=() if (engine, ensemble, thermostat) in QUICK else pytest.mark.slow
    )
    for engine in ("ase", "openmm")
    for ensemble in ("nvt", "npt")
    for thermostat in ("langevin", "nose-hoover")
]


@pytest.mark.parametrize(("engine", "ensemble", "thermostat"), SOLIDS)
def test_kinetic_and_configurational_temperature_and_pressure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str, ensemble: str, thermostat: str
) -> None:
    """⟨2K⟩ = f kT; ⟨-Σ u·F⟩ = (3N - 3) kT for displacements u from the sites of a solid; ⟨P⟩ = the barostat's.

    The second is the hypervirial theorem: it looks at positions alone, so it sees a thermostat that samples
    velocities well and positions badly. The third holds for the instantaneous pressure with the weight
    V^n exp(-pV/kT) if the kinetic part counts n particles: N, or N - 1 where the momentum is conserved and the cell
    moves by it (Martyna, Tobias and Klein, 1994).
    """
    steps, skipped = 4000, 400
    if (engine, ensemble) == ("openmm", "npt"):
        # a cell of eight atoms breathes by 8 % and a Monte Carlo move begins at 1 %: it takes hundreds of them
        monkeypatch.setattr("egnn_md_openmm.engine.BAROSTAT_INTERVAL", 5)
        steps, skipped = 8000, 2000
    result = run(
        tmp_path / "run", ARGON, crystal(tmp_path), engine=engine, ensemble=ensemble, thermostat=thermostat,
        timestep=10.0, steps=steps, frame_interval=5, log_interval=5,
    )  # fmt: skip
    log = read_log(result.run.log)
    settled = log["step"] >= skipped
    kinetic = log["temperature_K"][settled]
    assert error_bar(kinetic) < 0.05 * KELVIN
    assert abs(kinetic.mean() - KELVIN) < 4 * error_bar(kinetic)
    frames = ase.io.read(result.run.path / "trajectory.extxyz", ":")[skipped // 5 :]
    first = ase.io.read(result.run.path / "trajectory.extxyz", 0)
    sites = first.get_scaled_positions(wrap=False)
    configurational = []
    for frame in frames:
        u = frame.positions - sites @ frame.cell.array
        u -= u.mean(axis=0)  # forces add up to nothing, so where the crystal as a whole is does not matter
        work = -np.sum(u * frame.get_forces())
        configurational.append(work / ((3 * len(frame) - 3) * BOLTZMANN_EV_PER_K))
    values = np.array(configurational)
    assert error_bar(values) < 0.05 * KELVIN
    assert abs(values.mean() - KELVIN) < 4 * error_bar(values)
    if ensemble == "npt":
        particles = 7 if (engine, thermostat) == ("ase", "nose-hoover") else 8
        found = np.array([pressure(frame, KELVIN, particles) for frame in frames[::4]])
        assert error_bar(found) < 0.15 * BAR
        assert abs(found.mean() - BAR) < 4 * error_bar(found)


@pytest.mark.parametrize("ensemble", ["nvt", "npt"])
def test_the_chain_conserves_what_it_should(tmp_path: Path, ensemble: str) -> None:
    """Energy with that of chain and cell; a quarter of the fluctuation at half the step (second order)."""
    from ase import units

    from egnn_md_ase import FastEGNNCalculator
    from egnn_md_ase.thermostats import NoseHooverChain, NoseHooverPiston

    spreads = []
    for timestep in (10.0, 5.0):
        atoms = ase.io.read(crystal(tmp_path))
        atoms.rattle(0.15, seed=1)
        atoms.calc = FastEGNNCalculator(ARGON, dtype="float64")
        rng = np.random.default_rng(3)
        momenta = rng.normal(size=(8, 3)) * np.sqrt(atoms.get_masses()[:, None] * units.kB * KELVIN)
        atoms.set_momenta(momenta - momenta.mean(axis=0))
        common: dict[str, Any] = {"temperature_K": KELVIN, "tdamp": 200 * units.fs, "degrees_of_freedom": 21}
        if ensemble == "nvt":
            dynamics: Any = NoseHooverChain(atoms, timestep * units.fs, **common)
        else:
            dynamics = NoseHooverPiston(
                atoms, timestep * units.fs, pressure_au=BAR / BAR_PER_EV_PER_CUBIC_ANGSTROM, pdamp=1000 * units.fs,
                **common,
            )  # fmt: skip
        conserved = []
        for _ in range(round(1500 / timestep)):
            dynamics.step()
            conserved.append(dynamics.get_conserved_energy())
        spreads.append(np.std(conserved))
        assert np.abs(atoms.get_momenta().sum(axis=0)).max() < 1e-9
    assert 3.0 < spreads[0] / spreads[1] < 5.5


SPRING = HarmonicTether(10.0, 1.27, 3.0)  # 17 kT at 300 K before a bond breaks


def dimers(folder: Path, count: int = 8) -> Path:
    """Molecules of HCl that do not feel each other."""
    rng = np.random.default_rng(2)
    atoms = Atoms()
    for index in range(count):
        axis = rng.normal(size=3)
        site = np.array([8.0 * (index % 2), 8.0 * (index // 2 % 2), 8.0 * (index // 4)])
        atoms += Atoms("ClH", [site, site + rng.uniform(1.26, 1.28) * axis / np.linalg.norm(axis)])
    atoms.cell, atoms.pbc = [16, 16, 16], True
    path = folder / "dimers.extxyz"
    atoms.write(path)
    return path


@pytest.mark.parametrize(
    ("engine", "thermostat"),
    [("ase", "langevin"), pytest.param("openmm", "langevin", marks=pytest.mark.slow), ("openmm", "nose-hoover")],
)
def test_rigid_bonds_take_a_degree_of_freedom_each(tmp_path: Path, engine: str, thermostat: str) -> None:
    """Sixteen atoms, eight bonds: 40 degrees of freedom, or 37 with zero momentum, hold the temperature."""
    result = run(
        tmp_path / "run", SPRING, dimers(tmp_path), engine=engine, thermostat=thermostat, constraints="h-bonds",
        temperature=300.0, timestep=4.0, steps=3000, frame_interval=100, log_interval=5, friction=20.0,
        thermostat_time=100.0,
    )  # fmt: skip
    kelvin = read_log(result.run.log)["temperature_K"][60:]
    assert error_bar(kelvin) < 0.04 * 300
    assert abs(kelvin.mean() - 300) < 4 * error_bar(kelvin)
    frames = ase.io.read(result.run.path / "trajectory.extxyz", ":")
    lengths = np.array([[frame.get_distance(2 * i, 2 * i + 1, mic=True) for i in range(8)] for frame in frames])
    start = ase.io.read(tmp_path / "dimers.extxyz")
    expected = np.mean([start.get_distance(2 * i, 2 * i + 1) for i in range(8)])
    np.testing.assert_allclose(lengths, expected, atol=1e-5)


def test_energy_is_conserved_with_rigid_bonds(tmp_path: Path) -> None:
    """Free rotors: the kinetic energy is the whole energy, and constant. Positions of two engines agree."""
    ends = []
    for engine in ("ase", "openmm"):
        result = run(
            tmp_path / engine, SPRING, dimers(tmp_path), engine=engine, ensemble="nve", constraints="h-bonds",
            temperature=300.0, timestep=1.0, steps=200, frame_interval=200, log_interval=5,
        )  # fmt: skip
        log = read_log(result.run.log)
        # of 37 degrees of freedom; velocities of the first step are drawn and then brought onto the constraints
        assert 150 < log["temperature_K"][0] < 500
        # what is left is the constraints' tolerance: 1e-6 in OpenMM, 1e-10 in ASE (1.5e-8 and 0 were seen)
        assert np.ptp(log["total_eV"]) < 1e-6 * log["kinetic_eV"][0], engine
        ends.append(ase.io.read(result.run.final_extxyz).positions)
    # several Å of flight and turns, each step within the tolerances
    assert np.abs(ends[0] - ase.io.read(tmp_path / "dimers.extxyz").positions).max() > 1.0
    np.testing.assert_allclose(ends[1], ends[0], atol=1e-5)


def mean_energy(kelvin: float) -> float:
    """eV a bond: ∫ U r² exp(-U/kT) dr / ∫ r² exp(-U/kT) dr."""

    def energy(r: float) -> float:
        return 0.5 * SPRING.stiffness * (r - SPRING.length) ** 2 * (1 - (r / SPRING.cutoff) ** 2) ** 3

    def weight(r: float) -> float:
        return r * r * float(np.exp(-energy(r) / (BOLTZMANN_EV_PER_K * kelvin)))

    top = quad(lambda r: energy(r) * weight(r), 0.7, 2.0)[0]
    return float(top / quad(weight, 0.7, 2.0)[0])


@pytest.mark.parametrize("engine", [pytest.param("ase", marks=pytest.mark.slow), "openmm"])
def test_heavy_hydrogens_leave_averages_as_they_are(tmp_path: Path, engine: str) -> None:
    """The mean energy of a bond does not know masses; the error of an integrator does, by the frequency squared."""
    path = dimers(tmp_path)
    plain = Structure.load(run(tmp_path / "light", SPRING, path, steps=1, timestep=1.0).run.structure)
    nve = {"ensemble": "nve", "timestep": 2.0, "steps": 300, "log_interval": 1, "frame_interval": 300}
    spreads = [
        read_log(
            run(tmp_path / f"nve{m}", SPRING, path, engine=engine, hydrogen_mass=m, temperature=300.0, **nve).run.log
        )
        for m in (None, 3.0)
    ]
    result = run(
        tmp_path / "heavy", SPRING, path, engine=engine, hydrogen_mass=3.0, temperature=300.0, timestep=3.0,
        steps=6000, log_interval=5, frame_interval=6000, friction=10.0,
    )  # fmt: skip
    heavy = Structure.load(result.run.structure)
    assert heavy.masses.sum() == pytest.approx(plain.masses.sum(), abs=1e-9)
    np.testing.assert_allclose(heavy.masses[1::2], 3.0)
    bond = read_log(result.run.log)["potential_eV"][60:] / 8
    assert error_bar(bond) < 0.08 * mean_energy(300.0)
    assert abs(bond.mean() - mean_energy(300.0)) < 4 * error_bar(bond)
    reduced = [m[0] * m[1] / (m[0] + m[1]) for m in (plain.masses, heavy.masses)]
    faster = spreads[0]["total_eV"].std() / spreads[1]["total_eV"].std()
    # 2.7; the scatter of eight oscillators over 600 fs depends on their phases by some tenths, no change would be 1
    assert faster == pytest.approx(reduced[1] / reduced[0], rel=0.35)


def test_what_cannot_be_is_refused(tmp_path: Path) -> None:
    path = dimers(tmp_path)
    with pytest.raises(ConfigError, match="--constraints with --engine ase goes with nve, or nvt"):
        run(tmp_path / "a", SPRING, path, ensemble="npt", constraints="h-bonds", steps=1)
    with pytest.raises(ConfigError, match="--thermostat nose-hoover does not go with --ensemble nve"):
        run(tmp_path / "a", SPRING, path, ensemble="nve", thermostat="nose-hoover", steps=1)
    with pytest.raises(ConfigError, match=r"--thermostat-time 5 is shorter than ten time steps \(1 fs each\)"):
        run(tmp_path / "a", SPRING, path, thermostat="nose-hoover", thermostat_time=5.0, timestep=1.0, steps=1)
    with pytest.raises(InputError, match="--constraints h-bonds: Ar8 has no bond to a hydrogen"):
        run(tmp_path / "a", ARGON, crystal(tmp_path), constraints="h-bonds", steps=1)
    with pytest.raises(InputError, match="--hydrogen-mass 3: Ar8 has no hydrogen bonded"):
        run(tmp_path / "a", ARGON, crystal(tmp_path), hydrogen_mass=3.0, steps=1)
    Atoms("CH4", [[0, 0, 0], [0.63] * 3, [-0.63, -0.63, 0.63], [0.63, -0.63, -0.63], [-0.63, 0.63, -0.63]]).write(
        tmp_path / "methane.xyz"
    )
    with pytest.raises(InputError, match=r"--hydrogen-mass 3.5 would leave atom 0 \(C\) with 2.0\d\d u"):
        run(tmp_path / "a", SPRING, tmp_path / "methane.xyz", hydrogen_mass=3.5, steps=1)
    assert not (tmp_path / "a").exists()


def test_a_run_that_goes_on_with_other_masses_keeps_its_temperature(tmp_path: Path) -> None:
    """Each atom keeps its kinetic energy; the total momentum stays zero."""
    run(tmp_path / "light", SPRING, dimers(tmp_path), ensemble="nve", temperature=300.0, timestep=0.5, steps=20)
    more = {"continue_from": tmp_path / "light", "hydrogen_mass": 3.0}
    run(tmp_path / "heavy", SPRING, None, ensemble="nve", temperature=300.0, timestep=0.5, steps=1, **more)
    kelvin = [read_log(tmp_path / n / "log.csv")["temperature_K"] for n in ("light", "heavy")]
    assert kelvin[1][0] == pytest.approx(kelvin[0][-1], rel=0.05)
