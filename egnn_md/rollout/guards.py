"""Watchmen of a rollout. They know no engine: they compare the state before a stride with the one after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError, SimulationError

if TYPE_CHECKING:
    from egnn_md.models.propagator import PropagatorConfig
    from egnn_md.rollout.state import State

Array = NDArray[Any]
CROWDING = 10.0  # times the neighbours of the start: no liquid is compressed like that
FEW = 100.0  # neighbours a particle that are never too many: drops of a thin start may merge


@dataclass(frozen=True)
class Failure:
    """Why a rollout ended early.

    Attributes:
        step: stride whose result was refused, counted from the start.
        particle: index, or None where no single one is to blame.
        reason: a sentence with values and limits.
        last_good_step: the state that is kept belongs to this step.
        name: of the start.
    """

    step: int
    particle: int | None
    reason: str
    last_good_step: int
    name: str = ""

    def __str__(self) -> str:
        where = f"{self.name}: " if self.name else ""
        return f"{where}{self.reason} at step {self.step}; last good frame: step {self.last_good_step}"


class RolloutError(SimulationError):
    """A guard stopped a rollout; what was computed before is kept. Attribute: ``failure``."""

    def __init__(self, failure: Failure, message: str | None = None) -> None:
        super().__init__(message or str(failure))
        self.failure = failure


@dataclass(frozen=True)
class Guards:
    """Limits in the model's units; None takes the rule beside it.

    Attributes:
        max_displacement: of a particle in one stride. Rule: the cutoff; where all pairs interact, or walls or
            gravity make wide strides normal, the diagonal of the walls or of the start's bounding box.
        min_distance: between two particles. Rule: not looked at.
        wall_tolerance: how far outside the model's walls a particle may be. Rule: the reach of a wall.
        max_crowding: mean number of neighbours a particle, in those of the start: a liquid that collapses has ever
            more of them, until the memory is full. Rule: 10; up to 100 neighbours are always allowed.
    """

    max_displacement: float | None = None
    min_distance: float | None = None
    wall_tolerance: float | None = None
    max_crowding: float | None = None

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value is not None and not value > 0:
                raise InputError(f"{name} must be positive, not {value}")

    def limits(self, config: PropagatorConfig, start: State) -> Limits:
        """The numbers for a rollout from ``start``."""
        displacement = self.max_displacement
        if displacement is None:
            if config.cutoff is not None and config.walls is None and config.gravity is None:
                displacement = config.cutoff
            else:
                box = start.positions if config.walls is None else np.array(config.walls).T
                extent = float(np.linalg.norm(box.max(0) - box.min(0)))
                # a lone particle, or one that falls out of a flat start, is thrown nowhere by going on
                ballistic = 10 * float(np.linalg.norm(start.velocities, axis=1).max()) * config.stride
                displacement = max(extent, ballistic, config.cutoff or 0.0) or np.inf
        tolerance = self.wall_tolerance
        if tolerance is None and config.walls is not None:
            tolerance = config.wall_range or config.cutoff
        walls = None if config.walls is None else np.array(config.walls)
        return Limits(displacement, self.min_distance, walls, tolerance, self.max_crowding or CROWDING)


@dataclass(frozen=True)
class Limits:
    """What :class:`Guards` allow one system. ``walls`` is (3, 2) or None."""

    displacement: float
    distance: float | None
    walls: Array | None
    tolerance: float | None
    crowding: float = CROWDING

    def check(self, before: State, positions: Array, velocities: Array) -> tuple[int | None, str] | None:
        """(particle, reason) of the first thing that is wrong with the state after ``before``, or None.

        The reason names particles by index and type; positions and velocities are (N, 3) float64.
        """
        found = not_finite(before, positions, velocities)
        if found is not None:
            return found
        moved = np.linalg.norm(positions - before.positions, axis=1)
        particle = int(np.argmax(moved))
        if moved[particle] > self.displacement:
            return particle, (
                f"{named(before, particle)} was thrown {moved[particle]:.4g} in one stride "
                f"(limit {self.displacement:.4g})"
            )
        if self.walls is not None and self.tolerance is not None:
            outside = np.maximum(self.walls[:, 0] - positions, positions - self.walls[:, 1])
            particle, axis = divmod(int(np.argmax(outside)), 3)
            if outside[particle, axis] > self.tolerance:
                return particle, (
                    f"{named(before, particle)} is {outside[particle, axis]:.4g} outside the walls along "
                    f"{'xyz'[axis]} (limit {self.tolerance:.4g})"
                )
        if self.distance is not None:
            return self._too_near(before, positions, self.distance)
        return None

    def crowded(self, state: State, receivers: Array, first: int) -> tuple[int, str] | None:
        """(particle with the most neighbours, reason) if ``state`` has far more edges than ``first`` of the start.

        ``receivers`` is row 0 of its edge index.
        """
        now, then = len(receivers) / len(state), first / len(state)
        if now <= max(self.crowding * then, FEW):
            return None
        counts = np.bincount(receivers, minlength=len(state))
        particle = int(np.argmax(counts))
        return particle, (
            f"the system has collapsed: {now:.4g} neighbours a particle, {then:.4g} at the start (limit "
            f"{self.crowding:g} times); {named(state, particle)} has {counts[particle]}"
        )

    @staticmethod
    def _too_near(before: State, positions: Array, limit: float) -> tuple[int, str] | None:
        import torch

        from egnn_md.neighbors import neighbor_list

        cell = np.zeros((3, 3)) if before.cell is None else before.cell
        edges, shifts = neighbor_list(positions, torch.as_tensor(cell), torch.tensor(before.pbc), limit)
        if edges.shape[1] == 0:
            return None
        first, second = edges.numpy()
        distance = np.linalg.norm(positions[first] - positions[second] + shifts.double().numpy() @ cell, axis=1)
        near = int(np.argmin(distance))
        particle, other = int(first[near]), int(second[near])
        return particle, (
            f"{named(before, particle)} and particle {other} came within {distance[near]:.4g} of each other "
            f"(limit {limit:.4g})"
        )


def not_finite(before: State, positions: Array, velocities: Array) -> tuple[int, str] | None:
    """(particle, reason) of the first particle whose new state is no number: no rollout goes on from there."""
    for what, values in (("position", positions), ("velocity", velocities)):
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            particle, others = int(np.flatnonzero(bad)[0]), int(bad.sum()) - 1
            value = ", ".join(f"{x:g}" for x in values[particle])
            more = f" (and those of {others} other particles)" if others else ""
            return particle, f"the {what} of {named(before, particle)} became ({value}){more}"
    return None


def named(state: State, particle: int) -> str:
    """``particle 12 (type 8)``; particles count from 0."""
    return f"particle {particle} (type {state.species[particle]})"
