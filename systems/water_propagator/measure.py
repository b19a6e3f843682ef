"""What a trajectory of liquid water shows: structure, temperatures, diffusion, drifts, and when it broke.

The same measures are taken of the potential's own dynamics and of every rollout. Å, fs, K, eV.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from egnn_md.report.pairs import PairFunction
from egnn_md.report.statistics import Estimate, drift
from egnn_md.rollout.metrics_molecular import (
    Diffusion,
    diffusion,
    element_temperatures,
    mean_squared_displacement,
    pair_distributions,
)
from egnn_md.simulation.mechanics import kinetic_energy, temperature

Array = NDArray[Any]

OH_LIMITS = (0.7, 1.35)  # Å; the potential's own dynamics at 300 K stays within 0.87 and 1.14
TEMPERATURE_LIMITS = (0.5, 2.0)  # of the temperature of the start
ENERGY_INTERVAL = 20.0  # fs between frames whose potential energy is evaluated
DIFFUSION_LEAST = 10_000.0  # fs; shorter runs give a slope that is not yet the self-diffusion coefficient


@dataclass(frozen=True)
class Run:
    """Frames of one box.

    Attributes:
        positions: (F, N, 3) unwrapped.
        velocities: (F, N, 3), of the same times.
        interval: fs between frames.
        species: (N,) atomic numbers.
        cell: (3, 3) rows.
        bonds: (M, 2) pairs of O and H that are one molecule at the start.
        failure: why it ended early, or None.
    """

    positions: Array
    velocities: Array
    interval: float
    species: Array
    cell: Array
    bonds: Array
    failure: str | None = None

    @property
    def steps(self) -> int:
        """Good strides."""
        return len(self.positions) - 1

    @property
    def masses(self) -> Array:
        """(N,) amu."""
        from ase.data import atomic_masses

        return np.asarray(atomic_masses[self.species])

    @property
    def times(self) -> Array:
        """(F,) fs since the start."""
        return np.arange(len(self.positions)) * self.interval


def bonds_of(positions: Array, species: Array, cell: Array) -> Array:
    """(M, 2) bonds of a frame (N, 3), by distance."""
    from egnn_md.simulation.molecules import infer_bonds

    return np.asarray(infer_bonds(species, positions, cell, np.ones(3, dtype=bool)))


def bond_lengths(run: Run) -> Array:
    """(F, M) lengths by the nearest image."""
    difference = run.positions[:, run.bonds[:, 0]] - run.positions[:, run.bonds[:, 1]]
    difference = difference - np.round(difference @ np.linalg.inv(run.cell)) @ run.cell
    return np.asarray(np.linalg.norm(difference, axis=2))


def cut_where_broken(run: Run) -> Run:
    """The run up to the last frame that is still water.

    It ends before the first frame where an O-H bond is outside ``OH_LIMITS`` or the kinetic temperature is outside
    ``TEMPERATURE_LIMITS`` times that of the start.
    """
    lengths = bond_lengths(run)
    kinetic = np.array([kinetic_energy(run.masses, v) for v in run.velocities])
    kelvin = np.array([temperature(k, 3 * len(run.species) - 3) for k in kinetic])
    low, high = (limit * kelvin[0] for limit in TEMPERATURE_LIMITS)
    with np.errstate(invalid="ignore"):
        torn = np.any(~((lengths > OH_LIMITS[0]) & (lengths < OH_LIMITS[1])), axis=1)
        wild = ~((kelvin > low) & (kelvin < high))
    bad = np.flatnonzero(torn | wild)
    if len(bad) == 0:
        return run
    first = int(bad[0])
    if torn[first]:
        worst = float(lengths[first][np.abs(lengths[first] - 1.0).argmax()])
        reason = f"an O-H bond became {worst:.2f} Å"
    else:
        reason = f"the temperature went from {kelvin[0]:.0f} to {kelvin[first]:.0f} K"
    keep = max(first, 1)
    return replace(run, positions=run.positions[:keep], velocities=run.velocities[:keep], failure=reason)


def potential_energies(model: Any, positions: Array, species: Array, cell: Array) -> Array:
    """(F,) potential energies in eV of frames (F, N, 3) by a trained potential."""
    from egnn_md.graph import ParticleGraph
    from egnn_md.models import evaluate
    from egnn_md.neighbors import VerletList

    dtype = next(model.parameters()).dtype
    box, flags = torch.as_tensor(cell).to(dtype), torch.ones(3, dtype=torch.bool)
    numbers = torch.as_tensor(species)
    neighbors = VerletList(model.cutoff, 0.5)
    energies = []
    for frame in positions:
        coordinates = torch.as_tensor(frame).to(dtype)
        edge_index, shifts = neighbors.update(coordinates, box, flags)
        graph = ParticleGraph(
            positions=coordinates,
            species=numbers,
            edge_index=edge_index,
            cell_shifts=shifts,
            cell=box.unsqueeze(0),
            pbc=flags.unsqueeze(0),
            batch=torch.zeros_like(numbers),
        )
        energies.append(float(evaluate(model, graph, forces=False)["energy"][0]))
    return np.array(energies)


def total_energies(model: Any, run: Run) -> tuple[Array, Array]:
    """Times in ps and total energies in meV an atom, every ``ENERGY_INTERVAL``."""
    every = max(round(ENERGY_INTERVAL / run.interval), 1)
    positions, velocities = run.positions[::every], run.velocities[::every]
    kinetic = np.array([kinetic_energy(run.masses, v) for v in velocities])
    total = potential_energies(model, positions, run.species, run.cell) + kinetic
    return run.times[::every] / 1000, 1000 * total / len(run.species)


def mean_of(values: Sequence[float]) -> Estimate | None:
    """Mean over independent runs and its standard error (NaN for one run)."""
    found = np.array([v for v in values if np.isfinite(v)])
    if len(found) == 0:
        return None
    spread = float(found.std(ddof=1)) if len(found) > 1 else 0.0
    error = spread / np.sqrt(len(found)) if len(found) > 1 else float("nan")
    return Estimate(float(found.mean()), float(error), spread)


@dataclass(frozen=True)
class Measures:
    """Everything about one way to make dynamics, over its runs.

    Attributes:
        name: of the method.
        runs: as they were cut.
        pairs: g(r).
        temperatures: symbol to (times ps, K averaged over the runs that are alive).
        mean_temperatures: symbol to mean over runs of the mean over time, K.
        energy: (times ps, meV an atom against the start) of every run.
        drift: meV/atom/ps.
        displacement: (times ps, mean squared displacement of oxygen Å², centre of mass at rest).
        diffusion: 1e-5 cm²/s: mean over runs and its standard error.
        centre_speed: speed of the centre of mass at the end over the rms speed of an oxygen at its start.
        bond: mean and standard deviation of the O-H length, Å.
    """

    name: str
    runs: tuple[Run, ...]
    pairs: tuple[PairFunction, ...]
    temperatures: dict[str, tuple[Array, Array]]
    mean_temperatures: dict[str, Estimate | None]
    energy: tuple[tuple[Array, Array], ...]
    drift: Estimate | None
    displacement: tuple[Array, Array] | None
    diffusion: Estimate | None
    centre_speed: float
    bond: tuple[float, float]

    @property
    def steps(self) -> list[int]:
        """Good strides of every run."""
        return [run.steps for run in self.runs]

    @property
    def failed(self) -> int:
        """How many runs broke."""
        return sum(run.failure is not None for run in self.runs)


def measure(name: str, runs: Sequence[Run], potential: Any) -> Measures:
    """Take every measure of the runs of one method.

    Args:
        name: of the method.
        runs: boxes of the same size, cut where they broke.
        potential: whose energy is watched.
    """
    positions = np.concatenate([run.positions for run in runs])
    first = runs[0]
    by_element = [element_temperatures(run.velocities, run.species, run.masses) for run in runs]
    longest = max(len(run.positions) for run in runs)
    curves = {}
    for symbol in by_element[0]:
        padded = np.full((len(runs), longest), np.nan)
        for row, found in zip(padded, by_element, strict=True):
            row[: len(found[symbol])] = found[symbol]
        curves[symbol] = (np.arange(longest) * first.interval / 1000, np.nanmean(padded, axis=0))
    energies = [total_energies(potential, run) for run in runs]
    slopes = [drift(times, values) for times, values in energies]
    einstein = [_diffusion(run) for run in runs]
    lengths = np.concatenate([bond_lengths(run).ravel() for run in runs])
    speeds = [np.linalg.norm(run.masses @ run.velocities[-1]) / run.masses.sum() for run in runs]
    thermal = np.sqrt((first.velocities[0][first.species == 8] ** 2).sum(axis=1).mean())
    return Measures(
        name=name,
        runs=tuple(runs),
        pairs=tuple(pair_distributions(positions, first.species, first.cell, first.bonds)),
        temperatures=curves,
        mean_temperatures={
            symbol: mean_of([float(found[symbol].mean()) for found in by_element]) for symbol in by_element[0]
        },
        energy=tuple((times, values - values[0]) for times, values in energies),
        drift=mean_of([slope.slope for slope in slopes if slope is not None]),
        displacement=_displacement(runs),
        diffusion=mean_of([found.cm2_per_s * 1e5 for found in einstein if found is not None]),
        centre_speed=float(np.mean(speeds) / thermal),
        bond=(float(lengths.mean()), float(lengths.std())),
    )


def _oxygens(run: Run) -> Array:
    """(F, O, 3) oxygens with the centre of mass of all atoms at rest."""
    weights = run.masses / run.masses.sum()
    centre = np.einsum("n,fnd->fd", weights, np.asarray(run.positions, dtype=np.float64))
    return np.asarray(run.positions[:, run.species == 8] - centre[:, None])


def _diffusion(run: Run) -> Diffusion | None:
    return diffusion(_oxygens(run), run.interval, fit=(0.2, 0.5)) if len(run.positions) > 20 else None


def _displacement(runs: Sequence[Run]) -> tuple[Array, Array] | None:
    """Mean squared displacement of oxygen up to half of the shortest run."""
    shortest = min(len(run.positions) for run in runs)
    if shortest < 4:
        return None
    curves = [mean_squared_displacement(_oxygens(run))[: shortest // 2].mean(axis=1) for run in runs]
    return np.arange(shortest // 2) * runs[0].interval / 1000, np.mean(curves, axis=0)
