"""Structures for runs: readers, topologies, molecules across faces, and what is refused."""

from __future__ import annotations

from pathlib import Path

import ase.io
import numpy as np
import pytest
from ase.build import bulk, molecule

from egnn_md.errors import InputError
from egnn_md.simulation.molecules import Molecules
from egnn_md.simulation.readers import read_structure, reduce_cell, structure_from_atoms
from egnn_md.simulation.structure import Structure

SHIPPED = Path(__file__).parents[2] / "systems" / "water" / "water64.pdb"


def two_waters() -> ase.Atoms:
    """Two waters in a cell, one of them across a face."""
    first, second = molecule("H2O"), molecule("H2O")
    second.positions += [4.0, 4.9, 3.9]
    atoms = first + second
    atoms.set_cell([8.0, 8.0, 8.0])
    atoms.pbc = True
    atoms.positions += [0.0, 0.1, 0.1]
    atoms.wrap()
    return atoms


def test_pdb_keeps_names_residues_bonds_and_cell() -> None:
    structure = read_structure(SHIPPED)
    assert len(structure) == 192
    assert structure.molecules.count == 64
    assert set(structure.residue_names) == {"HOH"}
    assert structure.names[:3].tolist() == ["O", "H1", "H2"]
    assert len(structure.bonds) == 128
    np.testing.assert_allclose(np.diag(structure.cell), 12.43, atol=1e-3)
    plain = ase.io.read(SHIPPED)
    change = structure.positions - plain.positions
    np.testing.assert_allclose(change - np.round(change / 12.43) * 12.43, 0, atol=1e-4)


@pytest.mark.parametrize("name", ["w.extxyz", "w.cif", "w.vasp", "w.pdb"])
def test_other_formats_get_bonds_and_residues(tmp_path: Path, name: str) -> None:
    two_waters().write(tmp_path / name)
    structure = read_structure(tmp_path / name)
    assert len(structure.bonds) == 4
    assert sorted(structure.symbols) == ["H"] * 4 + ["O"] * 2
    assert structure.molecules.count == 2
    if name == "w.extxyz":
        assert structure.residue_names.tolist() == ["HOH", "HOH"]
        assert structure.names.tolist() == ["O", "H1", "H2"] * 2
    lengths = np.linalg.norm(np.diff(structure.positions[structure.bonds], axis=1), axis=-1)
    assert lengths.max() < 1.0  # whole, although the file cuts them at the face


def test_a_structure_survives_its_files(tmp_path: Path) -> None:
    structure = structure_from_atoms(two_waters())
    structure.save(tmp_path / "s.npz")
    loaded = Structure.load(tmp_path / "s.npz")
    for name in Structure.__dataclass_fields__:
        assert np.array_equal(getattr(structure, name), getattr(loaded, name)), name
    structure.write_pdb(tmp_path / "s.pdb")
    again = read_structure(tmp_path / "s.pdb")
    assert np.array_equal(again.bonds, structure.bonds)
    np.testing.assert_allclose(again.positions, structure.positions, atol=6e-4)
    (tmp_path / "s.npz").write_bytes(b"PK nothing")
    with pytest.raises(InputError, match=r"s.npz cannot be read"):
        Structure.load(tmp_path / "s.npz")


def test_interleaved_molecules_share_one_residue() -> None:
    atoms = two_waters()[[0, 3, 1, 4, 2, 5]]
    structure = structure_from_atoms(atoms)
    assert structure.molecules.count == 2
    assert structure.residue_names.tolist() == ["UNK"]


def test_endless_networks_are_recognised() -> None:
    diamond = structure_from_atoms(bulk("C", "diamond", a=3.57, cubic=True) * (2, 2, 2))
    assert diamond.molecules.endless.all()
    assert not structure_from_atoms(two_waters()).molecules.endless.any()


def test_wrapping_keeps_molecules_whole() -> None:
    structure = structure_from_atoms(two_waters())
    far = structure.positions + np.array([80.0, -16.0, 8.0])
    cells = structure.cell[None]
    back = structure.molecules.wrapped(far[None], cells)[0]
    home = structure.molecules.wrapped(structure.positions[None], cells)[0]
    np.testing.assert_allclose(back - back[0], home - home[0], atol=1e-12)
    nothing = Molecules.from_bonds(np.zeros((0, 2), dtype=int), np.zeros((0, 3)), None)
    assert nothing.wrapped(np.zeros((1, 0, 3)), cells).shape == (1, 0, 3)


def test_a_reduced_cell_is_the_same_lattice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cell = rng.normal(size=(3, 3)) * 3 + 4 * np.eye(3)
        positions = rng.random((4, 3)) @ cell
        new, moved = reduce_cell(cell, positions)
        assert np.linalg.det(new) == pytest.approx(abs(np.linalg.det(cell)))
        assert np.all(np.triu(new, 1) == 0)
        assert abs(new[1, 0]) <= new[0, 0] / 2 + 1e-9
        assert abs(new[2, 1]) <= new[1, 1] / 2 + 1e-9
        first = ase.Atoms("H4", positions, cell=cell, pbc=True).get_all_distances(mic=True)
        second = ase.Atoms("H4", moved, cell=new, pbc=True).get_all_distances(mic=True)
        np.testing.assert_allclose(first, second, atol=1e-8)


def test_a_topology_of_other_atoms_is_refused(tmp_path: Path) -> None:
    two_waters().write(tmp_path / "w.extxyz")
    with pytest.raises(InputError, match=r"topology .* \(192 atoms, H128O64\) differs from the positions"):
        read_structure(tmp_path / "w.extxyz", SHIPPED)
    shuffled = ase.io.read(SHIPPED)
    order = np.arange(192).reshape(64, 3)
    order[:, 1] = np.roll(order[:, 1], 7)  # hydrogens of other molecules: same elements, other atoms
    shuffled[order.ravel()].write(tmp_path / "mixed.extxyz")
    with pytest.raises(InputError, match=r"the topology bonds atoms \d+ \([OH]\) and \d+ \([OH]\), but"):
        read_structure(tmp_path / "mixed.extxyz", SHIPPED)
    assert len(read_structure(SHIPPED, SHIPPED)) == 192


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("2\n\nO 0 0 0\nH 0 0 nan\n", "atom 1 .*not finite"),
        ("2\n\nO 0 0 0\nH 0 0 0\n", "atoms . and . coincide"),
        ('1\nLattice="5 0 0 0 5 0 5 5 0" pbc="T T T"\nO 0 0 0\n', "volume"),
        ("0\n\n", "no atoms|cannot be read"),
        ("garbage", "cannot be read as a structure"),
    ],
)
def test_bad_structures_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.extxyz"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_structure(path)


def test_bad_pdbs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.pdb"
    path.write_text("nothing of a PDB\n")
    with pytest.raises(InputError):
        read_structure(path)
    lines = SHIPPED.read_text().splitlines()
    lines[1] = lines[1][:30] + "     nan" + lines[1][38:]
    path.write_text("\n".join(lines))
    with pytest.raises(InputError):
        read_structure(path)
    with pytest.raises(InputError, match="does not exist"):
        read_structure(tmp_path / "none.pdb")
