"""A chain of C-alpha beads: residue kinds as stand-in atomic numbers, masses, and an OpenMM topology.

The potentials of egnn_md tell particles apart by atomic numbers. A residue is no element, so its kind borrows the
number of one that no molecule contains: 97 (berkelium) to 116 (livermorium), in the alphabetical order of the
one-letter codes. A file of real atoms given to a coarse-grained model, or beads given to an all-atom one, is then
refused for an unknown element instead of being computed as something that it is not. Masses have nothing to do
with these elements and are always given.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

if TYPE_CHECKING:
    from ase import Atoms

FIRST_NUMBER = 97
LETTERS = "ACDEFGHIKLMNPQRSTVWY"
THREE_LETTERS = (
    "ALA", "CYS", "ASP", "GLU", "PHE", "GLY", "HIS", "ILE", "LYS", "LEU",
    "MET", "ASN", "PRO", "GLN", "ARG", "SER", "THR", "VAL", "TRP", "TYR",
)  # fmt: skip
#: Stand-in atomic number of each residue name.
NUMBERS = {name: FIRST_NUMBER + index for index, name in enumerate(THREE_LETTERS)}
#: Residue masses (Da, average isotopes, without the water lost in the peptide bond): beads weigh what residues do.
MASSES = dict(
    zip(
        THREE_LETTERS,
        (
            71.08, 103.14, 115.09, 129.12, 147.18, 57.05, 137.14, 113.16, 128.17, 113.16,
            131.19, 114.10, 97.12, 128.13, 156.19, 87.08, 101.10, 99.13, 186.21, 163.18,
        ),
        strict=True,
    )
)  # fmt: skip


def bead_numbers(residues: Sequence[str]) -> NDArray[np.int64]:
    """Stand-in atomic numbers of residues given by three-letter names.

    Raises:
        InputError: a name that is none of the 20.
    """
    for index, name in enumerate(residues):
        if name not in NUMBERS:
            raise InputError(f"residue {index} is {name!r}, not one of {', '.join(NUMBERS)}")
    return np.array([NUMBERS[name] for name in residues], dtype=np.int64)


def bead_masses(residues: Sequence[str]) -> NDArray[np.float64]:
    """Masses in Da. Raises InputError for an unknown name."""
    bead_numbers(residues)
    return np.array([MASSES[name] for name in residues])


def bead_topology(residues: Sequence[str], copies: int = 1) -> Any:
    """An OpenMM topology with one bead ``CA`` a residue, its stand-in element, and the bonds of each chain."""
    from openmm import app

    topology = app.Topology()
    for _ in range(copies):
        chain = topology.addChain()
        beads = []
        for name, number in zip(residues, bead_numbers(residues).tolist(), strict=True):
            residue = topology.addResidue(name, chain)
            beads.append(topology.addAtom("CA", app.Element.getByAtomicNumber(number), residue))
        for first, second in pairwise(beads):
            topology.addBond(first, second)
    return topology


def bead_atoms(residues: Sequence[str], positions: NDArray[np.floating]) -> Atoms:
    """ASE atoms with stand-in elements and residue masses; positions in Å."""
    from ase import Atoms

    return Atoms(numbers=bead_numbers(residues), positions=positions, masses=bead_masses(residues))
