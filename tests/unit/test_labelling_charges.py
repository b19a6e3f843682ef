"""Total charges: what is computed, what the label file and the model card say, and what is refused."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.io import read, write
from training_cases import argon, tiny, write_labels

from egnn_md.checkpoint import ModelCard, load_model
from egnn_md.data.calculators import make_calculator, set_total_charge
from egnn_md.data.labelling import label, structure_id
from egnn_md.data.structures import read_labelled, total_charge
from egnn_md.errors import InputError
from egnn_md.training.train import train


def hydroxide(**info: object) -> Atoms:
    return Atoms("OH", [[0, 0, 0], [0, 0, 0.97]], info=dict(info))


def by_atoms(*charges: float) -> Atoms:
    atoms = hydroxide()
    atoms.set_initial_charges(charges)
    return atoms


def test_where_the_total_charge_comes_from() -> None:
    assert total_charge(hydroxide()) == 0
    assert total_charge(hydroxide(charge=-1)) == -1
    assert total_charge(hydroxide(charge=np.float64(2.0))) == 2
    assert total_charge(by_atoms(-1.2, 0.2)) == -1
    assert total_charge(by_atoms(-0.2004, 0.2)) == 0, "partial charges are rounded in files"


@pytest.mark.parametrize("value", [0.5, "two", float("nan"), [1, 2]])
def test_a_charge_that_is_no_whole_number_is_refused(value: object) -> None:
    with pytest.raises(InputError, match=r"info\['charge'\] is .*whole number"):
        total_charge(hydroxide(charge=value))


def test_charges_that_disagree_are_refused() -> None:
    with pytest.raises(InputError, match="the sum of the initial charges is"):
        total_charge(by_atoms(-0.5, 0.2))
    atoms = by_atoms(-1.0, 0.0)
    atoms.info["charge"] = 1
    with pytest.raises(InputError, match=r"info\['charge'\] = 1, but the initial charges add up to -1; remove"):
        total_charge(atoms)


def test_the_id_depends_on_a_charge_and_stays_what_it_was_without() -> None:
    atoms = hydroxide()
    digest = hashlib.sha256()  # as label files in use have it, written without our function
    digest.update(np.array([8, 1], dtype="<i4").tobytes())
    digest.update(np.array([0, 0, 0, 0, 0, 970_000], dtype="<i8").tobytes())
    digest.update(np.zeros(9, dtype="<i8").tobytes() + np.zeros(3, dtype="u1").tobytes())
    neutral = digest.hexdigest()[:16]
    assert structure_id(atoms) == structure_id(hydroxide(charge=0)) == structure_id(by_atoms(0.3, -0.3)) == neutral
    ids = {structure_id(hydroxide(charge=charge)) for charge in (-2, -1, 0, 1, 2)}
    assert len(ids) == 5
    assert structure_id(by_atoms(-1.2, 0.2)) == structure_id(hydroxide(charge=-1))


def test_gfn2_computes_the_charge_that_the_structure_names(tmp_path: Path) -> None:
    tblite = pytest.importorskip("tblite.ase", reason="tblite is not installed: pip install 'egnn-md[label]'")
    output = tmp_path / "labels.extxyz"
    frames = [hydroxide(charge=-1), by_atoms(0.5, 0.5)]
    frames[1].positions[1, 2] = 1.03  # HO+, a doublet pair in GFN2's closed-shell form: only its number counts
    summary = label(frames, output, "gfn2-xtb", processes=0)
    assert (summary.labelled, summary.failed) == (2, 0)
    anion, cation = read(output, ":")
    assert [anion.info["charge"], cation.info["charge"]] == [-1, 1]
    energies = {}
    for atoms, charge in ((hydroxide(), -1), (hydroxide(), 0), (frames[1].copy(), 1)):
        atoms.calc = tblite.TBLite(method="GFN2-xTB", charge=charge, verbosity=0)
        energies[charge] = atoms.get_potential_energy()
    assert anion.get_potential_energy() == pytest.approx(energies[-1], abs=1e-6)
    assert cation.get_potential_energy() == pytest.approx(energies[1], abs=1e-6)
    assert abs(anion.get_potential_energy() - energies[0]) > 1.0, "the anion is another molecule"
    # the file alone is enough to skip them, and a neutral one beside them is new
    again = label([hydroxide(charge=-1), frames[1], hydroxide()], output, "gfn2-xtb", processes=0)
    assert (again.labelled, again.skipped) == (1, 2)
    assert read_labelled([output], 2.0).charges() == [-1, 0, 1]


def test_the_methods_own_option_counts_where_a_structure_names_none(tmp_path: Path) -> None:
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'egnn-md[label]'")
    output = tmp_path / "labels.extxyz"
    frames = [hydroxide(), hydroxide(charge=0), hydroxide(charge=-1)]
    frames[1].positions[1, 2] = 1.0
    summary = label(frames, output, "gfn2-xtb", options={"charge": -1}, processes=0)
    assert (summary.labelled, summary.failed) == (2, 1)
    assert "the structure has the total charge 0, but the option charge of gfn2-xtb is -1" in summary.failures[0]
    first, second = read(output, ":")
    assert first.info["charge"] == second.info["charge"] == -1
    assert first.get_potential_energy() == pytest.approx(second.get_potential_energy(), abs=1e-6)


def test_methods_without_a_total_charge_refuse_one(tmp_path: Path) -> None:
    frames = [hydroxide(charge=1), hydroxide(charge=0), hydroxide(charge=0.5)]
    frames[1].positions[1, 2] = 1.2
    summary = label(frames, tmp_path / "labels.extxyz", "lj", processes=0)
    assert (summary.labelled, summary.failed) == (1, 2)
    assert "total charge 1, and the reference method lj knows no total charge" in summary.failures[0]
    assert "whole number" in summary.failures[1]
    assert "charge" in read(tmp_path / "labels.extxyz").info, "a named zero stays"


def test_a_calculator_may_say_that_it_reads_the_charge_itself() -> None:
    class Reader(Calculator):
        reads_total_charge = True

    assert set_total_charge(Reader(), "reader", 1) == 1
    assert set_total_charge(make_calculator("emt"), "emt", None) == 0


def test_the_card_names_the_charges_of_the_data(tmp_path: Path) -> None:
    frames = argon(18, periodic=False)
    for index, atoms in enumerate(frames):
        atoms.info["charge"] = (0, 1, -1)[index % 3]
    write_labels(tmp_path / "labels.extxyz", frames)
    train(tiny(tmp_path))
    card = load_model(tmp_path / "run" / "model.safetensors").card
    assert card.training_data["charges"] == [-1, 0, 1]
    assert card.charges == [-1, 0, 1]
    assert ModelCard().charges == [0], "models older than this field know neutral systems only"


def test_a_file_without_charges_is_neutral(tmp_path: Path) -> None:
    write(tmp_path / "x.extxyz", argon(2), format="extxyz")
    assert read_labelled([tmp_path / "x.extxyz"], 5.0).charges() == [0]
