"""Total charge of a structure whose file does not say it: from its residues and how many hydrogens they have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ase.data import chemical_symbols

HYDROGEN, CARBON, NITROGEN, OXYGEN, SULPHUR = 1, 6, 7, 8, 16

#: Neutral residues inside a chain, by symbol: what a file's atoms are compared with. A free end with one hydrogen more
#: (NH2; COOH, with an oxygen more) is neutral too.
_FORMULAS = {
    "ALA": "C3H5N1O1", "ARG": "C6H12N4O1", "ASN": "C4H6N2O2", "ASP": "C4H5N1O3", "CYS": "C3H5N1O1S1",
    "GLN": "C5H8N2O2", "GLU": "C5H7N1O3", "GLY": "C2H3N1O1", "HIS": "C6H7N3O1", "ILE": "C6H11N1O1",
    "LEU": "C6H11N1O1", "LYS": "C6H12N2O1", "MET": "C5H9N1O1S1", "PHE": "C9H9N1O1", "PRO": "C5H7N1O1",
    "SER": "C3H5N1O2", "THR": "C4H7N1O2", "TRP": "C11H10N2O1", "TYR": "C9H9N1O2", "VAL": "C5H9N1O1",
}  # fmt: skip
_CAPS = {"ACE": "C2H3O1", "NME": "C1H4N1", "NMA": "C1H4N1", "NH2": "H2N1"}
_WATER = "H2O1"
_OTHER_NAMES = {
    "ASH": "ASP", "GLH": "GLU", "LYN": "LYS", "CYX": "CYS", "CYM": "CYS", "HID": "HIS", "HIE": "HIS", "HIP": "HIS",
    "HSD": "HIS", "HSE": "HIS", "HSP": "HIS",
}  # fmt: skip
_WATERS = ("HOH", "WAT", "TIP3", "TP3", "SOL")
#: Ions of one atom, by the residue's name without signs.
_IONS = {"LI": 1, "NA": 1, "K": 1, "RB": 1, "CS": 1, "MG": 2, "CA": 2, "ZN": 2, "F": -1, "CL": -1, "BR": -1, "I": -1}


def _counted(formula: str) -> Counter[int]:
    from ase.formula import Formula

    return Counter({chemical_symbols.index(symbol): count for symbol, count in Formula(formula).count().items()})


def residue_charge(residues: Iterable[tuple[str, Sequence[int]]], bonds: Iterable[tuple[int, int]]) -> int | None:
    """Total charge (e) of amino acids, their caps, water and ions of one atom, from the protons that they have.

    Args:
        residues: label (``ALA 12``; its first word is the name) and atomic numbers of each, in the atoms' order.
        bonds: pairs of atoms, counted through all residues.

    Returns:
        None where it cannot be told: another residue, one whose heavy atoms are not those of its name, or a chain
        that ends without an oxygen.
    """
    listed = [(label.split()[0].upper(), list(numbers)) for label, numbers in residues]
    place = [index for index, (_, numbers) in enumerate(listed) for _ in numbers]
    element = [z for _, numbers in listed for z in numbers]
    leaving: list[Counter[int]] = [Counter() for _ in listed]
    for first, second in bonds:
        if place[first] != place[second]:
            leaving[place[first]][element[first]] += 1
            leaving[place[second]][element[second]] += 1
    total = 0
    for (name, numbers), out in zip(listed, leaving, strict=True):
        charge = _charge_of(name, Counter(numbers), out)
        if charge is None:
            return None
        total += charge
    return total


def _charge_of(name: str, found: Counter[int], leaving: Counter[int]) -> int | None:
    """Of one residue: its elements, and the elements of its atoms that are bonded to other residues."""
    ion = _IONS.get(name.strip("+-0123456789"))
    if ion is not None and found.total() == 1:
        return ion
    if name in _WATERS:
        neutral = _counted(_WATER)
    elif name in _CAPS:
        neutral = _counted(_CAPS[name])
        if leaving.total() != 1:
            return None
    else:
        formula = _FORMULAS.get(_OTHER_NAMES.get(name, name))
        if formula is None or max(leaving[CARBON], leaving[NITROGEN], leaving[SULPHUR]) > 1:
            return None
        neutral = _counted(formula)
        neutral[HYDROGEN] += (leaving[NITROGEN] == 0) + (leaving[CARBON] == 0) - (leaving[SULPHUR] == 1)
        neutral[OXYGEN] += leaving[CARBON] == 0
    extra = found[HYDROGEN] - neutral.pop(HYDROGEN)
    heavy = Counter({z: count for z, count in found.items() if z != HYDROGEN})
    return extra if heavy == neutral else None
