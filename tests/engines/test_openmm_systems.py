"""Systems that last: serialised and read in another process, under barostats, minimised, run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openmm_cases import (
    BOXES,
    argon_positions,
    assert_same,
    eager,
    energy_and_forces,
    make_context,
    network,
    positions_and_box,
    topology,
    water_positions,
    water_topology,
)

from egnn_md.errors import InputError
from egnn_md.models import LennardJones

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")

from egnn_md_openmm import add_potential, create_system, load_system  # noqa: E402

IMPLEMENTATIONS = ("torch", "python")
WATERS = 8
NUMBERS = [8, 1, 1] * WATERS
ARGON_BOX = np.array([[1.15, 0.0, 0.0], [0.2, 1.15, 0.0], [-0.2, 0.15, 1.15]])


def argon(implementation: str, box: np.ndarray = ARGON_BOX) -> tuple[Any, Any, np.ndarray, LennardJones]:
    """System, topology, positions (nm) and model of 27 argon atoms, dense enough to push at the box."""
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=7.0)
    top = topology(["Ar"] * 27, box)
    system = create_system(top, model, implementation=implementation, dtype="float64")
    return system, top, argon_positions(box), model


READER = """
import sys
import numpy as np, openmm
positions = np.load(sys.argv[2])
if sys.argv[3] == "bare":
    with open(sys.argv[1]) as file:
        system = openmm.XmlSerializer.deserialize(file.read())
else:
    from egnn_md_openmm import load_system
    system = load_system(sys.argv[1])
again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
for candidate in (system, again):
    context = openmm.Context(candidate, openmm.VerletIntegrator(0.001),
                             openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions)
    state = context.getState(energy=True, forces=True)
    np.save(sys.argv[2], state.getForces(asNumpy=True)._value)
    print(repr(state.getPotentialEnergy()._value))
"""


@pytest.mark.parametrize(
    ("implementation", "kind", "how"),
    [
        ("torch", "network", "load_system"),
        ("python", "network", "bare"),
        ("python", "lj", "bare"),
        ("python", "network", "load_system"),
    ],
)
def test_serialised_system_runs_in_a_fresh_process(tmp_path: Path, implementation: str, kind: str, how: str) -> None:
    """The model travels inside the XML: no path, no object of this process. ``bare`` is OpenMM alone."""
    box = BOXES["triclinic"]
    assert box is not None
    model = network() if kind == "network" else LennardJones(0.01, 2.0, 6.0)
    chosen = list(range(3, 24))
    positions = water_positions(WATERS, box)
    system = openmm.System()
    for _ in NUMBERS:
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors(*box)
    add_potential(
        system, water_topology(WATERS, box), model, implementation=implementation, atoms=chosen, force_group=3
    )
    here = energy_and_forces(make_context(system, positions))
    xml, points = tmp_path / "system.xml", tmp_path / "positions.npy"
    xml.write_text(openmm.XmlSerializer.serialize(system))
    np.save(points, positions)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(xml), str(points), how],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    energies = [float(line) for line in done.stdout.split()]
    forces = np.load(points)
    for energy in energies:
        # the same numbers in another process: rounding of float32 sums at most
        assert_same((energy, forces), here, "float32", done.stderr)
    restored = load_system(xml)
    assert restored.getForce(0).getForceGroup() == 3
    assert restored.usesPeriodicBoundaryConditions()


def test_python_force_from_an_artefact_is_picklable_too(tmp_path: Path) -> None:
    from egnn_md.export import export_torchscript

    model = network("float64")
    path = tmp_path / "model.pt"
    export_torchscript(model, path, NUMBERS, periodic=False, dtype="float64")
    system = create_system(water_topology(WATERS, None), path, implementation="python")
    path.unlink()
    positions = water_positions(WATERS, None)
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    expected = eager(model, NUMBERS, positions, None, "float64")
    assert_same(energy_and_forces(make_context(again, positions)), expected, "float64")


def test_load_system_refuses_what_is_no_system(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no system at"):
        load_system(tmp_path / "absent.xml")
    with pytest.raises(InputError, match="not the XML of an OpenMM system"):
        load_system("<System")
    with pytest.raises(InputError, match="describes a VerletIntegrator"):
        load_system(openmm.XmlSerializer.serialize(openmm.VerletIntegrator(0.001)))


BAROSTATS = {
    "isotropic": lambda: openmm.MonteCarloBarostat(1.0, 100.0, 1),
    "anisotropic": lambda: openmm.MonteCarloAnisotropicBarostat(openmm.Vec3(1.0, 1.0, 1.0), 100.0, True, True, True, 1),
    "flexible": lambda: openmm.MonteCarloFlexibleBarostat(1.0, 100.0, 1),
}


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("barostat", BAROSTATS)
def test_barostat_moves_the_box_and_the_energy_follows(barostat: str, implementation: str) -> None:
    """In the box that the barostat made, and not in the one of the topology, the eager numbers come out."""
    box = np.diag(np.diag(ARGON_BOX)) if barostat == "anisotropic" else ARGON_BOX
    system, _, positions, model = argon(implementation, box)
    move = BAROSTATS[barostat]()
    move.setRandomNumberSeed(1)
    system.addForce(move)
    integrator = openmm.LangevinMiddleIntegrator(100.0, 5.0, 0.002)
    integrator.setRandomNumberSeed(2)
    context = make_context(system, positions, "CPU", integrator)
    context.setVelocitiesToTemperature(100.0, 3)
    integrator.step(40)
    x, cell = positions_and_box(context)
    # 40 attempts of about 1 % each; a force that ignored the box would leave the volume to the ideal gas
    assert abs(np.linalg.det(cell) / np.linalg.det(box) - 1.0) > 1e-3
    if barostat == "flexible":
        assert abs(cell[1, 0] / cell[0, 0] - box[1, 0] / box[0, 0]) > 1e-6
    # the CPU platform stores positions in single precision: 6e-8 of 1 nm times steep repulsion
    found = energy_and_forces(context)
    expected = eager(model, [18] * 27, x, cell, "float64")
    assert_same(found, expected, "float32", barostat)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_minimisation_and_constant_temperature(implementation: str) -> None:
    system, top, positions, _ = argon(implementation)
    from openmm import app

    integrator = openmm.LangevinMiddleIntegrator(30.0, 5.0, 0.002)
    simulation = app.Simulation(top, system, integrator, openmm.Platform.getPlatformByName("CPU"))
    simulation.context.setPositions(positions)
    before, _ = energy_and_forces(simulation.context)
    simulation.minimizeEnergy(tolerance=1.0)
    after, forces = energy_and_forces(simulation.context)
    assert after < before - 1.0
    # tolerance is the RMS force in kJ/mol/nm; OpenMM stops somewhat above or below
    assert np.sqrt((forces**2).mean()) < 5.0
    simulation.context.setVelocitiesToTemperature(30.0, 4)
    simulation.step(20)
    assert np.isfinite(energy_and_forces(simulation.context)[0])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_energy_is_conserved(implementation: str) -> None:
    """Forces that lag behind the positions (a stale list, a shift of the wrong sign) would show here."""
    system, _, positions, _ = argon(implementation)
    integrator = openmm.VerletIntegrator(0.002)
    context = make_context(system, positions, "Reference", integrator)
    openmm.LocalEnergyMinimizer.minimize(context, 1.0)
    context.setVelocitiesToTemperature(60.0, 5)
    total = []
    for _ in range(40):
        integrator.step(5)
        state = context.getState(energy=True)
        total.append(state.getPotentialEnergy()._value + state.getKineticEnergy()._value)
    kinetic = 1.5 * 27 * 0.00831446 * 60.0
    # 2 fs for argon: fluctuation of a thousandth of the kinetic energy; no drift beyond it
    assert np.ptp(total) < 5e-3 * kinetic


def test_created_system_has_masses_box_and_molecules() -> None:
    box = BOXES["triclinic"]
    assert box is not None
    top = water_topology(WATERS, box)
    system = create_system(top, network(), implementation="python", constraints=[(0, 1, 0.0957)])
    masses = [system.getParticleMass(i)._value for i in range(3)]
    assert masses == pytest.approx([15.99943, 1.007947, 1.007947], abs=1e-5)
    assert np.allclose([list(row._value) for row in system.getDefaultPeriodicBoxVectors()], box)
    assert system.getNumConstraints() == 1
    assert [f.getName() for f in system.getForces()] == ["FastEGNN", "Molecules", "CMMotionRemover"]
    context = make_context(system, water_positions(WATERS, box))
    assert len(context.getMolecules()) == WATERS
    assert energy_and_forces(context, groups=-1)[0] != 0.0
    plain = create_system(
        top, network(), implementation="python", force_group=4, molecules=False, remove_cm_motion=False
    )
    assert [f.getName() for f in plain.getForces()] == ["FastEGNN"]
    assert plain.getForce(0).getForceGroup() == 4
    assert plain.getNumConstraints() == 0


def test_molecules_add_no_energy() -> None:
    """The bonds that mark molecules have no strength."""
    box = BOXES["periodic"]
    positions = water_positions(WATERS, box)
    top = water_topology(WATERS, box)
    with_bonds, without = (
        energy_and_forces(
            make_context(create_system(top, network(), implementation="python", molecules=molecules), positions)
        )
        for molecules in (True, False)
    )
    assert with_bonds[0] == without[0]
    assert np.array_equal(with_bonds[1], without[1])


def test_python_force_reuses_its_neighbour_list() -> None:
    """The list with a skin is made once for many small steps, and again when atoms have moved."""
    model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=7.0)
    top = topology(["Ar"] * 27, ARGON_BOX)
    system = openmm.System()
    for _ in range(27):
        system.addParticle(39.9)
    system.setDefaultPeriodicBoxVectors(*ARGON_BOX)
    force = add_potential(system, top, model, implementation="python", dtype="float64", skin=1.0)
    context = make_context(system, argon_positions(ARGON_BOX), "Reference", openmm.VerletIntegrator(0.001))
    context.setVelocitiesToTemperature(50.0, 1)
    context.getIntegrator().step(30)
    statistics = force.callback.neighbors.statistics
    assert statistics.updates == force.callback.calls >= 30
    assert statistics.rebuilds < statistics.updates / 5
    x, cell = positions_and_box(context)
    assert_same(energy_and_forces(context), eager(model, [18] * 27, x, cell, "float64"), "float64")
