"""Holes: distortions of known molecules, and a potential with a well that its teacher does not have."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from torch import Tensor
from validation_cases import CUTOFF, EPSILON, SIGMA, crystal, mark, number, run, teacher

from egnn_md.models import LennardJones
from egnn_md.validation.distortions import COMPRESSED, STRETCHED, Distortion, distortions


def every(atoms: Atoms) -> list[Distortion]:
    return list(distortions(atoms, np.random.default_rng(0)))


def test_an_acids_protons_are_pushed_pulled_and_given_away() -> None:
    acid = molecule("CH3COOH")
    found = every(acid)
    kinds = [each.kind for each in found]
    assert kinds[:3] == ["compressed", "stretched", "moved"]
    # all four hydrogens, each towards its nearest neighbour and away from it
    assert kinds.count("compressed") == 4 * len(COMPRESSED)
    assert 4 <= kinds.count("stretched") <= 4 * len(STRETCHED)
    symbols = acid.get_chemical_symbols()
    for each in found:
        assert symbols[each.atom] == "H"
        moved = each.applied(acid)
        assert np.flatnonzero(np.abs(moved.positions - acid.positions).max(axis=1) > 1e-9).tolist() == [each.atom]
        before, after = acid.get_distance(each.atom, each.other), moved.get_distance(each.atom, each.other)
        if each.kind == "moved":
            assert 0.9 < after < 1.2
            assert before > 1.8
            assert f"moved to {symbols[each.other]}" in each.words(acid)
        else:
            assert after == pytest.approx(each.factor * before)
            assert f"{each.factor:g} times" in each.words(acid)
    assert {symbols[each.other] for each in found if each.kind == "moved"} == {"O"}


def test_a_moved_hydrogen_goes_to_the_nearest_image() -> None:
    """Two waters apart by the cell's wall: the proton crosses it."""
    water = molecule("H2O")
    pair = water.copy()
    pair += water
    pair.positions[3:, 2] += 7.2
    pair.set_cell([9.0, 9.0, 9.0])
    pair.pbc = True
    moved = [each for each in every(pair) if each.kind == "moved"]
    assert moved
    for each in moved:
        placed = each.applied(pair)
        assert placed.get_distance(each.atom, each.other, mic=True) < 1.2
        assert placed.get_distance(each.atom, each.other) > 5.0


def test_atoms_without_hydrogen_are_pushed_and_pulled() -> None:
    kinds = {each.kind for each in every(bulk("Ar", cubic=True, a=5.6))}
    assert kinds == {"compressed", "stretched"}
    assert not every(Atoms("Ar", [[0, 0, 0]]))


class Sticky(LennardJones):
    """Lennard-Jones with a well of 3 eV about 0.8 times the nearest distance of the crystal."""

    def forward(
        self, positions: Tensor, species: Tensor, edge_index: Tensor, shifts: Tensor, batch: Tensor, periodic: Tensor
    ) -> Tensor:
        energies = super().forward(positions, species, edge_index, shifts, batch, periodic)
        pair = positions.index_select(0, edge_index[0]) - positions.index_select(0, edge_index[1]) + shifts
        well = -1.5 * torch.exp(-(((torch.linalg.vector_norm(pair, dim=1) - 3.1) / 0.15) ** 2))
        return energies.index_add(0, edge_index[1], well)


def test_a_well_that_the_teacher_does_not_have_is_found(tmp_path: Path) -> None:
    values = {**teacher(), "structure": crystal(tmp_path), "temperatures": (20.0,), "parts": ("holes",)}
    values |= {"equilibration": 0.1, "length": 0.2}
    deep = run(tmp_path / "deep", Sticky(EPSILON, SIGMA, CUTOFF, smooth=False), **values)
    assert deep.failed == []
    assert mark(deep, "Holes") == "look"
    assert number(deep, "holes") >= 1
    assert number(deep, "deepest_hole") > 2.0
    sound = run(tmp_path / "sound", LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False), **values)
    assert mark(sound, "Holes") == "good"
    assert number(sound, "holes") == 0
    assert number(sound, "distortion_energy_rmse", "compressed") < 1e-4


def test_what_is_labelled_is_not_labelled_again(tmp_path: Path) -> None:
    values = {**teacher(), "structure": crystal(tmp_path), "temperatures": (20.0,), "parts": ("holes",)}
    values |= {"equilibration": 0.1, "length": 0.2}
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    run(tmp_path / "v", model, **values)
    work = tmp_path / "v" / "work"
    path = work / "holes-0.json"
    stored = json.loads(path.read_text())
    expected = [row["reference"] for row in stored["rows"]]
    stored["rows"] = stored["rows"][:3]
    stored["rows"][0]["reference"] = 123.0
    path.write_text(json.dumps(stored))
    (work / "parts" / "holes.json").unlink()
    run(tmp_path / "v", model, **values)
    again = [row["reference"] for row in json.loads(path.read_text())["rows"]]
    assert again == [123.0, *expected[1:]]


def test_too_dear_is_skipped_with_the_remedy(tmp_path: Path) -> None:
    values = {**teacher(), "structure": crystal(tmp_path), "temperatures": (20.0,), "parts": ("holes",)}
    model = LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False)
    result = run(tmp_path / "v", model, **values, teacher_minutes=1e-9)
    assert result.parts[0].status == "skipped"
    assert "give --teacher-minutes" in result.parts[0].reason
    alone = run(tmp_path / "alone", model, structure=values["structure"], parts=("holes",))
    assert alone.parts[0].status == "skipped"
    assert "--against" in alone.parts[0].reason
