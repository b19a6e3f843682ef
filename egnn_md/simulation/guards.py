"""Watchmen of a run: they look at numbers only and know no engine.

What ends a run: a force or energy that is no number, an atom that is thrown further in a step than a bond is
long, a force beyond any bond's, two atoms closer than any bond, and a temperature that no thermostat would hold.
The error names the atoms, their elements, the step and the last good frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from egnn_md.errors import SimulationError
from egnn_md.simulation.mechanics import acceleration, kinetic_energy, temperature, thermal_speed

MAX_DISPLACEMENT = 1.0  # Å in one step, beyond thermal motion
MAX_VOLUME_FACTOR = 4.0  # a barostat never changes a condensed phase by so much
THERMAL_SIGMAS = 8.0  # how many standard deviations of a velocity component count as thermal motion


@dataclass(frozen=True)
class Instant:
    """What a guard sees: positions, velocities, forces (N, 3) in Å, Å/fs, eV/Å, energy (eV), cell (3, 3).

    Forces and energy may be None: a force that is no number shows in the velocities a step later.
    """

    step: int
    positions: np.ndarray
    velocities: np.ndarray
    forces: np.ndarray | None
    energy: float | None
    cell: np.ndarray


class GuardError(SimulationError):
    """A guard tripped. Attributes: ``step``, ``atom`` (index or None), ``reason``."""

    def __init__(self, reason: str, step: int, atom: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.step = step
        self.atom = atom


def closest_pair(
    positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, within: float
) -> tuple[int, int, float]:
    """The two atoms that are closest, and their distance in Å: (0, 0, inf) if none are nearer than ``within``.

    An atom may be closest to an image of itself.
    """
    lengths = np.where(pbc, np.diag(cell), 0.0)
    if np.array_equal(cell[pbc], np.diag(lengths)[pbc]) and (lengths[pbc] > 2 * within).all():
        return _closest_in_box(positions, lengths, within)
    import torch

    from egnn_md.neighbors import neighbor_list

    points, box = torch.as_tensor(positions), torch.as_tensor(cell)
    edges, shifts = neighbor_list(points, box, torch.as_tensor(pbc), within)
    if edges.shape[1] == 0:
        return 0, 0, math.inf
    apart = torch.linalg.vector_norm(points[edges[0]] - points[edges[1]] + shifts.to(points.dtype) @ box, dim=1)
    place = int(torch.argmin(apart))
    first, second = sorted((int(edges[0, place]), int(edges[1, place])))
    return first, second, float(apart[place])


def _closest_in_box(positions: np.ndarray, lengths: np.ndarray, within: float) -> tuple[int, int, float]:
    """The same for a rectangular box: ``lengths`` (3,) in Å, 0 where nothing repeats. A tree, cheaper than a list."""
    from scipy.spatial import KDTree

    boxes = np.where(lengths > 0, lengths, 1.0)
    inside = np.where(lengths > 0, positions - np.floor(positions / boxes) * boxes, positions)
    inside = np.where((lengths > 0) & (inside >= boxes), 0.0, inside)  # rounding, of a tiny negative number
    pairs = KDTree(inside, boxsize=lengths).query_pairs(within, output_type="ndarray")
    if not len(pairs):
        return 0, 0, math.inf
    vectors = inside[pairs[:, 0]] - inside[pairs[:, 1]]
    apart = np.linalg.norm(vectors - np.round(vectors / boxes) * lengths, axis=1)
    place = int(np.argmin(apart))
    return int(pairs[place, 0]), int(pairs[place, 1]), float(apart[place])


@dataclass
class Guards:
    """Checks of successive instants of one run.

    Attributes:
        symbols: (N) chemical symbols for messages.
        masses: (N,) amu.
        timestep: fs.
        degrees_of_freedom: of the kinetic temperature.
        periodic: whether the cell counts.
        reference_temperature: K; what the run starts at or is held at.
        max_displacement: Å that an atom may move in one step.
        max_temperature: K; None for 5 times the reference (at least 1,000 K above it), with more room for
            systems of few atoms, whose temperature scatters.
        max_force: eV/Å on any atom, looked at wherever forces are known.
        min_distance: Å between any two atoms or images; 0 does not look.
        pbc: (3,) bool, directions in which distances repeat; None for what ``periodic`` says.
    """

    symbols: list[str]
    masses: np.ndarray
    timestep: float
    degrees_of_freedom: int
    periodic: bool
    reference_temperature: float
    max_displacement: float = MAX_DISPLACEMENT
    max_temperature: float | None = None
    max_force: float = math.inf
    min_distance: float = 0.0
    pbc: np.ndarray | None = None
    _last: Instant | None = field(default=None, repr=False)
    _first_volume: float | None = field(default=None, repr=False)

    @property
    def temperature_limit(self) -> float:
        """K above which a run counts as exploded."""
        if self.max_temperature is not None:
            return self.max_temperature
        reference = self.reference_temperature
        return max(5.0 * reference, reference + 1000.0) * (1.0 + 30.0 / max(self.degrees_of_freedom, 1))

    def name(self, atom: int) -> str:
        """``atom 12 (O)``: atoms count from 0, as in every file that Python reads."""
        return f"atom {atom} ({self.symbols[atom]})"

    def check(self, now: Instant) -> None:
        """Remember ``now`` if it is sound. Raises GuardError otherwise."""
        self._check_numbers(now)
        self._check_next_step(now)
        if self._last is not None:
            self._check_displacement(self._last, now)
        self._check_force(now)
        self._check_distance(now)
        self._check_temperature(now)
        self._check_volume(now)
        self._last = now

    def rewind(self, instant: Instant) -> None:
        """Take ``instant`` as the last good one (after going back in time)."""
        self._last = instant

    def _check_numbers(self, now: Instant) -> None:
        for what, values in (
            ("force", now.forces),
            ("position", now.positions),
            ("velocity", now.velocities),
        ):
            if values is None:
                continue
            bad = ~np.isfinite(values).all(axis=1)
            if bad.any():
                atom = int(np.flatnonzero(bad)[0])
                others = int(bad.sum()) - 1
                more = f" (and on {others} other atoms)" if others else ""
                value = ", ".join(f"{x:g}" for x in values[atom])
                raise GuardError(
                    f"the {what} of {self.name(atom)} became ({value}) at step {now.step}{more}",
                    now.step,
                    atom,
                )
        if now.energy is not None and not np.isfinite(now.energy):
            raise GuardError(f"the potential energy became {now.energy} at step {now.step}", now.step)
        if not np.isfinite(now.cell).all():
            raise GuardError(f"the cell became {now.cell.tolist()} at step {now.step}", now.step)

    def _check_next_step(self, now: Instant) -> None:
        move = np.linalg.norm(now.velocities, axis=1) * self.timestep
        force = ""
        if now.forces is not None:
            kick = np.linalg.norm(acceleration(self.masses, now.forces), axis=1) * self.timestep**2
            move = np.maximum(move, kick)
            force = f"; its force is {np.linalg.norm(now.forces[np.argmax(move)]):.3g} eV/Å"
        atom = int(np.argmax(move))
        if move[atom] > self.max_displacement:
            raise GuardError(
                f"{self.name(atom)} is thrown {move[atom]:.2f} Å in one step at step {now.step} "
                f"(limit {self.max_displacement:g} Å{force})",
                now.step,
                atom,
            )

    def _check_displacement(self, last: Instant, now: Instant) -> None:
        steps = now.step - last.step
        if self.periodic:
            # in fractional coordinates, so that a barostat's scaling of the whole cell is no displacement
            change = now.positions @ np.linalg.inv(now.cell) - last.positions @ np.linalg.inv(last.cell)
            moved = np.linalg.norm((change - np.round(change)) @ now.cell, axis=1)
        else:
            moved = np.linalg.norm(now.positions - last.positions, axis=1)
        thermal = thermal_speed(self.masses, self.reference_temperature) * self.timestep * steps
        excess = moved - THERMAL_SIGMAS * thermal
        atom = int(np.argmax(excess))
        if excess[atom] > self.max_displacement:
            span = "in one step" if steps == 1 else f"in {steps} steps"
            raise GuardError(
                f"{self.name(atom)} was thrown {moved[atom]:.2f} Å {span} at step {now.step} "
                f"(limit {self.max_displacement:g} Å beyond thermal motion)",
                now.step,
                atom,
            )

    def _check_force(self, now: Instant) -> None:
        if now.forces is None:
            return
        sizes = np.linalg.norm(now.forces, axis=1)
        atom = int(np.argmax(sizes))
        if sizes[atom] > self.max_force:
            raise GuardError(
                f"the force on {self.name(atom)} is {sizes[atom]:.3g} eV/Å at step {now.step} "
                f"(limit {self.max_force:g} eV/Å)",
                now.step,
                atom,
            )

    def _check_distance(self, now: Instant) -> None:
        if self.min_distance <= 0 or len(now.positions) < 2:
            return
        pbc = np.full(3, self.periodic) if self.pbc is None else self.pbc
        first, second, distance = closest_pair(now.positions, now.cell, pbc, self.min_distance)
        if distance < self.min_distance:
            raise GuardError(
                f"{self.name(first)} and {self.name(second)} are {distance:.3f} Å apart at step {now.step} "
                f"(limit {self.min_distance:g} Å)",
                now.step,
                first,
            )

    def _check_temperature(self, now: Instant) -> None:
        kelvin = temperature(kinetic_energy(self.masses, now.velocities), self.degrees_of_freedom)
        if kelvin > self.temperature_limit:
            fastest = int(np.argmax(self.masses * (now.velocities**2).sum(axis=1)))
            raise GuardError(
                f"the temperature reached {kelvin:.0f} K at step {now.step} (limit "
                f"{self.temperature_limit:.0f} K); {self.name(fastest)} carries the most kinetic energy",
                now.step,
                fastest,
            )

    def _check_volume(self, now: Instant) -> None:
        if not self.periodic:
            return
        volume = abs(float(np.linalg.det(now.cell)))
        if self._first_volume is None:
            self._first_volume = volume
        factor = volume / self._first_volume
        if not 1 / MAX_VOLUME_FACTOR < factor < MAX_VOLUME_FACTOR:
            raise GuardError(
                f"the volume went from {self._first_volume:.0f} to {volume:.0f} Å³ by step {now.step}: "
                "the system boils or collapses",
                now.step,
            )
