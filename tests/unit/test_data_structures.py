"""Reading structures and label files, statistics, digests and splits."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from training_cases import argon, write_labels

from egnn_md.data.frames import parse_comment, scan_frames
from egnn_md.data.splits import split_indices
from egnn_md.data.statistics import dataset_statistics, fit_atomic_energies
from egnn_md.data.structures import frame_digest, graph_from_atoms, read_frames, read_labelled
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph


def composed(formulas: list[str], energies: dict[str, float]) -> list[ParticleGraph]:
    out = []
    for number, formula in enumerate(formulas):
        atoms = Atoms(formula)
        atoms.positions = np.random.default_rng(number).normal(scale=5.0, size=(len(atoms), 3))
        total = sum(energies[symbol] for symbol in atoms.get_chemical_symbols())
        atoms.calc = SinglePointCalculator(atoms, energy=total, forces=np.full((len(atoms), 3), 2.0))
        out.append(graph_from_atoms(atoms, 3.0, labels=True))
    return out


def test_graph_holds_the_structure_and_its_labels() -> None:
    atoms = argon(1)[0]
    graph = graph_from_atoms(atoms, 5.0, dtype=torch.float64, labels=True).validate()
    assert atoms.calc is not None
    np.testing.assert_allclose(graph.positions.numpy(), atoms.positions)
    np.testing.assert_allclose(graph.cell[0].numpy(), atoms.cell.array)
    assert graph.labels["energy"].tolist() == [atoms.calc.results["energy"]]
    np.testing.assert_allclose(graph.labels["forces"].numpy(), atoms.get_forces())
    np.testing.assert_allclose(graph.labels["stress"][0].numpy(), atoms.get_stress(voigt=False))
    distances = graph.pair_vectors().norm(dim=1)
    assert float(distances.max()) <= 5.0
    assert graph.num_edges > 6
    single = graph_from_atoms(atoms, 5.0, labels=True)
    assert single.positions.dtype == torch.float32
    assert single.labels["energy"].dtype == torch.float64
    assert graph_from_atoms(atoms, 5.0).labels == {}


def test_open_structures_have_no_stress_and_no_cell() -> None:
    atoms = argon(1, periodic=False)[0]
    atoms.set_cell([50, 50, 50])  # a box drawn around a molecule is no periodicity
    graph = graph_from_atoms(atoms, 5.0, labels=True)
    assert bool(torch.isnan(graph.labels["stress"]).all())
    assert not graph.cell.any()
    ParticleGraph.join([graph, graph_from_atoms(argon(1)[0], 5.0, labels=True)])


def test_structures_that_cannot_be_used() -> None:
    atoms = molecule("H2O")
    with pytest.raises(InputError, match=r"no reference energy \(found: nothing\).*egnn-md label"):
        graph_from_atoms(atoms, 3.0, labels=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0)
    with pytest.raises(InputError, match="no reference forces"):
        graph_from_atoms(atoms, 3.0, labels=True)
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=np.full((3, 3), np.nan))
    with pytest.raises(InputError, match="not finite"):
        graph_from_atoms(atoms, 3.0, labels=True)
    atoms.positions[1] = atoms.positions[0]
    with pytest.raises(InputError, match="coincide"):
        graph_from_atoms(atoms, 3.0)
    atoms.positions[1, 2] = np.inf
    with pytest.raises(InputError, match=r"atom 1 .*not finite"):
        graph_from_atoms(atoms, 3.0)


def test_atomic_energies_are_recovered_where_compositions_determine_them() -> None:
    energies = {"H": -13.6, "C": -1029.5, "O": -2042.25}
    elements, fitted = fit_atomic_energies(composed(["CH4", "H2O", "CO2", "C2H6O", "O2"], energies))
    assert elements == [1, 6, 8]
    assert fitted == pytest.approx([energies[s] for s in "HCO"], rel=1e-9)


def test_pure_water_gets_the_smallest_solution_and_the_right_total() -> None:
    energies = {"H": -10.0, "O": -400.0}
    elements, (hydrogen, oxygen) = fit_atomic_energies(composed(["OH2", "O2H4", "O3H6"], energies))
    assert elements == [1, 8]
    assert 2 * hydrogen + oxygen == pytest.approx(-420.0, rel=1e-10)
    assert hydrogen == pytest.approx(2 * oxygen, rel=1e-8)  # along (2, 1): the shortest vector


def test_statistics() -> None:
    graphs = composed(["OH2", "O2H4"], {"H": 0.0, "O": 1.0})
    found = dataset_statistics(graphs)
    assert (found.structures, found.atoms, found.elements) == (2, 9, [1, 8])
    assert found.force_rms == pytest.approx(2.0)
    assert found.mean_neighbors == pytest.approx(sum(g.num_edges for g in graphs) / 9)
    with pytest.raises(InputError, match="no structure"):
        dataset_statistics([])


def test_digest_is_of_the_content_not_of_the_files(tmp_path: Path) -> None:
    frames = argon(4)
    one = write_labels(tmp_path / "a.extxyz", frames)
    first = write_labels(tmp_path / "b.extxyz", frames[2:])
    second = write_labels(tmp_path / "c.extxyz", frames[:2])
    whole, parts = read_labelled([one], 5.0), read_labelled([first, second], 5.0)
    assert whole.digest() == parts.digest()
    assert whole.digests != parts.digests
    assert re.fullmatch("[0-9a-f]{64}", whole.digest())
    assert whole.take([0, 1, 2]).digest() != whole.digest()
    assert frames[0].calc is not None
    before = frame_digest(frames[0])
    frames[0].calc.results["energy"] += 1e-9
    assert frame_digest(frames[0]) != before


def test_hard_structures_and_copies_are_left_out(tmp_path: Path) -> None:
    frames = argon(4)
    assert frames[1].calc is not None
    frames[1].calc.results["forces"][0] = [30.0, 0, 0]
    path = write_labels(tmp_path / "a.extxyz", [*frames, frames[0]])
    data = read_labelled([path, path], 5.0, max_force=20.0)
    assert len(data) == 3
    assert data.dropped == 1
    assert data.duplicates == 6  # ten frames, four different ones
    assert data.teachers() == ["lj"]


def test_errors_name_file_and_frame(tmp_path: Path) -> None:
    frames = argon(3)
    frames[1].calc = None
    path = write_labels(tmp_path / "a.extxyz", frames)
    with pytest.raises(InputError, match=r"a\.extxyz, frame 1: .*no reference energy"):
        read_labelled([path], 5.0)
    with pytest.raises(InputError, match=r"there is no file .*nothing\.xyz"):
        read_frames(tmp_path / "nothing.xyz")
    (tmp_path / "empty.extxyz").write_text("")
    with pytest.raises(InputError, match="holds no structure"):
        read_frames(tmp_path / "empty.extxyz")
    (tmp_path / "text.extxyz").write_text("not a structure\n")
    with pytest.raises(InputError, match="byte 0"):
        read_frames(tmp_path / "text.extxyz")
    (tmp_path / "text.cif").write_text("not a structure\n")
    with pytest.raises(InputError, match=r"text\.cif"):
        read_frames(tmp_path / "text.cif")


def test_other_formats_are_read(tmp_path: Path) -> None:
    frames = argon(2)
    write(tmp_path / "labels.traj", frames)
    data = read_labelled([tmp_path / "labels.traj"], 5.0)
    assert data.digests == [frame_digest(atoms) for atoms in frames]
    write(tmp_path / "cu.cif", bulk("Cu"))
    assert len(read_frames(tmp_path / "cu.cif")) == 1


def test_a_file_that_still_grows_is_read_up_to_its_last_whole_frame(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "a.extxyz", argon(3))
    whole = path.read_bytes()
    path.write_bytes(whole[:-40])
    with pytest.warns(UserWarning, match="unfinished frame"):
        assert len(read_frames(path)) == 2
    path.write_bytes(whole[:-1] + b"\n\n\n")
    assert len(read_frames(path)) == 3
    assert scan_frames(path).frames == 3


def test_comment_words_stay_text() -> None:
    words = parse_comment('Lattice="1 0 0 0 1 0 0 0 1" structure_id=12e45 teacher="a b" flag note=\'x y\'')
    assert words["structure_id"] == "12e45"
    assert words["teacher"] == "a b"
    assert words["note"] == "x y"
    assert "flag" not in words
    assert parse_comment('a=1 b="unbalanced') == {"a": "1", "b": '"unbalanced'}


def test_groups_stay_together_and_the_split_is_a_function_of_its_seed() -> None:
    info = [{"run": number // 4} for number in range(40)]
    split = split_indices(info, valid=0.2, test=0.1, group_by="run", seed=1)
    parts = [set(split.train), set(split.valid), set(split.test)]
    assert set.union(*parts) == set(range(40))
    assert sum(map(len, parts)) == 40
    assert [len(part) for part in parts] == [28, 8, 4]
    groups = [{info[index]["run"] for index in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert split_indices(info, valid=0.2, test=0.1, group_by="run", seed=1) == split
    assert split_indices(info, valid=0.2, test=0.1, group_by="run", seed=2) != split


def test_splits_that_cannot_be_made() -> None:
    info = [{"run": 1, "kind": "a"}] * 5
    with pytest.raises(InputError, match=r"no structure has the key 'seed'.*kind, run"):
        split_indices(info, valid=0.2, group_by="seed")
    with pytest.raises(InputError, match=r"train part .* is empty: 5 structures in 1 groups"):
        split_indices(info, valid=0.2, group_by="run")
    split = split_indices([*info, {}, {}], valid=0.2, group_by="run", seed=0)
    assert len(split.train) + len(split.valid) == 7
