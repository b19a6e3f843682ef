"""The builder of peptides against Amber's own residues, the dihedrals asked for, and what it refuses."""

from __future__ import annotations

import random
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from egnn_md.errors import InputError

pytest.importorskip("PeptideBuilder", reason="PeptideBuilder is not installed: pip install 'egnn-md[systems]'")
openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")

from openmm import app, unit  # noqa: E402

from egnn_md_systems.peptide.builder import (  # noqa: E402
    CHARGES,
    FORCE_FIELD,
    LETTERS,
    NEUTRAL,
    OTHER_STATES,
    build,
    sequence_of,
)
from egnn_md_systems.peptide.from_pdb import capped, dihedral, read_peptide  # noqa: E402
from egnn_md_systems.peptide.sampling import Run, closest_contact, force_field_trajectory, joined, random_peptide  # noqa: E402
from egnn_md_systems.peptide.sequences import CHIGNOLIN, WINDOWS, all_single_states, random_states, split  # noqa: E402

#: Formula of each residue -NH-CHR-CO- as it is built, by hand from textbook side chains.
FORMULAS = {
    "ALA": "C3H5NO", "ARG": "C6H13N4O", "ASH": "C4H5NO3", "ASN": "C4H6N2O2", "ASP": "C4H4NO3", "CYS": "C3H5NOS",
    "GLH": "C5H7NO3", "GLN": "C5H8N2O2", "GLU": "C5H6NO3", "GLY": "C2H3NO", "HID": "C6H7N3O", "HIE": "C6H7N3O",
    "HIP": "C6H8N3O", "ILE": "C6H11NO", "LEU": "C6H11NO", "LYN": "C6H12N2O", "LYS": "C6H13N2O", "MET": "C5H9NOS",
    "PHE": "C9H9NO", "PRO": "C5H7NO", "SER": "C3H5NO2", "THR": "C4H7NO2", "TRP": "C11H10N2O", "TYR": "C9H9NO2",
    "VAL": "C5H9NO",
}  # fmt: skip
CAPS = Counter(C=2 + 1, O=1, N=1, H=3 + 4)  # CH3-CO- and -NH-CH3


def composition(formula: str) -> Counter[str]:
    out: Counter[str] = Counter()
    for index, symbol in enumerate(formula):
        if symbol.isalpha():
            digits = ""
            for character in formula[index + 1 :]:
                if not character.isdigit():
                    break
                digits += character
            out[symbol] += int(digits or 1)
    return out


def force_field_charge(topology: Any) -> float:
    """Sum of ff14SB's partial charges, e: OpenMM matches the templates by bonds and elements."""
    system = app.ForceField(FORCE_FIELD).createSystem(topology)
    (force,) = (f for f in system.getForces() if isinstance(f, openmm.NonbondedForce))
    charges = [force.getParticleParameters(i)[0] for i in range(force.getNumParticles())]
    return sum(charge.value_in_unit(unit.elementary_charge) for charge in charges)


def chirality(topology: Any, positions: np.ndarray) -> list[float]:
    """(N × C) · CB about each CA, Å³: positive for L amino acids."""
    out = []
    for residue in topology.residues():
        at = {atom.name: positions[atom.index] for atom in residue.atoms()}
        if "CB" in at:
            n, c, cb = (at[name] - at["CA"] for name in ("N", "C", "CB"))
            out.append(float(np.dot(np.cross(n, c), cb)))
    return out


def test_every_state_has_the_right_atoms_and_charge() -> None:
    assert len(LETTERS) == 20
    built = all_single_states()
    assert len(built) == 25
    for letter, states in built:
        peptide = build(letter, states=states)
        (state,) = peptide.states
        wanted = CAPS + composition(FORMULAS[state])
        assert Counter(peptide.atoms().get_chemical_symbols()) == wanted, state
        charge = force_field_charge(peptide.topology)
        assert charge == pytest.approx(peptide.charge, abs=1e-4), state
        assert peptide.atoms().info["charge"] == CHARGES.get(state, 0)


def test_dihedrals_are_those_asked_for_and_residues_are_l() -> None:
    phi, psi, omega = [-60.0, -65.0, 75.0, -150.0], [-40.0, 140.0, 25.0, 160.0], [180.0, 0.0, 180.0, 180.0]
    peptide = build("WPTI", phi=phi, psi=psi, omega=omega)
    at, topology = peptide.positions, peptide.topology
    residues = [{atom.name: at[atom.index] for atom in residue.atoms()} for residue in topology.residues()]
    for k in range(4):
        before, here, after = residues[k : k + 3]
        found = [
            dihedral(before["C"], here["N"], here["CA"], here["C"]),
            dihedral(here["N"], here["CA"], here["C"], after["N"]),
            dihedral(before["CH3" if k == 0 else "CA"], before["C"], here["N"], here["CA"]),
        ]
        error = np.subtract(found, [phi[k], psi[k], omega[k]])
        np.testing.assert_allclose((error + 180) % 360 - 180, 0.0, atol=0.1)
    assert min(chirality(peptide.topology, peptide.positions)) > 2.0
    random.seed(12345)  # what the caller did with Python's generator must not matter, and must not be undone
    before = random.getstate()
    again = build("WPTI", phi=phi, psi=psi, omega=omega)
    np.testing.assert_array_equal(again.positions, peptide.positions)
    assert random.getstate() == before


def test_force_field_runs_keep_chirality_bonds_and_what_the_structure_is() -> None:
    rng = np.random.default_rng(3)
    pair = (random_peptide("TI", rng), random_peptide("D", rng, {0: "ASP"}))
    run = Run(pair, 500.0, trap=60.0, seed=5)
    topology, positions = joined(pair, np.random.default_rng(0))
    assert min(chirality(topology, positions)) > 2.0
    frames = list(force_field_trajectory(run, 2, stride_ps=0.1, equilibration_ps=0.2))
    assert [frame.info["charge"] for frame in frames] == [-1, -1]
    assert frames[0].info["states"] == "THR-ILE+ASP"
    assert sequence_of(frames[0].info["states"]) == "TI+D"
    bonds = np.array([(bond[0].index, bond[1].index) for bond in topology.bonds()])
    for frame in frames:
        lengths = np.linalg.norm(frame.positions[bonds[:, 0]] - frame.positions[bonds[:, 1]], axis=1)
        assert lengths.min() > 0.8
        assert lengths.max() < 2.1
        assert min(chirality(topology, frame.positions)) > 1.0
    again = list(force_field_trajectory(run, 1, stride_ps=0.1, equilibration_ps=0.2))
    np.testing.assert_array_equal(again[0].positions, frames[0].positions)


@pytest.mark.parametrize(
    ("sequence", "options", "message"),
    [
        ("AXG", {}, "unknown residue 'X' at place 2 of the sequence 'AXG'; known: ACDEFGHIKLMNPQRSTVWY"),
        ("aa", {}, "unknown residue 'a'"),
        ("", {}, "the sequence is empty"),
        ("AD", {"states": {1: "GLU"}}, "residue 'D' .index 1. has no state 'GLU'; it has: ASH, ASP"),
        ("AD", {"states": {2: "ASP"}}, "no residue with index 2"),
        ("RAR", {}, r"2 charged residues \(ARG 1, ARG 3\), and at most 1 may be charged: without a solvent"),
        ("KD", {"states": {0: "LYS", 1: "ASP"}}, "2 charged residues"),
        ("AG", {"phi": [-60.0]}, "1 angles phi for 2 residues"),
    ],
)
def test_what_cannot_be_built_is_refused(sequence: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(sequence, **options)


def test_chignolin_is_capped_neutral_and_stays_where_it_was_deposited(tmp_path: Path) -> None:
    source = files("egnn_md_systems.peptide") / "chignolin.pdb"
    peptide = capped(str(source))
    assert peptide.sequence == CHIGNOLIN
    assert peptide.name == "ACE-GLY-TYR-ASH-PRO-GLH-THR-GLY-THR-TRP-GLY-NME"
    assert force_field_charge(peptide.topology) == pytest.approx(0.0, abs=1e-4)
    deposited = app.PDBFile(str(source))
    wanted = np.array(deposited.positions.value_in_unit(unit.angstrom))[:-1]  # all but OXT
    have = [a for a in peptide.topology.atoms() if a.element.symbol != "H" and a.residue.name not in ("ACE", "NME")]
    np.testing.assert_allclose(peptide.positions[[atom.index for atom in have]], wanted, atol=1e-3)
    assert closest_contact(peptide.atoms()) > 0.9, "caps stand free of the chain"
    at = {(a.residue.name, a.residue.index, a.name): peptide.positions[a.index] for a in peptide.topology.atoms()}
    ends = [("ACE", 0, "CH3"), ("ACE", 0, "C"), ("GLY", 1, "N"), ("GLY", 1, "CA")]
    assert abs(dihedral(*(at[key] for key in ends))) == pytest.approx(180.0, abs=1.0)
    ends = [("GLY", 10, "O"), ("GLY", 10, "C"), ("NME", 11, "N"), ("NME", 11, "C")]
    assert abs(dihedral(*(at[key] for key in ends))) == pytest.approx(0.0, abs=5.0)
    path = tmp_path / "capped.pdb"
    with path.open("w") as file:
        app.PDBFile.writeFile(peptide.topology, peptide.positions * 0.1 * unit.nanometer, file)
    again = read_peptide(path)
    assert (again.states, again.charge) == (peptide.states, 0)

    lines = path.read_text().splitlines()
    for content, message in (
        ([line for line in lines if " HB2 TYR" not in line], r"residue TYR 3 has no hydrogen HB2; the potential needs"),
        ([line for line in lines if " OH  TYR" not in line], "residue TYR 3 lacks OH compared with TYR"),
        ([line.replace("TYR", "TYX") for line in lines], "unknown residue TYX 3; known: ALA, ARG"),
        ([line for line in lines if " NME" not in line], "the last residue is GLY, not NME"),
        ([line for line in lines if " H1  ACE" not in line], "the cap ACE 1 has the elements"),
    ):
        (tmp_path / "broken.pdb").write_text("\n".join(line for line in content if not line.startswith("CONECT")))
        with pytest.raises(InputError, match=message):
            read_peptide(tmp_path / "broken.pdb")
    with pytest.raises(InputError, match="the first residue is GLY, not ACE"):
        read_peptide(str(source))


def test_tested_sequences_are_never_trained_on() -> None:
    names = split()
    assert not set(names["train2"]) & set(names["test2"])
    assert not set(names["train3"]) & set(names["test3"])
    assert set(WINDOWS) <= set(names["test3"])
    assert len(WINDOWS) == 8
    assert len(names["test2"]) + len(names["test3"]) >= 20
    assert set("".join([*names["test2"], *names["test3"]])) == set(LETTERS)
    for place in (0, 1):
        assert {word[place] for word in names["train2"]} == set(LETTERS)


def test_at_most_one_residue_is_charged() -> None:
    rng = np.random.default_rng(0)
    seen: Counter[int] = Counter()
    for _ in range(300):
        sequence = "".join(rng.choice(list(LETTERS), size=3))
        if sequence.count("R") > 1:
            continue
        states = random_states(sequence, rng)
        chosen = [states.get(k, NEUTRAL[letter]) for k, letter in enumerate(sequence)]
        assert sum(state in CHARGES for state in chosen) <= 1
        seen[sum(CHARGES.get(state, 0) for state in chosen)] += 1
    assert set(seen) == {-1, 0, 1}
    assert set(OTHER_STATES) == set("DEHK")
