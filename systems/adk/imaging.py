"""Molecules of a periodic trajectory, put together where the cell boundary cuts them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from egnn_md.errors import InputError

if TYPE_CHECKING:
    import mdtraj

CELL_TOLERANCE = 1e-4  # nm


class Whole:
    """Turns chunks of a wrapped trajectory into molecules that are whole and do not jump between frames."""

    def __init__(self, topology: mdtraj.Topology, kept: np.ndarray, source: str) -> None:
        """Find the molecules that hold ``kept`` atoms. Raises InputError if the topology knows no bonds."""
        if topology.n_bonds == 0:
            raise InputError(
                f"{source} has a periodic cell, but its topology has no bonds to put molecules together; give a "
                "--topology with bonds (PSF, or PDB with standard residues), or keep the cell with --periodic"
            )
        wanted = {int(index) for index in kept}
        molecules = [sorted(a.index for a in molecule) for molecule in topology.find_molecules()]
        molecules = [molecule for molecule in molecules if wanted.intersection(molecule)]
        self.atoms = np.array(sorted(index for molecule in molecules for index in molecule))
        place = {int(index): i for i, index in enumerate(self.atoms)}
        self.molecules = [np.array([place[i] for i in molecule]) for molecule in molecules]
        self.kept = np.array([place[int(index)] for index in kept])
        self.centres: list[np.ndarray | None] = [None] * len(molecules)

    def positions(self, chunk: mdtraj.Trajectory) -> np.ndarray:
        """(T, kept, 3) in nm; chunks come in the order of time."""
        part = chunk.atom_slice(self.atoms)
        part.make_molecules_whole(inplace=True)
        positions = part.xyz
        for frame, cell in enumerate(part.unitcell_vectors):
            inverse = np.linalg.inv(cell)
            for number, atoms in enumerate(self.molecules):
                centre = positions[frame, atoms].mean(axis=0)
                previous = self.centres[number]
                if previous is not None:
                    shift = np.round((centre - previous) @ inverse) @ cell
                    positions[frame, atoms] -= shift.astype(positions.dtype)
                    centre = centre - shift
                self.centres[number] = centre
        return positions[:, self.kept]


def constant_cell(cells: np.ndarray, source: str) -> np.ndarray:
    """The one cell (3, 3) of all frames. Raises InputError if it changes (constant pressure)."""
    change = np.abs(cells - cells[0]).max(axis=(1, 2))
    if change.max() > CELL_TOLERANCE:
        frame = int(change.argmax())
        raise InputError(
            f"{source}: the cell of frame {frame} differs from that of frame 0 by {10 * change[frame]:.3g} Å; a data "
            "set has one cell: leave out --periodic, or use a run at constant volume"
        )
    return np.asarray(cells[0], dtype=np.float64)
