"""Salt bridges and salt water: geometry, sets that do not overlap, and the table of the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from scipy.constants import atomic_mass
from scipy.spatial.distance import cdist, pdist

from egnn_md.data.structures import graph_from_atoms
from egnn_md.models import FastEGNNPotential, PotentialConfig, evaluate
from egnn_md_systems.ions import pairs, salt_water, study

ELEMENTS = (1, 6, 7, 8)


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both molecules, as the force field reads them."""
    path = tmp_path_factory.mktemp("pairs") / "pair.pdb"
    pairs.write_topology(path)
    return path


@pytest.fixture(scope="module")
def two_sets(start: Path) -> tuple[list[Atoms], list[Atoms]]:
    """A few structures of two seeds."""
    return list(pairs.structures(12, 1, start)), list(pairs.structures(12, 2, start, nearest=6.0))


def test_pairs_are_where_their_labels_say(start: Path, two_sets: tuple[list[Atoms], list[Atoms]]) -> None:
    positive, negative = pairs.started(start)
    split = len(positive.positions)
    ends = pairs.charged_atom(positive), split + pairs.charged_atom(negative)
    assert positive.charge == 1
    assert negative.charge == -1
    for nearest, frames in zip((3.0, 6.0), two_sets, strict=True):
        for atoms in frames:
            first, second = atoms.positions[:split], atoms.positions[split:]
            distance = np.linalg.norm(atoms.positions[ends[1]] - atoms.positions[ends[0]])
            assert distance == pytest.approx(atoms.info["distance"], abs=1e-3)
            assert nearest <= distance <= pairs.FURTHEST
            assert cdist(first, second).min() == pytest.approx(atoms.info["gap"], abs=1e-3)
            assert atoms.info["gap"] >= pairs.CLOSEST
            lengths = atoms.cell.lengths()
            assert (lengths >= pairs.EDGES[0]).all()
            assert (lengths <= pairs.EDGES[1]).all()
            assert atoms.pbc.all()


def test_what_differs_between_sets_is_between_the_molecules(
    start: Path, two_sets: tuple[list[Atoms], list[Atoms]]
) -> None:
    """Both sets hold the same few conformers, or the error within molecules would hide the one between them."""
    split = len(pairs.started(start)[0].positions)
    distinct: list[np.ndarray] = []
    for atoms in (*two_sets[0], *two_sets[1]):
        shape = pdist(atoms.positions[:split])
        if not any(np.abs(shape - known).max() < 1e-6 for known in distinct):
            distinct.append(shape)
    assert 1 < len(distinct) <= pairs.CONFORMERS
    assert not np.allclose(two_sets[0][0].positions, two_sets[1][0].positions, atol=0.1)


def test_overlapping_pairs_are_refused(start: Path) -> None:
    positive, negative = pairs.started(start)
    ends = pairs.charged_atom(positive), pairs.charged_atom(negative)
    rng = np.random.default_rng(0)
    assert pairs.pair(positive.positions, negative.positions, ends, 0.5, rng) is None
    assert pairs.pair(positive.positions, negative.positions, ends, 40.0, rng) is not None


def test_salt_water_has_the_density_that_it_is_asked_for() -> None:
    topology = salt_water.topology(salt_water.WATERS, salt_water.PAIRS)
    grams = sum(atom.element.mass._value for atom in topology.atoms()) * atomic_mass * 1e3
    edge = salt_water.cell_edge(1.2)
    assert grams / (edge * 1e-8) ** 3 == pytest.approx(1.2, rel=1e-3)
    names = [residue.name for residue in topology.residues()]
    assert names.count("NA") == names.count("CL") == salt_water.PAIRS


def test_errors_of_pairs_are_binned_by_distance() -> None:
    """Labels that are off by a known amount come back as just that."""
    torch.manual_seed(0)
    model = FastEGNNPotential(PotentialConfig(elements=ELEMENTS, cutoff=3.0, hidden=8, layers=1, virtual_nodes=0))
    frames = []
    for distance, gap, error in (
        (6.0, 2.5, 0.1),
        (8.0, 4.0, 0.2),
        (11.0, 5.0, 0.3),
        (14.0, 9.0, 0.4),
        (14.5, 9.0, 0.4),
    ):
        atoms = Atoms("OHNH", [[0, 0, 0], [1, 0, 0], [distance, 0, 0], [distance + 1, 0, 0]], cell=[30] * 3, pbc=True)
        energy = evaluate(model, graph_from_atoms(atoms, model.cutoff, dtype=torch.float32), forces=False)["energy"][0]
        atoms.info.update(distance=distance, gap=gap)
        atoms.calc = SinglePointCalculator(atoms, energy=float(energy) - error, forces=np.zeros((4, 3)))
        frames.append(atoms)
    found = study.pair_errors(model, frames)
    wanted = {"5 to 7.5 Å": 100, "7.5 to 10 Å": 200, "10 to 12.5 Å": 300, "12.5 to 15 Å": 400, "apart, pairs": 4}
    assert {key: found[key] for key in wanted} == pytest.approx(wanted, abs=0.5)
    assert found["apart"] == pytest.approx(np.sqrt((200**2 + 300**2 + 2 * 400**2) / 4), abs=0.5)
