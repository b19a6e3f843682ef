"""What travels between the one that drives an engine and the ranks: one vector a step, rarely more.

A step is a single float64 vector, ``HEADER`` numbers and the positions (and velocities) of all particles; so the cell
always travels with the positions. Everything else (a model, a system, a list to be made again) is a dictionary of
tensors and plain values, announced by a header alone and read without running anything that it may hold.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

HEADER = 24
STEP, MESSAGE, STOP = 1, 2, 3
_FORCES, _STRESS, _REMAKE, _VELOCITIES = 1, 2, 4, 8
REPORT = 8  # numbers a rank tells about a step


@dataclass
class Step:
    """One evaluation.

    Attributes:
        positions: (N, 3) float64, of all particles, continuous.
        cell: (3, 3) float64 rows; zeros in open directions.
        offset: (3,) float64; taken off positions at home before they are rounded.
        velocities: (N, 3) float64 for a propagator, None for a potential.
        forces, stress: what is wanted of a potential.
        remake: neighbour lists are made at these positions first, for the cutoff plus ``skin``.
        skin: length.
    """

    positions: Tensor
    cell: Tensor
    offset: Tensor
    velocities: Tensor | None = None
    forces: bool = True
    stress: bool = False
    remake: bool = False
    skin: float = 0.0

    def pack(self) -> Tensor:
        """(HEADER + 3 N or 6 N,) float64."""
        header = torch.zeros(HEADER, dtype=torch.float64)
        header[0] = STEP
        header[1] = (
            _FORCES * self.forces
            + _STRESS * self.stress
            + _REMAKE * self.remake
            + _VELOCITIES * (self.velocities is not None)
        )
        header[2] = self.skin
        header[3:6] = self.offset
        header[6:15] = self.cell.reshape(-1)
        data = [header, self.positions.reshape(-1)]
        if self.velocities is not None:
            data.append(self.velocities.reshape(-1))
        return torch.cat(data)

    @staticmethod
    def unpack(frame: Tensor) -> Step:
        """The inverse of :meth:`pack`; arrays are views."""
        flags = int(frame[1])
        data = frame[HEADER:].reshape(2 if flags & _VELOCITIES else 1, -1, 3)
        return Step(
            positions=data[0],
            cell=frame[6:15].reshape(3, 3),
            offset=frame[3:6],
            velocities=data[1] if flags & _VELOCITIES else None,
            forces=bool(flags & _FORCES),
            stress=bool(flags & _STRESS),
            remake=bool(flags & _REMAKE),
            skin=float(frame[2]),
        )


def header_of(operation: int, size: int = 0) -> Tensor:
    """(HEADER,) announcing a message of so many bytes, or the end."""
    header = torch.zeros(HEADER, dtype=torch.float64)
    header[0], header[1] = operation, size
    return header


def to_bytes(message: dict[str, Any]) -> Tensor:
    """(n,) uint8."""
    buffer = io.BytesIO()
    torch.save(message, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def from_bytes(values: Tensor) -> dict[str, Any]:
    """The inverse of :func:`to_bytes`; tensors and plain values only."""
    message: dict[str, Any] = torch.load(io.BytesIO(values.numpy().tobytes()), weights_only=True, map_location="cpu")
    return message


@dataclass
class Answer:
    """What comes back from a step.

    Attributes:
        rows: (N, k) float64 in the order of the system: forces and energy (k = 5), or positions and velocities a
            stride later (k = 7); the last column is the number of edges received.
        totals: energy (1,) and stress (3, 3), or virtual positions (G, 3, C).
        reports: (P, REPORT) what each rank says; see :class:`Report`.
    """

    rows: Tensor
    totals: dict[str, Tensor]
    reports: Tensor


@dataclass(frozen=True)
class Report:
    """One rank's part of a step, as the last one was.

    Attributes:
        particles, halo, edges: of its part.
        pairs: of its neighbour list, skin included.
        seconds: of its own work, waiting for others left out.
        nearest, receiver, sender: its nearest pair, a length and two numbers.
    """

    particles: int
    halo: int
    edges: int
    pairs: int
    seconds: float
    nearest: float
    receiver: int
    sender: int

    def pack(self) -> Tensor:
        """(REPORT,) float64."""
        return torch.tensor([float(value) for value in vars(self).values()], dtype=torch.float64)

    @staticmethod
    def unpack(values: Tensor) -> Report:
        """The inverse of :meth:`pack`."""
        particles, halo, edges, pairs, seconds, nearest, receiver, sender = values.tolist()
        return Report(
            int(particles), int(halo), int(edges), int(pairs), seconds, nearest, int(receiver), int(sender)
        )
