"""Bad input to a run, by the command as a user types it: one message that names value, place and remedy."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from typer.testing import CliRunner

from egnn_md.checkpoint import ModelCard, load_model, read_header, save_model
from egnn_md.cli.main import app
from egnn_md.errors import ConfigError, EgnnMdError, InputError
from egnn_md.models.charges import check_electrons
from egnn_md.simulation import MDRequest, RunDirectory
from egnn_md.simulation.models import check_model, check_whole
from egnn_md.simulation.protonation import _charge_of, residue_charge
from egnn_md.simulation.readers import read_structure, structure_from_atoms
from egnn_md.simulation.structure import Structure
from egnn_md.testing import random_potential
from egnn_md_systems.peptide.builder import Peptide, build

WILD = ("--max-force", "1e9", "--max-temperature", "1e9", "--min-distance", "0", "--no-minimize")


def water_model(folder: Path, name: str = "m", seed: int = 0, **card: Any) -> str:
    """A tiny network for H, C, N and O whose card knows neutral systems."""
    values = {"name": name, "teacher": "t", "training_data": {"charges": [0]}, **card}
    model = random_potential(elements=[1, 6, 7, 8], seed=seed, hidden=4, layers=1)
    return str(save_model(model, folder / f"{name}.safetensors", ModelCard(**values)))


def md(*words: object) -> None:
    """``egnn-md md`` in this process; errors come out as they are."""
    result = CliRunner().invoke(app, ["md", *map(str, words)], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def refused(kind: type[EgnnMdError], message: str, output: Path, *words: object) -> None:
    with pytest.raises(kind, match=message) as caught:
        md(*words, "--output", output)
    assert "\n" not in str(caught.value)
    assert not output.exists() or (output / "run.json").exists(), "a refused run leaves nothing behind"


def written(peptide: Peptide, path: Path) -> Path:
    from openmm import app as openmm_app
    from openmm import unit

    with path.open("w") as file:
        openmm_app.PDBFile.writeFile(peptide.topology, peptide.positions * unit.angstrom, file)
    return path


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_a_charge_that_the_model_does_not_know(tmp_path: Path, engine: str) -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    model = water_model(tmp_path)
    common = ("--model", model, "--engine", engine, "--steps", 2, *WILD)
    lysine = build("K", states={0: "LYS"})
    two = build("DE", states={0: "ASP", 1: "GLU"}, maximum_charged=2)
    words = r"total charge {} e, but the model 'm' was trained on systems of charge 0 only.*correct the protonation"
    by_residues = "the structure, by the hydrogens of its residues, has the "
    for peptide, charge in ((lysine, r"\+1"), (two, "-2")):
        pdb = written(peptide, tmp_path / "charged.pdb")
        refused(InputError, by_residues + words.format(charge), tmp_path / "run", pdb, *common)
    atoms = lysine.atoms()
    named = tmp_path / "named.extxyz"
    for info, message in (
        ({"charge": 1}, "the structure has the " + words.format(r"\+1")),
        ({"charge": 0.5}, r"named.extxyz: info\['charge'\] is 0.5; a total charge is a whole number"),
        # a file without residues and charge: an electron would be alone
        ({}, r"111 protons, so with a charge that the model 'm' was trained on \(0\) an electron would be unpaired"),
    ):
        atoms.info = dict(info)
        atoms.write(named)
        refused(InputError, message, tmp_path / "run", named, *common)


def test_neutral_systems_and_models_of_ions_run(tmp_path: Path) -> None:
    model = load_model(water_model(tmp_path))
    ions = load_model(water_model(tmp_path, "ions", training_data={"charges": [-1, 0, 1]}))
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    neutral = read_structure(str(written(build("GA"), tmp_path / "neutral.pdb")))
    charged = read_structure(str(written(build("K", states={0: "LYS"}), tmp_path / "charged.pdb")))
    check_model(model, neutral)
    check_model(ions, charged)
    with pytest.raises(InputError, match="total charge"):
        check_model(model, charged)
    # a radical that says that it is one; analytic and untrained models know of no charges
    radical = molecule("OH")
    with pytest.raises(InputError, match="name the charge in the file"):
        check_model(model, structure_from_atoms(radical))
    radical.info["charge"] = 0
    check_model(model, structure_from_atoms(radical))
    check_electrons(random_potential(elements=[1, 8]), [1])


def test_a_structure_keeps_its_charge(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    assert structure_from_atoms(atoms).charge is None
    atoms.set_initial_charges([-0.8, 0.9, 0.9])
    found = structure_from_atoms(atoms)
    assert found.charge == 1
    found.save(tmp_path / "s.npz")
    assert Structure.load(tmp_path / "s.npz").charge == 1
    replace(found, charge=None).save(tmp_path / "old.npz")  # as versions before wrote it
    assert Structure.load(tmp_path / "old.npz").charge is None
    assert found.digest == replace(found, charge=None).digest


def test_charges_of_residues_are_the_force_fields() -> None:
    """Every template of Amber's: formal charges are those of its charges' sums, inside chains and at their ends."""
    app = pytest.importorskip("openmm.app", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    force_field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
    told = {}
    for name, template in force_field._templates.items():
        residue = name.split("-")[-1]
        residue = residue[1:] if len(residue) == 4 and residue[0] in "NC" else residue
        numbers = [atom.element.atomic_number for atom in template.atoms]
        expected = sum(float(atom.parameters["charge"]) for atom in template.atoms)
        charge = _charge_of(residue, Counter(numbers), Counter(numbers[atom] for atom in template.externalBonds))
        if charge is not None:
            told[name] = charge
            assert charge == pytest.approx(expected, abs=1e-3), name
    assert set(told.values()) >= {-1, 0, 1}
    found = {name.split("-")[-1] for name in told}
    assert {"ALA", "ARG", "HIP", "LYN", "CYX", "NGLU", "CLYS", "NPRO", "ACE", "NME", "HOH", "NA", "CL"} <= found
    assert len(found) > 80


def test_residues_that_are_not_what_they_are_called() -> None:
    glycine = [7, 1, 6, 1, 1, 6, 8]
    assert residue_charge([("LIG 1", [6, 1, 1, 1])], []) is None
    assert residue_charge([("GLY 1", glycine)], []) is None  # an end without its oxygen
    assert residue_charge([("GLY 1", [*glycine, 8, 1, 1])], []) == 0  # NH2 and COOH
    assert residue_charge([("GLY 1", [*glycine, 8, 1, 1, 1])], []) == 1
    assert residue_charge([("GLY 1", [*glycine, 15])], []) is None
    assert residue_charge([("NA+ 1", [11]), ("CL 2", [17]), ("MG 3", [12]), ("HOH 4", [8, 1, 1])], []) == 2
    assert residue_charge([("CA 1", [20]), ("HOH 2", [8, 1])], []) == 1


def test_a_model_that_is_a_part_of_the_energy_only(tmp_path: Path) -> None:
    """Beads without bonds fly apart, and nothing else in a run would say why."""
    model = water_model(tmp_path, "part", needs="the springs of `make springs`")
    plain = load_model(water_model(tmp_path, "plain"))
    assert "needs" not in read_header(tmp_path / "plain.safetensors")["card"]  # versions before know no such field
    structure = tmp_path / "w.xyz"
    molecule("H2O").write(structure)
    common = (structure, "--model", model, "--steps", 1, *WILD)
    words = r"'part' is only a part of the energy and must not run alone; it needs the springs of `make springs`. To "
    for engine in ("ase", "openmm"):
        refused(InputError, words + "run it alone all the same, give --without-prior", tmp_path / "run",
                *common, "--engine", engine)  # fmt: skip
    md(*common, "--engine", "ase", "--without-prior", "--output", tmp_path / "alone")
    assert RunDirectory(tmp_path / "alone").read()["status"] == "finished"
    request = MDRequest(structure="x", steps=1, output=tmp_path)
    check_whole(plain, request)
    with pytest.raises(InputError, match="is only a part"):
        check_whole(load_model(model), request)


def test_the_shipped_beads_need_their_prior() -> None:
    request = MDRequest(structure="x", steps=1, output="x", model="chignolin-cg")
    with pytest.raises(InputError, match=r"'chignolin-cg' is only a part.*egnn_md_systems\.protein_cg\.validate"):
        check_whole(load_model("chignolin-cg"), request)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pressure", 100), "--pressure 100.0 has no effect here: it goes with --ensemble npt"),
        (("--friction", 3, "--ensemble", "nve"), "--friction 3.0 has no effect here: it goes with --ensemble nvt or"),
        (("--friction", 3, "--thermostat", "nose-hoover"), "--friction 3.0 has no effect"),
        (("--thermostat-time", 50), "--thermostat-time 50.0 has no effect here: .* --thermostat nose-hoover"),
        (("--minimize-steps", 3), "--minimize-steps 3 has no effect here: it goes with --minimize;"),
        (("--on-uncertainty", "record"), "--on-uncertainty record has no effect here: it goes with --max-uncertainty"),
    ],
)
def test_options_without_effect(tmp_path: Path, words: tuple[object, ...], message: str) -> None:
    refused(ConfigError, message, tmp_path / "run", "w.xyz", "--steps", 2, *words, "--no-minimize")


def test_options_with_effect() -> None:
    common = {"structure": "x", "steps": 1, "output": "x"}
    for more in (
        {"ensemble": "npt", "pressure": 3.0, "friction": 2.0},
        {"thermostat": "nose-hoover", "thermostat_time": 30.0},
        {"minimize_steps": 3, "minimize_force": 1.0},
        {"max_uncertainty": 1.0, "on_uncertainty": "record"},
    ):
        given = {**common, **more}
        MDRequest.parse(given).check_given(given)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"constraints": "h-bonds"}, "--constraints h-bonds would fix bonds inside the ML region"),
        ({"max_uncertainty": 0.5}, "--max-uncertainty does not go with a mixed run"),
        ({"drive": "first"}, "--drive first does not go with a mixed run"),
        ({"engine": "ase"}, "--engine ase has no force field"),
    ],
)
def test_options_that_a_mixed_run_does_not_have(more: dict[str, Any], message: str) -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_systems.ml_mm.engine import MixedRequest

    with pytest.raises(ConfigError, match=re.escape(message)):
        MixedRequest.parse({"structure": "x", "steps": 1, "output": "x", **more})


def test_topologies_for_openmm(tmp_path: Path) -> None:
    """``create_system``, whose whole energy is the model's, looks at residues too."""
    openmm_app = pytest.importorskip("openmm.app", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_openmm import create_system

    model = load_model(water_model(tmp_path))
    peptide = build("K", states={0: "LYS"})
    with pytest.raises(InputError, match=r"the topology, by the hydrogens of its residues, has the total charge \+1 e"):
        create_system(peptide.topology, model, implementation="python")
    modeller = openmm_app.Modeller(peptide.topology, peptide.positions * 0.1)
    modeller.delete([atom for atom in peptide.topology.atoms() if atom.element.symbol == "H"])
    with pytest.raises(InputError, match=r"hydrogens are missing: ACE 1 has 0 of at least 3"):
        create_system(modeller.topology, model, implementation="python")
    create_system(build("A").topology, model, implementation="python")


def test_restarts_with_something_else(tmp_path: Path) -> None:
    model, other = water_model(tmp_path), water_model(tmp_path, "other", seed=1)
    first, second = tmp_path / "w.xyz", tmp_path / "h2o2.xyz"
    molecule("H2O").write(first)
    molecule("H2O2").write(second)
    settings = ("--model", model, "--engine", "ase", "--timestep", 0.1, "--temperature", 1, *WILD)
    run = tmp_path / "run"
    md(first, *settings, "--steps", 4, "--output", run)
    again = ("--resume", "--steps", 8)
    kept = "a resumed run keeps its settings: leave it out, or start a new run with --continue-from"
    refused(ConfigError, f"--model .*other.* differs from this run's .*{kept}", run, *again, "--model", other)
    refused(ConfigError, f"--timestep 0.2 differs from this run's 0.1; {kept}", run, *again, "--timestep", 0.2)
    refused(InputError, "STRUCTURE .*h2o2.xyz changed since the run", run, second, *again)
    content = Path(model).read_bytes()
    Path(model).write_bytes(Path(other).read_bytes())
    refused(InputError, r"changed since the run in .* began \(digest .*; restore it", run, *again)
    Path(model).write_bytes(content)
    words = r"STRUCTURE .*h2o2.xyz \(H2O2\) differs from the atoms of --continue-from .* \(H2O\); leave STRUCTURE out"
    refused(InputError, words, tmp_path / "next", second, "--continue-from", run, "--steps", 2)
    md(*again, "--output", run)
    assert RunDirectory(run).read()["steps_done"] == 8


def test_bead_numbers_are_no_protons() -> None:
    """Stand-in elements of coarse-grained models have no electrons to count."""
    model = random_potential(elements=[99, 100], hidden=4, layers=1)
    model.card = ModelCard(training_data={"charges": [0]})
    check_model(model, structure_from_atoms(Atoms([99, 100], np.array([[0.0, 0, 0], [3.8, 0, 0]]), masses=[57.0] * 2)))
