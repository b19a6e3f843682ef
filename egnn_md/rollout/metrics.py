"""What a rollout is worth: errors, conservation, walls, failure. Plain numpy, no model.

Every function takes the frames of one rollout: positions and velocities are (F, N, 3), frame 0 is the start.
Positions of a periodic system run on without being wrapped, in the rollout as in its reference.

| symbol | meaning | function |
| --- | --- | --- |
| ``MSE(k) = Σ (x_k - y_k)² / (3N)`` | mean over particles and components, torch's ``MSELoss`` | ``squared_error`` |
| ``MAE(k) = Σ abs(x_k - y_k) / (3N)`` | the same of the absolute values | ``absolute_error`` |
| ``K = ½ Σ m v²`` | kinetic energy | ``kinetic_energy`` |
| ``u = Σ m v / Σ m`` | momentum over the mass: velocity of the centre of mass | ``mean_velocity`` |
| ``c = Σ m x / Σ m`` | centre of mass | ``centre_of_mass`` |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

Array = NDArray[np.float64]
ROUNDING = 1e-9  # of sums of squares of doubles
WALL_ROUNDING = 1e-6  # of the largest coordinate of a box
JUMP_FACTOR = 5.0  # a particle that goes this many times farther in a stride than any of the reference jumped


def check_frames(predicted: NDArray, reference: NDArray) -> None:
    """Refuse frames that cannot be compared.

    Raises:
        InputError: names both shapes.
    """
    if predicted.shape != reference.shape or predicted.ndim != 3 or predicted.shape[2] != 3:
        raise InputError(
            f"the rollout is {predicted.shape}, the reference {reference.shape}; both must be the same "
            "(frames, particles, 3)"
        )


def squared_error(predicted: NDArray, reference: NDArray, moving: NDArray | None = None) -> Array:
    """(F,) mean squared error of each frame over particles and components, length².

    Args:
        predicted: (F, N, 3).
        reference: (F, N, 3).
        moving: (N,) bool, particles that count; all if None.
    """
    check_frames(predicted, reference)
    difference = np.asarray(predicted - reference, dtype=np.float64)
    if moving is not None:
        difference = difference[:, moving]
    return (difference**2).mean(axis=(1, 2))


def absolute_error(predicted: NDArray, reference: NDArray, moving: NDArray | None = None) -> Array:
    """(F,) mean absolute error of each frame over particles and components, length."""
    check_frames(predicted, reference)
    difference = np.asarray(predicted - reference, dtype=np.float64)
    if moving is not None:
        difference = difference[:, moving]
    return np.abs(difference).mean(axis=(1, 2))


def stay_still(positions: NDArray, frames: int) -> Array:
    """(frames, N, 3): the start (N, 3), again and again."""
    return np.repeat(np.asarray(positions, dtype=np.float64)[None], frames, axis=0)


def straight_on(positions: NDArray, velocities: NDArray, stride: float, frames: int) -> Array:
    """(frames, N, 3): ``x_0 + v_0 · k · stride``.

    Args:
        positions: (N, 3).
        velocities: (N, 3), zero for particles that never move.
        stride: time of a stride.
        frames: the start included.
    """
    times = stride * np.arange(frames)
    return np.asarray(positions, dtype=np.float64) + times[:, None, None] * np.asarray(velocities, dtype=np.float64)


def kinetic_energy(velocities: NDArray, masses: NDArray) -> Array:
    """(F,) ``½ Σ m v²``, in mass · length²/time² of the data (see :mod:`egnn_md.simulation.mechanics` for eV)."""
    return 0.5 * np.einsum("n,fnd,fnd->f", masses, velocities, velocities)


def mean_velocity(velocities: NDArray, masses: NDArray) -> Array:
    """(F, 3) momentum over the total mass."""
    return np.einsum("n,fnd->fd", masses, velocities) / masses.sum()


def centre_of_mass(positions: NDArray, masses: NDArray) -> Array:
    """(F, 3) centre of mass of positions that were not wrapped."""
    return np.einsum("n,fnd->fd", masses, positions) / masses.sum()


def drift(vectors: NDArray) -> Array:
    """(F,) distance of vectors (F, 3) from the first one."""
    return np.linalg.norm(vectors - vectors[:1], axis=1)


@dataclass(frozen=True)
class Outside:
    """Particles outside a box: how many in each frame (F,), and how far the worst one is (F,), length."""

    count: NDArray[np.int64]
    worst: Array


def outside_walls(positions: NDArray, walls: Sequence[Sequence[float]], moving: NDArray | None = None) -> Outside:
    """Particles whose centre is outside ``walls``; one that is not finite counts, and is infinitely far.

    A model that stops particles at its walls puts them there in single precision: one that is outside by less than
    ``WALL_ROUNDING`` of the box is on the wall.

    Args:
        positions: (F, N, 3).
        walls: three ``[low, high]`` pairs.
        moving: (N,) bool, particles that are looked at; all if None.
    """
    box = np.asarray(walls, dtype=np.float64)
    if box.shape != (3, 2) or np.any(box[:, 1] <= box[:, 0]):
        raise InputError(f"walls must be three [low, high] pairs with low below high, not {box.tolist()}")
    seen = positions if moving is None else positions[:, moving]
    beyond = np.maximum(box[:, 0] - seen, seen - box[:, 1]).max(axis=2)
    beyond = np.where(np.isfinite(beyond), beyond, np.inf)
    beyond = np.where(beyond <= WALL_ROUNDING * np.abs(box).max(), 0.0, beyond)
    if beyond.shape[1] == 0:
        return Outside(np.zeros(len(seen), dtype=np.int64), np.zeros(len(seen)))
    return Outside((beyond > 0).sum(axis=1), np.maximum(beyond.max(axis=1), 0.0))


@dataclass(frozen=True)
class Failures:
    """First stride (from 1) at which a rollout failed, by four standards; None where it did not.

    Attributes:
        not_finite: a position that is not finite, or a rollout that was stopped there by its guards.
        jump: a particle went farther in one stride than ``JUMP_FACTOR`` times the largest displacement in a
            stride of any particle in the whole reference.
        worse_than_still: the MSE is larger than that of staying at the start.
        worse_than_linear: the MSE is larger than that of going straight on; None if that was not given.
        strides: how many were looked at.
    """

    not_finite: int | None
    jump: int | None
    worse_than_still: int | None
    strides: int
    worse_than_linear: int | None = None

    @property
    def broken(self) -> int | None:
        """The first stride that cannot be used: not finite, or a jump."""
        found = [stride for stride in (self.not_finite, self.jump) if stride is not None]
        return min(found) if found else None


def _first(flags: NDArray) -> int | None:
    """1 + index of the first True; None without one."""
    return int(np.argmax(flags)) + 1 if flags.any() else None


def largest_step(positions: NDArray) -> float:
    """Largest displacement of any particle between successive frames (F, N, 3), length."""
    if len(positions) < 2:
        return 0.0
    return float(np.sqrt(max(float((np.diff(pair, axis=0) ** 2).sum(-1).max()) for pair in _pairs_of(positions))))


def _pairs_of(positions: NDArray) -> list[NDArray]:
    return [positions[index : index + 2] for index in range(len(positions) - 1)]


def find_failure(
    predicted: NDArray, reference: NDArray, moving: NDArray | None = None, linear: NDArray | None = None
) -> Failures:
    """When a rollout failed.

    Args:
        predicted: (F, N, 3); frames after a stop are NaN.
        reference: (F, N, 3).
        moving: (N,) bool, particles that are looked at; all if None.
        linear: (F,) MSE of going straight on, or None.
    """
    check_frames(predicted, reference)
    if moving is not None:
        predicted, reference = predicted[:, moving], reference[:, moving]
    finite = np.isfinite(predicted).all(axis=(1, 2))[1:]
    limit = JUMP_FACTOR * largest_step(reference)
    with np.errstate(invalid="ignore", over="ignore"):
        steps = np.array([np.linalg.norm(b - a, axis=1).max(initial=0.0) for a, b in _pairs_of(predicted)])
        error = squared_error(predicted, reference)[1:]
        still = squared_error(stay_still(reference[0], len(reference)), reference)[1:]
        # also where the error is no number; a baseline is not worse than itself by the order of a sum
        worse = ~(error <= still * (1 + ROUNDING))
        bent = None if linear is None else ~(error <= linear[1:] * (1 + ROUNDING))
    return Failures(
        not_finite=_first(~finite),
        jump=_first(finite & (steps > limit)) if limit > 0 else None,
        worse_than_still=_first(worse),
        strides=len(predicted) - 1,
        worse_than_linear=None if bent is None else _first(bent),
    )
