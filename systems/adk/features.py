"""Numbers of an atom that do not change in time: what a network may know besides the element."""

from __future__ import annotations

import numpy as np

from egnn_md.errors import InputError
from egnn_md_systems.adk.trajectory import ProteinTrajectory

FEATURES = ("charge", "alpha", "residue")
# Kyte and Doolittle (1982), divided by 4.5
HYDROPATHY = {
    "ALA": 1.8, "ARG": -4.5, "ASN": -3.5, "ASP": -3.5, "CYS": 2.5, "GLN": -3.5, "GLU": -3.5, "GLY": -0.4, "HIS": -3.2,
    "ILE": 4.5, "LEU": 3.8, "LYS": -3.9, "MET": 1.9, "PHE": 2.8, "PRO": -1.6, "SER": -0.8, "THR": -0.7, "TRP": -0.9,
    "TYR": -1.3, "VAL": 4.2,
}  # fmt: skip
RESIDUE_CHARGE = {"ARG": 1.0, "LYS": 1.0, "ASP": -1.0, "GLU": -1.0}
SAME_RESIDUE = {"HSD": "HIS", "HSE": "HIS", "HSP": "HIS", "HID": "HIS", "HIE": "HIS", "HIP": "HIS", "CYX": "CYS"}


def feature_names(wanted: str, protein: ProteinTrajectory) -> tuple[str, ...]:
    """Which features ``wanted`` (a list with commas, ``auto`` or ``none``) means here.

    ``auto`` is the charge where the source has charges, else ``alpha``. Raises InputError for unknown names, and for
    charges that are not there.
    """
    if wanted == "auto":
        return ("charge",) if protein.charges is not None else ("alpha",)
    if wanted == "none":
        return ()
    names = tuple(word.strip() for word in wanted.split(","))
    for name in names:
        if name not in FEATURES:
            raise InputError(f"--features {name}: known are {', '.join(FEATURES)}, auto and none")
    if "charge" in names and protein.charges is None:
        raise InputError(
            f"--features charge: {protein.source} has no partial charges; give a PSF file as --topology, or use alpha"
        )
    return names


def node_features(names: tuple[str, ...], protein: ProteinTrajectory) -> np.ndarray | None:
    """(N, F) of the named features, or None for none.

    | name | columns |
    | --- | --- |
    | charge | partial charge in elementary charges (PSF, or the force field of the run) |
    | alpha | 1 for C-alpha, which shares its element with the carbonyl carbon |
    | residue | net charge of the side chain, and hydropathy (Kyte and Doolittle) between -1 and 1 |
    """
    columns: list[np.ndarray] = []
    atoms = list(protein.topology.atoms)
    for name in names:
        if name == "charge" and protein.charges is not None:
            columns.append(np.asarray(protein.charges))
        elif name == "alpha":
            columns.append(np.array([float(atom.name == "CA") for atom in atoms]))
        elif name == "residue":
            kinds = [SAME_RESIDUE.get(atom.residue.name, atom.residue.name) for atom in atoms]
            columns.append(np.array([RESIDUE_CHARGE.get(kind, 0.0) for kind in kinds]))
            columns.append(np.array([HYDROPATHY.get(kind, 0.0) / 4.5 for kind in kinds]))
    return np.stack(columns, axis=1) if columns else None
