"""Bad input to the OpenMM plugin: the error names the atom, the file or the package, and the remedy."""

from __future__ import annotations

import builtins
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from egnn_md.errors import (
    ExportError,
    InputError,
    MissingDependencyError,
    ModelFileError,
    SimulationError,
    UnknownElementError,
    UnsafeFileError,
)
from egnn_md.export import export_torchscript
from egnn_md.models import FastEGNNPotential, LennardJones, PotentialConfig

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")

from openmm import app, unit  # noqa: E402

from egnn_md_openmm import add_potential, create_system, last_error, readable_errors  # noqa: E402

BOX = np.eye(3) * 1.2


def make_topology(symbols: list[str | None], box: np.ndarray | None = None) -> app.Topology:
    topology = app.Topology()
    chain = topology.addChain()
    for symbol in symbols:
        element = None if symbol is None else app.Element.getBySymbol(symbol)
        topology.addAtom(symbol or "EP", element, topology.addResidue("RES", chain))
    if box is not None:
        topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in box.tolist()] * unit.nanometer)
    return topology


def make_system(particles: int) -> openmm.System:
    system = openmm.System()
    for _ in range(particles):
        system.addParticle(1.0)
    return system


@pytest.fixture(scope="module")
def water() -> FastEGNNPotential:
    return FastEGNNPotential(PotentialConfig(elements=(1, 8), hidden=4, layers=1, basis=2, virtual_nodes=0))


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("artefact") / "lj.pt"
    export_torchscript(LennardJones(cutoff=5.0), path, [8, 1, 1, 18], periodic=True)
    return path


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_unknown_element(water: FastEGNNPotential, implementation: str) -> None:
    with pytest.raises(UnknownElementError, match="atom 2 is C, but the model knows only H, O"):
        create_system(make_topology(["O", "H", "C"]), water, implementation=implementation)


def test_unknown_element_outside_the_subset_is_no_error(water: FastEGNNPotential) -> None:
    add_potential(make_system(3), make_topology(["O", "H", "C"]), water, implementation="python", atoms=[0, 1])
    with pytest.raises(UnknownElementError, match="atom 2 is C"):
        add_potential(make_system(3), make_topology(["O", "H", "C"]), water, atoms=[1, 2])


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_exported_for_other_elements(artefact: Path, implementation: str) -> None:
    topology = make_topology(["O", "H", "F", "Ne"], BOX)
    with pytest.raises(
        ExportError, match=r"exported for other elements: atom 2 \(F of RES 3\) is F in the topology and H"
    ):
        create_system(topology, artefact, implementation=implementation)


@pytest.mark.parametrize(
    ("symbols", "options", "words"),
    [
        (["O", "H", "H"], {}, "exported for 4 particles, the topology has 3"),
        (["O", "H", "H", "Ar", "Ar"], {}, "exported for 4 particles, the topology has 5"),
        (
            ["O", "H", "H", "Ar"],
            {"atoms": [0, 1, 2]},
            "another subset of atoms: atom 3 is in the export only",
        ),
        (["O", "H", "H", "Ar"], {"periodic": False}, "exported for periodic systems, but this one is open"),
        (["O", "H", "H", "Ar"], {"dtype": "float64"}, "exported in float32, not float64"),
    ],
)
def test_artefact_of_another_system(artefact: Path, symbols: list, options: dict, words: str) -> None:
    with pytest.raises(ExportError, match=words):
        add_potential(make_system(len(symbols)), make_topology(symbols, BOX), artefact, **options)


def test_periodic_artefact_and_topology_without_box(artefact: Path) -> None:
    with pytest.raises(ExportError, match="topology box: None"):
        create_system(make_topology(["O", "H", "H", "Ar"]), artefact)


def test_open_artefact_and_topology_with_box(tmp_path: Path) -> None:
    path = tmp_path / "open.pt"
    export_torchscript(LennardJones(), path, [18], periodic=False)
    with pytest.raises(ExportError, match="exported for open systems, but this one is periodic"):
        create_system(make_topology(["Ar"], BOX), path)


def test_artefact_in_other_units(tmp_path: Path) -> None:
    path = tmp_path / "ase.pt"
    export_torchscript(LennardJones(), path, [18], periodic=False, length_unit="angstrom", energy_unit="eV")
    with pytest.raises(ExportError, match="takes angstrom and gives eV; OpenMM needs nanometer"):
        create_system(make_topology(["Ar"]), path)


def test_atom_without_element(water: FastEGNNPotential) -> None:
    topology = make_topology(["O", "H", "H", None])
    with pytest.raises(InputError, match=r"atom 3 \(EP of RES 4\) has no element"):
        create_system(topology, water)
    add_potential(make_system(4), topology, water, implementation="python", atoms=[0, 1, 2])


def test_virtual_site(water: FastEGNNPotential) -> None:
    system = make_system(3)
    system.setParticleMass(2, 0.0)
    system.setVirtualSite(2, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))
    with pytest.raises(InputError, match=r"atom 2 \(H of RES 3\) is a virtual site"):
        add_potential(system, make_topology(["O", "H", "H"]), water)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"atoms": []}, "`atoms` is empty"),
        ({"atoms": [0, 5]}, "names atom 5, but the topology has 3"),
        ({"atoms": [-1]}, "names atom -1"),
        ({"atoms": [1, 1]}, "names atom 1 twice"),
        ({"atoms": ["O"]}, "whole numbers"),
        ({"implementation": "jax"}, "torch or python, not 'jax'"),
        ({"force_group": 32}, "0 to 31, not 32"),
        ({"periodic": True}, "topology has no box"),
        ({"dtype": "float16"}, "float32, float64"),
        ({"implementation": "python", "device": "abacus"}, "unknown device 'abacus'"),
        ({"implementation": "python", "skin": -1.0}, "skin"),
    ],
)
def test_impossible_requests(water: FastEGNNPotential, options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        add_potential(make_system(3), make_topology(["O", "H", "H"]), water, **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_device_that_is_not_there(water: FastEGNNPotential) -> None:
    with pytest.raises(InputError, match=r"is not there \(CUDA devices found: 0\)"):
        create_system(make_topology(["O"]), water, implementation="python", device="cuda")


def test_system_of_another_topology(water: FastEGNNPotential) -> None:
    with pytest.raises(InputError, match="2 particles and the topology 3 atoms"):
        add_potential(make_system(2), make_topology(["O", "H", "H"]), water)
    with pytest.raises(InputError, match="no atoms"):
        create_system(app.Topology(), water)


@pytest.mark.parametrize(
    ("model", "error", "words"),
    [
        (3, InputError, "not int"),
        (torch.nn.Linear(1, 1), InputError, "lacks cutoff, elements, long_range"),
        ("no-such-model", ModelFileError, "no-such-model"),
        ("absent.pt", ModelFileError, "no exported model at absent"),
        ("absent.safetensors", ModelFileError, "absent"),
    ],
)
def test_models_that_are_none(model: Any, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        create_system(make_topology(["O"]), model)


@pytest.mark.parametrize("name", ["model.pt", "model.safetensors", "model.bin"])
def test_pickles_are_not_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnsafeFileError, match="pickle"):
        create_system(make_topology(["O"]), path)


@pytest.mark.parametrize(
    ("absent", "implementation", "words"),
    [
        ("openmmtorch", "torch", r"pip install 'egnn-md\[openmm\]', or choose implementation='python'"),
        ("openmm", "python", r"OpenMM is needed.*pip install 'egnn-md\[openmm\]'"),
    ],
)
def test_missing_packages(
    monkeypatch: pytest.MonkeyPatch, water: FastEGNNPotential, absent: str, implementation: str, words: str
) -> None:
    topology = make_topology(["O"])
    monkeypatch.setitem(sys.modules, absent, None)
    with pytest.raises(MissingDependencyError, match=words):
        create_system(topology, water, implementation=implementation)


def test_plugin_built_for_another_torch(monkeypatch: pytest.MonkeyPatch, water: FastEGNNPotential) -> None:
    """A plugin that is there and cannot be loaded is no missing module, but needs the same remedy."""
    monkeypatch.delitem(sys.modules, "openmmtorch")
    real = builtins.__import__

    def fails(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("_openmmtorch") or name == "simtk.openmm":
            raise ImportError("libcudart.so.12: cannot open shared object file")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", fails)
    with pytest.raises(MissingDependencyError, match=r"libcudart.*pip install"):
        create_system(make_topology(["O"]), water)


def test_openmm_without_python_force(monkeypatch: pytest.MonkeyPatch, water: FastEGNNPotential) -> None:
    monkeypatch.delattr(openmm, "PythonForce")
    with pytest.raises(MissingDependencyError, match="has no PythonForce"):
        create_system(make_topology(["O"]), water, implementation="python")


class NotANumber(LennardJones):
    """NaN for every pair closer than 1 Å."""

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
        energy = ((pair * pair).sum(1).to(torch.float64) - 1.0).sqrt()
        return torch.zeros_like(positions[:, 0]).double().index_add(0, edge_index[0], energy)


def context_of(system: openmm.System, positions: Any) -> openmm.Context:
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(np.asarray(positions))
    return context


def test_nan_force_names_the_atom() -> None:
    topology = make_topology(["He", "Ar", "O", "H"])
    system = make_system(4)
    force = add_potential(system, topology, NotANumber(cutoff=5.0), implementation="python", atoms=[1, 2, 3])
    context = context_of(system, [[0, 0, 0], [0.5, 0, 0], [0.8, 0, 0], [0.85, 0, 0]])
    words = r"force of atom 2 \(O\) is \[nan.*evaluation 1"
    with pytest.raises(SimulationError, match=words) as caught, readable_errors():
        context.getState(energy=True)
    assert isinstance(caught.value.__cause__, openmm.OpenMMException)
    assert last_error() is caught.value is force.callback.last_error
    # a script that knows nothing of readable_errors still reads where it happened
    with pytest.raises(openmm.OpenMMException, match="force of atom 2") as bare:
        context.getState(energy=True)
    text = str(bare.value)
    assert "Python traceback of what failed inside the force" in text
    assert 'python_force.py", line' in text
    assert "in _refuse_broken" in text


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_position_that_is_not_finite_is_named(broken: float) -> None:
    topology = make_topology(["Ar"] * 3)
    positions = np.arange(9.0).reshape(3, 3)
    positions[2, 1] = broken
    system = create_system(topology, LennardJones(), implementation="python")
    with pytest.raises(SimulationError, match=r"position of atom 2 \(Ar\)"), readable_errors():
        context_of(system, positions).getState(energy=True)
    system = create_system(topology, LennardJones(), implementation="torch")
    with pytest.raises(SimulationError, match="position of atom 2 is not finite"), readable_errors():
        context_of(system, positions).getState(energy=True)


def test_other_errors_of_openmm_pass_unchanged() -> None:
    with (
        pytest.raises(openmm.OpenMMException, match="Particle positions have not been set"),
        readable_errors(),
    ):
        openmm.Context(
            make_system(1), openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference")
        ).getState(energy=True)
    assert last_error() is None


def test_import_is_light() -> None:
    """``import egnn_md_openmm`` (which OpenMM-ML's entry point causes) loads neither torch nor OpenMM."""
    import subprocess

    code = (
        "import sys, egnn_md_openmm, egnn_md_openmm.openmmml; "
        "print([m for m in ('torch', 'openmm', 'openmmtorch', 'openmmml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
