"""The skin changes no result: exported module, PythonForce and calculator, bit by bit, whatever list they keep."""

from __future__ import annotations

import copy
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from openmm_cases import BOXES, network, water_positions

from egnn_md.errors import InputError
from egnn_md.export import export_torchscript, load_module
from egnn_md.export.pairs import SkinPairs
from egnn_md.export.torchscript import script
from egnn_md_ase import FastEGNNCalculator

WATERS = 8
NUMBERS = [8, 1, 1] * WATERS
SKINS = [0.0, 0.3, 1.5, "auto"]


def frames(boundary: str, count: int = 24) -> list[tuple[np.ndarray, np.ndarray | None]]:
    """Positions and boxes, nm: motion, one molecule far out of the box, a box that breathes, jumps there and back."""
    rng = np.random.default_rng(0)
    box = BOXES[boundary]
    positions = water_positions(WATERS, box)
    if box is not None:
        positions[6:9] += 1.45 * box[0]
    found: list[tuple[np.ndarray, np.ndarray | None]] = []
    for step in range(count):
        positions = positions + rng.normal(0, 0.001, positions.shape)
        if box is not None:
            positions[6:9] += 0.006 * box[0]  # through the place where it is taken home
            if step % 5 == 4:
                box, positions = box * 1.004, positions * 1.004
        found.append((positions.copy(), box))
        if step % 8 == 7:
            found += [(positions * 1.02, None if box is None else box * 1.02), found[-1]]
    return found


def module_results(module: torch.jit.ScriptModule, boundary: str) -> list[tuple[float, np.ndarray]]:
    results = []
    for positions, box in frames(boundary):
        x = torch.tensor(positions, requires_grad=True)
        energy = module(x) if box is None else module(x, torch.tensor(box))
        (gradient,) = torch.autograd.grad(energy, x)
        results.append((float(energy.detach()), -gradient.numpy()))
    return results


def few_or_many(lists: int, calls: int, skin: float | str) -> bool:
    """Whether lists were kept as a skin allows; without one only a box that grows keeps its list."""
    return lists >= 0.8 * calls if skin == 0.0 else 1 <= lists < 0.8 * calls


def assert_equal(found: list[tuple[float, np.ndarray]], expected: list[tuple[float, np.ndarray]]) -> None:
    for index, ((energy, forces), (right, same)) in enumerate(zip(found, expected, strict=True)):
        assert energy == right, index
        assert np.array_equal(forces, same), index


@pytest.mark.parametrize("boundary", BOXES)
def test_exported_module(tmp_path: Path, boundary: str) -> None:
    """Every skin against a module that makes its list at every call."""
    expected = None
    for skin in SKINS:
        path = tmp_path / "model.pt"
        export_torchscript(network(), path, NUMBERS, periodic=BOXES[boundary] is not None, skin=skin)
        module = load_module(path)
        assert module.neighbors.lists == 0, "the check of the export must leave nothing in the file"
        found = module_results(module, boundary)
        expected = found if expected is None else expected
        assert_equal(found, expected)
        assert module.neighbors.uses == len(found)
        assert few_or_many(module.neighbors.lists, len(found), skin)


def test_a_used_module_can_be_copied_and_saved(tmp_path: Path) -> None:
    """State goes along and does no harm: the copy's list is its own, and is made anew where it does not fit."""
    path = tmp_path / "model.pt"
    export_torchscript(network(), path, NUMBERS, periodic=True, skin=0.6)
    module = load_module(path)
    expected = module_results(load_module(path), "triclinic")
    module_results(module, "periodic")
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    buffer.seek(0)
    for twin in (copy.deepcopy(module), torch.jit.load(buffer)):
        lists = module.neighbors.lists
        for (_, forces), (_, right) in zip(module_results(twin, "triclinic"), expected, strict=True):
            # TorchScript optimises a program after its first calls, which changes roundings
            np.testing.assert_allclose(forces, right, rtol=0, atol=1e-6 * np.abs(right).max())
        assert module.neighbors.lists == lists
    # two systems in turn through one module
    one = frames("triclinic")[0]
    for positions, box in frames("periodic")[:4]:
        module(torch.tensor(positions), torch.tensor(box))
        energy = float(module(torch.tensor(one[0]), torch.tensor(one[1])).detach())
        assert energy == pytest.approx(expected[0][0], rel=1e-9)


def test_exported_module_recovers_from_a_broken_step(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    export_torchscript(network(), path, NUMBERS, periodic=True)
    module = load_module(path)
    positions, box = frames("periodic")[0]
    energy = float(module(torch.tensor(positions), torch.tensor(box)).detach())
    broken = positions.copy()
    broken[5, 2] = np.inf
    for _ in range(3):
        with pytest.raises(torch.jit.Error, match="position of atom 5 is not finite"):
            module(torch.tensor(broken), torch.tensor(box))
    with pytest.raises(torch.jit.Error, match="spans no volume"):
        module(torch.tensor(positions), torch.tensor(box * [1, 1, 0]))
    assert float(module(torch.tensor(positions), torch.tensor(box))) == energy
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("scripted", [False, True])
def test_atoms_that_stay_while_the_box_shrinks(scripted: bool) -> None:
    """Images come closer although nothing moved."""
    pairs = SkinPairs(3.0, 0.5, torch.float64)
    pairs = script(pairs) if scripted else pairs
    x = torch.tensor([[0.0, 0, 0], [7.0, 0, 0]], dtype=torch.float64)
    cell, home = torch.eye(3, dtype=torch.float64), torch.zeros(2, 3, dtype=torch.float64)
    assert pairs(x, cell * 10.8, home, True)[0].shape[1] == 0
    edges, shifts = pairs(x, cell * 9.9, home, True)
    assert edges.tolist() == [[0, 1], [1, 0]]
    torch.testing.assert_close(shifts, torch.tensor([[9.9, 0, 0], [-9.9, 0, 0]], dtype=torch.float64))
    assert pairs(x, cell * 9.91, home, True)[0].shape[1] == 2
    assert pairs.lists == 2
    assert pairs.uses == 3


@pytest.mark.parametrize("skin", ["soon", -1.0, float("nan")])
def test_export_refuses_an_impossible_skin(tmp_path: Path, skin: float | str) -> None:
    with pytest.raises(InputError, match="skin"):
        export_torchscript(network(), tmp_path / "model.pt", NUMBERS, periodic=True, skin=skin)
    assert not (tmp_path / "model.pt").exists()


@pytest.mark.parametrize("boundary", BOXES)
def test_calculator(boundary: str) -> None:
    expected = None
    for skin in SKINS:
        calculator = FastEGNNCalculator(network(), skin=skin)
        found = []
        for positions, box in frames(boundary):
            cell = None if box is None else box * 10
            atoms = Atoms(numbers=NUMBERS, positions=positions * 10, cell=cell, pbc=box is not None)
            atoms.calc = calculator
            found.append((atoms.get_potential_energy(), atoms.get_forces()))
        expected = found if expected is None else expected
        assert_equal(found, expected)
        assert few_or_many(calculator.neighbor_statistics.rebuilds, len(found), skin)
        assert calculator.parameters["skin"] == skin


@pytest.mark.parametrize("boundary", BOXES)
def test_python_force(boundary: str) -> None:
    pytest.importorskip("openmm")
    from egnn_md_openmm.python_force import PotentialCallback

    expected = None
    for skin in SKINS:
        periodic = BOXES[boundary] is not None
        callback = PotentialCallback(network().requires_grad_(False), NUMBERS, periodic=periodic, skin=skin)
        found = [callback.compute(*frame) for frame in frames(boundary)]
        expected = found if expected is None else expected
        assert_equal(found, expected)
        assert few_or_many(callback.neighbors.statistics.rebuilds, len(found), skin)


def test_calculator_notices_changes_of_the_atoms() -> None:
    """Cached species, cell and list follow whatever is done to the atoms, in place or not."""
    positions, box = frames("periodic")[0]
    calculator = FastEGNNCalculator(network())
    atoms = Atoms(numbers=NUMBERS, positions=positions * 10, cell=box * 10, pbc=True)
    atoms.calc = calculator

    def check() -> None:
        other = atoms.copy()
        other.calc = FastEGNNCalculator(network())
        assert atoms.get_potential_energy() == other.get_potential_energy()
        assert np.array_equal(atoms.get_forces(), other.get_forces())

    check()
    atoms.numbers[0], atoms.numbers[1] = 1, 8
    check()
    atoms.cell[0, 0] += 0.05
    check()
    atoms.pbc = [True, True, False]
    check()
    del atoms[3:6]
    check()
    atoms.numbers[4] = 79
    for _ in range(2):
        with pytest.raises(InputError, match="Au"):
            atoms.get_potential_energy()
    atoms.numbers[4] = 8
    check()
    atoms.positions[2] = atoms.positions[1] + atoms.cell[0] + 1e-5
    with pytest.raises(InputError, match="atoms 1 and 2 coincide"):
        atoms.get_potential_energy()
