"""Bad input to mixed ML/MM systems: the error names atoms and residues, and the remedy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms

from egnn_md.checkpoint import ModelCard
from egnn_md.errors import InputError, UnknownElementError
from egnn_md.models import FastEGNNPotential, PotentialConfig
from egnn_md.models.charges import check_charge
from egnn_md.simulation.hydrogens import FEWEST, check_hydrogens
from egnn_md.simulation.models import check_model
from egnn_md.simulation.readers import read_structure
from egnn_md_ase import FastEGNNCalculator

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
openmmml = pytest.importorskip("openmmml", reason="OpenMM-ML is not installed: pip install 'egnn-md[openmm]'")

from openmm import app, unit  # noqa: E402

from egnn_md_openmm import create_mixed_system, force_field_system, select_atoms  # noqa: E402
from egnn_md_openmm.region import check_region  # noqa: E402
from egnn_md_systems.alanine_dipeptide import structure_path  # noqa: E402

FILES = ("amber14/protein.ff14SB.xml", "amber14/tip3p.xml")
PEPTIDE = list(range(22))


@pytest.fixture(scope="module")
def model() -> FastEGNNPotential:
    sizes: dict[str, Any] = {"hidden": 4, "layers": 1, "basis": 2, "virtual_nodes": 0, "cutoff": 3.0}
    made = FastEGNNPotential(PotentialConfig(elements=(1, 6, 7, 8), **sizes))
    made.card = ModelCard(name="peptides", training_data={"charges": [0, 1]})
    return made


@pytest.fixture(scope="module")
def pdb() -> app.PDBFile:
    return app.PDBFile(str(structure_path()))


@pytest.fixture(scope="module")
def boxed(pdb: app.PDBFile) -> app.Topology:
    """The peptide and three waters in a box."""
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.addSolvent(app.ForceField(*FILES), numAdded=3)
    modeller.topology.setPeriodicBoxVectors(np.eye(3) * 2.2 * unit.nanometer)
    return modeller.topology


def mixed(topology: app.Topology, atoms: list[int], model: Any, *, system: Any = None, **options: Any) -> Any:
    if system is None:
        system = force_field_system(topology, FILES, rigidWater=True)
    return create_mixed_system(topology, system, atoms, model, implementation="python", **options)


def test_bond_across_the_boundary(boxed: app.Topology, model: FastEGNNPotential) -> None:
    """Both atoms and residues are named, by our call and by OpenMM-ML's, interpolating or not."""
    words = r"\(N of ALA 2\) of the ML region is bonded to atom 4 \(C of ACE 1\) outside it; take the whole molecule"
    system = force_field_system(boxed, FILES)
    with pytest.raises(InputError, match=words):
        mixed(boxed, PEPTIDE[6:], model, system=system)
    potential = openmmml.MLPotential("fastegnn", modelPath=model, implementation="python")
    for interpolate in (False, True):
        with pytest.raises(InputError, match=words):
            potential.createMixedSystem(boxed, system, PEPTIDE[6:], interpolate=interpolate)


def test_bond_that_only_the_system_knows(pdb: app.PDBFile, model: FastEGNNPotential) -> None:
    system = force_field_system(pdb.topology, FILES)
    bare = app.Topology()
    chain = bare.addChain()
    for residue in pdb.topology.residues():
        copy = bare.addResidue(residue.name, chain, residue.id)
        for atom in residue.atoms():
            bare.addAtom(atom.name, atom.element, copy)
    with pytest.raises(InputError, match="is bonded to"):
        mixed(bare, PEPTIDE[6:], model, system=system)


def test_constraints_in_the_region(boxed: app.Topology, model: FastEGNNPotential) -> None:
    system = force_field_system(boxed, FILES, constraints=app.HBonds)
    count = system.getNumConstraints()
    with pytest.raises(InputError, match=r"H1 of ACE 1\).*is constrained.*12 such pairs.*constraints=None"):
        mixed(boxed, PEPTIDE, model, system=system)
    free = mixed(boxed, PEPTIDE, model, system=system, remove_constraints=True)
    assert free.getNumConstraints() == 3 * 3  # of the waters
    assert system.getNumConstraints() == count
    # at lambda 0 nothing would hold the hydrogens, unless their springs were kept
    with pytest.raises(InputError, match=r"hold atom \d+ .* together at lambda_interpolate = 0.*flexibleConstraints"):
        mixed(boxed, PEPTIDE, model, system=system, remove_constraints=True, interpolate=True)
    flexible = force_field_system(boxed, FILES, constraints=app.HBonds, flexibleConstraints=True)
    mixed(boxed, PEPTIDE, model, system=flexible, remove_constraints=True, interpolate=True)
    # OpenMM-ML's own call drops them by default, and is refused where it is told to keep them
    potential = openmmml.MLPotential("fastegnn", modelPath=model, implementation="python")
    with pytest.raises(InputError, match="is constrained"):
        potential.createMixedSystem(boxed, system, PEPTIDE, removeConstraints=False)


def test_virtual_sites_and_polarisable_particles(boxed: app.Topology, model: FastEGNNPotential) -> None:
    for make, words in (
        (_with_virtual_site, r"atom 24 \(.* of HOH .*\) is a virtual site in the ML region or on its atoms"),
        (_with_drude, r"atom 1 .* carries a Drude particle"),
        (_with_multipoles, "has a AmoebaMultipoleForce, whose terms inside the ML region cannot be taken out"),
    ):
        system = force_field_system(boxed, FILES, rigidWater=False)
        make(system)
        with pytest.raises(InputError, match=words):
            mixed(boxed, PEPTIDE, model, system=system)


def _with_virtual_site(system: Any) -> None:
    system.setParticleMass(24, 0.0)
    system.setVirtualSite(24, openmm.TwoParticleAverageSite(0, 1, 0.5, 0.5))


def _with_drude(system: Any) -> None:
    force = openmm.DrudeForce()
    force.addParticle(22, 1, -1, -1, -1, 1.0, 0.001, 1.0, 1.0)
    system.addForce(force)


def _with_multipoles(system: Any) -> None:
    system.addForce(openmm.AmoebaMultipoleForce())


def test_missing_hydrogens(pdb: app.PDBFile, model: FastEGNNPotential) -> None:
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([atom for atom in pdb.topology.atoms() if atom.element.symbol == "H"])
    words = r"hydrogens are missing: ACE 1 has 0 of at least 3, ALA 2 has 0 of at least 5.*addHydrogens"
    with pytest.raises(InputError, match=words):
        force_field_system(modeller.topology, FILES)
    with pytest.raises(InputError, match=words):
        check_region(modeller.topology, None, list(range(10)), model=model)


def test_missing_hydrogens_in_a_run(pdb: app.PDBFile, model: FastEGNNPotential, tmp_path: Path) -> None:
    """egnn-md md refuses them, too; a model that knows no hydrogen wants none."""
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([atom for atom in pdb.topology.atoms() if atom.name in ("HA", "HB1", "HB2", "HB3")])
    path = tmp_path / "bare.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
    structure = read_structure(str(path))
    with pytest.raises(InputError, match=r"hydrogens are missing: ALA 2 has 1 of at least 5;"):
        check_model(model, structure)
    check_model(model, read_structure(str(structure_path())))
    heavy = replace(structure, numbers=np.where(structure.numbers == 1, 6, structure.numbers))
    grains = FastEGNNPotential(PotentialConfig(elements=(6, 7, 8), hidden=4, layers=1, basis=2, virtual_nodes=0))
    check_model(grains, heavy)


def test_what_lacks_no_hydrogens(model: FastEGNNPotential) -> None:
    """Ions, coarse grains, unknown residues, carbon without hydrogen, and what a force field calls complete."""
    check_hydrogens([("NA 1", [11]), ("CL 2", [17]), ("ALA 3", [6]), ("LIG 4", [6, 8, 8]), ("CCL 5", [6, 17, 17])])
    check_hydrogens([("LIG 1", [6, 7])], [(0, 1)])
    with pytest.raises(InputError, match="LIG 1 has a carbon with one bond, to another carbon"):
        check_hydrogens([("LIG 1", [6, 6, 8])], [(0, 1), (1, 2)])
    templates = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")._templates
    for name, fewest in FEWEST.items():
        if name in templates:
            count = sum(a.element is not None and a.element.symbol == "H" for a in templates[name].atoms)
            assert 0 <= count - fewest <= 1, name


def test_unknown_residue(pdb: app.PDBFile) -> None:
    topology = app.Topology()
    residue = topology.addResidue("LIG", topology.addChain())
    carbon = topology.addAtom("C", app.Element.getBySymbol("C"), residue)
    for k in range(3):
        topology.addBond(carbon, topology.addAtom(f"H{k}", app.Element.getBySymbol("H"), residue))
    with pytest.raises(InputError, match=r"\(amber14.*does not know a residue.*residue 0 \(LIG\).*Give a file"):
        force_field_system(topology, FILES)
    with pytest.raises(InputError, match=r"the force field nowhere\.xml cannot be read"):
        force_field_system(pdb.topology, ["nowhere.xml"])


def test_charged_region(boxed: app.Topology, model: FastEGNNPotential) -> None:
    """By the force field's charges; models know the charges of their training data, older ones zero."""
    system = force_field_system(boxed, FILES)
    [force] = [f for f in system.getForces() if isinstance(f, openmm.NonbondedForce)]
    charge, sigma, epsilon = force.getParticleParameters(0)
    for extra, words in (
        (1.0, None),
        (-1.0, r"total charge -1 e, but the model 'peptides' was trained on systems of charge 0, \+1 only"),
        (0.4, r"charges of the ML region add up to 0\.400 e; the region must be made of whole molecules"),
    ):
        force.setParticleParameters(0, charge + extra * unit.elementary_charge, sigma, epsilon)
        if words is None:
            mixed(boxed, PEPTIDE, model, system=system)
            continue
        with pytest.raises(InputError, match=words):
            mixed(boxed, PEPTIDE, model, system=system)
        potential = openmmml.MLPotential("fastegnn", modelPath=model, implementation="python")
        with pytest.raises(InputError, match=words):
            potential.createMixedSystem(boxed, system, PEPTIDE)


def test_charges_of_cards() -> None:
    class Model:
        card: Any = None

    check_charge(Model(), 3, "it")  # nothing is known of it
    for data, good, bad in (
        ({}, 0, 1),
        ({"charges": [-1]}, -1, 0),
        ({"members": [{"charges": [0, 1]}, {"charges": [1, 2]}]}, 1, 2),
        ({"members": [{}, {"charges": [0, 1]}]}, 0, 1),
    ):
        made = Model()
        made.card = ModelCard(training_data=data)
        check_charge(made, good, "it")
        with pytest.raises(InputError, match=re.escape(f"it has the total charge {bad:+d} e")):
            check_charge(made, bad, "it")


def test_charged_atoms_in_ase(model: FastEGNNPotential) -> None:
    atoms = Atoms("OH2", positions=[[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    atoms.calc = FastEGNNCalculator(model)
    assert np.isfinite(atoms.get_potential_energy())
    atoms.info["charge"] = 1
    atoms.rattle(0.01)
    assert np.isfinite(atoms.get_potential_energy())
    atoms.info["charge"] = -1
    atoms.rattle(0.01)
    with pytest.raises(InputError, match="the structure has the total charge -1 e"):
        atoms.get_potential_energy()
    del atoms.info["charge"]
    atoms.set_initial_charges([0, 1, 1])
    with pytest.raises(InputError, match=r"total charge \+2 e"):
        atoms.get_potential_energy()


def test_interpolation_that_would_lack_terms(boxed: app.Topology, model: FastEGNNPotential) -> None:
    cut = force_field_system(boxed, FILES, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.8 * unit.nanometer)
    with pytest.raises(InputError, match="reaction field"):
        mixed(boxed, PEPTIDE, model, system=cut, interpolate=True)
    mixed(boxed, PEPTIDE, model, system=cut)
    system = force_field_system(boxed, FILES)
    custom = openmm.CustomNonbondedForce("0")
    for _ in range(system.getNumParticles()):
        custom.addParticle([])
    system.addForce(custom)
    with pytest.raises(InputError, match="CustomNonbondedForce and does not put"):
        mixed(boxed, PEPTIDE, model, system=system, interpolate=True)


def test_regions_and_boxes(boxed: app.Topology, model: FastEGNNPotential) -> None:
    """What cannot be whole is not taken for a molecule; images are not counted twice."""
    waters = list(range(22, 28))
    flexible = force_field_system(boxed, FILES, rigidWater=False)
    with pytest.raises(InputError, match="do not make the 6 atoms of the ML region one molecule"):
        mixed(boxed, waters, model, system=flexible, periodic=False)
    sizes: dict[str, Any] = {"hidden": 4, "layers": 1, "basis": 2, "cutoff": 3.0, "virtual_nodes": 1}
    fourier = FastEGNNPotential(PotentialConfig(elements=(1, 8), fourier_width=1.0, **sizes))
    with pytest.raises(InputError, match="Fourier modes of the whole cell"):
        mixed(boxed, waters, fourier, system=flexible)
    mixed(boxed, waters[:3], fourier, system=flexible)
    system = openmm.System()
    for _ in range(23):
        system.addParticle(1.0)
    with pytest.raises(InputError, match="23 particles, the topology 31 atoms"):
        mixed(boxed, PEPTIDE, model, system=system)
    with pytest.raises(UnknownElementError, match="atom 1 is C"):
        mixed(boxed, PEPTIDE, fourier)


def test_selections_that_are_none(boxed: app.Topology) -> None:
    with pytest.raises(InputError, match="no residue 'GLY'; it has ACE, ALA, HOH, NME"):
        select_atoms(boxed, residues=["GLY"])
    with pytest.raises(InputError, match="no chain 'Z'"):
        select_atoms(boxed, chains="Z")
    with pytest.raises(InputError, match="`residues` is empty"):
        select_atoms(boxed, residues=[])
    with pytest.raises(InputError, match="holds no atom"):
        select_atoms(boxed, residues=["ALA"], chains=[list(boxed.chains())[-1].id])
