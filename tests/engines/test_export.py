"""Exported TorchScript equals the eager model, in two unit systems, and says what it is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.lj import LennardJones as AseLennardJones
from openmm_cases import BOXES, assert_same, eager, network, water_positions
from torch import Tensor

from egnn_md.errors import ExportError, InputError, ModelFileError, UnknownElementError
from egnn_md.export import export_torchscript, load_module, read_artefact
from egnn_md.export.verify import MAXIMUM_ATOMS, random_structures, subsample
from egnn_md.models import HarmonicTether, LennardJones, Potential
from egnn_md.units import KJ_PER_MOL_PER_EV

UNITS = {
    "openmm": ("nanometer", "kilojoule_per_mole", 1.0, 1.0),
    "ase": ("angstrom", "eV", 10.0, 1.0 / KJ_PER_MOL_PER_EV),
}  # length and energy of the artefact, and what one nm and one kJ/mol are in them
WATERS = 8
NUMBERS = [8, 1, 1] * WATERS


def call(path: Path, positions: np.ndarray, box: np.ndarray | None) -> tuple[float, np.ndarray]:
    """Energy and forces of the file in its own units."""
    module = load_module(path)
    x = torch.tensor(positions, requires_grad=True)
    energy = module(x) if box is None else module(x, torch.tensor(box))
    (gradient,) = torch.autograd.grad(energy, x)
    assert energy.dtype == torch.float64
    assert energy.shape == ()
    return float(energy.detach()), -gradient.numpy()


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("boundary", BOXES)
def test_file_equals_eager(tmp_path: Path, boundary: str, dtype: str, units: str) -> None:
    length, energy, per_nm, per_kj = UNITS[units]
    box = BOXES[boundary]
    model = network(dtype)
    positions = water_positions(WATERS, box)
    path = tmp_path / "model.pt"
    export_torchscript(
        model,
        path,
        NUMBERS,
        periodic=box is not None,
        length_unit=length,
        energy_unit=energy,
        dtype=dtype,
    )
    found = call(path, positions * per_nm, None if box is None else box * per_nm)
    in_kj = (found[0] / per_kj, found[1] / per_kj * per_nm)
    assert_same(in_kj, eager(model, NUMBERS, positions, box, dtype), dtype, f"{boundary} {units}")


@pytest.mark.parametrize("units", UNITS)
@pytest.mark.parametrize("boundary", BOXES)
def test_lennard_jones_equals_ase(tmp_path: Path, boundary: str, units: str) -> None:
    """A reference of which no line is ours: ASE's own calculator, forces and energy."""
    length, energy, per_nm, per_kj = UNITS[units]
    box = BOXES[boundary]
    positions = water_positions(WATERS, box)[::3]
    atoms = Atoms(f"Ar{WATERS}", positions * 10.0, cell=None if box is None else box * 10.0)
    atoms.pbc = box is not None
    atoms.calc = AseLennardJones(epsilon=0.01, sigma=3.0, rc=7.0, smooth=False)
    path = tmp_path / "lj.pt"
    export_torchscript(
        LennardJones(0.01, 3.0, 7.0, smooth=False),
        path,
        [18] * WATERS,
        periodic=box is not None,
        length_unit=length,
        energy_unit=energy,
        dtype="float64",
    )
    found = call(path, positions * per_nm, None if box is None else box * per_nm)
    in_ev = (found[0] / per_kj / KJ_PER_MOL_PER_EV, found[1] / per_kj * per_nm / KJ_PER_MOL_PER_EV / 10.0)
    assert_same(in_ev, (atoms.get_potential_energy(), atoms.get_forces()), "float64")


def test_box_is_read_at_every_call(tmp_path: Path) -> None:
    model = network("float64")
    path = tmp_path / "model.pt"
    export_torchscript(model, path, NUMBERS, periodic=True, dtype="float64")
    for scale in (1.0, 1.05, 0.97):
        box = BOXES["triclinic"] * scale  # type: ignore[operator]
        positions = water_positions(WATERS, box)
        assert_same(
            call(path, positions, box),
            eager(model, NUMBERS, positions, box, "float64"),
            "float64",
            f"{scale}",
        )


@pytest.mark.parametrize("boundary", ["open", "triclinic"])
def test_far_from_the_origin_float32_keeps_its_digits(tmp_path: Path, boundary: str) -> None:
    """A thousand cells (or 1 µm) away, float32 coordinates alone resolve 1e-3 Å: percents of a force."""
    box = BOXES[boundary]
    model = network()
    path = tmp_path / "model.pt"
    export_torchscript(model, path, NUMBERS, periodic=box is not None)
    positions = water_positions(WATERS, box)
    if box is None:
        moved = positions + np.array([1024.0, -512.0, 64.0])
    else:
        steps = np.random.default_rng(1).integers(-1000, 1000, (len(positions), 3))
        moved = positions + steps @ box
    # 1e-13 nm in double precision is what the move itself costs; the rest is float32 as anywhere
    assert_same(call(path, moved, box), eager(model, NUMBERS, positions, box), "float32")


def test_subset_acts_on_its_atoms_only(tmp_path: Path) -> None:
    box = BOXES["periodic"]
    model = network("float64")
    chosen = [9, 10, 11, 0, 1, 2]
    path = tmp_path / "model.pt"
    info = export_torchscript(
        model, path, [0 if i not in chosen else z for i, z in enumerate(NUMBERS)],
        periodic=True, dtype="float64", atoms=chosen,
    )  # fmt: skip
    assert (info.atoms, info.particles, info.numbers) == (chosen, len(NUMBERS), [8, 1, 1, 8, 1, 1])
    positions = water_positions(WATERS, box)
    energy, forces = call(path, positions, box)
    expected = eager(model, info.numbers, positions[chosen], box, "float64")
    assert_same((energy, forces[chosen]), expected, "float64")
    others = np.setdiff1d(np.arange(len(NUMBERS)), chosen)
    assert np.all(forces[others] == 0.0)


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("numbers", [[8], [8, 1]])
def test_one_atom_and_no_pairs(tmp_path: Path, numbers: list[int], periodic: bool) -> None:
    """Atoms out of each other's reach: the energy of lone atoms, no force."""
    model = network("float64", virtual_nodes=0)
    path = tmp_path / "model.pt"
    export_torchscript(model, path, numbers, periodic=periodic, dtype="float64")
    box = np.eye(3) * 4.0 if periodic else None
    positions = np.arange(3 * len(numbers)).reshape(-1, 3) * 0.4
    energy, forces = call(path, positions, box)
    lone = sum(eager(model, [z], np.zeros((1, 3)), None, "float64")[0] for z in numbers)
    assert energy == pytest.approx(lone, rel=1e-12)
    assert np.all(forces == 0.0)


def test_file_describes_itself(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    model = network()
    written = export_torchscript(model, path, NUMBERS, periodic=True, name="toy water")
    info = read_artefact(path)
    assert info == written
    assert info.name == "toy water"
    assert info.kind == "fastegnn-potential"
    assert (info.elements, info.numbers, info.atoms) == (["H", "O"], NUMBERS, None)
    assert (info.length_unit, info.energy_unit, info.dtype) == ("nanometer", "kilojoule_per_mole", "float32")
    assert (info.cutoff, info.periodic, info.long_range) == (5.0, True, True)
    assert {"torch", "vesin-torch", "egnn-md"} <= set(info.versions)
    assert info.verification.largest_force_difference <= info.verification.tolerance * max(
        info.verification.largest_force, 1e-3
    )
    assert (
        info.weights_digest
        != export_torchscript(network(seed=1), tmp_path / "other.pt", NUMBERS, periodic=True).weights_digest
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.pt", "other.pt"]  # no temporary file left


def test_models_without_a_file_format_have_a_digest_too(tmp_path: Path) -> None:
    digests = {
        export_torchscript(model, tmp_path / "m.pt", [18, 18], periodic=False).weights_digest
        for model in (LennardJones(), LennardJones(epsilon=0.02), HarmonicTether())
    }
    assert len(digests) == 3


def test_export_leaves_model_and_torch_alone(tmp_path: Path) -> None:
    model = network().train()
    before, state = torch.get_default_dtype(), torch.get_rng_state()
    export_torchscript(model, tmp_path / "m.pt", [8, 1], periodic=False, dtype="float64")
    assert model.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in model.parameters())
    assert torch.get_default_dtype() == before
    assert torch.equal(torch.get_rng_state(), state)


class OtherwiseScripted(LennardJones):
    """Wrong by a ten-thousandth, in TorchScript only."""

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        pair = positions[edge_index[0]] - positions[edge_index[1]] + shifts
        squared = (pair * pair).sum(1).to(torch.float64)
        factor = 1.0001 if torch.jit.is_scripting() else 1.0
        return torch.zeros_like(positions[:, 0]).double().index_add(0, edge_index[0], factor / squared)


class Everywhere(LennardJones):
    """Knows where it is in space, which no potential of pairs does."""

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        return (positions * positions).sum(1).to(torch.float64)


class NotFinite(LennardJones):
    """The square root of a negative number."""

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        return torch.sqrt(-1.0 - (positions * positions).sum(1).to(torch.float64))


class NotScriptable(Potential):
    """TorchScript has no generators."""

    def __init__(self) -> None:
        super().__init__(3.0, [])

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        return sum(x for x in positions.unbind(1)).double()  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (OtherwiseScripted(cutoff=5.0), "differs from the eager one"),
        (Everywhere(cutoff=5.0), "differs from the eager one"),
        (NotFinite(cutoff=5.0), "not finite"),
        (NotScriptable(), "cannot be scripted"),
    ],
)
def test_a_wrong_module_is_refused_and_the_old_file_stays(tmp_path: Path, model: Potential, words: str) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(b"the old file")
    with pytest.raises(ExportError, match=words):
        export_torchscript(model, path, [18] * 6, periodic=True)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_refusal_gives_figures(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"forces by \d\.\d+e-\d+ eV/Å \(allowed: \d\.\de-\d+"):
        export_torchscript(OtherwiseScripted(cutoff=5.0), tmp_path / "m.pt", [18] * 6, periodic=False)


def test_large_systems_are_checked_on_a_sample_with_every_element() -> None:
    numbers = [1] * 5000 + [8] + [1] * 5000 + [79]
    sample = subsample(numbers)
    assert len(sample) == MAXIMUM_ATOMS
    assert set(sample) == {1, 8, 79}
    assert subsample([8, 1, 1]) == [8, 1, 1]


def test_large_system_exports(tmp_path: Path) -> None:
    info = export_torchscript(LennardJones(cutoff=6.0), tmp_path / "m.pt", [18] * 5000, periodic=True)
    assert info.particles == 5000
    assert int(load_module(tmp_path / "m.pt").particles) == 5000


def test_random_structures_reach_from_contact_to_isolation() -> None:
    dense, liquid, gas = random_structures(20, 5.0)
    nearest = [float(torch.pdist(structure.positions).min()) for structure in (dense, liquid, gas)]
    assert 0.8 < nearest[0] < 2.5
    assert nearest[0] < nearest[1] < 5.0 < nearest[2]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"numbers": []}, InputError, "no particles"),
        ({"numbers": [8, 1.5]}, InputError, "whole numbers"),
        ({"numbers": [8, 6]}, UnknownElementError, "atom 1 is C, but the model knows only H, O"),
        ({"numbers": [8, 0]}, UnknownElementError, "atom 1 is Z = 0"),
        ({"atoms": []}, InputError, "`atoms` is empty"),
        ({"atoms": [0, 7]}, InputError, "names particle 7, but there are 2"),
        ({"atoms": [-1]}, InputError, "names particle -1"),
        ({"atoms": [1, 1]}, InputError, "names particle 1 2 times"),
        ({"length_unit": "furlong"}, InputError, "furlong"),
        ({"energy_unit": "calory"}, InputError, "calory"),
        ({"dtype": "float16"}, InputError, "float32, float64"),
    ],
)
def test_impossible_requests(tmp_path: Path, options: dict, error: type, words: str) -> None:
    request = {"numbers": [8, 1], "periodic": False, **options}
    with pytest.raises(error, match=words):
        export_torchscript(network(), tmp_path / "m.pt", **request)
    assert not list(tmp_path.iterdir())


def test_folder_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="No such file or directory"):
        export_torchscript(LennardJones(), tmp_path / "absent" / "m.pt", [18], periodic=False)


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(b"the old file")

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch.jit, "save", full)
    with pytest.raises(ModelFileError, match="failed writing"):
        export_torchscript(LennardJones(), path, [18], periodic=False)
    assert path.read_bytes() == b"the old file"
    assert list(tmp_path.iterdir()) == [path]


def test_wrong_number_of_particles_at_run_time(tmp_path: Path) -> None:
    export_torchscript(LennardJones(), tmp_path / "m.pt", [18, 18], periodic=False)
    with pytest.raises(torch.jit.Error, match="exported for 2 particles"):
        load_module(tmp_path / "m.pt")(torch.zeros(3, 3))


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_broken_input_at_run_time(tmp_path: Path, broken: float) -> None:
    export_torchscript(LennardJones(), tmp_path / "m.pt", [0, 18, 18], periodic=True, atoms=[1, 2])
    module = load_module(tmp_path / "m.pt")
    positions = torch.rand(3, 3, dtype=torch.float64)
    positions[0] = broken  # nobody looks at this one
    assert torch.isfinite(module(positions, torch.eye(3)))
    with pytest.raises(torch.jit.Error, match="the box spans no volume"):
        module(positions, torch.ones(3, 3))
    with pytest.raises(torch.jit.Error, match="the box spans no volume or is not finite"):
        module(positions, torch.eye(3) * broken)
    positions[2, 1] = broken
    with pytest.raises(torch.jit.Error, match="position of atom 2 is not finite"):
        module(positions, torch.eye(3))
