"""The force-field teacher against OpenMM's own numbers and against itself in other frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule

from egnn_md.data.calculators import make_calculator
from egnn_md.data.openmm_calculator import find_molecules, reduced_cell, refuse_code
from egnn_md.errors import InputError
from egnn_md.units import KJ_PER_MOL_PER_EV

openmm = pytest.importorskip("openmm")


def water_box(seed: int = 0) -> Atoms:
    rng = np.random.default_rng(seed)
    atoms = Atoms()
    for corner in np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3):
        water = molecule("H2O")
        water.rotate(rng.uniform(0, 360), rng.normal(size=3))
        water.translate(corner * 3.3 - water.positions[0])
        atoms += water
    atoms.set_cell([[6.6, 0, 0], [1.0, 6.7, 0], [-0.8, 1.5, 6.8]])
    atoms.pbc = True
    atoms.positions += rng.normal(scale=0.03, size=atoms.positions.shape)
    return atoms


def results(atoms: Atoms, **options: object) -> tuple[float, np.ndarray]:
    work = atoms.copy()
    work.calc = make_calculator("openmm", platform="Reference", **options)
    return work.get_potential_energy(), work.get_forces()


def test_one_water_is_its_springs() -> None:
    atoms = molecule("H2O")
    atoms.positions += np.random.default_rng(1).normal(scale=0.05, size=(3, 3))
    energy, _ = results(atoms)
    from openmm import app

    template = app.ForceField("amber14/tip3pfb.xml")
    bonds = next(g for g in template.getGenerators() if type(g).__name__ == "HarmonicBondGenerator")
    angles = next(g for g in template.getGenerators() if type(g).__name__ == "HarmonicAngleGenerator")
    lengths = np.array([atoms.get_distance(0, 1), atoms.get_distance(0, 2)]) * 0.1
    angle = np.radians(atoms.get_angle(1, 0, 2))
    expected = (0.5 * bonds.k[0] * (lengths - bonds.length[0]) ** 2).sum() + 0.5 * angles.k[0] * (
        angle - angles.angle[0]
    ) ** 2
    assert energy == pytest.approx(expected / KJ_PER_MOL_PER_EV, rel=1e-6)


def test_forces_are_the_gradient_in_a_triclinic_cell() -> None:
    atoms = water_box()
    _, forces = results(atoms)
    for index, axis in ((0, 0), (4, 1), (11, 2)):
        energies = []
        for step in (-1e-4, 1e-4):
            moved = atoms.copy()
            moved.positions[index, axis] += step
            energies.append(results(moved)[0])
        assert forces[index, axis] == pytest.approx((energies[0] - energies[1]) / 2e-4, abs=2e-4)


def test_energy_does_not_depend_on_frame_order_or_wrapping() -> None:
    atoms = water_box()
    energy, forces = results(atoms, nonbonded_cutoff=2.9)

    wrapped = atoms.copy()
    wrapped.positions += [3.0, 2.0, 1.0]
    wrapped.wrap()  # cuts molecules apart
    e, f = results(wrapped, nonbonded_cutoff=2.9)
    assert e == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(f, forces, atol=1e-4)

    turned = atoms.copy()
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))
    turned.set_cell(atoms.cell.array @ rotation)
    turned.positions = atoms.positions @ rotation
    e, f = results(turned, nonbonded_cutoff=2.9)
    assert e == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(f, forces @ rotation, atol=1e-4)

    order = np.random.default_rng(4).permutation(len(atoms))
    e, f = results(atoms[order], nonbonded_cutoff=2.9)
    assert e == pytest.approx(energy, abs=1e-5)
    np.testing.assert_allclose(f, forces[order], atol=1e-4)


def test_cells_are_reduced_without_changing_the_lattice() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        cell = rng.normal(scale=5.0, size=(3, 3))
        rows, rotation = reduced_cell(cell)
        assert np.allclose(np.triu(rows, 1), 0, atol=1e-9)
        assert (np.diag(rows) > 0).all()
        for i, j in ((1, 0), (2, 0), (2, 1)):
            assert abs(rows[i, j]) <= 0.5 * rows[j, j] + 1e-9
        steps = rows @ np.linalg.inv(cell @ rotation.T)
        np.testing.assert_allclose(steps, np.round(steps), atol=1e-8)
        assert abs(np.linalg.det(steps)) == pytest.approx(1.0)


def test_molecules_are_found_across_the_boundary() -> None:
    atoms = water_box()
    atoms.positions += 2.9
    atoms.wrap()
    found = find_molecules(atoms)
    assert sorted(map(len, found.members)) == [3] * 8
    whole = atoms.positions + found.images @ atoms.cell.array
    assert all(np.linalg.norm(whole[i] - whole[j]) < 1.3 for i, j in found.bonds)
    assert len(found.bonds) == 16
    with pytest.raises(InputError, match="its own periodic image"):
        find_molecules(Atoms("C", cell=[1.4, 9, 9], pbc=True))


def test_what_it_cannot_describe() -> None:
    slab = water_box()
    slab.pbc = [True, True, False]
    with pytest.raises(InputError, match="full periodicity or none"):
        results(slab)
    with pytest.raises(InputError, match="does not fit the structure"):
        results(molecule("CH4"))
    with pytest.raises(InputError, match="more than half the cell"):
        results(water_box(), nonbonded_cutoff=9.0)
    with pytest.raises(InputError, match=r"cannot use the force field \['none.xml'\]"):
        results(molecule("H2O"), forcefield="none.xml")


def test_a_topology_from_a_pdb_file(tmp_path: Path) -> None:
    from openmm import app, unit

    atoms = molecule("H2O")
    topology = app.Topology()
    residue = topology.addResidue("HOH", topology.addChain())
    built = [topology.addAtom(n, app.Element.getBySymbol(n[0]), residue) for n in ("O", "H1", "H2")]
    topology.addBond(built[0], built[1])
    topology.addBond(built[0], built[2])
    with (tmp_path / "w.pdb").open("w") as file:
        app.PDBFile.writeFile(topology, atoms.positions * unit.angstrom, file)
    assert results(atoms, topology=str(tmp_path / "w.pdb"))[0] == pytest.approx(results(atoms)[0], abs=1e-9)
    with pytest.raises(InputError, match="their elements differ"):
        results(atoms[[1, 0, 2]], topology=str(tmp_path / "w.pdb"))


def test_a_force_field_with_code_in_it_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    bad = tmp_path / "bad.xml"
    bad.write_text(f"<ForceField><Script>open({str(mark)!r}, 'w')</Script></ForceField>")
    outer = tmp_path / "outer.xml"
    outer.write_text("<ForceField><Include file='bad.xml'/></ForceField>")
    for file in (bad, outer):
        with pytest.raises(InputError, match="Python code"):
            make_calculator("openmm", forcefield=str(file))
    assert not mark.exists()
    (tmp_path / "torn.xml").write_text("<ForceField>")
    with pytest.raises(InputError, match="cannot be read"):
        refuse_code(tmp_path / "torn.xml")
