"""FastEGNNCalculator against ASE's own numbers, and ASE's rules for calculators."""

import copy
import pickle
import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.calculators.lj import LennardJones as AseLennardJones
from ase.io import Trajectory, read

import egnn_md_ase.calculator as module
from egnn_md import save_model
from egnn_md.models import LennardJones
from egnn_md.models.cuda_graphs import CudaGraphWarning
from egnn_md.testing import random_potential, random_structure
from egnn_md.testing.probe import ask
from egnn_md_ase import FastEGNNCalculator

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 7.5
EVERYTHING = ["energy", "free_energy", "energies", "forces", "stress"]


def argon(kind: str) -> Atoms:
    rng = np.random.default_rng(4)
    if kind == "open":
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * 2
        atoms.pbc = False
        atoms.cell = None
    elif kind == "periodic":
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True)  # the cutoff spans three images
    elif kind == "slab":
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 1, 1)
        atoms.pbc = (True, True, False)
    else:
        atoms = bulk("Ar", "fcc", a=5.3) * (2, 2, 1)
        atoms.set_cell(atoms.cell.array @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.1 * rng.normal(size=atoms.positions.shape)
    return atoms


@pytest.fixture
def counted(monkeypatch):
    """Calls of the model: a list of (forces, stress)."""
    calls = []
    original = module.evaluate

    def evaluate(model, graph, *, forces, stress):
        calls.append((forces, stress))
        return original(model, graph, forces=forces, stress=stress)

    monkeypatch.setattr(module, "evaluate", evaluate)
    return calls


@pytest.mark.parametrize("kind", ["open", "periodic", "slab", "triclinic"])
def test_lennard_jones_equals_the_one_of_ase(kind):
    atoms = argon(kind)
    theirs = AseLennardJones(epsilon=EPSILON, sigma=SIGMA, rc=CUTOFF)
    ours = FastEGNNCalculator(LennardJones(EPSILON, SIGMA, CUTOFF, smooth=False), dtype="float64")
    expected = {}
    atoms.calc = theirs
    for name in EVERYTHING[:4] + (["stress"] if atoms.pbc.all() else []):
        expected[name] = theirs.get_property(name, atoms)
    assert abs(expected["forces"]).max() > 1e-3
    for name, value in expected.items():
        np.testing.assert_allclose(
            ours.get_property(name, atoms), value, rtol=1e-10, atol=1e-13, err_msg=name
        )


@pytest.mark.parametrize(("dtype", "relative"), [("float64", 1e-12), ("float32", 1e-5)])
@pytest.mark.parametrize("pbc", [False, True])
def test_fastegnn_equals_eager(pbc, dtype, relative):
    model = random_potential()
    atoms = random_structure([1, 8], 4.0, count=12, pbc=[pbc] * 3, seed=1)
    eager = ask(model, atoms, torch.float64)
    atoms.calc = FastEGNNCalculator(model, dtype=dtype)
    assert atoms.get_potential_energy() == pytest.approx(eager.energy, rel=relative)
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()
    np.testing.assert_allclose(atoms.get_potential_energies(), eager.energies, rtol=relative)
    size = eager.largest_force
    np.testing.assert_allclose(atoms.get_forces(), eager.forces, atol=relative * size)
    if pbc:
        stress = atoms.get_stress(voigt=False)
        np.testing.assert_allclose(stress, eager.stress, atol=relative * float(eager.stress.abs().max()))
        assert atoms.get_stress().shape == (6,)


def test_results_are_plain_and_belong_to_the_caller():
    atoms = argon("periodic")
    atoms.calc = FastEGNNCalculator(LennardJones())
    assert type(atoms.get_potential_energy()) is float
    forces = atoms.get_forces()
    assert forces.dtype == np.float64
    forces[:] = 7.0
    assert abs(atoms.get_forces()).max() < 1.0


def test_one_pass_a_structure(counted):
    atoms = argon("periodic")
    atoms.calc = FastEGNNCalculator(LennardJones())
    atoms.get_forces()
    atoms.get_potential_energy()
    atoms.get_potential_energies()
    assert counted == [(True, False)]
    atoms.get_stress()
    assert counted == [(True, False), (True, True)]
    atoms.positions[0, 0] += 0.1  # from here on stress is known to be wanted: one pass serves everything
    atoms.get_forces()
    atoms.get_stress()
    atoms.get_potential_energy()
    assert len(counted) == 3


def test_energies_alone_need_no_reverse_pass(counted):
    atoms = argon("open")
    atoms.calc = FastEGNNCalculator(LennardJones())
    for _ in range(3):
        atoms.rattle(0.01)
        atoms.get_potential_energy()
    assert counted == [(False, False)] * 3


@pytest.mark.parametrize(
    "change",
    [
        lambda atoms: atoms.positions.__iadd__(np.eye(len(atoms), 3) * 1e-6),
        lambda atoms: atoms.set_cell(atoms.cell.array * 1.001),
        lambda atoms: atoms.set_pbc((True, True, False)),
        lambda atoms: atoms.numbers.__setitem__(0, 9 - atoms.numbers[0]),
        lambda atoms: atoms.append("O"),
        lambda atoms: atoms.__delitem__(0),
        lambda atoms: atoms.__imul__((2, 1, 1)),
    ],
    ids=["positions", "cell", "pbc", "numbers", "append", "delete", "repeat"],
)
def test_every_change_counts_and_equals_a_fresh_calculator(counted, change):
    model = random_potential()
    atoms = random_structure([1, 8], 4.0, count=6, pbc=(True, True, True), seed=2)
    atoms.calc = FastEGNNCalculator(model, dtype="float64")
    before = atoms.get_potential_energy()
    change(atoms)
    after = atoms.get_potential_energy()
    assert after != before
    assert len(counted) == 2
    fresh = atoms.copy()
    fresh.calc = FastEGNNCalculator(model, dtype="float64", skin=0.0)
    assert after == pytest.approx(fresh.get_potential_energy(), abs=1e-11)
    np.testing.assert_allclose(atoms.get_forces(), fresh.get_forces(), atol=1e-11)


def test_what_does_not_enter_does_not_count(counted):
    atoms = argon("periodic")
    atoms.calc = FastEGNNCalculator(LennardJones())
    atoms.get_forces()
    atoms.set_initial_charges(np.ones(len(atoms)))
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))
    atoms.set_masses(np.ones(len(atoms)))
    atoms.set_velocities(np.ones((len(atoms), 3)))
    atoms.info["note"] = "x"
    atoms.get_forces()
    assert len(counted) == 1


def test_one_calculator_for_two_structures():
    calculator = FastEGNNCalculator(random_potential(), dtype="float64")
    water, other = molecule("H2O", calculator=calculator), molecule("H2O2", calculator=calculator)
    first = water.get_potential_energy(), other.get_potential_energy()
    assert first == (water.get_potential_energy(), other.get_potential_energy())
    assert first[0] == pytest.approx(ask(random_potential(), water).energy)


def test_calculate_called_directly():
    calculator = FastEGNNCalculator(LennardJones())
    atoms = argon("periodic")
    calculator.calculate(atoms, EVERYTHING, all_changes)
    assert set(calculator.results) == set(EVERYTHING)
    first = calculator.results["energy"]
    atoms.rattle(0.1)
    calculator.calculate(atoms, ["energy"], ["positions"])
    assert calculator.results["energy"] != first
    calculator.calculate(properties=["stress"])  # of the last structure
    assert "stress" in calculator.results


@pytest.mark.parametrize("pbc", [False, (True, False, False), (True, True, False)])
def test_stress_needs_three_periodic_directions(pbc):
    atoms = argon("periodic")
    atoms.pbc = pbc
    atoms.calc = FastEGNNCalculator(LennardJones())
    energy = atoms.get_potential_energy()
    with pytest.raises(PropertyNotImplementedError, match="three directions"):
        atoms.get_stress()
    assert atoms.get_potential_energy() == energy
    assert np.isfinite(atoms.get_forces()).all()
    atoms.pbc = True
    assert atoms.get_stress().shape == (6,)


def test_a_property_that_nobody_has():
    atoms = molecule("H2O", calculator=FastEGNNCalculator(random_potential()))
    with pytest.raises(PropertyNotImplementedError):
        atoms.get_dipole_moment()
    with pytest.raises(PropertyNotImplementedError, match="dipole"):
        atoms.calc.calculate(atoms, ["dipole"])


@pytest.mark.parametrize("pbc", [False, True])
def test_no_atoms(pbc):
    atoms = Atoms(cell=[5, 5, 5], pbc=pbc, calculator=FastEGNNCalculator(random_potential()))
    assert atoms.get_potential_energy() == 0.0
    assert atoms.get_forces().shape == (0, 3)
    assert atoms.get_potential_energies().shape == (0,)
    if pbc:
        assert not atoms.get_stress().any()
    atoms.append("O")
    assert atoms.get_forces().shape == (1, 3)


def test_slab_without_a_third_lattice_vector():
    atoms = random_structure([1, 8], 4.0, pbc=(True, True, False), seed=6)
    expected = ask(random_potential(), atoms)
    atoms.cell[2] = 0.0
    atoms.calc = FastEGNNCalculator(random_potential(), dtype="float64")
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-12)


@pytest.mark.parametrize("pbc", [False, True])
def test_far_from_the_origin_float32_keeps_its_precision(pbc):
    """Unwrapped diffusion and odd origins: float32 alone would know 50,000 Å to 0.004 Å."""
    model = random_potential()
    atoms = random_structure([1, 8], 4.0, pbc=[pbc] * 3, seed=7)
    expected = ask(model, atoms)
    if pbc:
        steps = np.random.default_rng(0).integers(-9000, 9000, size=(len(atoms), 3))
        atoms.positions += steps @ atoms.cell.array
    else:
        atoms.positions += [50000.0, -30000.0, 20000.0]
    atoms.calc = FastEGNNCalculator(model, dtype="float32")
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=2e-6 * expected.largest_force)


def test_the_model_is_copied():
    model = random_potential(dtype=torch.float32).train()
    atoms = molecule("H2O", calculator=FastEGNNCalculator(model, dtype="float64"))
    energy = atoms.get_potential_energy()
    assert model.dtype == torch.float32
    assert model.training
    assert all(weight.requires_grad for weight in model.parameters())
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
    atoms.rattle(1e-9)
    assert atoms.get_potential_energy() == pytest.approx(energy, abs=1e-6)


def test_global_settings_are_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    state = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    atoms = molecule("H2O", calculator=FastEGNNCalculator(random_potential()))
    atoms.get_forces()
    assert state == (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled())
    assert torch.rand(1) == expected


def test_forces_inside_no_grad():
    atoms = molecule("H2O", calculator=FastEGNNCalculator(random_potential()))
    with torch.no_grad():
        assert abs(atoms.get_forces()).max() > 0.01


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_copies_are_independent_and_equal(duplicate):
    atoms = random_structure([1, 8], 4.0, pbc=(True, True, True), seed=8)
    calculator = FastEGNNCalculator(random_potential(), dtype="float64")
    atoms.calc = calculator
    forces = atoms.get_forces()
    twin = duplicate(calculator)
    assert twin.todict() == calculator.todict()
    other = atoms.copy()
    other.calc = twin
    np.testing.assert_array_equal(other.get_forces(), forces)
    other.rattle(0.1)
    other.get_forces()
    np.testing.assert_array_equal(atoms.get_forces(), forces)
    assert twin.neighbor_statistics is not calculator.neighbor_statistics


def test_says_what_it_is(tmp_path):
    path = save_model(random_potential(dtype=torch.float32), tmp_path / "m.safetensors")
    calculator = FastEGNNCalculator(path, skin=1.0)
    assert calculator.name == "fastegnn"
    assert calculator.todict() == {
        "model": str(path), "device": "cpu", "dtype": "float32", "skin": 1.0, "backend": "vesin",
        "kernels": "auto",
        "cuda_graphs": False,
        "drive": "mean",
        "uncertainty_interval": None,
    }  # fmt: skip
    assert repr(calculator).startswith(f"FastEGNNCalculator('{path}', device='cpu', dtype='float32'")
    assert calculator.card.units["energy"] == "eV"
    assert FastEGNNCalculator(LennardJones()).card is None


def test_cuda_graphs_that_cannot_be_had_are_told_once_and_change_nothing():
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    atoms.rattle(0.1, seed=0)
    atoms.calc = FastEGNNCalculator(LennardJones())
    expected = atoms.get_forces()
    atoms.calc = FastEGNNCalculator(LennardJones(), cuda_graphs=True)
    with pytest.warns(CudaGraphWarning, match="no CUDA graphs: they need CUDA"):
        np.testing.assert_array_equal(atoms.get_forces(), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        atoms.rattle(0.1, seed=1)
        atoms.get_forces()


def test_file_and_model_agree(tmp_path):
    model = random_potential(dtype=torch.float32)
    path = save_model(model, tmp_path / "m.safetensors")
    energies = [
        molecule("H2O", calculator=FastEGNNCalculator(source)).get_potential_energy()
        for source in (model, path, str(path))
    ]
    assert len(set(energies)) == 1


def test_results_survive_in_trajectories(tmp_path):
    atoms = argon("periodic")
    atoms.calc = FastEGNNCalculator(LennardJones())
    atoms.get_stress()
    with Trajectory(tmp_path / "a.traj", "w") as trajectory:
        trajectory.write(atoms)
    atoms.write(tmp_path / "a.extxyz")
    for name in ("a.traj", "a.extxyz"):
        back = read(tmp_path / name)
        assert back.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-7)
        np.testing.assert_allclose(back.get_forces(), atoms.get_forces(), atol=1e-7)


@pytest.mark.parametrize("backend", ["vesin", "brute"])
def test_backends_agree(backend):
    atoms = random_structure([1, 8], 4.0, pbc=(True, True, True), seed=3)
    atoms.calc = FastEGNNCalculator(random_potential(), dtype="float64", backend=backend)
    np.testing.assert_allclose(atoms.get_forces(), ask(random_potential(), atoms).forces, atol=1e-12)


@pytest.mark.gpu
def test_on_a_graphics_card():
    atoms = random_structure([1, 8], 4.0, count=12, pbc=(True, True, True), seed=1)
    expected = ask(random_potential(), atoms)
    for dtype, relative in (("float64", 1e-11), ("float32", 1e-5)):
        calculator = FastEGNNCalculator(random_potential(), device="cuda", dtype=dtype)
        atoms.calc = calculator
        np.testing.assert_allclose(
            atoms.get_forces(), expected.forces, atol=relative * expected.largest_force
        )
        size = float(expected.stress.abs().max())
        np.testing.assert_allclose(atoms.get_stress(voigt=False), expected.stress, atol=relative * size)
        atoms.rattle(0.01)
        atoms.get_forces()
        assert calculator.neighbor_statistics.rebuilds == 1
        atoms = atoms.copy()
        atoms.positions = random_structure([1, 8], 4.0, count=12, pbc=(True, True, True), seed=1).positions
