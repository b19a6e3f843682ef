"""Plain, ASE and OpenMM rollouts give the same positions; observers, reporters, checkpoints and edits work."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ase.io
import mdtraj
import numpy as np
import openmm
import pytest
import torch
from ase import Atoms, units
from ase.calculators.lj import LennardJones
from ase.constraints import FixAtoms
from ase.io.trajectory import Trajectory
from ase.md.logger import MDLogger
from openmm import app, unit
from rollout_cases import WORLDS, Breaking, model_config, propagator, world

from egnn_md.errors import InputError
from egnn_md.rollout import RolloutError, Stepper, rollout
from egnn_md.rollout.topology import to_atoms
from egnn_md.rollout.units import engine_units
from egnn_md_ase import PropagatorDynamics
from egnn_md_openmm import PropagatorSimulation

ROUNDING = 1e-14  # relative: one conversion of units
STEPS = 6


def atoms_of(name: str, **changes: Any) -> Atoms:
    """ASE atoms of that world's start, with momenta."""
    state, factors = world(name), engine_units(model_config(name))
    atoms = to_atoms(state, factors)
    atoms.set_velocities(state.velocities / units.fs * factors.velocity)
    return atoms


def simulation_of(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> PropagatorSimulation:
    """OpenMM simulation from that world's exact start."""
    return PropagatorSimulation.from_stepper(Stepper(propagator(name, dtype), world(name)), **options)


def nanometers(simulation: PropagatorSimulation) -> np.ndarray:
    """(N, 3) positions of the context."""
    state = simulation.context.getState(positions=True)
    return state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)


class Collect:
    """An OpenMM reporter that keeps states."""

    def __init__(self, every: int) -> None:
        self.every, self.states = every, []

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802 - OpenMM's name
        steps = self.every - simulation.currentStep % self.every
        return {"steps": steps, "periodic": None, "include": ["positions", "velocities"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        self.states.append(state)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_all_engines_give_the_same_rollout(name: str, dtype: torch.dtype):
    plain = rollout(propagator(name, dtype), world(name), STEPS)
    assert plain.failure is None
    seen: list[tuple[np.ndarray, np.ndarray, float]] = []
    atoms = atoms_of(name)
    state = world(name)
    stepper = Stepper(propagator(name, dtype), state)
    dynamics = PropagatorDynamics(atoms, stepper.model, stepper=stepper)

    def look() -> None:
        seen.append((atoms.get_positions(), atoms.get_velocities() * units.fs, dynamics.get_time() / units.fs))

    dynamics.attach(look, interval=2)
    dynamics.run(STEPS)
    simulation = simulation_of(name, dtype)
    reporter = Collect(2)
    simulation.reporters.append(reporter)
    simulation.step(STEPS)
    assert (stepper.states[0].positions == plain.final.positions).all()
    assert (simulation.stepper.states[0].positions == plain.final.positions).all()
    assert (simulation.stepper.states[0].velocities == plain.final.velocities).all()
    assert len(seen) == 4
    for k, (positions, velocities, time) in enumerate(seen):
        assert (positions == plain.positions[2 * k]).all()  # model lengths are Å in every world
        np.testing.assert_allclose(velocities, plain.velocities[2 * k], rtol=ROUNDING, atol=1e-16)
        assert time == pytest.approx(plain.times[2 * k], rel=ROUNDING)
    assert len(reporter.states) == 3
    for k, found in enumerate(reporter.states, start=1):
        np.testing.assert_allclose(
            found.getPositions(asNumpy=True).value_in_unit(unit.angstrom), plain.positions[2 * k], rtol=ROUNDING
        )
        np.testing.assert_allclose(
            found.getVelocities(asNumpy=True).value_in_unit(unit.angstrom / unit.femtosecond),
            plain.velocities[2 * k],
            rtol=ROUNDING,
            atol=1e-16,
        )
        assert found.getTime().value_in_unit(unit.femtosecond) == pytest.approx(plain.times[2 * k], rel=ROUNDING)
        assert found.getStepCount() == 2 * k


def test_atoms_and_topologies_of_the_user_start_the_same_rollout():
    model, start = propagator("molecules"), world("molecules")
    plain = rollout(model, start, STEPS)
    atoms = atoms_of("molecules")
    before = atoms.get_positions(), atoms.get_momenta()
    dynamics = PropagatorDynamics(atoms, model)
    assert (atoms.get_positions() == before[0]).all()
    assert (atoms.get_momenta() == before[1]).all()
    dynamics.run(STEPS)
    np.testing.assert_allclose(atoms.positions, plain.positions[-1], rtol=0, atol=1e-10)
    topology = app.Topology()
    residue = topology.addResidue("UNK", topology.addChain())
    for number in start.species.tolist():
        topology.addAtom("A", app.Element.getByAtomicNumber(number), residue)
    topology.setPeriodicBoxVectors(start.cell * 0.1 * unit.nanometer)
    speed = unit.angstrom / unit.femtosecond
    simulation = PropagatorSimulation(topology, model, start.positions * unit.angstrom, start.velocities * speed)
    simulation.step(STEPS)
    np.testing.assert_allclose(10 * nanometers(simulation), plain.positions[-1], rtol=0, atol=1e-10)
    numbers = PropagatorSimulation(topology, model, start.positions * 0.1, start.velocities * 100.0)
    numbers.step(STEPS)
    np.testing.assert_allclose(nanometers(numbers), nanometers(simulation), rtol=0, atol=1e-11)
    found = simulation.context.getState(energy=True)
    masses = atoms.get_masses()[:, None] * unit.dalton
    expected = 0.5 * (masses * (plain.velocities[-1] * speed) ** 2).sum()
    assert found.getKineticEnergy() / expected == pytest.approx(1.0, rel=1e-9)
    assert found.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole) == 0.0


def test_models_in_other_units_are_converted_at_the_edge():
    start = world("molecules")
    small = start.replace(positions=start.positions / 10, velocities=start.velocities * 100, cell=start.cell / 10)
    nm = {"length": "nanometer", "time": "picosecond"}
    changes = {"units": nm, "cutoff": 0.3, "frame_interval": 0.002, "stride": 0.004, "length_scale": 0.1}
    model = propagator("molecules", **changes)
    plain = rollout(model, small, STEPS)
    expected = rollout(propagator("molecules"), start, STEPS)
    np.testing.assert_allclose(10 * plain.positions, expected.positions, atol=1e-9)
    atoms = atoms_of("molecules")
    dynamics = PropagatorDynamics(atoms, model)
    dynamics.run(STEPS)
    np.testing.assert_allclose(atoms.positions, 10 * plain.positions[-1], rtol=0, atol=1e-9)
    assert dynamics.get_time() / units.fs == pytest.approx(1000 * plain.times[-1])
    simulation = PropagatorSimulation.from_stepper(Stepper(model, small))
    simulation.step(STEPS)
    np.testing.assert_allclose(nanometers(simulation), plain.positions[-1], rtol=ROUNDING)
    wide = PropagatorSimulation.from_stepper(Stepper(propagator("charges"), world("charges")), unit_length=40.0)
    wide.step(2)
    expected = rollout(propagator("charges"), world("charges"), 2).positions[-1]
    np.testing.assert_allclose(nanometers(wide), 4 * expected, rtol=ROUNDING)
    with pytest.raises(InputError, match="unit_length is for models without units"):
        PropagatorDynamics(atoms_of("molecules"), propagator("molecules"), unit_length=2.0)


def test_ase_loggers_and_trajectories(tmp_path: Path):
    atoms = atoms_of("molecules")
    log = io.StringIO()
    path = tmp_path / "run.traj"
    dynamics = PropagatorDynamics(atoms, propagator("molecules"), trajectory=str(path), logfile=log, loginterval=3)
    dynamics.attach(MDLogger(dynamics, atoms, str(tmp_path / "md.log"), peratom=True), interval=2)
    dynamics.run(STEPS)
    dynamics.close()
    frames = Trajectory(str(path))
    assert len(frames) == 3
    assert (frames[-1].positions == atoms.positions).all()
    np.testing.assert_allclose(frames[-1].get_velocities(), atoms.get_velocities(), rtol=ROUNDING)
    assert frames[-1].calc is None or not frames[-1].calc.results
    rows = [line.split() for line in log.getvalue().splitlines()[1:]]
    assert [float(row[0]) for row in rows] == [0.0, 0.012, 0.024]
    assert float(rows[-1][3]) == pytest.approx(atoms.get_kinetic_energy(), abs=1e-3)
    assert rows[-1][1] == rows[-1][2] == "nan"
    assert len((tmp_path / "md.log").read_text().splitlines()) == 5
    # the rest of the way from the file: doubles survive, velocities to rounding
    again = PropagatorDynamics(frames[1], propagator("molecules"))
    again.run(3)
    np.testing.assert_allclose(again.atoms.positions, atoms.positions, rtol=0, atol=1e-11)


def test_a_calculator_of_the_users_stays_and_reports():
    atoms = atoms_of("molecules")
    atoms.calc = LennardJones(epsilon=1e-6, rc=3.0)
    log = io.StringIO()
    PropagatorDynamics(atoms, propagator("molecules"), logfile=log).run(2)
    assert "nan" not in log.getvalue()
    start = PropagatorDynamics(atoms_of("molecules"), propagator("molecules")).stepper.states[0]
    assert (atoms.positions == rollout(propagator("molecules"), start, 2).positions[-1]).all()


def test_changes_of_the_user_count_in_ase():
    model = propagator("molecules")
    atoms = atoms_of("molecules")
    dynamics = PropagatorDynamics(atoms, model)
    dynamics.run(2)
    before = dynamics.stepper.states[0]
    atoms.positions[4] += [0.1, 0.0, 0.2]
    momenta = atoms.get_momenta()
    momenta[7] = 0.0
    atoms.set_momenta(momenta)
    atoms.set_cell(1.01 * atoms.cell.array)
    dynamics.run(1)
    positions, velocities = before.positions.copy(), before.velocities.copy()
    positions[4] += [0.1, 0.0, 0.2]
    velocities[7] = 0.0
    edited = before.replace(positions=positions, velocities=velocities, cell=1.01 * before.cell)
    expected = rollout(model, edited, 1)
    assert (atoms.positions == expected.positions[1]).all()
    assert not (atoms.positions == rollout(model, before, 1).positions[1]).all()
    atoms.positions[2] = np.nan
    with pytest.raises(InputError, match=r"row 2 is \[nan, nan, nan\], not finite"):
        dynamics.run(1)


def test_constraints_hold_in_ase():
    atoms = atoms_of("molecules")
    atoms.set_constraint(FixAtoms([3, 5]))
    fixed = atoms.positions[[3, 5]].copy()
    dynamics = PropagatorDynamics(atoms, propagator("molecules"))
    dynamics.run(3)
    assert (atoms.positions[[3, 5]] == fixed).all()
    assert (dynamics.stepper.states[0].positions[[3, 5]] == fixed).all()
    assert (atoms.get_momenta()[[3, 5]] == 0).all()


def test_atoms_without_what_the_model_needs_are_refused(tmp_path: Path):
    state = world("molecules")
    bare = Atoms(numbers=state.species, positions=state.positions, cell=state.cell, pbc=True)
    with pytest.raises(InputError, match="no velocities, but the propagator of 'molecules' takes true ones"):
        PropagatorDynamics(bare, propagator("molecules"))
    foreign = atoms_of("molecules")
    foreign.numbers[3] = 6
    with pytest.raises(InputError, match=r"particle 3 of .* has type 6, but the propagator .* knows \[1, 8\]"):
        PropagatorDynamics(foreign, propagator("molecules"))
    with pytest.raises(InputError, match="PropagatorDynamics needs one system of the same size"):
        PropagatorDynamics(bare[:3], propagator("molecules"), stepper=Stepper(propagator("molecules"), state))
    # extended XYZ brings velocities as an array
    bare.set_array("velocities", state.velocities)
    ase.io.write(tmp_path / "start.extxyz", bare)
    atoms = ase.io.read(tmp_path / "start.extxyz")
    PropagatorDynamics(atoms, propagator("molecules")).run(2)
    assert "velocities" not in atoms.arrays
    expected = rollout(propagator("molecules"), state, 2).positions[-1]
    np.testing.assert_allclose(atoms.positions, expected, rtol=0, atol=1e-6)  # ASE writes eight decimals


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_a_failure_leaves_the_last_good_state_and_names_it(engine: str):
    config = model_config("charges")
    start = world("charges")
    start = start.replace(velocities=np.tile([0.2, 0.0, 0.0], (30, 1)))
    model = Breaking(config, 3, float(start.positions[3, 0]) + 0.35)
    good = rollout(model, start, 10)
    assert good.failure.step == 5
    stepper = Stepper(model, start)
    if engine == "ase":
        atoms = to_atoms(start, engine_units(config))
        run: Any = PropagatorDynamics(atoms, model, stepper=stepper).run
    else:
        simulation = PropagatorSimulation.from_stepper(stepper)
        run = simulation.step
    with pytest.raises(RolloutError, match=r"particle 3 .* at step 5; last good frame: step 4. The .* step 4"):
        run(10)
    now = atoms.positions if engine == "ase" else 10 * nanometers(simulation)
    np.testing.assert_allclose(now, good.positions[-1], rtol=ROUNDING)
    assert (stepper.states[0].positions == good.positions[-1]).all()
    if engine == "openmm":
        assert simulation.currentStep == 4


def test_openmm_reporters_write_files_that_mdtraj_reads(tmp_path: Path):
    simulation = simulation_of("molecules")
    plain = rollout(propagator("molecules"), world("molecules"), STEPS)
    app.PDBFile.writeFile(simulation.topology, nanometers(simulation), str(tmp_path / "top.pdb"))
    text = io.StringIO()
    simulation.reporters += [
        app.DCDReporter(str(tmp_path / "run.dcd"), 2),
        app.XTCReporter(str(tmp_path / "run.xtc"), 2),
        app.PDBReporter(str(tmp_path / "run.pdb"), 3),
        app.StateDataReporter(text, 2, True, True, potentialEnergy=True, kineticEnergy=True, temperature=True),
    ]
    simulation.step(STEPS)
    simulation.reporters.clear()
    for name, tolerance in (("run.dcd", 1e-5), ("run.xtc", 0.0051)):
        loaded = mdtraj.load(str(tmp_path / name), top=str(tmp_path / "top.pdb"))
        np.testing.assert_allclose(10 * loaded.xyz, plain.positions[2::2], rtol=0, atol=tolerance)
        np.testing.assert_allclose(10 * loaded.unitcell_vectors[0], world("molecules").cell, atol=1e-4)
    assert mdtraj.load(str(tmp_path / "run.pdb")).n_frames == 2
    rows = [line.split(",") for line in text.getvalue().splitlines()[1:]]
    assert [int(row[0]) for row in rows] == [2, 4, 6]
    np.testing.assert_allclose([float(row[1]) for row in rows], [0.008, 0.016, 0.024])
    assert [float(row[2]) for row in rows] == [0.0] * 3
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("how", ["checkpoint", "state", "fresh"])
def test_openmm_checkpoints_and_states_continue_identically(tmp_path: Path, name: str, how: str):
    simulation = simulation_of(name)
    simulation.reporters.append(app.CheckpointReporter(str(tmp_path / "every.chk"), 3))
    simulation.step(3)
    simulation.saveCheckpoint(str(tmp_path / "saved.chk"))
    simulation.saveState(str(tmp_path / "saved.xml"))
    simulation.reporters.clear()
    simulation.step(3)
    expected = simulation.stepper.states[0]
    if how == "fresh":
        start = world(name)
        elsewhere = start.replace(positions=start.positions + 0.1, velocities=0.5 * start.velocities, start_time=7.0)
        simulation = PropagatorSimulation.from_stepper(Stepper(propagator(name), elsewhere))
        simulation.loadCheckpoint(str(tmp_path / "every.chk"))
    elif how == "checkpoint":
        simulation.loadCheckpoint(str(tmp_path / "saved.chk"))
    else:
        simulation.loadState(str(tmp_path / "saved.xml"))
    assert simulation.currentStep == 3
    simulation.step(3)
    found = simulation.stepper.states[0]
    assert (found.positions == expected.positions).all()
    assert (found.velocities == expected.velocities).all()
    assert (found.step, found.start_time) == (6, expected.start_time)


def test_changes_of_the_user_count_in_openmm():
    model = propagator("molecules")
    simulation = simulation_of("molecules")
    simulation.step(2)
    before = simulation.stepper.states[0]
    moved = nanometers(simulation)
    moved[4] += [0.01, 0.0, 0.02]
    simulation.context.setPositions(moved)
    state = simulation.context.getState(velocities=True)
    speeds = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
    speeds[7] = 0.0
    simulation.context.setVelocities(speeds)
    simulation.context.setPeriodicBoxVectors(*(openmm.Vec3(*row) for row in (0.101 * before.cell).tolist()))
    simulation.currentStep = 0
    simulation.context.setTime(1.0)
    simulation.step(1)
    positions, velocities = before.positions.copy(), before.velocities.copy()
    positions[4], velocities[7] = moved[4] / 0.1, 0.0
    edited = before.replace(positions=positions, velocities=velocities, cell=0.101 * before.cell / 0.1)
    expected = rollout(model, edited, 1)
    found = simulation.stepper.states[0]
    np.testing.assert_allclose(found.positions, expected.positions[1], rtol=0, atol=1e-13)
    untouched = np.delete(np.arange(30), [4])
    assert not (found.positions[untouched] == rollout(model, before, 1).positions[1][untouched]).all()
    assert simulation.currentStep == 1
    assert simulation.context.getTime().value_in_unit(unit.femtosecond) == pytest.approx(1004.0)
    moved[2] = np.nan
    simulation.context.setPositions(moved)
    with pytest.raises(InputError, match=r"row 2 is \[nan, nan, nan\], not finite"):
        simulation.step(1)


def test_other_platforms_do_not_round_what_the_model_sees():
    simulation = simulation_of("molecules", platform="CPU")
    simulation.step(STEPS)
    plain = rollout(propagator("molecules"), world("molecules"), STEPS)
    assert (simulation.stepper.states[0].positions == plain.positions[-1]).all()
    np.testing.assert_allclose(10 * nanometers(simulation), plain.positions[-1], rtol=0, atol=1e-5)
    # a small change of small numbers counts, and the others go on unrounded
    small = simulation_of("splash", platform="CPU")
    before = small.stepper.states[0]
    changed = nanometers(small)
    changed[4, 0] += 4e-7
    small.context.setPositions(changed)
    small.integrator.take_over()
    after = small.stepper.states[0]
    assert np.flatnonzero((after.positions != before.positions).any(1)).tolist() == [4]
    assert after.positions[4, 0] - before.positions[4, 0] == pytest.approx(4e-6, rel=0.05)
    assert (after.velocities == before.velocities).all()
    with pytest.raises(InputError, match=r"platform 'Abacus' is not available here \(available: .*Reference"):
        simulation_of("molecules", platform="Abacus")
