"""What the 3D view of a trajectory is given: atoms, bonds, cells and positions, compactly."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from egnn_md.report.load import LoadedRun

MAX_ATOMS = 3000
MAX_FRAMES = 300
MAX_POSITIONS = 300_000  # frames times atoms: 2.4 MB in the page
STEPS = 65535


def _choose_atoms(run: LoadedRun) -> np.ndarray:
    """All atoms, or those of the molecules nearest to the middle that fit into the limit."""
    if run.atoms <= MAX_ATOMS:
        return np.arange(run.atoms)
    molecules = run.structure.molecules
    first = molecules.wrapped(run.frames.positions[:1], None if run.frames.cells is None else run.frames.cells[:1])
    middle = first[0].mean(axis=0)
    if run.frames.cells is not None:
        middle = run.frames.cells[0].sum(axis=0) / 2
    counts = np.bincount(molecules.labels)
    nearest = np.full(molecules.count, np.inf)
    np.minimum.at(nearest, molecules.labels, np.linalg.norm(first[0] - middle, axis=1))
    order = np.argsort(nearest, kind="stable")
    inside = order[np.cumsum(counts[order]) <= MAX_ATOMS]
    if len(inside) == 0:  # one huge molecule: its first atoms
        return np.arange(MAX_ATOMS)
    return np.flatnonzero(np.isin(molecules.labels, inside))


def viewer_data(run: LoadedRun) -> dict[str, Any] | None:
    """JSON values for the page's script; None without frames.

    Positions are 16-bit fractions of the range ``low``..``high``, base64 of little-endian uint16 in the
    order frame, atom, axis.
    """
    frames = run.frames
    if len(frames.times) == 0:
        return None
    atoms = _choose_atoms(run)
    count = max(min(MAX_FRAMES, MAX_POSITIONS // len(atoms)), 1)
    chosen = np.unique(np.linspace(0, len(frames.times) - 1, count).round().astype(int))
    cells = None if frames.cells is None else frames.cells[chosen]
    positions = run.structure.molecules.wrapped(frames.positions[chosen], cells)[:, atoms]
    low, high = positions.min(axis=(0, 1)), positions.max(axis=(0, 1))
    scale = np.where(high > low, high - low, 1.0)
    coded = np.round((positions - low) / scale * STEPS).astype("<u2")
    place = np.full(run.atoms, -1)
    place[atoms] = np.arange(len(atoms))
    bonds = place[run.structure.bonds]
    bonds = bonds[(bonds >= 0).all(axis=1)]
    reach = np.linalg.norm(positions[0, bonds[:, 1]] - positions[0, bonds[:, 0]], axis=1)
    endless = run.structure.molecules.endless
    if endless.any():  # bonds of a network that cross the cell would be drawn right through it
        bonds = bonds[reach < 3.5]
    symbols = run.structure.symbols
    return {
        "symbols": [symbols[i] for i in atoms],
        "bonds": bonds.tolist(),
        "times": [float(f"{t:.6g}") for t in frames.times[chosen]],
        "low": low.tolist(),
        "scale": scale.tolist(),
        "positions": base64.b64encode(coded.tobytes()).decode(),
        "cells": None if cells is None else np.round(cells, 3).reshape(len(chosen), 9).tolist(),
        "shown": len(atoms),
        "atoms": run.atoms,
        "frames": frames.total,
    }
