"""Alanine dipeptide (ACE-ALA-NME, 22 atoms): topology, coordinates from internal ones, phi, psi and omega.

Order and names are OpenMM's (``residues.xml``), the order also Amber's. Angles are in degrees, IUPAC's sign,
from -180 to 180.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

if TYPE_CHECKING:
    from openmm.app import Topology

RESIDUES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("ACE", ("H1", "CH3", "H2", "H3", "C", "O")),
    ("ALA", ("N", "H", "CA", "HA", "CB", "HB1", "HB2", "HB3", "C", "O")),
    ("NME", ("N", "H", "C", "H1", "H2", "H3")),
)
NAMES = tuple(f"{residue}:{atom}" for residue, atoms in RESIDUES for atom in atoms)
INDEX = {name: index for index, name in enumerate(NAMES)}
SYMBOLS = tuple(name.split(":")[1][0] for name in NAMES)


def _four(*names: str) -> tuple[int, int, int, int]:
    a, b, c, d = (INDEX[name] for name in names)
    return a, b, c, d


PHI = _four("ACE:C", "ALA:N", "ALA:CA", "ALA:C")
PSI = _four("ALA:N", "ALA:CA", "ALA:C", "NME:N")
OMEGA_FIRST = _four("ACE:CH3", "ACE:C", "ALA:N", "ALA:CA")
OMEGA_SECOND = _four("ALA:CA", "ALA:C", "NME:N", "NME:C")
DIHEDRALS = {"phi": PHI, "psi": PSI, "omega1": OMEGA_FIRST, "omega2": OMEGA_SECOND}

BONDS: tuple[tuple[str, str], ...] = (
    *(("ACE:CH3", f"ACE:{h}") for h in ("H1", "H2", "H3")),
    ("ACE:CH3", "ACE:C"), ("ACE:C", "ACE:O"), ("ACE:C", "ALA:N"), ("ALA:N", "ALA:H"), ("ALA:N", "ALA:CA"),
    ("ALA:CA", "ALA:HA"), ("ALA:CA", "ALA:CB"), *(("ALA:CB", f"ALA:{h}") for h in ("HB1", "HB2", "HB3")),
    ("ALA:CA", "ALA:C"), ("ALA:C", "ALA:O"), ("ALA:C", "NME:N"), ("NME:N", "NME:H"), ("NME:N", "NME:C"),
    *(("NME:C", f"NME:{h}") for h in ("H1", "H2", "H3")),
)  # fmt: skip

#: Where the two main minima in vacuum lie, (phi, psi); the free energies are those of the boxes in basins.py.
C7EQ = (-80.0, 70.0)
C7AX = (65.0, -60.0)


def dihedral(positions: NDArray[np.float64], four: tuple[int, int, int, int]) -> NDArray[np.float64]:
    """Dihedral angle in degrees, shape (...), of positions (..., N, 3) in any unit of length."""
    a, b, c, d = (positions[..., index, :] for index in four)
    first, axis, last = b - a, c - b, d - c
    normal_1, normal_2 = np.cross(first, axis), np.cross(axis, last)
    length = np.linalg.norm(axis, axis=-1)
    sine = length * np.sum(first * normal_2, axis=-1)
    return np.degrees(np.arctan2(sine, np.sum(normal_1 * normal_2, axis=-1)))


def is_left_handed_amino_acid(positions: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether the alpha carbon of positions (..., 22, 3) is that of the L form."""
    n, ca, c, cb = (positions[..., INDEX[f"ALA:{name}"], :] for name in ("N", "CA", "C", "CB"))
    return np.asarray(np.sum(np.cross(n - ca, c - ca) * (cb - ca), axis=-1) > 0)


def has_right_bonds(positions: NDArray[np.float64], tolerance: float = 1.35) -> bool:
    """Whether no bond of positions (22, 3), Å, is longer than ``tolerance`` times its usual length."""
    usual = {"HC": 1.09, "HN": 1.01, "CC": 1.53, "CO": 1.22, "CN": 1.40}
    for first, second in BONDS:
        kind = "".join(sorted(name.split(":")[1][0] for name in (first, second)))
        kind = {"CH": "HC"}.get(kind, kind)
        if np.linalg.norm(positions[INDEX[first]] - positions[INDEX[second]]) > tolerance * usual[kind]:
            return False
    return True


def build(phi: float = C7EQ[0], psi: float = C7EQ[1], omega1: float = 180.0, omega2: float = 180.0) -> Atoms:
    """The molecule with textbook bond lengths and angles, the L form, at these dihedral angles (degrees)."""
    rows: list[tuple[str, str, str, str, float, float, float]] = [
        # atom, bonded to, angle to, dihedral to, Å, degrees, degrees
        ("ACE:O", "ACE:C", "ACE:CH3", "", 1.23, 121.0, 0.0),
        ("ALA:N", "ACE:C", "ACE:CH3", "ACE:O", 1.34, 116.0, 180.0),
        ("ACE:H1", "ACE:CH3", "ACE:C", "ACE:O", 1.09, 109.5, 0.0),
        ("ACE:H2", "ACE:CH3", "ACE:C", "ACE:O", 1.09, 109.5, 120.0),
        ("ACE:H3", "ACE:CH3", "ACE:C", "ACE:O", 1.09, 109.5, -120.0),
        ("ALA:CA", "ALA:N", "ACE:C", "ACE:CH3", 1.45, 122.0, omega1),
        ("ALA:H", "ALA:N", "ACE:C", "ACE:CH3", 1.01, 119.0, omega1 + 180.0),
        ("ALA:C", "ALA:CA", "ALA:N", "ACE:C", 1.52, 110.0, phi),
        ("ALA:CB", "ALA:CA", "ALA:N", "ACE:C", 1.53, 110.0, phi - 121.0),
        ("ALA:HA", "ALA:CA", "ALA:N", "ACE:C", 1.09, 109.0, phi + 119.0),
        ("ALA:HB1", "ALA:CB", "ALA:CA", "ALA:N", 1.09, 109.5, 60.0),
        ("ALA:HB2", "ALA:CB", "ALA:CA", "ALA:N", 1.09, 109.5, 180.0),
        ("ALA:HB3", "ALA:CB", "ALA:CA", "ALA:N", 1.09, 109.5, -60.0),
        ("NME:N", "ALA:C", "ALA:CA", "ALA:N", 1.34, 116.0, psi),
        ("ALA:O", "ALA:C", "ALA:CA", "ALA:N", 1.23, 121.0, psi + 180.0),
        ("NME:C", "NME:N", "ALA:C", "ALA:CA", 1.45, 122.0, omega2),
        ("NME:H", "NME:N", "ALA:C", "ALA:CA", 1.01, 119.0, omega2 + 180.0),
        ("NME:H1", "NME:C", "NME:N", "ALA:C", 1.09, 109.5, 60.0),
        ("NME:H2", "NME:C", "NME:N", "ALA:C", 1.09, 109.5, 180.0),
        ("NME:H3", "NME:C", "NME:N", "ALA:C", 1.09, 109.5, -60.0),
    ]
    at = {"ACE:CH3": np.zeros(3), "ACE:C": np.array([1.52, 0.0, 0.0])}
    for name, bonded, angle_to, dihedral_to, length, angle, torsion in rows:
        third = at[dihedral_to] if dihedral_to else np.array([0.0, 1.0, 0.0])
        at[name] = _place(at[bonded], at[angle_to], third, length, angle, torsion)
    return Atoms("".join(SYMBOLS), np.array([at[name] for name in NAMES]))


def _place(
    bonded: NDArray[np.float64], angle_to: NDArray[np.float64], dihedral_to: NDArray[np.float64],
    length: float, angle: float, torsion: float,
) -> NDArray[np.float64]:  # fmt: skip
    """Position at a distance, an angle and a dihedral angle from three others."""
    theta, tau = np.radians(angle), np.radians(torsion)
    axis = (bonded - angle_to) / np.linalg.norm(bonded - angle_to)
    normal = np.cross(angle_to - dihedral_to, axis)
    normal /= np.linalg.norm(normal)
    local = length * np.array([-np.cos(theta), np.sin(theta) * np.cos(tau), np.sin(theta) * np.sin(tau)])
    return np.asarray(bonded + local @ np.array([axis, np.cross(normal, axis), normal]))


def topology() -> Topology:
    """The molecule's OpenMM topology."""
    from openmm import app

    out = app.Topology()
    chain = out.addChain()
    atoms = {}
    for residue_name, names in RESIDUES:
        residue = out.addResidue(residue_name, chain)
        for name in names:
            element = app.Element.getBySymbol(name[0])
            atoms[f"{residue_name}:{name}"] = out.addAtom(name, element, residue)
    for first, second in BONDS:
        out.addBond(atoms[first], atoms[second])
    return out
