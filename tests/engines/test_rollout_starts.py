"""Starts from files as other programs write them: units, velocities, boxes; and what no engine can take."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import ase.io
import mdtraj
import numpy as np
import pytest
import torch
from ase import units
from openmm import app
from rich.console import Console
from rollout_cases import model_config, propagator, world, write_world

from egnn_md.errors import InputError
from egnn_md.kernels import accelerate
from egnn_md.rollout import State, Stepper, rollout
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.run import run_rollout
from egnn_md.rollout.starts import read_starts
from egnn_md.rollout.topology import to_atoms
from egnn_md.rollout.units import engine_units
from egnn_md_openmm import PropagatorSimulation

ROUNDING = 1e-13


def start_of(folder: Path, system: Path, name: str = "molecules", **changes: Any) -> State:
    """The one start that a request reads."""
    config = model_config(name, **{k: changes.pop(k) for k in ("velocity",) if k in changes})
    request = RolloutRequest.parse(
        {"system": str(system), "model": "m", "steps": 1, "output": folder / "out", **changes}
    )
    return read_starts(request, config).states[0]


def test_momenta_of_ase_become_velocities_of_the_model(tmp_path: Path):
    start = world("molecules")
    atoms = to_atoms(start, engine_units(model_config("molecules")))
    atoms.set_velocities(start.velocities / units.fs)
    ase.io.write(tmp_path / "start.traj", atoms)
    found = start_of(tmp_path, tmp_path / "start.traj")
    assert (found.positions == start.positions).all()
    np.testing.assert_allclose(found.velocities, start.velocities, rtol=ROUNDING)
    np.testing.assert_allclose(found.cell, start.cell, rtol=ROUNDING)
    # a difference to the frame before, over the interval of the model's frames (2 fs), to the nearest image
    frames = [atoms.copy(), atoms.copy()]
    for frame in frames:
        del frame.arrays["momenta"]
    frames[1].positions += 0.3 * (np.arange(30) % 2)[:, None]
    frames[1].wrap()
    ase.io.write(tmp_path / "two.traj", frames)
    found = start_of(tmp_path, tmp_path / "two.traj", velocity="backward", starts=(1,))
    expected = np.repeat(0.15 * (np.arange(30) % 2)[:, None], 3, axis=1)
    np.testing.assert_allclose(found.velocities, expected, atol=1e-12)
    with pytest.raises(InputError, match="or a later frame, whose difference to the one before is taken"):
        start_of(tmp_path, tmp_path / "two.traj", velocity="backward")


def test_states_that_openmm_saved_are_read_in_nm_and_ps(tmp_path: Path):
    simulation = PropagatorSimulation.from_stepper(Stepper(propagator("molecules"), world("molecules")))
    simulation.step(2)
    simulation.saveState(str(tmp_path / "state.xml"))
    positions = simulation.context.getState(positions=True).getPositions()
    app.PDBFile.writeFile(simulation.topology, positions, str(tmp_path / "top.pdb"))
    expected = simulation.stepper.states[0]
    found = start_of(tmp_path, tmp_path / "state.xml", topology=str(tmp_path / "top.pdb"))
    np.testing.assert_allclose(found.positions, expected.positions, rtol=ROUNDING)
    np.testing.assert_allclose(found.velocities, expected.velocities, rtol=ROUNDING)
    np.testing.assert_allclose(found.cell, expected.cell, rtol=ROUNDING)
    with pytest.raises(InputError, match="name the file that does with --topology"):
        start_of(tmp_path, tmp_path / "state.xml")
    few = mdtraj.load(str(tmp_path / "top.pdb")).atom_slice(range(5))
    few.save_pdb(str(tmp_path / "few.pdb"))
    with pytest.raises(InputError, match=r"holds 30 particles, the topology .*few.pdb 5"):
        start_of(tmp_path, tmp_path / "state.xml", topology=str(tmp_path / "few.pdb"))
    # a topology without coordinates has no box: the system is not taken for an open one
    rows = "\n".join(
        f"{i + 1:8d} A    1    UNK  {atom.element.symbol:4s} {atom.element.symbol:4s}   0.0  {atom.element.mass:8.4f} 0"
        for i, atom in enumerate(few.topology.atoms)
    )
    psf = f"PSF\n\n       1 !NTITLE\n REMARKS a\n\n       5 !NATOM\n{rows}\n\n       0 !NBOND: bonds\n\n"
    (tmp_path / "few.psf").write_text(psf)
    text = "<State><Positions>" + "".join('<Position x="0" y="0" z="1"/>' for _ in range(5)) + "</Positions>"
    text += "<Velocities>" + "".join('<Velocity x="0" y="0" z="0"/>' for _ in range(5)) + "</Velocities></State>"
    (tmp_path / "five.xml").write_text(text)
    with pytest.raises(InputError, match=r"few.psf does not tell whether the system is periodic; give a PDB or GRO"):
        start_of(tmp_path, tmp_path / "five.xml", topology=str(tmp_path / "few.psf"))


def test_velocities_are_drawn_where_a_file_has_none(tmp_path: Path):
    start = world("molecules", 3000)
    atoms = to_atoms(start, engine_units(model_config("molecules")))
    ase.io.write(tmp_path / "start.pdb", atoms)
    with pytest.raises(InputError, match=r"no velocities, .* or \(molecules\) a --temperature to draw them at"):
        start_of(tmp_path, tmp_path / "start.pdb")
    found = start_of(tmp_path, tmp_path / "start.pdb", temperature=350.0)
    masses = atoms.get_masses()[:, None]
    atoms.set_velocities(found.velocities / units.fs)
    assert atoms.get_temperature() == pytest.approx(350.0, rel=0.03)  # 9,000 degrees of freedom: 1.5 %
    assert np.abs((masses * found.velocities).sum(0)).max() < 1e-9
    again = start_of(tmp_path, tmp_path / "start.pdb", temperature=350.0)
    other = start_of(tmp_path, tmp_path / "start.pdb", temperature=350.0, seed=1)
    assert (found.velocities == again.velocities).all()
    assert (found.velocities != other.velocities).any()
    ase.io.write(tmp_path / "moving.traj", atoms)
    data, _ = write_world(tmp_path, "molecules")
    for system in (tmp_path / "moving.traj", data):
        with pytest.raises(InputError, match=r"--temperature draws velocities, but .* brings its own; leave it out"):
            start_of(tmp_path, system, temperature=350.0)
    with pytest.raises(InputError, match="thermal velocities are for atoms of a model that takes true ones"):
        start_of(tmp_path, tmp_path / "start.pdb", velocity="backward", temperature=350.0)


def test_metres_keep_their_numbers_in_every_file(tmp_path: Path):
    data, model = write_world(tmp_path, "splash")

    def run(**changes: Any) -> str:
        said = io.StringIO()
        values = {"system": str(data), "model": str(model), "steps": 3, "formats": ("xtc", "extxyz"), **changes}
        run_rollout(RolloutRequest.parse(values), console=Console(file=said, width=300))
        return said.getvalue()

    said = run(output=tmp_path / "fine", unit_length=40.0)
    assert "note" not in said
    said = run(output=tmp_path / "coarse", engine="openmm")
    assert "trajectory.xtc keeps 0.01 Å, which is 0.01 m here, of a cutoff of 0.3 m; --unit-length 10 keeps" in said
    expected = rollout(accelerate(propagator("splash", torch.float32)), start_of(tmp_path, data, "splash"), 3)
    for name, length in (("fine", 40.0), ("coarse", 1.0)):
        last = ase.io.read(tmp_path / name / "final.extxyz")
        np.testing.assert_allclose(last.positions / length, expected.positions[-1], rtol=ROUNDING)
        np.testing.assert_allclose(last.arrays["velocities"] / length, expected.velocities[-1], rtol=ROUNDING)
        assert last.info["time_fs"] == pytest.approx(3 * 0.04)
        loaded = mdtraj.load(str(tmp_path / name / "trajectory.xtc"), top=str(tmp_path / name / "topology.pdb"))
        np.testing.assert_allclose(10 * loaded.xyz / length, expected.positions, rtol=0, atol=0.0051 / length)
        rows = np.genfromtxt(tmp_path / name / "log.csv", delimiter=",", names=True)
        np.testing.assert_allclose(rows["kinetic_energy"], 0.5 * (expected.velocities**2).sum((1, 2)), rtol=1e-10)
    # from one file to the next the scale is kept, and it is not mixed up
    found = start_of(tmp_path, tmp_path / "fine" / "final.extxyz", "splash")
    np.testing.assert_allclose(found.positions, expected.positions[-1], rtol=ROUNDING)
    with pytest.raises(InputError, match="was written with --unit-length 40, not 2"):
        start_of(tmp_path, tmp_path / "fine" / "final.extxyz", "splash", unit_length=2.0)
    text = (tmp_path / "fine" / "final.extxyz").read_text()
    (tmp_path / "bare.extxyz").write_text(text.replace('units="m s"', 'units="none none"'))
    with pytest.raises(InputError, match=r"holds numbers in 'none none' .* but the propagator of 'splash' is in 'm s'"):
        start_of(tmp_path, tmp_path / "bare.extxyz", "splash")


@pytest.mark.parametrize(
    ("length", "time", "words"),
    [
        ("m", "femtosecond", "metres go with seconds"),
        ("angstrom", "s", "metres go with seconds"),
        ("none", "s", "both or neither must have a unit"),
        ("furlong", "s", "unit of length 'furlong'; known: none, m, angstrom"),
        ("m", "fortnight", "unit of time 'fortnight'; known: none, s, femtosecond"),
    ],
)
def test_units_that_do_not_go_together_are_refused(length: str, time: str, words: str):
    with pytest.raises(InputError, match=words):
        engine_units(model_config("charges", units={"length": length, "time": time}))


def test_what_openmm_cannot_do_is_refused():
    model, start = propagator("molecules"), world("molecules")
    simulation = PropagatorSimulation.from_stepper(Stepper(model, start))
    with pytest.raises(InputError, match="no energy to minimise"):
        simulation.minimizeEnergy()
    turned = start.replace(cell=start.cell[:, [1, 0, 2]])
    with pytest.raises(InputError, match="OpenMM needs a cell with a along x"):
        PropagatorSimulation.from_stepper(Stepper(model, turned))
    # a cell that was turned there and back is taken, what rounding left above its diagonal is not passed on
    rounded = start.cell + np.triu(np.full((3, 3), 1e-15), 1)
    PropagatorSimulation.from_stepper(Stepper(model, start.replace(cell=rounded))).step(1)
    long = start.replace(cell=start.cell + np.array([[0, 0, 0], [9.0, 0, 0], [0, 0, 0]]))
    with pytest.raises(InputError, match=r"does not take the cell .* start from reduced lattice vectors"):
        PropagatorSimulation.from_stepper(Stepper(model, long))
    slab = start.replace(pbc=(True, True, False))
    with pytest.raises(InputError, match="periodic in all directions or none"):
        PropagatorSimulation.from_stepper(Stepper(model, slab))
    with pytest.raises(InputError, match="needs one"):
        PropagatorSimulation.from_stepper(Stepper(model, [start, start]))
    with pytest.raises(InputError, match="the topology has 30 atoms, but there are 29 types"):
        PropagatorSimulation(
            simulation.topology, model, start.positions[:29], start.velocities[:29], species=start.species[:29]
        )
