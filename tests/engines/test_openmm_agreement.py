"""Eager, TorchForce, PythonForce and OpenMM-ML give one energy and one set of forces."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from openmm_cases import (
    BOXES,
    assert_same,
    eager,
    energy_and_forces,
    make_context,
    network,
    water_positions,
    water_topology,
)

from egnn_md.checkpoint import save_model
from egnn_md.errors import InputError
from egnn_md.export import export_torchscript

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")

from egnn_md_openmm import add_potential, create_system  # noqa: E402

WATERS = 8
NUMBERS = [8, 1, 1] * WATERS
PLATFORMS = ("Reference", "CPU")


def openmm_ml(topology: Any, model: Any, **options: Any) -> Any:
    """The same call as create_system, through OpenMM-ML."""
    openmmml = pytest.importorskip("openmmml", reason="OpenMM-ML is missing: pip install 'egnn-md[openmm]'")
    return openmmml.MLPotential("fastegnn", modelPath=model).createSystem(topology, **options)


ROUTES = {
    "TorchForce": (create_system, "torch"),
    "PythonForce": (create_system, "python"),
    "OpenMM-ML TorchForce": (openmm_ml, "torch"),
    "OpenMM-ML PythonForce": (openmm_ml, "python"),
}


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boundary", BOXES)
def test_route_equals_eager(tmp_path: Path, boundary: str, dtype: str, route: str) -> None:
    make, implementation = ROUTES[route]
    box = BOXES[boundary]
    model = network(dtype)
    positions = water_positions(WATERS, box)
    expected = eager(model, NUMBERS, positions, box, dtype)
    # a third of them through a file, as users have it
    source = save_model(model, tmp_path / "model.safetensors") if boundary == "triclinic" else model
    system = make(water_topology(WATERS, box), source, implementation=implementation, dtype=dtype)
    assert system.usesPeriodicBoundaryConditions() == (box is not None)
    for platform in PLATFORMS:
        found = energy_and_forces(make_context(system, positions, platform))
        assert_same(found, expected, dtype, f"{route} {platform}")


@pytest.mark.parametrize("implementation", ["torch", "python"])
@pytest.mark.parametrize("boundary", ["open", "periodic", "triclinic"])
@pytest.mark.parametrize("through", ["model", "file", "artefact"])
def test_fourier_modes_read_the_box(tmp_path: Path, through: str, boundary: str, implementation: str) -> None:
    """The box reaches the network by every route, and so does its change."""
    box = BOXES[boundary]
    model = network("float64", fourier_width=1.5)
    source: Any = model
    if through == "file":
        source = save_model(model, tmp_path / "model.safetensors")
    elif through == "artefact":
        source = tmp_path / "model.pt"
        export_torchscript(model, source, NUMBERS, periodic=box is not None, dtype="float64")
    positions = water_positions(WATERS, box)
    system = create_system(water_topology(WATERS, box), source, implementation=implementation, dtype="float64")
    context = make_context(system, positions)
    assert_same(energy_and_forces(context), eager(model, NUMBERS, positions, box, "float64"), "float64")
    if box is not None:
        context.setPeriodicBoxVectors(*(1.04 * box))
        context.setPositions(1.04 * positions)
        expected = eager(model, NUMBERS, 1.04 * positions, 1.04 * box, "float64")
        assert_same(energy_and_forces(context), expected, "float64")


@pytest.mark.parametrize("implementation", ["torch", "python"])
@pytest.mark.parametrize("boundary", ["open", "triclinic"])
def test_artefact_equals_eager(tmp_path: Path, boundary: str, implementation: str) -> None:
    """An exported file works in both implementations, and through OpenMM-ML."""
    box = BOXES[boundary]
    model = network()
    path = tmp_path / "model.pt"
    export_torchscript(model, path, NUMBERS, periodic=box is not None)
    positions = water_positions(WATERS, box)
    expected = eager(model, NUMBERS, positions, box)
    for make in (create_system, openmm_ml):
        system = make(water_topology(WATERS, box), path, implementation=implementation)
        assert_same(energy_and_forces(make_context(system, positions)), expected, "float32", str(make))


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_atoms_that_left_the_cell(implementation: str) -> None:
    """OpenMM does not wrap positions: a diffused atom must cost neither energy nor digits."""
    box = BOXES["triclinic"]
    assert box is not None
    model = network()
    positions = water_positions(WATERS, box)
    expected = eager(model, NUMBERS, positions, box)
    steps = np.random.default_rng(3).integers(-200, 200, positions.shape)
    system = create_system(water_topology(WATERS, box), model, implementation=implementation)
    assert_same(energy_and_forces(make_context(system, positions + steps @ box)), expected, "float32")


@pytest.mark.parametrize("implementation", ["torch", "python"])
@pytest.mark.parametrize("boundary", ["open", "periodic"])
def test_subset_and_force_group(boundary: str, implementation: str) -> None:
    """Only chosen atoms get forces, in the chosen group, beside a force of another kind."""
    box = BOXES[boundary]
    model = network("float64")
    chosen = [18, 19, 20, 3, 4, 5]
    positions = water_positions(WATERS, box)
    system = openmm.System()
    for _ in NUMBERS:
        system.addParticle(1.0)
    spring = openmm.HarmonicBondForce()
    spring.addBond(0, 1, 0.05, 1000.0)
    system.addForce(spring)
    force = add_potential(
        system,
        water_topology(WATERS, box),
        model,
        implementation=implementation,
        atoms=iter(chosen),
        force_group=7,
        dtype="float64",
    )
    assert force.getForceGroup() == 7
    assert system.getForce(1).getForceGroup() == 7
    context = make_context(system, positions)
    energy, forces = energy_and_forces(context, groups=1 << 7)
    expected = eager(model, [NUMBERS[i] for i in chosen], positions[chosen], box, "float64")
    assert_same((energy, forces[chosen]), expected, "float64")
    others = np.setdiff1d(np.arange(len(NUMBERS)), chosen)
    assert np.all(forces[others] == 0.0)
    spring_energy, spring_forces = energy_and_forces(context, groups=1)
    total_energy, total_forces = energy_and_forces(context)
    assert total_energy == pytest.approx(energy + spring_energy, rel=1e-12)
    assert np.abs(total_forces - forces - spring_forces).max() <= 1e-9 * np.abs(total_forces).max()


def test_periodic_can_be_switched_off() -> None:
    """periodic=False in a topology with a box: a molecule in vacuum out of a file that has one."""
    box = BOXES["periodic"]
    model = network("float64")
    positions = water_positions(WATERS, box)
    system = create_system(water_topology(WATERS, box), model, implementation="python", periodic=False, dtype="float64")
    assert not system.usesPeriodicBoundaryConditions()
    expected = eager(model, NUMBERS, positions, None, "float64")
    assert_same(energy_and_forces(make_context(system, positions)), expected, "float64")


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_openmm_ml_mixed_system(implementation: str) -> None:
    """ML inside the subset, a force field elsewhere, nothing twice: the sum of the two is the energy."""
    openmmml = pytest.importorskip("openmmml")
    from openmm import app

    # open, since OpenMM-ML interpolates with plain Coulomb terms, which a cutoff's reaction field is not
    positions = water_positions(WATERS, None)
    topology = water_topology(WATERS, None)
    model = network("float64")
    chosen = list(range(6))
    mm = app.ForceField("tip3p.xml").createSystem(topology, nonbondedMethod=app.NoCutoff, rigidWater=False)
    potential = openmmml.MLPotential("fastegnn", modelPath=model, precision="double")
    mixed = potential.createMixedSystem(
        topology, mm, chosen, removeConstraints=True, forceGroup=5, implementation=implementation
    )
    expected = eager(model, [NUMBERS[i] for i in chosen], positions[chosen], None, "float64")
    context = make_context(mixed, positions)
    energy, forces = energy_and_forces(context, groups=1 << 5)
    assert_same((energy, forces[chosen]), expected, "float64")
    mm_rest, mm_forces = energy_and_forces(context, groups=~(1 << 5))

    both = potential.createMixedSystem(topology, mm, chosen, interpolate=True, implementation=implementation)
    context = make_context(both, positions)
    full_mm, full_mm_forces = energy_and_forces(make_context(mm, positions))
    for share in (0.0, 0.3, 1.0):
        context.setParameter("lambda_interpolate", share)
        found, found_forces = energy_and_forces(context)
        wanted = share * (energy + mm_rest) + (1 - share) * full_mm
        # OpenMM-ML has Coulomb's constant with nine digits; its bonded terms inside the subset are copies
        assert found == pytest.approx(wanted, rel=1e-6), share
        wanted_forces = share * (forces + mm_forces) + (1 - share) * full_mm_forces
        assert np.abs(found_forces - wanted_forces).max() <= 1e-5 * np.abs(wanted_forces).max(), share


def test_openmm_ml_options() -> None:
    """Constructor options are defaults; wrong ones are named; range is told truthfully."""
    openmmml = pytest.importorskip("openmmml")
    topology = water_topology(2, None)
    potential = openmmml.MLPotential("fastegnn", modelPath=network(), implementation="python")
    assert type(potential.createSystem(topology).getForce(0)) is openmm.PythonForce
    assert type(potential.createSystem(topology, implementation="torch").getForce(0)) is not openmm.PythonForce
    for channels in (0, 2):
        # no model has the interactions of a region with its images, which is what OpenMM-ML asks for
        local = openmmml.MLPotential("fastegnn", modelPath=network(virtual_nodes=channels))
        assert local._impl.getMLLongRange() is False
    with pytest.raises(InputError, match="unknown option 'implemention'"):
        potential.createSystem(topology, implemention="python")
    with pytest.raises(InputError, match="not both"):
        potential.createSystem(topology, dtype="float32", precision="double")
    with pytest.raises(InputError, match="single, double"):
        potential.createSystem(topology, precision="half")
    with pytest.raises(InputError, match="needs modelPath"):
        openmmml.MLPotential("fastegnn").createSystem(topology)
