"""Systems that travel: whole contexts go on in a fresh process, and a changed model is refused."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from openmm_cases import BOXES, network, water_positions, water_topology

from egnn_md.errors import ModelFileError
from egnn_md.export import export_torchscript, load_module, read_artefact
from egnn_md.models import LennardJones

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")

from egnn_md_openmm import create_system, load_system  # noqa: E402
from egnn_md_openmm.payload import model_from_bytes, model_to_bytes  # noqa: E402

WATERS = 4
NUMBERS = [8, 1, 1] * WATERS
# reads system, integrator, state and checkpoint; goes on from each; says where the atoms are then
READER = """
import sys
import numpy as np, openmm
from pathlib import Path
from egnn_md_openmm import load_system
here = Path(sys.argv[1])
system = load_system(here / "system.xml")
for form in ("state", "checkpoint"):
    integrator = openmm.XmlSerializer.deserialize((here / "integrator.xml").read_text())
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    # OpenMM 8.5: a PythonForce in a context that got all it knows by setState ends the process
    context.setPositions(np.zeros((system.getNumParticles(), 3)))
    if form == "state":
        context.setState(openmm.XmlSerializer.deserialize((here / "state.xml").read_text()))
    else:
        context.loadCheckpoint((here / "checkpoint").read_bytes())
    start = context.getState(energy=True, forces=True)
    integrator.step(10)
    end = context.getState(positions=True, velocities=True)
    np.savez(here / (form + ".npz"), energy=start.getPotentialEnergy()._value,
             forces=start.getForces(asNumpy=True)._value,
             positions=end.getPositions(asNumpy=True)._value, velocities=end.getVelocities(asNumpy=True)._value)
"""


def waters(implementation: str, model: Any = None) -> Any:
    return create_system(
        water_topology(WATERS, BOXES["triclinic"]),
        model or network("float64"),
        implementation=implementation,
        dtype="float64",
        skin=0.5,  # one that is found by timing would differ between processes
    )


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_a_context_goes_on_in_a_fresh_process(tmp_path: Path, implementation: str) -> None:
    """System, integrator with its thermostat, state and checkpoint: ten steps later all is where it is here."""
    box = BOXES["triclinic"]
    assert box is not None
    system = waters(implementation)
    integrator = openmm.NoseHooverIntegrator(300.0, 10.0, 0.0002)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(water_positions(WATERS, box))
    context.setVelocitiesToTemperature(300.0, 5)
    integrator.step(5)
    state = context.getState(positions=True, velocities=True, integratorParameters=True, parameters=True)
    (tmp_path / "system.xml").write_text(openmm.XmlSerializer.serialize(system))
    (tmp_path / "integrator.xml").write_text(openmm.XmlSerializer.serialize(integrator))
    (tmp_path / "state.xml").write_text(openmm.XmlSerializer.serialize(state))
    (tmp_path / "checkpoint").write_bytes(context.createCheckpoint())
    context.loadCheckpoint((tmp_path / "checkpoint").read_bytes())
    start = context.getState(energy=True, forces=True)
    integrator.step(10)
    end = context.getState(positions=True, velocities=True)
    done = subprocess.run(
        [sys.executable, "-c", READER, str(tmp_path)], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    forces = start.getForces(asNumpy=True)._value
    for form in ("state", "checkpoint"):
        with np.load(tmp_path / f"{form}.npz") as found:
            # sums over neighbours whose order depends on when the list was made: rounding of float64
            assert float(found["energy"]) == pytest.approx(start.getPotentialEnergy()._value, rel=1e-12)
            np.testing.assert_allclose(found["forces"], forces, atol=1e-10 * np.abs(forces).max())
            np.testing.assert_allclose(found["positions"], end.getPositions(asNumpy=True)._value, atol=1e-11)
            np.testing.assert_allclose(found["velocities"], end.getVelocities(asNumpy=True)._value, atol=1e-8)


def weaker(module: Any) -> None:
    """One weight of a network, a little."""
    with torch.no_grad():
        next(module.potential.parameters()).view(-1)[0] += 1e-6


def deeper(module: Any) -> None:
    """A number that is no tensor."""
    module.potential.epsilon = 0.0105


def relabelled(module: Any) -> None:
    """Another element in the place of an atom."""
    module.species[0] = 1


def rescaled(module: Any) -> None:
    """Another unit of energy."""
    module.energy *= 1.001


def nearsighted(module: Any) -> None:
    """Neighbours that are not looked for."""
    module.neighbors.cutoff *= 0.9


CHANGES = [
    ("network", weaker), ("network", relabelled), ("lj", deeper), ("network", rescaled), ("lj", nearsighted),
]  # fmt: skip


def model_of(kind: str) -> Any:
    return network("float64") if kind == "network" else LennardJones(0.0104, 2.0, 5.0)


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_a_torch_force_whose_model_was_changed_is_refused(kind: str, change: Any) -> None:
    xml = openmm.XmlSerializer.serialize(waters("torch", model_of(kind)))
    content = re.search(r'encodedFileContents="([0-9a-f]*)"', xml)
    assert content is not None
    module = torch.jit.load(io.BytesIO(bytes.fromhex(content[1])))

    def written() -> str:
        buffer = io.BytesIO()
        torch.jit.save(module, buffer)
        return xml.replace(content[1], buffer.getvalue().hex())

    load_system(written())  # the same model written once more is still itself
    change(module)
    with pytest.raises(ModelFileError, match="a TorchForce of this system: the model inside was changed"):
        load_system(written())
    damaged = bytearray(bytes.fromhex(content[1]))
    with zipfile.ZipFile(io.BytesIO(damaged)) as archive:
        code = max((item for item in archive.infolist() if item.filename.endswith(".py")), key=lambda i: i.file_size)
    damaged[code.header_offset + 200 + len(code.filename)] ^= 0xFF
    with pytest.raises(ModelFileError, match="TorchForce of this system"):
        load_system(xml.replace(content[1], damaged.hex()))


@pytest.mark.parametrize(("kind", "change"), CHANGES)
def test_an_artefact_whose_model_was_changed_is_refused(tmp_path: Path, kind: str, change: Any) -> None:
    path = tmp_path / "model.pt"
    info = export_torchscript(model_of(kind), path, NUMBERS, periodic=True, dtype="float64")
    module = load_module(path)
    change(module)
    torch.jit.save(module, str(path), _extra_files={"egnn_md.json": info.model_dump_json()})
    assert read_artefact(path) == info  # what it says about itself is whole
    with pytest.raises(ModelFileError, match="model inside was changed after it was exported"):
        load_module(path)
    with pytest.raises(ModelFileError, match="changed after it was exported"):
        create_system(water_topology(WATERS, BOXES["triclinic"]), path)


@pytest.mark.parametrize("kind", ["network", "lj"])
def test_a_python_force_whose_model_was_changed_is_refused(kind: str) -> None:
    stored = model_to_bytes(model_of(kind))
    assert stored["form"] == ("model-file" if kind == "network" else "torchscript")
    model_from_bytes(stored, torch.float64)
    other = model_to_bytes(network("float64", seed=1) if kind == "network" else LennardJones(0.0105, 2.0, 5.0))
    with pytest.raises(ModelFileError, match="the model inside this PythonForce was changed"):
        model_from_bytes({**stored, "content": other["content"]}, torch.float64)
    if kind == "lj":
        with pytest.raises(ModelFileError, match="its digest differs"):
            model_from_bytes({**stored, "cutoff": 4.0}, torch.float64)
    system = waters("python", model_of(kind))
    (callback,) = system.callbacks
    callback._stored = {**stored, "content": other["content"]}
    system.removeForce(0)
    system.addForce(openmm.PythonForce(callback))
    xml = openmm.XmlSerializer.serialize(system)
    with pytest.raises(ModelFileError, match="changed after it was written"):
        load_system(xml)
    bare = openmm.XmlSerializer.deserialize(xml)  # OpenMM alone says so at the first evaluation
    context = openmm.Context(bare, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(np.zeros((len(NUMBERS), 3)))
    with pytest.raises(openmm.OpenMMException, match="changed after it was written"):
        context.getState(energy=True)
