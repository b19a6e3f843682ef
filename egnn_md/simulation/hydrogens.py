"""Residues that have lost their hydrogens: files of crystal structures have none, and a model would not notice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from egnn_md.errors import InputError

HYDROGEN = 1

#: Fewest hydrogens that a residue can have inside a chain: deprotonated side chain, bonded sulphur. Names of variants
#: (HID, GLH, CYX...) are in force fields' files and mean the same residues.
FEWEST = {
    "ACE": 3, "ALA": 5, "ARG": 12, "ASN": 6, "ASP": 4, "CYS": 4, "GLN": 8, "GLU": 6, "GLY": 3, "HIS": 6, "ILE": 11,
    "LEU": 11, "LYS": 12, "MET": 9, "NME": 4, "PHE": 9, "PRO": 7, "SER": 4, "THR": 6, "TRP": 9, "TYR": 8, "VAL": 9,
    "HID": 7, "HIE": 7, "HIP": 8, "CYX": 4, "ASH": 5, "GLH": 7, "LYN": 12, "NMA": 4,
    "HOH": 2, "WAT": 2, "TIP3": 2, "TP3": 2, "SOL": 2,
}  # fmt: skip


def check_hydrogens(residues: Iterable[tuple[str, Sequence[int]]], bonds: Iterable[tuple[int, int]] = ()) -> None:
    """Refuse standard residues with too few hydrogens, and carbons that end a chain without any.

    Residues of a single atom are coarse-grained (or ions, or water of which only oxygen is given: refused, too).

    Args:
        residues: label (``ALA 12``; its first word is the name) and atomic numbers of each, in the atoms' order.
        bonds: pairs of atoms, counted through all residues.

    Raises:
        InputError: names the first residues, how many hydrogens they have and need, and the remedy.
    """
    poor: list[str] = []
    numbers: list[int] = []
    labels: list[str] = []
    for label, members in residues:
        numbers += members
        labels += [label] * len(members)
        name = label.split()[0].upper()
        found = sum(z == HYDROGEN for z in members)
        grain = len(members) == 1 and members[0] != 8
        if found < FEWEST.get(name, 0) and not grain:
            poor.append(f"{label} has {found} of at least {FEWEST[name]}")
    if not poor:
        poor = _bare_carbons(numbers, labels, bonds)
    if poor:
        more = f" and {len(poor) - 3} residues more" if len(poor) > 3 else ""
        raise InputError(
            f"hydrogens are missing: {', '.join(poor[:3])}{more}; add them, e.g. with OpenMM: modeller = "
            "app.Modeller(topology, positions); modeller.addHydrogens(force_field)"
        )


def _bare_carbons(numbers: Sequence[int], labels: Sequence[str], bonds: Iterable[tuple[int, int]]) -> list[str]:
    """Residues with a carbon whose only bond goes to another carbon: it must have had hydrogens."""
    around: dict[int, list[int]] = {}
    for first, second in bonds:
        around.setdefault(first, []).append(second)
        around.setdefault(second, []).append(first)
    bare: dict[str, None] = {}
    for atom, others in around.items():
        if numbers[atom] == 6 and len(others) == 1 and numbers[others[0]] == 6:
            bare[f"{labels[atom]} has a carbon with one bond, to another carbon"] = None
    return list(bare)
