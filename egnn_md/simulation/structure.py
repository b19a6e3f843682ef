"""What is simulated: atoms, cell and topology, free of any engine."""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.molecules import Molecules, minimum_image

if TYPE_CHECKING:
    import mdtraj
    from ase import Atoms

LONGEST_BOND = 3.0  # Å, and at least twice the sum of covalent radii: beyond it no bond of a file is believed


@dataclass(frozen=True)
class Structure:
    """Atoms with names, residues, chains and bonds.

    Attributes:
        numbers: (N,) int64 atomic numbers.
        positions: (N, 3) float64, Å, molecules whole.
        cell: (3, 3) float64, rows, Å, lower triangular and reduced; zeros in an open system.
        pbc: (3,) bool.
        masses: (N,) float64, amu.
        names: (N,) str, atom names.
        residues: (N,) int64, index of the residue of each atom, ascending.
        residue_names: (R,) str.
        chains: (R,) int64, index of the chain of each residue, ascending.
        bonds: (M, 2) int64.
        charge: total, e, where the file says it.
    """

    numbers: np.ndarray
    positions: np.ndarray
    cell: np.ndarray
    pbc: np.ndarray
    masses: np.ndarray
    names: np.ndarray
    residues: np.ndarray
    residue_names: np.ndarray
    chains: np.ndarray
    bonds: np.ndarray
    charge: int | None = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def periodic(self) -> bool:
        """True if the system repeats in all three directions."""
        return bool(self.pbc.all())

    @property
    def box(self) -> np.ndarray | None:
        """The cell, or None in a system that is open in every direction."""
        return self.cell if self.pbc.any() else None

    @property
    def symbols(self) -> list[str]:
        """(N) chemical symbols."""
        from ase.data import chemical_symbols

        return [chemical_symbols[z] for z in self.numbers]

    @property
    def formula(self) -> str:
        """Sum formula in Hill order."""
        from ase.formula import Formula

        return Formula.from_list(self.symbols).format("hill")

    @cached_property
    def molecules(self) -> Molecules:
        """Connected atoms by the bonds."""
        return Molecules.from_bonds(self.bonds, self.positions, self.box)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of who is who: elements in their order, masses and directions that repeat."""
        parts = (self.numbers.astype("<i8"), self.masses.astype("<f8"), self.pbc.astype("u1"))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()

    def validate(self) -> Structure:
        """Return self after checking shapes, bonds against positions, and the geometry.

        Raises:
            InputError: shapes that disagree, a bond that the positions do not have, NaN or coincident
                atoms, a cell without volume, no atoms.
        """
        n, r = len(self.numbers), len(self.residue_names)
        if n == 0:
            raise InputError("the structure holds no atoms")
        shapes = {
            "positions": (n, 3),
            "masses": (n,),
            "names": (n,),
            "residues": (n,),
            "chains": (r,),
            "cell": (3, 3),
            "pbc": (3,),
        }
        for name, shape in shapes.items():
            found = getattr(self, name).shape
            if found != shape:
                raise InputError(
                    f"{name} has shape {found}, but the topology of {n} atoms needs {shape}; "
                    "topology and positions must describe the same atoms"
                )
        self.check_geometry()
        self._check_bonds()
        return self

    def check_geometry(self) -> None:
        """Raise InputError for NaN, coincident atoms or a cell without volume."""
        import torch

        from egnn_md.graph import COINCIDENT, check_structure
        from egnn_md.neighbors import neighbor_list

        positions, cell = torch.as_tensor(self.positions), torch.as_tensor(self.cell)
        pbc = torch.as_tensor(self.pbc)
        check_structure(positions, cell, pbc)
        edges, shifts = neighbor_list(positions, cell, pbc, 10 * COINCIDENT)
        pairs = positions[edges[0]] - positions[edges[1]] + shifts.to(positions.dtype) @ cell
        check_structure(positions, cell, pbc, edges, pairs)

    def _check_bonds(self) -> None:
        from ase.data import covalent_radii

        if not len(self.bonds):
            return
        if self.bonds.min() < 0 or self.bonds.max() >= len(self):
            raise InputError(f"a bond of the topology names an atom outside 0..{len(self) - 1}")
        i, j = self.bonds.T
        length = np.linalg.norm(minimum_image(self.positions[j] - self.positions[i], self.box), axis=1)
        limit = np.maximum(LONGEST_BOND, 2.0 * (covalent_radii[self.numbers[i]] + covalent_radii[self.numbers[j]]))
        if np.any(length > limit):
            worst = int(np.argmax(length / limit))
            a, b = int(i[worst]), int(j[worst])
            raise InputError(
                f"the topology bonds atoms {a} ({self.symbols[a]}) and {b} ({self.symbols[b]}), but the "
                f"positions put them {length[worst]:.2f} Å apart: topology and positions differ "
                "(another order of atoms, or a missing or wrong cell)"
            )

    def with_state(self, positions: np.ndarray, cell: np.ndarray) -> Structure:
        """Copy at other positions (N, 3) and cell (3, 3), Å."""
        return replace(self, positions=np.array(positions), cell=np.array(cell))

    def same_atoms(self, other: Structure) -> bool:
        """True if both list the same elements in the same order."""
        return np.array_equal(self.numbers, other.numbers)

    def to_atoms(self) -> Atoms:
        """ASE Atoms with the same positions, cell, boundary conditions and masses."""
        from ase import Atoms

        return Atoms(numbers=self.numbers, positions=self.positions, cell=self.cell, pbc=self.pbc, masses=self.masses)

    def to_mdtraj_topology(self) -> mdtraj.Topology:
        """mdtraj topology with the same residues, names and bonds."""
        import mdtraj

        topology = mdtraj.Topology()
        chain_of: dict[int, object] = {}
        residue_of: list[object] = []
        number_in_chain: dict[int, int] = {}
        for name, chain in zip(self.residue_names, self.chains.tolist(), strict=True):
            if chain not in chain_of:
                chain_of[chain] = topology.add_chain()
            number_in_chain[chain] = number_in_chain.get(chain, 0) + 1
            residue_of.append(topology.add_residue(str(name), chain_of[chain], resSeq=number_in_chain[chain]))
        atoms = [
            topology.add_atom(str(name), mdtraj.element.Element.getByAtomicNumber(int(z)), residue_of[r])
            for name, z, r in zip(self.names, self.numbers, self.residues, strict=True)
        ]
        for i, j in self.bonds.tolist():
            topology.add_bond(atoms[i], atoms[j])
        return topology

    def write_pdb(self, path: Path) -> None:
        """PDB with cell, residues and CONECT records, coordinates to 0.001 Å."""
        import mdtraj

        frame = mdtraj.Trajectory(self.positions[None].astype(np.float32) / 10, self.to_mdtraj_topology())
        if self.pbc.any():
            frame.unitcell_vectors = self.cell[None] / 10
        frame.save_pdb(str(path))

    def save(self, path: Path) -> None:
        """Write every field to an ``.npz`` without pickles."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__}
        np.savez(path, **{name: value for name, value in values.items() if value is not None})

    @classmethod
    def load(cls, path: Path) -> Structure:
        """Read what ``save`` wrote. Raises InputError if the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                charge = int(archive["charge"]) if "charge" in archive else None
                arrays = {name: archive[name] for name in cls.__dataclass_fields__ if name != "charge"}
                return cls(**arrays, charge=charge)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{path} cannot be read as a structure: {error}") from error
