"""Structures from files: PDB and other formats with a topology by mdtraj, all others by ASE."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from egnn_md.data.structures import CHARGE_KEY, total_charge
from egnn_md.errors import InputError
from egnn_md.simulation.molecules import infer_bonds
from egnn_md.simulation.structure import Structure

TOPOLOGY_FORMATS = (".pdb", ".pdb.gz", ".ent", ".pdbx", ".mmcif", ".gro", ".mol2", ".h5")
LARGEST_PLACEHOLDER = 1.01  # Å; "CRYST1 1.000 1.000 1.000" in a PDB says that there is no cell


def file_digest(path: Path) -> str:
    """sha256 of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def reduce_cell(cell: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn cell (3, 3) and positions (N, 3) so that the cell is lower triangular, and reduce the cell.

    OpenMM wants this form, and trajectory formats that store lengths and angles mean it. The lattice, and
    with it every distance, stays the same; a left-handed cell becomes right-handed by reversing its rows.
    """
    if np.linalg.det(cell) < 0:
        cell = -cell
    q, lower = np.linalg.qr(cell.T)
    signs = np.sign(np.diag(lower))
    signs[signs == 0] = 1.0
    rotation = q * signs  # columns; proper, because the cell is right-handed and the diagonal positive
    if not np.allclose(rotation, np.eye(3), atol=1e-12):
        cell, positions = cell @ rotation, positions @ rotation
    cell = np.tril(cell)
    cell[2] -= cell[1] * np.round(cell[2, 1] / cell[1, 1])
    cell[2] -= cell[0] * np.round(cell[2, 0] / cell[0, 0])
    cell[1] -= cell[0] * np.round(cell[1, 0] / cell[0, 0])
    return cell, positions


def _finish(structure: Structure) -> Structure:
    """Reduce the cell, infer bonds where a file has none, make molecules whole, check everything."""
    positions, cell = (
        np.array(structure.positions, dtype=np.float64),
        np.array(structure.cell, dtype=np.float64),
    )
    structure = structure.with_state(positions, cell)
    structure.check_geometry()
    if structure.periodic:
        structure = structure.with_state(*reversed(reduce_cell(cell, positions)))
    if not len(structure.bonds):
        bonds = infer_bonds(structure.numbers, structure.positions, structure.cell, structure.pbc)
        structure = replace(structure, bonds=bonds)
    structure.validate()
    if structure.periodic:
        whole = structure.molecules.whole(structure.positions[None], structure.cell[None])[0]
        structure = structure.with_state(whole, structure.cell)
    return structure


def _read_with_mdtraj(path: Path) -> Structure:
    import mdtraj

    try:
        frame = mdtraj.load_frame(str(path), 0)
    except Exception as error:  # mdtraj raises whatever its parsers do
        raise InputError(f"{path} cannot be read as a structure: {type(error).__name__}: {error}") from error
    topology = frame.topology
    atoms = list(topology.atoms)
    for atom in atoms:
        if atom.element is None or atom.element.atomic_number < 1:
            raise InputError(f"{path}: atom {atom.index} ({atom}) has no element; fill the element columns of the file")
    # these formats hold 0.001 Å at best, and mdtraj float32 nm: rounding gives back what was written
    positions = np.round(frame.xyz[0].astype(np.float64) * 10, 4)
    cell, pbc = np.zeros((3, 3)), np.zeros(3, dtype=bool)
    if frame.unitcell_lengths is not None and frame.unitcell_lengths[0].max() * 10 > LARGEST_PLACEHOLDER:
        from ase.cell import Cell

        parameters = np.concatenate([frame.unitcell_lengths[0] * 10, frame.unitcell_angles[0]])
        cell = Cell.fromcellpar(np.round(parameters.astype(np.float64), 4)).array
        pbc[:] = True
    residues = list(topology.residues)
    return Structure(
        numbers=np.array([a.element.atomic_number for a in atoms], dtype=np.int64),
        positions=positions,
        cell=cell,
        pbc=pbc,
        masses=np.array([a.element.mass for a in atoms]),
        names=np.array([a.name for a in atoms]),
        residues=np.array([a.residue.index for a in atoms], dtype=np.int64),
        residue_names=np.array([r.name for r in residues]),
        chains=np.array([r.chain.index for r in residues], dtype=np.int64),
        bonds=np.array([[a.index, b.index] for a, b in topology.bonds], dtype=np.int64).reshape(-1, 2),
    )


def structure_from_atoms(atoms: object) -> Structure:
    """Structure of ASE atoms: bonds from distances, one residue a connected molecule.

    Atoms of a molecule need not be neighbours in the list: then, because residues must be contiguous,
    all atoms form one residue. Raises InputError for structures that cannot be simulated.
    """
    from ase import Atoms

    if not isinstance(atoms, Atoms):
        raise InputError(f"expected ase.Atoms, got {type(atoms).__name__}")
    n = len(atoms)
    named = CHARGE_KEY in atoms.info or atoms.has("initial_charges")
    raw = Structure(
        numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=np.array(atoms.positions, dtype=np.float64),
        cell=np.array(atoms.cell.array) if atoms.pbc.any() else np.zeros((3, 3)),
        pbc=np.array(atoms.pbc, dtype=bool),
        masses=np.array(atoms.get_masses(), dtype=np.float64),
        names=np.array(atoms.get_chemical_symbols(), dtype=np.str_),
        residues=np.zeros(n, dtype=np.int64),
        residue_names=np.array(["UNK"]),
        chains=np.zeros(1, dtype=np.int64),
        bonds=np.zeros((0, 2), dtype=np.int64),
        charge=total_charge(atoms) if named else None,
    )
    structure = _finish(raw)
    names, residues, residue_names = _name_residues(structure)
    chains = np.zeros(len(residue_names), dtype=np.int64)
    return replace(structure, names=names, residues=residues, residue_names=residue_names, chains=chains).validate()


def _name_residues(structure: Structure) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Names (N,), residue of each atom (N,) and residue names: O, H1, H2 of HOH, and so on."""
    labels = structure.molecules.labels
    if np.any(np.diff(labels) < 0):  # interleaved molecules
        labels = np.zeros_like(labels)
    symbols = structure.symbols
    starts = np.searchsorted(labels, np.arange(int(labels[-1]) + 2))
    names: list[str] = []
    residue_names: list[str] = []
    for start, stop in pairwise(starts):
        members = symbols[start:stop]
        total, seen = Counter(members), Counter[str]()
        if total == {"O": 1, "H": 2}:
            residue_names.append("HOH")
        else:
            residue_names.append(members[0].upper() if len(members) == 1 else "UNK")
        for symbol in members:
            seen[symbol] += 1
            names.append(symbol if total[symbol] == 1 else f"{symbol}{seen[symbol]}")
    return np.array(names), labels, np.array(residue_names)


def _read_with_ase(path: str) -> Structure:
    import ase.io

    try:
        atoms = ase.io.read(path)
    except Exception as error:  # ASE raises whatever its many parsers do
        raise InputError(f"{path} cannot be read as a structure: {type(error).__name__}: {error}") from error
    if isinstance(atoms, list):
        raise InputError(f"{path} names several structures; choose one, as in file.extxyz@-1")
    try:
        return structure_from_atoms(atoms)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def read_structure(path: str | Path, topology: str | Path | None = None) -> Structure:
    """Read a structure file; PDB-like formats bring names, residues and bonds with them.

    Args:
        path: PDB, mmCIF, GRO, ... (first model), or any format of ASE (last structure, or ``file@index``).
        topology: a second file whose names, residues and bonds are used with the positions of ``path``.

    Raises:
        InputError: no such file, unreadable, no element, a topology that differs from the positions, NaN or
            coincident atoms, a flat cell.
    """
    text = str(path)
    if not Path(text).exists() and not Path(text.rpartition("@")[0]).is_file():
        raise InputError(f"structure file {text} does not exist")
    if text.lower().endswith(TOPOLOGY_FORMATS):
        structure = _finish(_read_with_mdtraj(Path(text)))
    else:
        structure = _read_with_ase(text)
    if topology is None:
        return structure
    other = read_structure(topology)
    if not other.same_atoms(structure):
        raise InputError(
            f"topology {topology} ({len(other)} atoms, {other.formula}) differs from the positions in {text} "
            f"({len(structure)} atoms, {structure.formula}); both must list the same elements in one order"
        )
    charge = other.charge if structure.charge is None else structure.charge
    moved = replace(other, positions=structure.positions, cell=structure.cell, pbc=structure.pbc, charge=charge)
    return _finish(moved)
