"""Capped peptides from a sequence: ACE-X...-NME with hydrogens, as an OpenMM topology.

PeptideBuilder (Tien et al. 2013, PeerJ 1, e80) places the heavy atoms with the wanted dihedrals, OpenMM's Modeller
adds the hydrogens of the protonation state. The caps are cut from a glycine before and one behind the sequence.

In vacuum a carboxylate takes the proton of an ammonium group, so every residue is neutral unless it is named as
charged, and two charged residues in one peptide are refused. Arginine is charged: Amber has no neutral one.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms

from egnn_md.errors import InputError, MissingDependencyError

#: One letter to the state of the residue that is built unless another is named.
NEUTRAL = {
    "A": "ALA", "C": "CYS", "D": "ASH", "E": "GLH", "F": "PHE", "G": "GLY", "H": "HIE", "I": "ILE", "K": "LYN",
    "L": "LEU", "M": "MET", "N": "ASN", "P": "PRO", "Q": "GLN", "R": "ARG", "S": "SER", "T": "THR", "V": "VAL",
    "W": "TRP", "Y": "TYR",
}  # fmt: skip
#: Other states that a letter may be built in.
OTHER_STATES = {"D": ("ASP",), "E": ("GLU",), "H": ("HID", "HIP"), "K": ("LYS",)}
#: Charge (e) of the states that have one.
CHARGES = {"ASP": -1, "GLU": -1, "LYS": 1, "HIP": 1, "ARG": 1}
LETTERS = "".join(sorted(NEUTRAL))
#: Name of the residue in a topology, whatever its protonation state.
RESIDUE_NAMES = {"ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "HID": "HIS", "HIE": "HIS", "HIP": "HIS"}
#: States that OpenMM's Modeller must be told; the other residues have one state only.
VARIANTS = ("ASP", "ASH", "GLU", "GLH", "LYS", "LYN", "HID", "HIE", "HIP", "CYS")
FORCE_FIELD = "amber14/protein.ff14SB.xml"
TRANS = 180.0
EXTENDED = (-120.0, 140.0)  # degrees


@dataclass(frozen=True)
class Peptide:
    """A capped peptide with all its hydrogens.

    Attributes:
        sequence: one letter a residue, without the caps.
        states: protonation state of each residue (``ASH``, ``HIE`` ...).
        topology: ``openmm.app.Topology``; the caps are the first and the last residue.
        positions: (N, 3), Å.
        charge: total charge, e.
    """

    sequence: str
    states: tuple[str, ...]
    topology: Any
    positions: np.ndarray
    charge: int

    @property
    def name(self) -> str:
        """``ACE-ALA-ASH-NME``."""
        return "-".join(("ACE", *self.states, "NME"))

    def atoms(self) -> Atoms:
        """ASE atoms with the total charge and the states (``ALA-ASH``) in ``info``."""
        numbers = [atom.element.atomic_number for atom in self.topology.atoms()]
        info = {"states": "-".join(self.states), "charge": self.charge}
        return Atoms(numbers, self.positions, info=info)


def sequence_of(states: str) -> str:
    """One letter a residue from ``info["states"]``: ``ALA-ASH+GLY`` is ``AD+G``.

    Label files hold the states only: extended XYZ would read the sequences T and F as truth values.
    """
    letters = {state: letter for letter in NEUTRAL for state in (NEUTRAL[letter], *OTHER_STATES.get(letter, ()))}
    return "+".join("".join(letters[state] for state in part.split("-")) for part in states.split("+"))


def states_of(sequence: str, states: Mapping[int, str] | None = None, *, maximum_charged: int = 1) -> tuple[str, ...]:
    """Protonation state of each residue.

    Args:
        sequence: one letter a residue.
        states: states other than the neutral ones, by index from 0.
        maximum_charged: refuse more charged residues than this.

    Raises:
        InputError: names the letter or state and its place, and what would be known there.
    """
    if not sequence:
        raise InputError("the sequence is empty; give one letter a residue, such as 'GYDPETGTWG'")
    out = []
    for index, letter in enumerate(sequence):
        if letter not in NEUTRAL:
            raise InputError(
                f"unknown residue {letter!r} at place {index + 1} of the sequence {sequence!r}; known: {LETTERS}"
            )
        out.append(NEUTRAL[letter])
    for index, state in (states or {}).items():
        if not 0 <= index < len(sequence):
            raise InputError(f"there is no residue with index {index} in {sequence!r} ({len(sequence)} residues)")
        letter = sequence[index]
        known = (NEUTRAL[letter], *OTHER_STATES.get(letter, ()))
        if state not in known:
            raise InputError(f"residue {letter!r} (index {index}) has no state {state!r}; it has: {', '.join(known)}")
        out[index] = state
    charged = [f"{state} {index + 1}" for index, state in enumerate(out) if state in CHARGES]
    if len(charged) > maximum_charged:
        raise InputError(
            f"{sequence!r} would have {len(charged)} charged residues ({', '.join(charged)}), and at most "
            f"{maximum_charged} may be charged: without a solvent protons jump between charged groups"
        )
    return tuple(out)


def build(
    sequence: str,
    *,
    phi: Sequence[float] | None = None,
    psi: Sequence[float] | None = None,
    omega: Sequence[float] | None = None,
    states: Mapping[int, str] | None = None,
    maximum_charged: int = 1,
) -> Peptide:
    """ACE-``sequence``-NME with the wanted backbone dihedrals and every hydrogen.

    Bond lengths and side chains are PeptideBuilder's: clashes are possible, so relax before use.

    Args:
        sequence: one letter a residue.
        phi, psi: degrees, one a residue; extended without.
        omega: degrees of the peptide bond *before* each residue; trans without.
        states, maximum_charged: see :func:`states_of`.

    Raises:
        InputError: unknown letters or states, or another number of angles than of residues.
        MissingDependencyError: PeptideBuilder or OpenMM is not installed.
    """
    chosen = states_of(sequence, states, maximum_charged=maximum_charged)
    n = len(sequence)
    phi = _angles("phi", phi, EXTENDED[0], n)
    psi = _angles("psi", psi, EXTENDED[1], n)
    omega = _angles("omega", omega, TRANS, n)
    try:
        from PeptideBuilder import make_structure
    except ImportError as error:
        raise MissingDependencyError(
            "building peptides needs PeptideBuilder: pip install 'egnn-md[systems]'"
        ) from error
    # each residue gets its own phi and omega and the psi of the residue before; the first cap's psi moves only its N
    heavy = make_structure(f"G{sequence}G", [*phi, EXTENDED[0]], [EXTENDED[1], *psi], [*omega, TRANS])
    residues = []
    for index, residue in enumerate(heavy[0]["A"]):
        placed = [(atom.get_name(), atom.element, np.asarray(atom.coord, dtype=float)) for atom in residue]
        residues.append((_residue_name(index, chosen), placed))
    return hydrogenated(sequence, chosen, [_cap(name, placed) for name, placed in residues])


def _angles(name: str, given: Sequence[float] | None, default: float, n: int) -> list[float]:
    values = [default] * n if given is None else [float(value) for value in given]
    if len(values) != n:
        raise InputError(f"{len(values)} angles {name} for {n} residues; give one a residue")
    return values


def _residue_name(index: int, states: Sequence[str]) -> str:
    if index == 0:
        return "ACE"
    if index == len(states) + 1:
        return "NME"
    return RESIDUE_NAMES.get(states[index - 1], states[index - 1])


def _cap(name: str, placed: list[tuple[str, str, np.ndarray]]) -> tuple[str, list[tuple[str, str, np.ndarray]]]:
    """A glycine's atoms as those of a cap: CA becomes the methyl carbon, the far half goes."""
    renamed = {"ACE": {"CA": "CH3", "C": "C", "O": "O"}, "NME": {"N": "N", "CA": "C"}}.get(name)
    if renamed is None:
        return name, placed
    return name, [(renamed[atom], element, where) for atom, element, where in placed if atom in renamed]


def hydrogenated(
    sequence: str, states: Sequence[str], residues: Sequence[tuple[str, list[tuple[str, str, np.ndarray]]]]
) -> Peptide:
    """Heavy atoms, caps included, as a peptide with hydrogens in the wanted states.

    Args:
        sequence, states: of the residues between the caps.
        residues: name and (atom name, element, position in Å) of each residue, caps included.

    Raises:
        MissingDependencyError: OpenMM is not installed.
    """
    try:
        from openmm import Platform, Vec3, app, unit
    except ImportError as error:
        raise MissingDependencyError("peptides need OpenMM: pip install 'egnn-md[openmm]'") from error
    topology = app.Topology()
    chain = topology.addChain()
    positions = []
    for name, placed in residues:
        residue = topology.addResidue(name, chain)
        for atom, element, where in placed:
            topology.addAtom(atom, app.Element.getBySymbol(element), residue)
            positions.append(Vec3(*(where * 0.1)))
    topology.createStandardBonds()
    modeller = app.Modeller(topology, positions * unit.nanometer)
    variants = [None, *(state if state in VARIANTS else None for state in states), None]
    state = random.getstate()
    random.seed(len(positions))  # Modeller throws hydrogens near their atoms with Python's generator, then relaxes them
    try:
        modeller.addHydrogens(variants=variants, platform=Platform.getPlatformByName("Reference"))
    finally:
        random.setstate(state)
    return Peptide(
        sequence=sequence,
        states=tuple(states),
        topology=modeller.topology,
        positions=np.array(modeller.positions.value_in_unit(unit.angstrom)),
        charge=sum(CHARGES.get(state, 0) for state in states),
    )
