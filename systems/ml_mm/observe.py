"""What a run shows: averages of its second half, and where phi and psi were."""

from __future__ import annotations

import csv
import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.simulation.files import write_atomic
from egnn_md.simulation.rundir import RunDirectory

from .engine import MixedRequest

#: Boxes of the Ramachandran plane: phi from, to; psi from, to (degrees; psi of the first one goes on over 180).
BASINS = {
    "beta and PPII": (-180.0, 0.0, 60.0, 240.0),
    "alpha R": (-180.0, 0.0, -120.0, 60.0),
    "phi > 0": (0.0, 180.0, -180.0, 180.0),
}
MEASURED = {
    "density_g_cm3": ("density", "g/cm³"),
    "temperature_K": ("temperature", "K"),
    "potential_eV": ("potential energy", "eV"),
}


def dihedrals(run: RunDirectory, request: MixedRequest) -> NDArray[np.float64]:
    """(frames, residues, 2) phi and psi in degrees; no residues if the molecule has none with both."""
    import mdtraj

    topology = mdtraj.load_topology(str(run.topology))
    backbone = topology.select("not water")
    trajectory = mdtraj.load(str(run.trajectory(request.trajectory)), top=topology, atom_indices=backbone)
    columns: dict[int, dict[str, NDArray[np.float64]]] = {}
    for name, of, shared in (("phi", mdtraj.compute_phi, 1), ("psi", mdtraj.compute_psi, 0)):
        atoms, angles = of(trajectory)
        for four, column in zip(atoms, angles.T, strict=True):
            residue = trajectory.topology.atom(four[shared]).residue.index
            columns.setdefault(residue, {})[name] = np.degrees(column)
    both = [np.stack([c["phi"], c["psi"]], axis=-1) for _, c in sorted(columns.items()) if len(c) == 2]
    return np.stack(both, axis=1) if both else np.zeros((trajectory.n_frames, 0, 2))


def populations(angles: NDArray[np.float64]) -> dict[str, float]:
    """Share of frames and residues in every basin, of angles (..., 2) in degrees."""
    phi, psi = angles[..., 0].ravel(), angles[..., 1].ravel()
    shares = {}
    for name, (left, right, low, high) in BASINS.items():
        turned = (psi - low) % 360.0 < high - low if high - low < 360.0 else np.ones(len(psi), dtype=bool)
        shares[name] = float(np.mean((phi >= left) & (phi < right) & turned)) if len(phi) else 0.0
    return shares


def describe(run: RunDirectory, request: MixedRequest) -> str:
    """A few lines about a finished run; ``observed.json`` and ``dihedrals.csv`` in its directory hold the numbers."""
    with run.log.open(newline="") as file:
        rows = list(csv.DictReader(file))
    half = rows[len(rows) // 2 :]
    lines: list[str] = []
    found: dict[str, Any] = {}
    for column, (name, unit) in MEASURED.items():
        values = np.array([float(row[column]) for row in half if row[column]])
        if not len(values):
            continue
        # neighbouring rows are not independent: five blocks are taken for so many measurements
        blocks = np.array([block.mean() for block in np.array_split(values, min(5, len(values)))])
        error = float(blocks.std(ddof=1) / np.sqrt(len(blocks))) if len(blocks) > 1 else float("nan")
        found[column] = {"mean": float(values.mean()), "standard_error": error}
        lines.append(f"{name} {values.mean():.4f} ± {error:.4f} {unit}")
    angles = dihedrals(run, request)
    shares = populations(angles)
    table = "step,residue,phi_deg,psi_deg\n" + "".join(
        f"{frame * request.frame_interval},{residue},{angles[frame, residue, 0]:.2f},{angles[frame, residue, 1]:.2f}\n"
        for frame in range(angles.shape[0])
        for residue in range(angles.shape[1])
    )
    write_atomic(run.path / "dihedrals.csv", table.encode())
    if angles.shape[1]:
        lines.append("basins " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    found["basins"] = shares
    write_atomic(run.path / "observed.json", json.dumps(found, indent=1).encode())
    return "second half of the log: " + "; ".join(lines)
