"""Exact laws of the FastEGNN potential: symmetries, lattice moves, copies, in float64 and float32."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import molecule

from egnn_md.testing import (
    check_balance,
    check_copies,
    check_lattice_moves,
    check_permutation,
    check_reflection,
    check_rotation,
    check_translation,
    make_structures,
    random_potential,
    random_structure,
)
from egnn_md.testing.probe import ask

SIZES = [(0, 1), (0, 4), (1, 1), (3, 1), (3, 4)]  # C virtual nodes, K displacement vectors


@pytest.fixture(scope="module", params=SIZES, ids=[f"C{c}-K{k}" for c, k in SIZES])
def model(request):
    channels, vectors = request.param
    return random_potential(virtual_nodes=channels, vector_channels=vectors, seed=channels + 10 * vectors)


@pytest.fixture(scope="module")
def structures(model):
    made = make_structures(model, seed=5)
    made["water"] = molecule("H2O")
    # a needle of a cell: one height far below the cutoff, so that many images of one neighbour matter
    needle = random_structure(model.elements, model.cutoff, count=5, pbc=(True, True, True), seed=9)
    needle.set_cell(needle.cell.array * np.array([[0.6], [1.0], [3.0]]), scale_atoms=True)
    made["needle"] = needle
    wire = made["cluster"].copy()
    wire.cell = np.diag([4.5, 0, 0])
    wire.pbc = (True, False, False)
    made["wire"] = wire
    return made


def passes(results):
    bad = [result for result in results if not result.passed]
    assert not bad, bad
    return results


@pytest.mark.parametrize(
    "law", [check_rotation, check_reflection, check_translation, check_permutation, check_balance]
)
def test_laws_of_every_structure(model, structures, law):
    for name, atoms in structures.items():
        assert passes(law(model, atoms)), name


@pytest.mark.parametrize("law", [check_lattice_moves, check_copies])
def test_laws_of_periodic_structures(model, structures, law):
    periodic = [atoms for atoms in structures.values() if atoms.pbc.any()]
    assert len(periodic) == 4
    for atoms in periodic:
        passes(law(model, atoms))


def test_the_laws_hold_in_single_precision(structures):
    single = random_potential(virtual_nodes=3, vector_channels=4, dtype=torch.float32)
    for atoms in structures.values():
        for law in (check_rotation, check_permutation, check_balance):
            passes(law(single, atoms))


def test_every_part_of_the_network_is_seen():
    """The laws above mean something only if vectors and virtual nodes change the answer."""
    atoms = random_structure([1, 8], 4.0, seed=3)
    base = random_potential(virtual_nodes=3, vector_channels=4)
    reference = ask(base, atoms)
    assert reference.largest_force > 0.1
    for part in ("vector_map", "mix", "virtual.vector_map", "virtual.position_map", "from_geometry"):
        silenced = random_potential(virtual_nodes=3, vector_channels=4)
        hit = [weight for name, weight in silenced.named_parameters() if f"{part}." in name]
        assert hit, part
        with torch.no_grad():
            for weight in hit:
                weight.zero_()
        changed = (ask(silenced, atoms).forces - reference.forces).abs().max()
        assert changed > 1e-3 * reference.largest_force, part


def test_mirror_images_of_a_chiral_molecule_have_one_energy(model):
    chiral = Atoms("OHHHO", [[0, 0, 0], [1, 0, 0], [0, 1.1, 0], [0, 0, 1.2], [-0.7, -0.8, -0.9]])
    mirrored = chiral.copy()
    mirrored.positions[:, 2] *= -1
    first, second = ask(model, chiral), ask(model, mirrored)
    assert first.energy == pytest.approx(second.energy, abs=1e-12)
    np.testing.assert_allclose(second.forces * torch.tensor([1, 1, -1]), first.forces, atol=1e-12)


def test_a_local_model_does_not_see_a_far_molecule():
    near = molecule("H2O")
    pair = near + near.copy()
    pair.positions[3:] += [30.0, 0, 0]
    local = random_potential(virtual_nodes=0)
    assert ask(local, pair).energy == pytest.approx(2 * ask(local, near).energy, abs=1e-12)
    assert not local.long_range
    assert random_potential(virtual_nodes=1).long_range
