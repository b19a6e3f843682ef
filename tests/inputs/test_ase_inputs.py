"""Bad input to the ASE calculator: the error names the value, the place and the remedy."""

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule

from egnn_md import FastEGNN, save_model
from egnn_md.errors import InputError, ModelFileError, SimulationError, UnknownElementError, UnsafeFileError
from egnn_md.models import LennardJones
from egnn_md.nn.fast_egnn import FastEGNNConfig
from egnn_md.testing import random_potential
from egnn_md_ase import FastEGNNCalculator


def water(**options) -> Atoms:
    return molecule("H2O", calculator=FastEGNNCalculator(random_potential(), **options))


def test_unknown_element_is_named():
    atoms = molecule("CH3OH", calculator=FastEGNNCalculator(random_potential((1, 8))))
    with pytest.raises(UnknownElementError, match=r"atom 0 is C, but the model knows only H, O"):
        atoms.get_potential_energy()
    atoms = water()
    atoms.numbers[2] = 17
    with pytest.raises(UnknownElementError, match="atom 2 is Cl"):
        atoms.get_forces()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("pbc", [False, True])
def test_positions_that_are_not_finite(value, pbc):
    atoms = water()
    atoms.cell, atoms.pbc = [6, 6, 6], pbc
    good = atoms.get_potential_energy()
    place = atoms.positions[1].copy()
    atoms.positions[1, 2] = value
    for _ in range(2):  # the failed calculation leaves no result behind
        with pytest.raises(InputError, match=r"atom 1 .*not finite"):
            atoms.get_potential_energy()
    atoms.positions[1] = place
    assert atoms.get_potential_energy() == good


@pytest.mark.parametrize("gap", [0.0, 1e-7])
def test_coincident_atoms(gap):
    atoms = water()
    atoms.positions[2] = atoms.positions[1] + [gap, 0, 0]
    with pytest.raises(InputError, match="atoms 1 and 2 coincide"):
        atoms.get_forces()


def test_coincident_through_an_image():
    atoms = Atoms("OH", [[0, 0, 0], [5.0, 0, 0]], cell=[5, 6, 7], pbc=True)
    atoms.calc = FastEGNNCalculator(random_potential())
    with pytest.raises(InputError, match="coincide"):
        atoms.get_forces()


def test_atoms_that_meet_while_the_skin_still_holds():
    atoms = Atoms("OH", [[0, 0, 0], [0.1, 0, 0]], calculator=FastEGNNCalculator(random_potential(), skin=1.0))
    atoms.get_forces()
    atoms.positions[1, 0] = 0.0
    with pytest.raises(InputError, match="atoms 0 and 1 coincide"):
        atoms.get_forces()


@pytest.mark.parametrize(
    "cell", [np.zeros((3, 3)), [[5, 0, 0], [10, 0, 0], [0, 0, 5]], np.diag([5, 5, np.nan])]
)
def test_cells_without_a_volume(cell):
    atoms = water()
    atoms.cell, atoms.pbc = cell, True
    with pytest.raises(InputError, match="cell"):
        atoms.get_forces()


def test_a_cell_that_collapses_during_a_run():
    atoms = bulk("Ar", "fcc", a=5.26, cubic=True)
    atoms.calc = FastEGNNCalculator(LennardJones())
    atoms.get_stress()
    atoms.cell[2] = 0.0
    with pytest.raises(InputError, match="no volume"):
        atoms.get_stress()


def test_an_atom_that_left_for_good():
    atoms = water()
    atoms.positions[0, 0] = 1e12
    with pytest.raises(InputError, match=r"1\.0e\+12 Å from the origin"):
        atoms.get_forces()


@pytest.mark.parametrize("device", ["cuda:77", "nonsense", "mps", "meta", 3.5])
def test_a_device_that_is_not_there(device):
    with pytest.raises(InputError, match="device"):
        FastEGNNCalculator(random_potential(), device=device)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_is_not_taken_by_itself_nor_guessed():
    assert FastEGNNCalculator(random_potential()).device.type == "cpu"
    with pytest.raises(InputError, match=r"CUDA devices found: 0.*use cpu"):
        FastEGNNCalculator(random_potential(), device="cuda")


@pytest.mark.parametrize("dtype", ["float16", "double", torch.int64, None])
def test_a_dtype_that_is_not_known(dtype):
    with pytest.raises(InputError, match="float32, float64"):
        FastEGNNCalculator(random_potential(), dtype=dtype)


@pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
def test_impossible_skins(skin):
    with pytest.raises(InputError, match="skin"):
        FastEGNNCalculator(random_potential(), skin=skin)


def test_an_unknown_backend():
    with pytest.raises(InputError, match=r"'kdtree'.*vesin"):
        FastEGNNCalculator(random_potential(), backend="kdtree")


def test_what_is_not_a_potential(tmp_path):
    network = FastEGNN(FastEGNNConfig(node_features=1, hidden=4, layers=1))
    with pytest.raises(InputError, match="FastEGNN, which gives no energies"):
        FastEGNNCalculator(network)
    with pytest.raises(InputError, match="FastEGNN, which gives no energies"):
        FastEGNNCalculator(save_model(network, tmp_path / "network.safetensors"))
    with pytest.raises(InputError, match="not int"):
        FastEGNNCalculator(3)


def test_files_that_are_no_models(tmp_path):
    with pytest.raises(ModelFileError, match="no model file"):
        FastEGNNCalculator(tmp_path / "missing.safetensors")
    pickled = tmp_path / "pickle.pt"
    torch.save({"weights": torch.ones(3)}, pickled)
    with pytest.raises(UnsafeFileError):
        FastEGNNCalculator(pickled)


def test_options_are_fixed():
    calculator = FastEGNNCalculator(random_potential())
    with pytest.raises(InputError, match="skin"):
        calculator.set(skin=2.0)


def test_calculate_without_atoms():
    with pytest.raises(InputError, match="no atoms"):
        FastEGNNCalculator(random_potential()).calculate()


class Broken(LennardJones):
    """NaN forces with a finite energy, as an overflow in a reverse pass gives them."""

    def forward(self, positions, species, edge_index, shifts, batch, periodic):
        energies = super().forward(positions, species, edge_index, shifts, batch, periodic)
        spoiled = torch.zeros_like(energies)
        spoiled[1] = (positions[1, 0] - positions[1, 0].detach()).abs().sqrt()  # 0, with an infinite slope
        return energies + spoiled


def test_a_force_that_is_not_a_number_names_the_atom():
    atoms = Atoms("Ar2", [[0, 0, 0], [8.0, 0, 0]], calculator=FastEGNNCalculator(Broken()))
    assert np.isfinite(atoms.get_potential_energy())
    with pytest.raises(SimulationError, match=r"atom 1 \(Ar\) at \[8\.0, 0\.0, 0\.0\] Å the force \[nan"):
        atoms.get_forces()
