"""Trajectory files as a header and whole frames, so that a resumed run can cut them at a frame.

DCD follows CHARMM's layout as VMD, mdtraj and OpenMM read it. XTC frames are compressed by mdtraj; an XTC
file is nothing but its frames one after another. Extended XYZ is written as ASE reads it.
"""

from __future__ import annotations

import struct
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from egnn_md.simulation.files import AppendFile

AKMA_FS = 48.88821  # fs in the time unit of DCD headers
MAX_INT32 = 2**31 - 1


@dataclass(frozen=True)
class Frame:
    """One instant: positions (N, 3) Å, velocities (N, 3) Å/fs, cell (3, 3) Å, forces (N, 3) eV/Å, energy eV.

    Forces and energy, which only extended XYZ writes, may be None.
    """

    step: int
    time: float  # fs
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray | None
    energy: float | None
    cell: np.ndarray


class Format(Protocol):
    """How a trajectory format spells a header and a frame."""

    suffix: str

    def header(self) -> bytes:
        """Bytes before the first frame."""

    def encode(self, frame: Frame) -> bytes:
        """Bytes of one frame."""

    def counters(self, frames: int) -> list[tuple[int, bytes]]:
        """(offset, bytes) in the header that change with the number of frames."""


class DCDFormat:
    """Single-precision positions; cell as lengths and cosines."""

    suffix = "dcd"

    def __init__(self, atoms: int, periodic: bool, timestep: float, interval: int) -> None:
        self.atoms, self.periodic, self.timestep, self.interval = atoms, periodic, timestep, interval

    def header(self) -> bytes:
        """276 bytes: the control block, a title, the number of atoms."""
        control = struct.pack("<i4s9if", 84, b"CORD", 0, 0, self.interval, 0, 0, 0, 0, 0, 0, self.timestep / AKMA_FS)
        control += struct.pack("<13i", int(self.periodic), *([0] * 8), 24, 84, 164, 2)
        title = struct.pack("<80s80s", b"Created by egnn_md", b"positions in Angstrom")
        return control + title + struct.pack("<4i", 164, 4, self.atoms, 4)

    def layout(self) -> list[tuple[Any, ...]]:
        """Fields of numpy's dtype for one frame."""
        fields: list[tuple[Any, ...]] = []
        if self.periodic:
            fields += [("mark_cell", "<i4"), ("cell", "<f8", (6,)), ("end_cell", "<i4")]
        for axis in "xyz":
            fields += [(f"mark_{axis}", "<i4"), (axis, "<f4", (self.atoms,)), (f"end_{axis}", "<i4")]
        return fields

    def encode(self, frame: Frame) -> bytes:
        """Fortran records: the cell of a periodic system, then x, y and z."""
        parts = []
        if self.periodic:
            lengths = np.linalg.norm(frame.cell, axis=1)
            unit = frame.cell / lengths[:, None]
            cos_gamma, cos_beta, cos_alpha = unit[0] @ unit[1], unit[0] @ unit[2], unit[1] @ unit[2]
            a, b, c = lengths
            parts.append(struct.pack("<i6di", 48, a, cos_gamma, b, cos_beta, cos_alpha, c, 48))
        mark = struct.pack("<i", 4 * self.atoms)
        for axis in range(3):
            parts += [mark, frame.positions[:, axis].astype("<f4").tobytes(), mark]
        return b"".join(parts)

    def counters(self, frames: int) -> list[tuple[int, bytes]]:
        """Number of frames and of steps; a number beyond 2³¹ - 1 is written as that (readers count bytes)."""
        last = min(max(frames - 1, 0) * self.interval, MAX_INT32)
        return [(8, struct.pack("<i", min(frames, MAX_INT32))), (20, struct.pack("<i", last))]


class XTCFormat:
    """Positions compressed to 0.01 Å."""

    suffix = "xtc"

    def __init__(self, periodic: bool) -> None:
        self.periodic = periodic

    def header(self) -> bytes:
        """XTC has none."""
        return b""

    def encode(self, frame: Frame) -> bytes:
        """One frame, compressed by mdtraj through a temporary file (it writes nothing but files)."""
        from mdtraj.formats import XTCTrajectoryFile

        box = (frame.cell if self.periodic else np.zeros((3, 3))) / 10
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "frame.xtc"
            with XTCTrajectoryFile(str(path), "w") as file:
                file.write(
                    (frame.positions[None] / 10).astype(np.float32),
                    time=np.array([frame.time / 1000], dtype=np.float32),
                    step=np.array([min(frame.step, MAX_INT32)], dtype=np.int32),
                    box=box[None].astype(np.float32),
                )
            return path.read_bytes()

    def counters(self, frames: int) -> list[tuple[int, bytes]]:
        """Nothing to count."""
        return []


class ExtxyzFormat:
    """Positions, velocities (Å/fs) and forces in full precision, with energy, step and time."""

    suffix = "extxyz"

    def __init__(self, symbols: list[str], pbc: np.ndarray) -> None:
        self.symbols = symbols
        self.pbc = " ".join("T" if p else "F" for p in pbc)
        self.periodic = bool(np.any(pbc))

    def header(self) -> bytes:
        """Extended XYZ has none."""
        return b""

    def encode(self, frame: Frame) -> bytes:
        """One structure as text."""
        lattice = ""
        if self.periodic:
            lattice = 'Lattice="' + " ".join(f"{x:.10f}" for x in frame.cell.ravel()) + '" '
        columns, energy = [frame.positions, frame.velocities], ""
        properties = "Properties=species:S:1:pos:R:3:velocities:R:3"
        if frame.forces is not None:
            columns.append(frame.forces)
            properties += ":forces:R:3"
        if frame.energy is not None:
            energy = f"energy={frame.energy:.10f} "
        lines = [
            str(len(self.symbols)),
            f'{lattice}{properties} {energy}step={frame.step} time_fs={frame.time:.6f} pbc="{self.pbc}"',
        ]
        rows = np.concatenate(columns, axis=1)
        for symbol, row in zip(self.symbols, rows.tolist(), strict=True):
            lines.append(f"{symbol:<2} " + " ".join(f"{x:15.10f}" for x in row))
        return ("\n".join(lines) + "\n").encode()

    def counters(self, frames: int) -> list[tuple[int, bytes]]:
        """Nothing to count."""
        return []


class Trajectory:
    """A trajectory on disk that grows by frames and can be resumed at a recorded length."""

    def __init__(self, path: Path, form: Format, *, keep: int | None = None, frames: int = 0) -> None:
        """New file, or, with ``keep`` bytes and ``frames`` of a checkpoint, the old one cut back to them."""
        self.form = form
        self.frames = frames
        self.file = AppendFile(path, keep=keep)
        if keep is None:
            self.file.append(form.header())
        self._count()

    def _count(self) -> None:
        for offset, data in self.form.counters(self.frames):
            self.file.overwrite(data, offset)

    def write(self, frame: Frame) -> None:
        """Append one frame. Raises OutputError; the file then ends with the frame before."""
        self.file.append(self.form.encode(frame))
        self.frames += 1
        self._count()
