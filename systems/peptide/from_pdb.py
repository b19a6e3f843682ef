"""Peptides from PDB files: caps and hydrogens put onto deposited coordinates, and ready files checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import InputError

from .builder import CHARGES, FORCE_FIELD, NEUTRAL, OTHER_STATES, RESIDUE_NAMES, TRANS, Peptide, hydrogenated, states_of

THREE_TO_ONE = {RESIDUE_NAMES.get(state, state): letter for letter, state in NEUTRAL.items()}
CAPS = ("ACE", "NME")
#: Elements of the caps, whose hydrogens have several names in use.
CAP_ATOMS = {"ACE": Counter(C=2, O=1, H=3), "NME": Counter(N=1, C=1, H=4)}
# peptide geometry (Engh and Huber 1991, Acta Cryst. A47, 392): Å and degrees
C_N, N_CA, CA_C, C_O = 1.329, 1.458, 1.525, 1.231
C_N_CA, CA_C_N, CA_C_O = 121.7, 116.2, 120.1


def place(a: np.ndarray, b: np.ndarray, c: np.ndarray, bond: float, angle: float, dihedral: float) -> np.ndarray:
    """Position d with |cd| = ``bond`` (Å), angle bcd and dihedral abcd (degrees)."""
    theta, chi = np.radians(angle), np.radians(dihedral)
    along = (c - b) / np.linalg.norm(c - b)
    normal = np.cross(b - a, along)
    normal /= np.linalg.norm(normal)
    across = np.cross(normal, along)
    direction = -np.cos(theta) * along + np.sin(theta) * (np.cos(chi) * across + np.sin(chi) * normal)
    return np.asarray(c + bond * direction)


def _topology(path: Path) -> tuple[Any, np.ndarray]:
    from openmm import app, unit

    try:
        pdb = app.PDBFile(str(path))
    except Exception as error:  # OpenMM's reader raises whatever it stumbles over
        raise InputError(f"{path} cannot be read as PDB: {type(error).__name__}: {error}") from error
    return pdb.topology, np.array(pdb.positions.value_in_unit(unit.angstrom))


def capped(
    path: str | Path, states: Mapping[int, str] | None = None, *, phi: float = -120.0, maximum_charged: int = 1
) -> Peptide:
    """The one chain of a PDB file between ACE and NME, with hydrogens of the wanted protonation states.

    Hydrogens of the file are not used: its ends and its protonation are those of the deposited molecule.

    Args:
        path: one chain of standard residues with their heavy atoms.
        states: states other than the neutral ones, by residue index from 0.
        phi: degrees, of the first residue, which the file leaves open; the last psi is that of its OXT.
        maximum_charged: see :func:`egnn_md_systems.peptide.builder.states_of`.

    Raises:
        InputError: the file is unreadable, has several chains, unknown residues, or misses backbone atoms.
    """
    path = Path(path)
    topology, positions = _topology(path)
    if topology.getNumChains() != 1:
        raise InputError(f"{path} has {topology.getNumChains()} chains; give a file with one")
    found = []
    for residue in topology.residues():
        if residue.name not in THREE_TO_ONE:
            raise _unknown(path, residue)
        atoms = {atom.name: (atom.element.symbol, positions[atom.index]) for atom in residue.atoms()}
        found.append((residue, {name: value for name, value in atoms.items() if value[0] != "H"}))
        for name in ("N", "CA", "C", "O"):
            if name not in atoms:
                raise InputError(f"{path}: residue {residue.name} {residue.id} has no atom {name}; complete it first")
    sequence = "".join(THREE_TO_ONE[residue.name] for residue, _ in found)
    chosen = states_of(sequence, states, maximum_charged=maximum_charged)
    first, last = found[0][1], found[-1][1]
    n, ca, c = (first[name][1] for name in ("N", "CA", "C"))
    carbon = place(c, ca, n, C_N, C_N_CA, phi)
    methyl = place(ca, n, carbon, CA_C, CA_C_N, TRANS)
    oxygen = place(ca, n, carbon, C_O, 360.0 - CA_C_N - CA_C_O, 0.0)
    end_n, end_ca, end_c, end_o = (last[name][1] for name in ("N", "CA", "C", "O"))
    nitrogen = place(end_n, end_ca, end_c, C_N, CA_C_N, dihedral(end_n, end_ca, end_c, end_o) + 180.0)
    end_methyl = place(end_ca, end_c, nitrogen, N_CA, C_N_CA, TRANS)
    middle = [
        (residue.name, [(name, *value) for name, value in atoms.items() if name != "OXT"]) for residue, atoms in found
    ]
    ace = ("ACE", [("CH3", "C", methyl), ("C", "C", carbon), ("O", "O", oxygen)])
    nme = ("NME", [("N", "N", nitrogen), ("C", "C", end_methyl)])
    return hydrogenated(sequence, chosen, [ace, *middle, nme])


def dihedral(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> float:
    """Dihedral angle abcd, degrees."""
    axis = (c - b) / np.linalg.norm(c - b)
    v, w = (a - b) - np.dot(a - b, axis) * axis, (d - c) - np.dot(d - c, axis) * axis
    return float(np.degrees(np.arctan2(np.dot(np.cross(axis, v), w), np.dot(v, w))))


def read_peptide(path: str | Path) -> Peptide:
    """A ready capped peptide from a PDB file, with its states recognised by their hydrogens.

    Raises:
        InputError: an unknown residue, a missing cap, or atoms (above all hydrogens) that a residue lacks or that
            do not belong to it; names the residue and them.
    """
    from openmm import app

    path = Path(path)
    topology, positions = _topology(path)
    residues = list(topology.residues())
    for place_, index in (("first", 0), ("last", -1)):
        if not residues or residues[index].name != CAPS[index]:
            name = residues[index].name if residues else "nothing"
            raise InputError(f"{path}: the {place_} residue is {name}, not {CAPS[index]}; `capped` puts caps on")
    templates = app.ForceField(FORCE_FIELD)._templates
    letters, states = [], []
    for residue in residues:
        if residue.name in CAPS:
            have = Counter(atom.element.symbol for atom in residue.atoms())
            if have != CAP_ATOMS[residue.name]:
                raise InputError(
                    f"{path}: the cap {residue.name} {residue.id} has the elements {dict(have)} instead of "
                    f"{dict(CAP_ATOMS[residue.name])}; `capped` adds caps and hydrogens"
                )
            continue
        if residue.name not in THREE_TO_ONE:
            raise _unknown(path, residue)
        letter = THREE_TO_ONE[residue.name]
        letters.append(letter)
        states.append(_state(path, residue, (NEUTRAL[letter], *OTHER_STATES.get(letter, ())), templates))
    charge = sum(CHARGES.get(state, 0) for state in states)
    return Peptide("".join(letters), tuple(states), topology, positions, charge)


def _unknown(path: Path, residue: Any) -> InputError:
    known = ", ".join(sorted(THREE_TO_ONE))
    return InputError(f"{path}: unknown residue {residue.name} {residue.id}; known: {known}")


def _state(path: Path, residue: Any, candidates: tuple[str, ...], templates: dict[str, Any]) -> str:
    """The candidate whose atoms the residue has."""
    have = {atom.name for atom in residue.atoms()}
    wanted = {state: {atom.name for atom in templates[state].atoms} for state in candidates}
    for state, names in wanted.items():
        if names == have:
            return state
    state = min(candidates, key=lambda name: len(wanted[name] ^ have))
    missing, strange = sorted(wanted[state] - have), sorted(have - wanted[state])
    count = Counter(name[0] for name in missing)
    if missing and set(count) == {"H"}:
        raise InputError(
            f"{path}: residue {residue.name} {residue.id} has no hydrogen{'s' if count['H'] > 1 else ''} "
            f"{', '.join(missing)}; the potential needs all of them: `capped` adds them"
        )
    raise InputError(
        f"{path}: residue {residue.name} {residue.id} "
        + " and ".join(
            [*([f"lacks {', '.join(missing)}"] if missing else []), *([f"has {', '.join(strange)}"] if strange else [])]
        )
        + f" compared with {state}"
    )
