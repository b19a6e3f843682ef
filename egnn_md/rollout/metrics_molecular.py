"""Molecular liquids: temperatures, diffusion, pair distributions. Å, fs, amu."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.simulation.mechanics import kinetic_energy, temperature

if TYPE_CHECKING:
    from egnn_md.report.pairs import PairFunction

Array = NDArray[np.float64]
CM2_PER_S_PER_ANGSTROM2_PER_FS = 0.1  # (1e-8 cm)² / 1e-15 s


def element_temperatures(velocities: NDArray, numbers: NDArray, masses: NDArray) -> dict[str, Array]:
    """Symbol → (F,) ``Σ m v² / (3 N k_B)`` in K of the atoms of each element: equal in equilibrium.

    Args:
        velocities: (F, N, 3), Å/fs, the centre of mass at rest.
        numbers: (N,) atomic numbers.
        masses: (N,), amu.
    """
    from ase.data import chemical_symbols

    found = {}
    for number in np.unique(numbers):
        chosen = numbers == number
        found[chemical_symbols[number]] = np.array(
            [
                temperature(kinetic_energy(masses[chosen], frame[chosen]), 3 * int(chosen.sum()))
                if np.isfinite(frame[chosen]).all()
                else np.nan
                for frame in velocities
            ]
        )
    return found


def unwrap(positions: NDArray, cell: NDArray | None) -> Array:
    """(F, N, 3) without the jumps of wrapping: between frames every particle takes the nearest image's way.

    Args:
        positions: (F, N, 3).
        cell: (3, 3) or (F, 3, 3) rows; None leaves the positions as they are.

    Right if no particle travels half the cell between two frames.
    """
    positions = np.asarray(positions, dtype=np.float64)
    if cell is None:
        return positions
    steps = np.diff(positions, axis=0)
    cells = np.broadcast_to(cell, (len(positions), 3, 3))[1:]
    fractional = np.einsum("fnd,fde->fne", steps, np.linalg.inv(cells))
    steps = steps - np.einsum("fnd,fde->fne", np.round(fractional), cells)
    return np.concatenate([positions[:1], positions[0] + np.cumsum(steps, axis=0)])


def mean_squared_displacement(positions: NDArray) -> Array:
    """(F, N): squared displacement of each particle after 0, 1, … frames, averaged over all time origins.

    By fast Fourier transforms (Kneller et al., Comput. Phys. Commun. 91, 191, 1995).
    """
    frames = len(positions)
    square = (positions**2).sum(axis=2)
    square = np.concatenate([square, np.zeros((1, positions.shape[1]))])
    padded = np.fft.rfft(positions, 2 * frames, axis=0)
    correlation = np.fft.irfft(np.abs(padded) ** 2, 2 * frames, axis=0)[:frames].sum(axis=2)
    origins = np.arange(frames, 0, -1)[:, None]
    total = 2 * square.sum(axis=0)
    sums = np.empty((frames, positions.shape[1]))
    for lag in range(frames):
        if lag:
            total = total - square[lag - 1] - square[frames - lag]
        sums[lag] = total
    return np.maximum((sums - 2 * correlation) / origins, 0.0)


@dataclass(frozen=True)
class Diffusion:
    """Einstein's coefficient and its standard error, length²/time; the lags (first, last) of the fit, time."""

    value: float
    error: float
    lags: tuple[float, float]

    @property
    def cm2_per_s(self) -> float:
        """The same in cm²/s, if lengths are Å and times fs."""
        return self.value * CM2_PER_S_PER_ANGSTROM2_PER_FS


def diffusion(
    positions: NDArray,
    interval: float,
    *,
    masses: NDArray | None = None,
    fit: tuple[float, float] = (0.1, 0.4),
    groups: int = 10,
    chosen: NDArray | None = None,
) -> Diffusion | None:
    """``D = slope of <|x(t) - x(0)|²> / 6`` by least squares; None if there are too few frames.

    The centre of mass is held still. The error is the standard error over ``groups`` groups of particles: it
    knows nothing of errors that all particles share (a short run, a small cell).

    Args:
        positions: (F, N, 3), not wrapped (:func:`unwrap`).
        interval: time between frames.
        masses: (N,) of the centre of mass; equal if None.
        fit: first and last lag as shares of the run: late enough to be past the ballistic motion.
        groups: of particles, by their order modulo ``groups``.
        chosen: (N,) bool, the particles that are averaged over; the centre of mass is that of all. None for all.

    Raises:
        InputError: positions that are not finite.
    """
    if not np.isfinite(positions).all():
        raise InputError("the positions are not finite; give the frames before the rollout failed")
    frames, particles = positions.shape[:2]
    first, last = int(np.ceil(fit[0] * (frames - 1))), int(fit[1] * (frames - 1))
    first = max(first, 1)
    if last - first < 2 or particles < 2:
        return None
    weights = np.ones(particles) if masses is None else masses
    centre = np.einsum("n,fnd->fd", weights / weights.sum(), positions)
    moving = positions - centre[:, None]
    displacement = mean_squared_displacement(moving if chosen is None else moving[:, chosen])
    groups = min(groups, displacement.shape[1])
    slopes = []
    lags = np.arange(first, last + 1) * interval
    for group in range(groups):
        mean = displacement[first : last + 1, group::groups].mean(axis=1)
        slopes.append(np.polyfit(lags, mean, 1)[0] / 6.0)
    value = float(np.polyfit(lags, displacement[first : last + 1].mean(axis=1), 1)[0] / 6.0)
    error = float(np.std(slopes, ddof=1) / np.sqrt(groups)) if groups > 1 else float("nan")
    return Diffusion(value, error, (float(lags[0]), float(lags[-1])))


def pair_distributions(
    positions: NDArray, numbers: NDArray, cell: NDArray | None, bonds: NDArray | None = None
) -> list[PairFunction]:
    """g(r) of every pair of the commonest elements, as the report of a run has it.

    Args:
        positions: (F, N, 3), Å.
        numbers: (N,) atomic numbers.
        cell: (3, 3) or (F, 3, 3) rows, or None.
        bonds: (M, 2), to tell molecules apart; by distance in the first frame if None.
    """
    from egnn_md.report.pairs import pair_functions_of
    from egnn_md.simulation.molecules import Molecules, infer_bonds

    positions = np.asarray(positions, dtype=np.float64)
    positions = positions[np.isfinite(positions).all(axis=(1, 2))]
    if len(positions) == 0:
        return []
    cells = None if cell is None else np.broadcast_to(cell, (len(positions), 3, 3)).astype(np.float64)
    if bonds is None:
        box = np.zeros((3, 3)) if cells is None else cells[0]
        bonds = infer_bonds(numbers, positions[0], box, np.full(3, cells is not None))
    molecules = Molecules.from_bonds(bonds, positions[0], None if cells is None else cells[0])
    return pair_functions_of(positions, cells, numbers, molecules.labels)


def pair_difference(found: Sequence[PairFunction], reference: Sequence[PairFunction]) -> dict[str, float]:
    """Name → mean of ``|g - g_ref|`` over distances beyond the atoms of one molecule."""
    known = {pair.name: pair for pair in reference}
    difference = {}
    for pair in found:
        other = known.get(pair.name)
        if other is None:
            continue
        bins = min(len(pair.r), len(other.r))
        outside = pair.r[:bins] > other.bonded
        if outside.any():
            difference[pair.name] = float(np.abs(pair.g[:bins] - other.g[:bins])[outside].mean())
    return difference
