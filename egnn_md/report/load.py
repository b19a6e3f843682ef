"""Runs as the report needs them: record, log and (a bounded part of) the trajectory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.structure import Structure
from egnn_md.simulation.trajectory import DCDFormat

MAX_FRAMES = 2000
MAX_COORDINATES = 60_000_000  # frames times atoms times 3, float32: 240 MB


@dataclass(frozen=True)
class Frames:
    """Every n-th of ``total`` frames: times (F,) ps, positions (F, N, 3), cells (F, 3, 3) or None, Å."""

    times: np.ndarray
    positions: np.ndarray
    cells: np.ndarray | None
    total: int


@dataclass(frozen=True)
class LoadedRun:
    """One run directory, read."""

    name: str
    path: Path
    record: dict[str, Any]
    request: MDRequest
    structure: Structure
    log: dict[str, np.ndarray]
    frames: Frames

    @property
    def atoms(self) -> int:
        """Number of atoms."""
        return len(self.structure)

    @property
    def settled(self) -> float:
        """ps from which averages are taken: the first fifth is left out where the run began from rest."""
        times = self.log["time_ps"]
        if self.request.continue_from is not None or len(times) == 0:
            return 0.0
        return 0.2 * float(times[-1])


def load_run(path: Path) -> LoadedRun:
    """Read a run directory; a run that is still going, or was killed, is read as far as it got.

    Raises:
        InputError: not a run directory, or one without a single row in its log.
    """
    directory = RunDirectory(path)
    record, request = directory.read(), directory.common_request()
    if not directory.structure.exists() or not directory.log.exists():
        raise InputError(
            f"the run in {path} has not started (status {record.get('status')}); there is nothing to report"
        )
    structure, log = Structure.load(directory.structure), read_log(directory.log)
    if len(log["step"]) == 0:
        raise InputError(f"{directory.log} holds no rows yet; there is nothing to report")
    frames = _load_frames(directory.trajectory(request.trajectory), request, structure)
    return LoadedRun(path.resolve().name, path, record, request, structure, log, frames)


def _stride(total: int, atoms: int) -> int:
    allowed = max(min(MAX_FRAMES, MAX_COORDINATES // (3 * max(atoms, 1))), 1)
    return max(-(-total // allowed), 1)


def _load_frames(path: Path, request: MDRequest, structure: Structure) -> Frames:
    empty = Frames(np.zeros(0), np.zeros((0, len(structure), 3)), None, 0)
    if not path.is_file() or path.stat().st_size == 0:
        return empty
    if path.suffix == ".extxyz":
        positions, cells, total = _read_extxyz(path, structure)
    elif path.suffix == ".dcd":
        positions, cells, total = _read_dcd(path, structure)
    else:
        positions, cells, total = _read_xtc(path, structure)
    if total == 0:
        return empty
    stride = _stride(total, len(structure))
    times = np.arange(0, total, stride) * request.frame_interval * request.timestep / 1000
    return Frames(times, positions, cells if structure.periodic else None, total)


def _read_dcd(path: Path, structure: Structure) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Our own layout (see :class:`DCDFormat`): equal records, so any frame is found at once."""
    from ase.cell import Cell

    form = DCDFormat(len(structure), structure.periodic, 1.0, 1)
    record = np.dtype(form.layout())
    total = max(path.stat().st_size - len(form.header()), 0) // record.itemsize
    if total == 0:
        return np.zeros((0, len(structure), 3)), None, 0
    frames = np.memmap(path, record, "r", len(form.header()), (total,))[:: _stride(total, len(structure))]
    if not np.all(frames["mark_x"] == 4 * len(structure)):
        raise InputError(f"{path} is not a trajectory of {len(structure)} atoms written by egnn_md")
    positions = np.stack([frames["x"], frames["y"], frames["z"]], axis=-1).astype(np.float64)
    if not structure.periodic:
        return positions, None, total
    a, cos_gamma, b, cos_beta, cos_alpha, c = np.moveaxis(frames["cell"], -1, 0)
    angles = np.degrees(np.arccos([cos_alpha, cos_beta, cos_gamma]))
    parameters = np.concatenate([[a, b, c], angles]).T
    return positions, np.array([Cell.fromcellpar(p).array for p in parameters]), total


def _read_xtc(path: Path, structure: Structure) -> tuple[np.ndarray, np.ndarray | None, int]:
    import mdtraj

    try:
        with mdtraj.open(str(path)) as file:
            total = len(file)
        loaded = mdtraj.load(str(path), top=structure.to_mdtraj_topology(), stride=_stride(total, len(structure)))
    except Exception as error:  # mdtraj raises whatever its readers do
        raise InputError(f"{path} cannot be read: {type(error).__name__}: {error}") from error
    cells = None if loaded.unitcell_vectors is None else loaded.unitcell_vectors.astype(np.float64) * 10
    return loaded.xyz.astype(np.float64) * 10, cells, total


def _read_extxyz(path: Path, structure: Structure) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Plain reading: much faster than an object for every frame, and a last frame cut short is dropped."""
    atoms = len(structure)
    with open(path) as file:
        lines = file.read().split("\n")
    total = (len(lines) - 1) // (atoms + 2)
    positions, cells = [], []
    for index in range(0, total, _stride(total, atoms)):
        block = lines[index * (atoms + 2) : (index + 1) * (atoms + 2)]
        if block[0].strip() != str(atoms):
            raise InputError(f"{path}: frame {index} does not hold {atoms} atoms")
        positions.append([[float(x) for x in line.split()[1:4]] for line in block[2:]])
        if 'Lattice="' in block[1]:
            text = block[1].split('Lattice="')[1].split('"')[0]
            cells.append(np.array(text.split(), dtype=float).reshape(3, 3))
    return np.array(positions).reshape(-1, atoms, 3), np.array(cells) if cells else None, total
