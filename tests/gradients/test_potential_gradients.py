"""Derivatives of potentials (FastEGNN and analytic): forces, stress, curvature, and no jumps."""

import numpy as np
import pytest
import torch
from ase import Atoms

from egnn_md.models import HarmonicTether, LennardJones
from egnn_md.testing import (
    centred_structure,
    check_boundary,
    check_cutoff,
    check_forces,
    check_second_derivatives,
    check_stress,
    make_structures,
    random_potential,
)
from egnn_md.testing.gradients import five_point
from egnn_md.testing.probe import ask, energy_of
from egnn_md.testing.result import FORCE_DIFFERENCE_TOLERANCE

MODELS = {
    "C0-K1": lambda: random_potential(virtual_nodes=0, vector_channels=1),
    "C0-K4": lambda: random_potential(virtual_nodes=0, vector_channels=4),
    "C3-K1": lambda: random_potential(virtual_nodes=3, vector_channels=1),
    "C3-K4-3layers": lambda: random_potential(virtual_nodes=3, vector_channels=4, layers=3),
    "C2-fourier": lambda: random_potential(fourier_width=1.2),
    "lennard-jones": LennardJones,
    "springs": HarmonicTether,
}


@pytest.fixture(scope="module", params=list(MODELS))
def model(request):
    return MODELS[request.param]()


@pytest.fixture(scope="module")
def structures(model):
    return make_structures(model, seed=11)


def passes(results):
    bad = [result for result in results if not result.passed]
    assert not bad, bad


def test_forces(model, structures):
    for atoms in structures.values():
        passes(check_forces(model, atoms))


def test_every_force_component_of_a_triclinic_cell(model, structures):
    """Component by component, as the definition says; the cell is smaller than twice the cutoff."""
    atoms = structures["crystal"]
    assert (1 / atoms.cell.reciprocal().lengths()).max() < 2 * model.cutoff
    forces = ask(model, atoms).forces.numpy()
    for index in (0, 5):
        for axis in range(3):

            def moved(length, index=index, axis=axis):
                displaced = atoms.copy()
                displaced.positions[index, axis] += length
                return energy_of(model, displaced)

            slope = five_point(moved, 5e-4)
            size = max(1.0, abs(forces).max())
            assert abs(slope + forces[index, axis]) < FORCE_DIFFERENCE_TOLERANCE * size


def test_stress(model, structures):
    passes(check_stress(model, structures["crystal"]))


def test_stress_is_positive_under_tension():
    """Springs stretched in one direction only pull there."""
    springs = HarmonicTether(stiffness=2.0, length=1.5, cutoff=2.5)
    for gap, sign in ((1.7, 1), (1.3, -1)):
        chain = Atoms("H", cell=[gap, 20, 20], pbc=True)
        stress = ask(springs, chain).stress.numpy()
        assert np.sign(stress[0, 0]) == sign
        assert abs(stress - np.diag([stress[0, 0], 0, 0])).max() < 1e-15


def test_second_derivatives(model, structures):
    for atoms in structures.values():
        passes(check_second_derivatives(model, atoms))


def test_an_atom_at_the_centre_of_mass_can_be_trained_on(model):
    """Where every virtual node starts: a norm with a kink would give NaN here."""
    atoms = centred_structure(model.elements, model.cutoff)
    assert abs(atoms.positions.mean(0)).max() < 1e-15
    passes(check_second_derivatives(model, atoms))
    if model.elements:
        passes(check_second_derivatives(model, Atoms("O")))
        passes(check_second_derivatives(model, Atoms("HOH", [[-1, 0, 0], [0, 0, 0], [1, 0, 0]])))


def test_no_jump_at_the_cutoff(model):
    passes(check_cutoff(model))


def test_no_jump_at_the_cell_boundary(model, structures):
    for atoms in (structures["crystal"], structures["slab"]):
        passes(check_boundary(model, atoms))


def test_energy_of_a_pair_swept_through_the_cutoff(model):
    """A pair alone: the energy goes flat into that of two lone atoms, and stays there."""
    number = model.elements[0] if model.elements else 18

    def energy(distance):
        return energy_of(model, Atoms([number] * 2, [[0, 0, 0], [distance, 0, 0]]))

    inside = np.array([energy(model.cutoff - gap) for gap in (0.02, 0.01, 0.005)])
    if model.long_range:  # virtual nodes still see the pair
        assert np.isfinite(inside).all()
        return
    lone = 2 * energy_of(model, Atoms([number]))
    assert energy(model.cutoff * (1 + 1e-12)) == pytest.approx(lone, abs=1e-12)
    assert energy(1.5 * model.cutoff) == pytest.approx(lone, abs=1e-12)
    rest = abs(inside - lone)
    # an envelope with two continuous derivatives falls as the third power of the gap
    assert rest[1] < rest[0] / 7
    assert rest[2] < rest[1] / 7


def test_forces_alone_equal_forces_with_stress(model, structures):
    from egnn_md.models import evaluate
    from egnn_md.testing.probe import graph_of

    graph = graph_of(model, structures["crystal"], torch.float64)
    alone, both = evaluate(model, graph), evaluate(model, graph, stress=True)
    torch.testing.assert_close(alone["forces"], both["forces"], rtol=0, atol=1e-13)
    only = evaluate(model, graph, forces=False, stress=True)
    assert "forces" not in only
    torch.testing.assert_close(only["stress"], both["stress"], rtol=0, atol=1e-13)
    assert evaluate(model, graph, forces=False).keys() == {"energy", "energies"}
