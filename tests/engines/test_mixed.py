"""ML/MM: the energy is the sum of its terms, each worked out without the network and most without OpenMM."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egnn_md.errors import ModelFileError
from egnn_md.export import export_torchscript, load_module
from egnn_md.export.seal import check_seal
from egnn_md.export.torchscript import script
from tests.engines import mixed_cases as cases
from tests.engines.mixed_cases import REGION, Case
from tests.engines.openmm_cases import energy_and_forces, make_context

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")
openmmml = pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'egnn-md[openmm]'")

from openmm import unit  # noqa: E402

from egnn_md_openmm import add_potential, create_mixed_system, load_system, select_atoms  # noqa: E402
from egnn_md_openmm.whole import Whole, WholeArtefact, bond_tree  # noqa: E402

ML = 1 << 5
#: kJ/mol. Energies are near -7e4 (reference energies of atoms), of which double precision keeps 1e-11; the Ewald sums
#: of OpenMM (tolerance 1e-6) and of the test agree to about 1e-5.
EXACT, EWALD = 1e-7, 2e-4


def mixed_system(case: Case, mm: Any, **options: Any) -> Any:
    # exporting to TorchScript costs seconds; where the implementation matters, a test names it
    settings: dict[str, Any] = {"dtype": "float64", "force_group": 5, "implementation": "python"} | options
    return create_mixed_system(case.topology, mm, REGION, cases.network(), **settings)


def answer(system: Any, positions: np.ndarray, groups: int = -1) -> tuple[float, np.ndarray]:
    return energy_and_forces(make_context(system, positions), groups)


def rest_of(case: Case) -> list[int]:
    return list(range(len(REGION), len(case.positions)))


def test_terms_in_vacuum() -> None:
    """Water by itself + interaction by hand + network: energy and the forces on the region."""
    case = cases.droplet(6)
    mm = cases.classical(case)
    energy, forces = answer(mixed_system(case, mm), case.positions)
    waters = cases.part(case, rest_of(case), box=False)
    environment, _ = answer(cases.classical(waters), waters.positions)
    lennard_jones, coulomb = cases.cross_terms(case, mm)
    network, network_forces = cases.network_terms(case, cases.network())
    assert abs(energy - (environment + lennard_jones + coulomb + network)) < EXACT
    assert abs(lennard_jones) > 1.0
    assert abs(coulomb) > 1.0

    def interaction(positions: np.ndarray) -> float:
        return sum(cases.cross_terms(Case(case.topology, positions, None), mm))

    step = 1e-5
    for atom, axis in ((5, 0), (16, 1), (7, 2)):  # a carbonyl's oxygen, a nitrogen, a hydrogen of it
        moved = [case.positions.copy() for _ in range(2)]
        moved[0][atom, axis] += step
        moved[1][atom, axis] -= step
        slope = -(interaction(moved[0]) - interaction(moved[1])) / (2 * step)
        assert forces[atom, axis] == pytest.approx(slope + network_forces[atom, axis], abs=1e-3)


def test_terms_in_a_box() -> None:
    """The same under PME against an Ewald sum by hand; the region's images are there, by the force field's charges."""
    case = cases.peptide_in_water()
    mm = cases.classical(case)
    energy, forces = answer(mixed_system(case, mm), case.positions)
    waters = cases.part(case, rest_of(case), box=True)
    environment, _ = answer(cases.classical(waters), waters.positions)
    lennard_jones, coulomb = cases.cross_terms(case, mm)
    images = cases.image_term(case, mm)
    network, network_forces = cases.network_terms(case, cases.network())
    assert abs(energy - (environment + lennard_jones + coulomb + images + network)) < EWALD
    assert abs(images) > 100 * EWALD  # the test would see it missing or doubled
    assert answer(mixed_system(case, mm), case.positions, ML)[0] == pytest.approx(network, abs=EXACT)

    # and by force-field systems alone: everything, less the molecule by itself in vacuum, plus the network
    alone = cases.part(case, REGION, box=False)
    whole, whole_forces = answer(mm, case.positions)
    vacuum, vacuum_forces = answer(cases.classical(alone), alone.positions)
    assert abs(energy - (whole - vacuum + network)) < EWALD
    expected = whole_forces.copy()
    expected[REGION] += network_forces - vacuum_forces
    assert np.abs(forces - expected).max() < 1e-3


@pytest.mark.parametrize("box", [True, False])
def test_interpolation(box: bool) -> None:
    """0 is the force field, 1 the mixed system, between them a straight line whose slope OpenMM can tell."""
    case = cases.peptide_in_water() if box else cases.droplet(6)
    mm = cases.classical(case)
    start, start_forces = answer(mm, case.positions)
    end, end_forces = answer(mixed_system(case, mm), case.positions)
    context = make_context(mixed_system(case, mm, interpolate=True), case.positions)
    assert context.getParameter("lambda_interpolate") == 1.0
    for share in (0.0, 0.25, 0.7, 1.0):
        context.setParameter("lambda_interpolate", share)
        energy, forces = energy_and_forces(context)
        assert abs(energy - (share * end + (1 - share) * start)) < EWALD, share
        wanted = share * end_forces + (1 - share) * start_forces
        assert np.abs(forces - wanted).max() < 2e-3, share
        slope = context.getState(parameterDerivatives=True).getEnergyParameterDerivatives()["lambda_interpolate"]
        assert abs(slope - (end - start)) < EWALD, share


def test_interpolation_under_dynamics() -> None:
    """lambda goes from 0 to 1 while the system moves: every change costs what the slope says, and no more."""
    case = cases.droplet(6)
    system = mixed_system(case, cases.classical(case), interpolate=True)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.0002)
    integrator.setRandomNumberSeed(3)
    context = make_context(system, case.positions, integrator=integrator)
    context.setParameter("lambda_interpolate", 0.0)
    stages = np.linspace(0.0, 1.0, 11)
    for before, after in pairwise(stages):
        integrator.step(4)
        state = context.getState(energy=True, parameterDerivatives=True)
        slope = state.getEnergyParameterDerivatives()["lambda_interpolate"]
        context.setParameter("lambda_interpolate", after)
        jump = context.getState(energy=True).getPotentialEnergy()._value - state.getPotentialEnergy()._value
        assert jump == pytest.approx((after - before) * slope, abs=1e-6)
    assert np.isfinite(context.getState(positions=True).getPositions(asNumpy=True)._value).all()


@pytest.mark.parametrize(("implementation", "interpolate"), [("torch", True), ("python", False)])
def test_a_molecule_cut_at_the_boundary(implementation: str, interpolate: bool) -> None:
    """Files wrap atoms one by one: energy and forces are those of the whole molecule."""
    case = cases.peptide_in_water()
    mm = cases.classical(case, tolerance=5e-4)
    system = mixed_system(case, mm, implementation=implementation, interpolate=interpolate)
    context = make_context(system, case.positions)
    shares = (0.0, 1.0) if interpolate else (1.0,)
    for share in shares:
        if interpolate:
            context.setParameter("lambda_interpolate", share)
        context.setPositions(case.positions)
        energy, forces = energy_and_forces(context)
        context.setPositions(cases.wrapped(case))
        found, found_forces = energy_and_forces(context)
        assert abs(found - energy) < EXACT, share
        assert np.abs(found_forces - forces).max() < 1e-6, share


def test_openmm_mls_own_call() -> None:
    """MLPotential(...).createMixedSystem is the same, cut molecules included; an artefact serves as model, too."""
    case = cases.peptide_in_water()
    mm = cases.classical(case, tolerance=5e-4)
    expected, _ = answer(mixed_system(case, mm), case.positions)
    potential = openmmml.MLPotential("fastegnn", modelPath=cases.network(), precision="double")
    system = potential.createMixedSystem(case.topology, mm, REGION)
    assert abs(answer(system, cases.wrapped(case))[0] - expected) < EXACT


def test_an_artefact_of_the_region(tmp_path: Path) -> None:
    """Exported for an open system, in another order of atoms, and through XML; the molecule is longer than the box."""
    alone = cases.part(cases.peptide_in_water(), REGION, box=False)
    box = np.eye(3) * 0.6
    alone.topology.setPeriodicBoxVectors(box * unit.nanometer)
    expected, forces = cases.network_terms(alone, cases.network())
    path = tmp_path / "region.pt"
    order = list(reversed(REGION))
    export_torchscript(cases.network(), path, alone.numbers, periodic=False, atoms=order, dtype="float64")
    system = openmm.System()
    for _ in REGION:
        system.addParticle(1.0)
    system.setDefaultPeriodicBoxVectors(*box)
    add_potential(system, alone.topology, path, molecule=True)
    again = load_system(openmm.XmlSerializer.serialize(system))
    for made in (system, again):
        found, found_forces = answer(made, cases.wrapped(Case(alone.topology, alone.positions, box)))
        assert abs(found - expected) < EXACT
        assert np.abs(found_forces - forces).max() < 1e-6
    # what stands in front of the artefact does not hide its digest
    module = script(WholeArtefact(load_module(path), [0] * len(REGION)))
    check_seal(module, "it")
    with torch.no_grad():
        next(module.region.potential.parameters()).add_(1.0)
    with pytest.raises(ModelFileError, match="it: the model inside was changed"):
        check_seal(module, "it")


def test_several_molecules_see_nearest_images() -> None:
    """Two molecules as region: evaluated in the box, wherever each was wrapped to."""
    case = cases.peptide_in_water()
    region = [22, 23, 24, 25, 26, 27]
    mm = cases.classical(case, tolerance=5e-4)
    model = cases.network(virtual_nodes=0)
    system = create_mixed_system(
        case.topology, mm, region, model, dtype="float64", remove_constraints=True, implementation="python"
    )
    energy, forces = answer(system, case.positions)
    found, found_forces = answer(system, cases.wrapped(case, region[:3]))
    assert abs(found - energy) < EXACT
    assert np.abs(found_forces - forces).max() < 1e-6


def test_box_and_barostat() -> None:
    """A new box reaches both parts; a barostat moves the molecule as one, also on the boundary; water stays rigid."""
    case = cases.peptide_in_water()
    mm = cases.classical(case, tolerance=5e-4)
    for interpolate in (False, True):
        potential = openmmml.MLPotential("fastegnn", modelPath=cases.network(), implementation="python")
        plain = potential.createMixedSystem(case.topology, mm, REGION, interpolate=interpolate)
        assert max(len(molecule) for molecule in make_context(plain, case.positions).getMolecules()) == len(REGION)

    system = mixed_system(case, mm)
    barostat = openmm.MonteCarloBarostat(5000.0, 300.0, 1)
    barostat.setRandomNumberSeed(2)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.0002)
    integrator.setRandomNumberSeed(1)
    # the peptide begins on a corner of the box
    positions = case.positions - case.positions[REGION].mean(axis=0)
    context = make_context(system, positions, "CPU", integrator)
    integrator.step(30)
    state = context.getState(positions=True, energy=True)
    box = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value)
    assert box[0, 0] != pytest.approx(case.box[0, 0], abs=1e-6)
    places = np.array(state.getPositions(asNumpy=True)._value)
    bonds = np.array([(b.atom1.index, b.atom2.index) for b in case.topology.bonds()])
    inside = bonds[(bonds < len(REGION)).all(axis=1)]
    lengths = np.linalg.norm(places[inside[:, 0]] - places[inside[:, 1]], axis=1)
    assert lengths.max() < 0.2  # in one piece without any wrapping back
    water = bonds[(bonds >= len(REGION)).all(axis=1)]
    assert np.linalg.norm(places[water[:, 0]] - places[water[:, 1]], axis=1) == pytest.approx(0.09572, abs=2e-6)
    # at the new box the energy is the sum of what it was made of
    parts = []
    for made, groups in ((mm, -1), (mixed_system(case, mm), ML)):
        context = make_context(made, places)
        context.setPeriodicBoxVectors(*box)
        parts.append(energy_and_forces(context, groups)[0])
    alone = cases.part(case, REGION, box=False)
    vacuum, _ = answer(cases.classical(alone), places[REGION])
    network, _ = cases.network_terms(Case(case.topology, places, None), cases.network())
    assert parts[1] == pytest.approx(network, abs=EXACT)
    # the CPU platform computes the force field in single precision
    assert state.getPotentialEnergy()._value == pytest.approx(parts[0] - vacuum + network, abs=0.05)


def test_range_is_told() -> None:
    """OpenMM-ML asks whether the model has the region's images; none has, whatever its virtual nodes."""
    for model in (cases.network(), cases.network(virtual_nodes=0)):
        assert openmmml.MLPotential("fastegnn", modelPath=model)._impl.getMLLongRange() is False


def test_selection() -> None:
    """By residue, by chain, and everything but the solvent."""
    topology = cases.peptide_in_water().topology
    assert select_atoms(topology) == REGION
    assert select_atoms(topology, residues=["ACE", "ALA", "NME"]) == REGION
    assert select_atoms(topology, residues="ALA") == REGION[6:16]
    chain = next(topology.chains()).id
    assert select_atoms(topology, chains=[chain]) == REGION


@pytest.mark.parametrize("skewed", [False, True])
def test_whole(skewed: bool) -> None:
    """A long chain with branches, each atom moved by its own lattice vector, in any order of atoms and bonds."""
    rng = np.random.default_rng(1)
    cell = np.array([[9.0, 0.0, 0.0], [3.0, 8.0, 0.0], [-2.0, 3.5, 8.5]]) if skewed else np.diag([9.0, 8.0, 8.5])
    count = 60
    bonds = [(int(rng.integers(max(0, i - 3), i)), i) for i in range(1, count)]
    x = np.zeros((count, 3))
    for parent, child in bonds:
        step = rng.normal(size=3)
        x[child] = x[parent] + 1.5 * step / np.linalg.norm(step)
    names = [int(i) + 100 for i in rng.permutation(count)]
    tree = bond_tree(names, [(names[b], names[a]) for a, b in reversed(bonds)])
    assert tree is not None
    broken = x + rng.integers(-3, 4, (count, 3)) @ cell
    broken[0] = x[0]
    whole = Whole(tree)(torch.tensor(broken), torch.tensor(cell))
    assert whole.numpy() == pytest.approx(x, abs=1e-9)
    kept = torch.tensor(x)
    assert Whole(tree)(kept, torch.tensor(cell)) is kept
    assert bond_tree([0, 1, 2], [(0, 1), (2, 3)]) is None
