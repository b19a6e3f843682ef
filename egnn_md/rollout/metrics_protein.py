"""Proteins: shape and its fluctuations, by mdtraj. Lengths come back in the unit that they were given in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

if TYPE_CHECKING:
    import mdtraj

Array = NDArray[np.float64]
BOND_LIMIT = 0.1  # Å a bond may differ from its reference length
CHAIN_STEP = 4.2  # Å between neighbours of a chain of C-alpha atoms at most (3.8 Å, 3.0 Å for cis)
TOPOLOGY_NAMES = ("topology.pdb", "backbone.pdb", "kept.pdb")


def find_topology(folder: Path, particles: int) -> mdtraj.Topology | None:
    """Topology of a data set's directory: the PDB file with as many atoms as there are particles, or None."""
    import mdtraj

    named = [folder / name for name in TOPOLOGY_NAMES]
    others = [path for path in sorted(folder.glob("*.pdb")) if path not in named]
    for path in [*named, *others]:
        if not path.is_file():
            continue
        try:
            topology = mdtraj.load_topology(str(path))
        except Exception as error:  # mdtraj raises whatever its readers do
            raise InputError(f"{path} cannot be read as a topology: {type(error).__name__}: {error}") from error
        if topology.n_atoms == particles:
            return topology
    return None


def _trajectory(positions: NDArray) -> mdtraj.Trajectory:
    """mdtraj's record, centred first: its single precision is spent on the shape, not on where it is."""
    import mdtraj

    centred = positions - positions.mean(axis=1, keepdims=True)
    return mdtraj.Trajectory(centred.astype(np.float32), None)


def rmsd(predicted: NDArray, reference: NDArray) -> Array:
    """(F,) root mean square distance of each frame to the same frame of the reference, after the best rotation.

    Args:
        predicted: (F, N, 3); frames that are not finite give NaN.
        reference: (F, N, 3).
    """
    import mdtraj

    finite = np.isfinite(predicted).all(axis=(1, 2))
    found = np.full(len(predicted), np.nan)
    if finite.any():
        frames, targets = _trajectory(predicted[finite]), _trajectory(reference[finite])
        # frame by frame: mdtraj compares many frames to one
        found[finite] = [float(mdtraj.rmsd(frames[i], targets, i)[0]) for i in range(len(frames))]
    return found


def rmsf(positions: NDArray) -> Array | None:
    """(N,) root mean square fluctuation about the mean position, frames laid on the first one; None if not finite."""
    import mdtraj

    if len(positions) < 2 or not np.isfinite(positions).all():
        return None
    frames = _trajectory(positions)
    return np.asarray(mdtraj.rmsf(frames, frames, 0), dtype=np.float64)


def radius_of_gyration(positions: NDArray, masses: NDArray) -> Array:
    """(F,) ``sqrt(Σ m |x - c|² / Σ m)``."""
    share = masses / masses.sum()
    centred = positions - np.einsum("n,fnd->fd", share, positions)[:, None]
    return np.sqrt(np.einsum("n,fnd,fnd->f", share, centred, centred))


def find_bonds(
    positions: NDArray, species: NDArray, topology: mdtraj.Topology | None, unit_in_angstrom: float
) -> tuple[NDArray[np.int64], str]:
    """Bonds (M, 2), and how they were found.

    The topology's bonds if it has any. Else, in a chain of one kind of particle (C-alpha), successive
    particles at most ``CHAIN_STEP`` apart; else pairs nearer than 1.25 times the sum of their covalent radii.

    Args:
        positions: (N, 3) of the first frame.
        species: (N,) atomic numbers.
        topology: of the data set.
        unit_in_angstrom: Å in the data's unit of length.
    """
    if topology is not None:
        bonds = np.array([[a.index, b.index] for a, b in topology.bonds], dtype=np.int64).reshape(-1, 2)
        if len(bonds):
            return bonds, "bonds of the topology"
    scaled = np.asarray(positions, dtype=np.float64) * unit_in_angstrom
    if len(np.unique(species)) == 1:
        chain = np.stack([np.arange(len(species) - 1), np.arange(1, len(species))], 1)
        length = np.linalg.norm(scaled[chain[:, 1]] - scaled[chain[:, 0]], axis=1)
        return chain[length < CHAIN_STEP], f"successive particles at most {CHAIN_STEP} Å apart in the first frame"
    from egnn_md.simulation.molecules import BOND_TOLERANCE, infer_bonds

    numbers = np.asarray(species)
    if numbers.min() < 1 or numbers.max() > 118:
        return np.zeros((0, 2), dtype=np.int64), "none: the particle types are no atomic numbers"
    bonds = infer_bonds(numbers, scaled, np.zeros((3, 3)), np.zeros(3, dtype=bool))
    return bonds, f"pairs nearer than {BOND_TOLERANCE} times the sum of covalent radii in the first frame"


def bond_lengths(positions: NDArray, bonds: NDArray) -> Array:
    """(F, M)."""
    return np.linalg.norm(positions[:, bonds[:, 1]] - positions[:, bonds[:, 0]], axis=2)


def bond_violations(positions: NDArray, bonds: NDArray, lengths: NDArray, limit: float) -> Array:
    """(F,) share of bonds whose length differs from ``lengths`` (M,) by more than ``limit``."""
    if len(bonds) == 0:
        return np.zeros(len(positions))
    with np.errstate(invalid="ignore"):
        fine = np.abs(bond_lengths(positions, bonds) - lengths) <= limit
    return 1.0 - fine.mean(axis=1)
