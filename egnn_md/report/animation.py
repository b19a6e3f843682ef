"""A reference beside a rollout, small enough for a page: what the 3D view of an evaluation is given."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.report.viewer import STEPS
from egnn_md.rollout.definitions import time_unit
from egnn_md.rollout.evaluate import REFERENCE, Evaluation
from egnn_md.rollout.scores import Case, World

MAX_BYTES = 3_400_000  # of all positions in base64: with plotly the page stays below 10 MB
MAX_PARTICLES = 6000
MAX_FRAMES = 120
BYTES_PER_POSITION = 8  # three 16-bit numbers, in base64
BANDS = ("#3b4cc0", "#6f92f3", "#aac7fd", "#dddcdc", "#f7b89c", "#e7745b", "#b40426")  # low to high at the start
WALL_COLOUR = "#c3cbd4"
ROOM = 0.5  # of the reference's extent on every side; a particle beyond it is shown at the edge


def _held(frames: NDArray) -> NDArray:
    """Frames (F, N, 3) in which a stopped rollout stands at its last good frame."""
    good = np.isfinite(frames).all(axis=(1, 2))
    last = np.maximum.accumulate(np.where(good, np.arange(len(frames)), 0))
    return frames[last]


def _chosen(particles: int, frames: int, panels: int) -> NDArray[np.int64]:
    """Indices of the particles that are shown: all, or as many as fit, drawn once."""
    room = min(MAX_PARTICLES, MAX_BYTES // (BYTES_PER_POSITION * frames * panels))
    if particles <= room:
        return np.arange(particles)
    return np.sort(np.random.default_rng(0).choice(particles, room, replace=False))


def _look(case: Case, world: World, chosen: NDArray[np.int64], scale: NDArray) -> dict[str, Any]:
    """Symbols, colours, bonds: elements for molecules; bands of the starting height for other particles."""
    from ase.data import chemical_symbols

    if world.elements:
        place = np.full(len(case.species), -1)
        place[chosen] = np.arange(len(chosen))
        bonds = np.zeros((0, 2), dtype=np.int64) if world.bonds is None else place[world.bonds]
        return {
            "symbols": [chemical_symbols[number] for number in case.species[chosen]],
            "bonds": bonds[(bonds >= 0).all(axis=1)].tolist(),
            "margin": 1.0 / world.angstrom,
        }
    start = case.positions[0]
    height = start[case.moving, world.up]
    ranks = np.searchsorted(np.sort(height), start[:, world.up]) / max(len(height), 1)
    bands = np.clip((ranks * len(BANDS)).astype(int), 0, len(BANDS) - 1)
    names = [f"band {band + 1}" for band in range(len(BANDS))]
    symbols = [names[bands[i]] if case.moving[i] else "boundary" for i in chosen]
    return {
        "symbols": symbols,
        "bonds": [],
        "colours": {**dict(zip(names, BANDS, strict=True)), "boundary": WALL_COLOUR},
        "radius": _radius(start[chosen]),
        "margin": 0.03 * float(np.linalg.norm(scale)),
    }


def _radius(start: NDArray) -> float:
    """Of the spheres: a little more than half the usual distance of neighbours among those that are shown."""
    from scipy.spatial import cKDTree

    if len(start) < 2:
        return 1.0
    nearest = np.asarray(cKDTree(start).query(start, k=2)[0])[:, 1]
    return 0.55 * float(np.median(nearest)) or 1.0


def animation_data(evaluation: Evaluation) -> dict[str, Any] | None:
    """JSON values for the page's script: the first start's reference, and the first model's rollout beside it.

    Positions are 16-bit fractions of ``low``..``low + scale``; None if nothing was rolled out.
    """
    shown, world = evaluation.shown, evaluation.world
    names = [name for name in shown.positions if name != REFERENCE][:1]
    if shown.case is None or not names:
        return None
    case = shown.case
    total = len(case.positions)
    frames = np.unique(np.linspace(0, total - 1, min(MAX_FRAMES, total)).round().astype(int))
    clouds = [_held(shown.positions[name])[frames] for name in (REFERENCE, *names)]
    if case.cell is not None and world.elements:
        clouds = [_whole(cloud, case, world) for cloud in clouds]
    axes = [(world.up - 1) % 3, world.up, (world.up + 1) % 3]  # the height is the view's vertical, y
    clouds = [cloud[:, :, axes] for cloud in clouds]
    chosen = _chosen(case.positions.shape[1], len(frames), len(clouds))
    reference = clouds[0][:, chosen]
    low, high = reference.min(axis=(0, 1)), reference.max(axis=(0, 1))
    room = ROOM * np.maximum(high - low, 1e-3 * max(float((high - low).max()), 1e-12))
    low, high = low - room, high + room
    every = np.concatenate([np.clip(cloud[:, chosen], low, high) for cloud in clouds])
    low, high = every.min(axis=(0, 1)), every.max(axis=(0, 1))
    scale = np.where(high > low, high - low, 1.0)
    panels = []
    for name, cloud in zip((REFERENCE, *names), clouds, strict=True):
        coded = np.round((np.clip(cloud[:, chosen], low, high) - low) / scale * STEPS).astype("<u2")
        panels.append({"name": name, "positions": base64.b64encode(coded.tobytes()).decode()})
    data = {
        "panels": panels,
        "times": [float(f"{frame * world.stride:.6g}") for frame in frames],
        "unit": time_unit(evaluation.config.units),
        "low": low.tolist(),
        "scale": scale.tolist(),
        "cells": None,
        "shown": len(chosen),
        "particles": int(case.positions.shape[1]),
        "frames": total,
        **_look(case, world, chosen, scale),
    }
    box = _box(case, world)
    if box is not None:
        data["origin"] = box[0][axes].tolist()
        data["cells"] = [np.round(box[1][:, axes], 6).reshape(9).tolist()] * len(frames)
    return data


def _box(case: Case, world: World) -> tuple[NDArray, NDArray] | None:
    """Corner and rows of the box that is drawn."""
    if case.cell is not None:
        return np.zeros(3), case.cell
    if world.walls is not None:
        walls = np.asarray(world.walls, dtype=float)
        return walls[:, 0], np.diag(walls[:, 1] - walls[:, 0])
    return None


def _whole(cloud: NDArray, case: Case, world: World) -> NDArray:
    """Molecules unbroken, their centres in the cell."""
    from egnn_md.simulation.molecules import Molecules, infer_bonds

    assert case.cell is not None
    start = case.positions[0] * world.angstrom
    cell = case.cell * world.angstrom
    bonds = infer_bonds(case.species, start, cell, np.ones(3, dtype=bool))
    molecules = Molecules.from_bonds(bonds, start, cell)
    return molecules.wrapped(cloud, np.broadcast_to(case.cell, (len(cloud), 3, 3)))
