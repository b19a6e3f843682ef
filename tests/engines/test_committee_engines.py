"""A committee wherever a potential goes: ASE, TorchForce, PythonForce, XML; and its spread in each."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet
from openmm_cases import (
    BOXES,
    assert_same,
    eager,
    energy_and_forces,
    make_context,
    network,
    topology,
    water_positions,
    water_topology,
)

from egnn_md import evaluate_spread, make_committee, save_model
from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import InputError, SimulationError
from egnn_md.models import CommitteePotential
from egnn_md.models.base import Potential
from egnn_md.testing import random_potential
from egnn_md_ase import FastEGNNCalculator

NUMBERS = [8, 1, 1] * 4


def committee(dtype: str = "float64") -> CommitteePotential:
    return make_committee([network(dtype, seed=seed) for seed in (0, 1, 2)])


def water(box: np.ndarray | None = None) -> Atoms:
    atoms = Atoms(numbers=NUMBERS, positions=water_positions(4, box) * 10)
    if box is not None:
        atoms.cell, atoms.pbc = box * 10, True
    return atoms


@pytest.mark.parametrize(
    ("box", "implementation", "dtype"),
    [("open", "torch", "float32"), ("triclinic", "torch", "float64"), ("triclinic", "python", "float32")],
)
def test_openmm_gives_the_mean(box: str, implementation: str, dtype: str):
    pytest.importorskip("openmm")
    from egnn_md_openmm import CommitteeSpread, create_system

    cell, model = BOXES[box], committee(dtype)
    positions = water_positions(4, cell)
    expected = eager(model, NUMBERS, positions, cell, dtype)
    single = [eager(member, NUMBERS, positions, cell, dtype) for member in model.members]
    assert expected[0] == pytest.approx(np.mean([energy for energy, _ in single]), rel=1e-6)
    system = create_system(water_topology(4, cell), model, implementation=implementation, dtype=dtype)
    context = make_context(system, positions)
    assert_same(energy_and_forces(context), expected, dtype, f"{box} {implementation}")
    spread = CommitteeSpread(water_topology(4, cell), model, dtype=dtype)(context)
    forces = np.array([f for _, f in single]) / (96.48533212331 * 10)
    by_hand = np.sqrt(((forces - forces.mean(0)) ** 2).sum(-1).mean(0))
    np.testing.assert_allclose(spread.force_std, by_hand, rtol=1e-3 if dtype == "float32" else 1e-8)


@pytest.mark.parametrize("order", [(3.0, 5.0), (5.0, 3.0)])
def test_members_of_different_cutoffs_are_all_given_their_pairs(order: tuple[float, float]):
    """Also where the member that drives sees less far than another: one neighbour list serves all."""
    sizes = {"hidden": 8, "layers": 1, "elements": [1, 8]}
    model = make_committee([random_potential(seed=k, cutoff=reach, **sizes) for k, reach in enumerate(order)])
    atoms = water()
    expected = evaluate_spread(model, graph_from_atoms(atoms, 5.0, dtype=model.dtype))
    assert float(expected.force_std.max()) > 1e-3
    for drive in ("mean", "first"):
        atoms.calc = FastEGNNCalculator(model, dtype="float64", drive=drive, skin=0.0)
        found = atoms.calc.get_property("force_std", atoms)
        np.testing.assert_allclose(found, expected.force_std.numpy(), rtol=1e-8, err_msg=drive)
        forces = expected.forces if drive == "mean" else expected.member_forces[0]
        np.testing.assert_allclose(atoms.get_forces(), forces.numpy(), rtol=1e-8, atol=1e-10, err_msg=drive)


READ = """
import sys, numpy as np, openmm
from egnn_md_openmm import load_system
context = openmm.Context(load_system(sys.argv[1]), openmm.VerletIntegrator(0.001),
                         openmm.Platform.getPlatformByName("Reference"))
context.setPositions(np.load(sys.argv[2]))
print(repr(context.getState(energy=True).getPotentialEnergy()._value))
"""


def test_a_serialised_system_carries_all_members(tmp_path: Path):
    openmm = pytest.importorskip("openmm")
    from egnn_md_openmm import create_system

    positions = water_positions(4, None)
    np.save(tmp_path / "positions.npy", positions)
    system = create_system(water_topology(4, None), committee(), implementation="python", dtype="float64")
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    expected = energy_and_forces(make_context(system, positions))[0]
    command = [sys.executable, "-c", READ, str(tmp_path / "system.xml"), str(tmp_path / "positions.npy")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(expected, rel=1e-12)


def test_a_molecule_that_the_box_has_cut_is_whole_for_the_spread():
    openmm = pytest.importorskip("openmm")
    from egnn_md_openmm import CommitteeSpread

    box = np.eye(3) * 2.0
    where = topology(["O", "H", "H", "Ar"], box, per_residue=3, bonded=True)
    positions = np.concatenate([water_positions(1, None), [[1.0, 1.0, 1.0]]])
    system = openmm.System()
    for _ in range(4):
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors(*box)
    cut = positions.copy()
    cut[1] += [2.0, 0, 0]  # of a file that was wrapped atom by atom
    cut[2] -= [0, 2.0, 2.0]
    alone = Atoms("OH2", positions[:3] * 10)
    expected = evaluate_spread(committee(), graph_from_atoms(alone, committee().cutoff, dtype=committee().dtype))
    found = CommitteeSpread(where, committee(), atoms=[0, 1, 2], dtype="float64", molecule=True)(
        make_context(system, cut)
    )
    np.testing.assert_allclose(found.force_std, expected.force_std, rtol=1e-9)
    torn = CommitteeSpread(where, committee(), atoms=[0, 1, 2], dtype="float64", periodic=False)
    assert not np.allclose(torn(make_context(system, cut)).force_std, expected.force_std, rtol=0.1)
    with pytest.raises(InputError, match="molecule=True means a molecule without images"):
        CommitteeSpread(where, committee(), atoms=[0, 1, 2], periodic=True, molecule=True)
    with pytest.raises(InputError, match="bonds do not connect the 4 atoms"):
        CommitteeSpread(where, make_committee(argon_members()), molecule=True)


def argon_members() -> list[Potential]:
    return [random_potential(seed=seed, hidden=8, layers=1, elements=[1, 8, 18]) for seed in (0, 1)]


def test_the_spread_of_some_atoms_names_particles_of_the_system():
    pytest.importorskip("openmm")
    from egnn_md_openmm import CommitteeSpread

    model = committee()
    mixed = topology(["Ar", "O", "H", "H", "Ar"], None)
    positions = np.concatenate([[[3.0, 3, 3]], water_positions(1, None), [[-3.0, 3, 3]]])
    import openmm

    system = openmm.System()
    for _ in range(5):
        system.addParticle(1.0)
    evaluate = CommitteeSpread(mixed, model, atoms=[3, 1, 2], dtype="float64")
    state = make_context(system, positions).getState(positions=True)
    found = evaluate(state)
    particle, symbol, value = evaluate.worst(found)
    place, expected = found.worst()
    assert (particle, symbol, value) == ([3, 1, 2][place], ["H", "O", "H"][place], expected)
    bare = Atoms("HOH", positions[[3, 1, 2]] * 10)
    again = evaluate_spread(model, graph_from_atoms(bare, model.cutoff, dtype=model.dtype))
    np.testing.assert_allclose(found.force_std, again.force_std, rtol=1e-9)
    with pytest.raises(InputError, match="the state holds no positions"):
        evaluate(make_context(system, positions).getState(energy=True))
    with pytest.raises(InputError, match="has no spread"):
        CommitteeSpread(water_topology(1, None), network())


def test_the_reporter_writes_and_stops(tmp_path: Path):
    pytest.importorskip("openmm")
    from openmm import LangevinMiddleIntegrator, Platform, app

    from egnn_md_openmm import CommitteeSpread, UncertaintyReporter, create_system

    model, positions, top = committee("float32"), water_positions(4, None), water_topology(4, None)
    system = create_system(top, model, implementation="python")
    integrator = LangevinMiddleIntegrator(300, 1, 0.0001)
    simulation = app.Simulation(top, system, integrator, Platform.getPlatformByName("Reference"))
    simulation.context.setPositions(positions)
    spread = CommitteeSpread(top, model)
    reporter = UncertaintyReporter(tmp_path / "spread.csv", 3, spread)
    simulation.reporters.append(reporter)
    simulation.step(7)
    reporter.close()
    rows = [line.split(",") for line in (tmp_path / "spread.csv").read_text().splitlines()]
    assert rows[0] == ["step", "time_ps", "energy_std_eV", "max_force_std_eV_A", "atom", "element"]
    assert [int(row[0]) for row in rows[1:]] == [3, 6]
    particle, symbol, value = spread.worst(spread(simulation.context))
    simulation.reporters[:] = [UncertaintyReporter(tmp_path / "spread.csv", 2, spread, max_uncertainty=0.5 * value,
                                                   append=True)]  # fmt: skip
    with pytest.raises(SimulationError, match=r"atom \d+ \([OH]\) at step 8 \(max_uncertainty"):
        simulation.step(5)
    assert len((tmp_path / "spread.csv").read_text().splitlines()) == 4
    assert symbol in "OH"
    assert particle < 12


@pytest.mark.parametrize("box", ["open", "triclinic"])
def test_ase_has_the_spread_in_its_results(box: str):
    model, atoms = committee(), water(BOXES[box])
    atoms.calc = FastEGNNCalculator(model, dtype="float64")
    expected = evaluate_spread(model, graph_from_atoms(atoms, model.cutoff, dtype=model.dtype), stress=True)
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-9)
    assert atoms.get_potential_energy() == pytest.approx(float(expected.energy[0]), rel=1e-12)
    assert atoms.calc.results["energy_std"] == pytest.approx(float(expected.energy_std[0]), rel=1e-8)
    assert atoms.calc.results["energy_std_per_atom"] == pytest.approx(float(expected.energy_std[0]) / 12, rel=1e-8)
    np.testing.assert_allclose(atoms.calc.results["force_std"], expected.force_std, rtol=1e-7)
    if BOXES[box] is not None:
        stress = expected.stress[0].numpy()[[0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]]
        np.testing.assert_allclose(atoms.get_stress(), stress, rtol=1e-7, atol=1e-10)


def test_ase_computes_the_spread_when_asked_and_leaves_forces_alone():
    model, atoms = committee("float32"), water()
    calculator = FastEGNNCalculator(model, uncertainty_interval=0)
    atoms.calc = calculator
    forces, energy = atoms.get_forces(), atoms.get_potential_energy()
    assert "force_std" not in calculator.results
    spread = calculator.get_property("force_std", atoms)
    assert spread.shape == (12,)
    assert "energy_std" in calculator.results
    assert np.array_equal(atoms.get_forces(), forces)
    assert atoms.get_potential_energy() == energy
    atoms.rattle(0.01, seed=1)
    assert not np.array_equal(calculator.get_property("force_std", atoms), spread)
    with pytest.raises(Exception, match="force_std"):
        FastEGNNCalculator(network()).get_property("force_std", water())


def test_ase_counts_evaluations_between_looks():
    model, atoms = committee("float32"), water()
    calculator = FastEGNNCalculator(model, drive="first", uncertainty_interval=3)
    atoms.calc = calculator
    there = []
    dynamics = VelocityVerlet(atoms, 0.1 * units.fs)
    dynamics.attach(lambda: there.append("force_std" in calculator.results))
    dynamics.run(6)
    assert there == [True, False, False, True, False, False, True]
    alone = water()
    alone.calc = FastEGNNCalculator(model.members[0])
    np.testing.assert_array_equal(alone.get_forces(), FastEGNNCalculator(model, drive="first").get_forces(water()))
    atoms = water()
    atoms.calc = FastEGNNCalculator(model, drive="first", uncertainty_interval=1)
    single = alone.get_potential_energy()
    assert atoms.get_potential_energy() == single
    everyone = FastEGNNCalculator(model).get_property("force_std", water())
    np.testing.assert_allclose(atoms.calc.results["force_std"], everyone, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"drive": "last"}, "drive must be one of mean, first, not 'last'"),
        ({"uncertainty_interval": -1}, "uncertainty_interval must not be negative"),
    ],
)
def test_ase_refuses_impossible_options(options, message: str):
    with pytest.raises(InputError, match=message):
        FastEGNNCalculator(committee(), **options)
    with pytest.raises(InputError, match="has no spread: only a committee has one"):
        FastEGNNCalculator(network(), drive="first")


def test_a_file_name_is_enough(tmp_path: Path):
    path = save_model(committee("float32"), tmp_path / "committee.safetensors")
    atoms = water()
    atoms.calc = FastEGNNCalculator(str(path))
    assert np.isfinite(atoms.get_potential_energy())
    assert atoms.calc.card.name.startswith("committee of 3")
    assert FastEGNNCalculator(str(path), drive="first").card.name.startswith("committee of 3")
