"""Which atoms of a protein are kept: backbone, C-alpha, all, or an mdtraj selection."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from egnn_md.errors import InputError

if TYPE_CHECKING:
    import mdtraj

BACKBONE = ("N", "CA", "C", "O")
AMINO_ACID = {"N", "CA", "C"}  # what a residue needs to be one; a calcium ion has no N
PROTEIN_ELEMENTS = {"H", "C", "N", "O", "S", "Se", "P"}


def select_atoms(topology: mdtraj.Topology, selection: str) -> np.ndarray:
    """Ascending indices (K,) of the atoms that ``selection`` names.

    ``backbone`` is N, CA, C and O of every residue that has a C-alpha, without the oxygens of a C-terminal
    carboxylate (855 atoms of adenylate kinase, as in the published benchmark); ``ca`` and ``all`` are what they say;
    anything else is mdtraj's selection language.

    Raises:
        InputError: mdtraj does not understand the selection, or it selects nothing.
    """
    if selection == "backbone":
        chosen = _backbone(topology)
    elif selection == "ca":
        chosen = [residue.atom("CA").index for residue in topology.residues if _is_amino_acid(residue)]
    elif selection == "all":
        chosen = list(range(topology.n_atoms))
    else:
        try:
            chosen = [int(index) for index in topology.select(selection)]
        except Exception as error:  # mdtraj's parser raises several unrelated kinds
            reason = " ".join(str(error).split())
            raise InputError(
                f"selection {selection!r} is not understood by mdtraj ({reason}); use backbone, ca, all, or an "
                "expression such as 'name CA and resid 0 to 99'"
            ) from error
    if not chosen:
        raise InputError(
            f"selection {selection!r} selects none of the {topology.n_atoms} atoms; the first residues are "
            f"{', '.join(str(residue) for residue in list(topology.residues)[:5])}"
        )
    return np.asarray(sorted(chosen), dtype=np.int64)


def repair_elements(topology: mdtraj.Topology) -> None:
    """Give the atoms of amino acids their elements back, in place.

    In a PDB file without the element column, mdtraj takes CA for calcium, CD for cadmium and HG for mercury.
    """
    import mdtraj

    for residue in topology.residues:
        if not _is_amino_acid(residue):
            continue
        for atom in residue.atoms:
            if atom.element is None or atom.element.symbol not in PROTEIN_ELEMENTS:
                letter = atom.name.lstrip("0123456789")[:1].upper()
                if letter in PROTEIN_ELEMENTS:
                    atom.element = mdtraj.element.get_by_symbol(letter)


def _is_amino_acid(residue: mdtraj.core.topology.Residue) -> bool:
    return {atom.name for atom in residue.atoms} >= AMINO_ACID


def _backbone(topology: mdtraj.Topology) -> list[int]:
    chosen: list[int] = []
    for residue in topology.residues:
        if not _is_amino_acid(residue):
            continue
        names = [atom.name for atom in residue.atoms]
        # one of two equal oxygens would be an arbitrary choice, and naming schemes differ in it (O/OXT, OT1/OT2)
        wanted = BACKBONE[:3] if "OXT" in names else BACKBONE
        chosen += [atom.index for atom in residue.atoms if atom.name in wanted]
    return chosen
