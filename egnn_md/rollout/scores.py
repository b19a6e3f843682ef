"""A rollout beside its reference: every metric of one start, and their means over the starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.rollout import metrics, metrics_molecular, metrics_protein
from egnn_md.rollout.density import grid_density_error, local_density, sample, sinkhorn_divergence
from egnn_md.simulation.mechanics import EV_PER_AMU_ANGSTROM2_PER_FS2

if TYPE_CHECKING:
    from egnn_md.report.pairs import PairFunction

Array = NDArray[np.float64]
PAIR_FRAMES = 400  # frames of all starts together that go into pair distributions
PAIR_START = 0.2  # share of a rollout that is left out of them
FEWEST_FOR_DIFFUSION = 20  # strides


@dataclass(frozen=True)
class World:
    """What holds for every start.

    Attributes:
        kind: ``protein``, ``molecular`` (periodic, of elements), ``liquid`` or ``particles``.
        angstrom: Å in the unit of length; 1 without units.
        femtosecond: fs in the unit of time; 1 without units.
        stride: time of a stride.
        walls: three [low, high] pairs or None.
        radius: of interaction: neighbours that local densities count, and width of the grid's boxes.
        bonds: (M, 2) of a protein.
        elements: True if particle types are atomic numbers.
        up: axis of the height, against gravity.
    """

    kind: str
    angstrom: float
    femtosecond: float
    stride: float
    walls: Sequence[Sequence[float]] | None = None
    radius: float | None = None
    bonds: NDArray[np.int64] | None = None
    elements: bool = False
    up: int = 1

    @property
    def energy(self) -> float:
        """eV in amu length²/time² of elements; 1 for other particles."""
        return EV_PER_AMU_ANGSTROM2_PER_FS2 * (self.angstrom / self.femtosecond) ** 2 if self.elements else 1.0


@dataclass(frozen=True)
class Case:
    """One start and what really followed.

    Attributes:
        number: of the start, from 0.
        trajectory: index in the part.
        frame: where it starts.
        positions: (F, N, 3) of the start and the reference after each stride, not wrapped.
        velocities: (F, N, 3) as the model's configuration defines them.
        species: (N,).
        masses: (N,).
        moving: (N,) bool.
        cell: (3, 3) rows or None.
        linear: (F,) MSE of going straight on from here, or None.
        sinkhorn: whether clouds are compared, which costs time.
    """

    number: int
    trajectory: int
    frame: int
    positions: Array
    velocities: Array
    species: NDArray[np.int64]
    masses: Array
    moving: NDArray[np.bool_]
    cell: Array | None = None
    linear: Array | None = None
    sinkhorn: bool = True


@dataclass
class Score:
    """Metrics of one rollout from one start: series (F,), values at single strides.

    Attributes:
        kinetic: (F,) of the reference, which errors of kinetic energies are relative to; None for the reference.
        unconverged: transport problems whose iterations ended before they were solved.
    """

    series: dict[str, Array] = field(default_factory=dict)
    at: dict[str, dict[int, float]] = field(default_factory=dict)
    failures: metrics.Failures | None = None
    rmsf: Array | None = None
    diffusion: metrics_molecular.Diffusion | None = None
    frames: Array | None = None
    kinetic: Array | None = None
    unconverged: int = 0


def _by_itself(world: World, case: Case, positions: Array, velocities: Array) -> Score:
    """What a rollout, or the reference, says without being compared."""
    moving = case.moving
    x, v, masses = positions[:, moving], velocities[:, moving], case.masses[moving]
    found = Score()
    series = found.series
    series["kinetic_energy"] = _kinetic(world, v, masses)
    series["momentum_drift"] = metrics.drift(metrics.mean_velocity(v, masses))
    series["centre_of_mass_drift"] = metrics.drift(metrics.centre_of_mass(x, masses))
    if world.walls is not None:
        running = np.isfinite(x).all(axis=(1, 2))
        outside = metrics.outside_walls(x, world.walls)
        series["outside"] = np.where(running, outside.count.astype(float), np.nan)
        series["outside_worst"] = np.where(running, outside.worst, np.nan)
    if world.kind == "protein":
        series["radius_of_gyration"] = metrics_protein.radius_of_gyration(positions, case.masses)
        found.rmsf = metrics_protein.rmsf(positions)
        if world.bonds is not None and len(world.bonds):
            lengths = metrics_protein.bond_lengths(case.positions, world.bonds).mean(axis=0)
            limit = metrics_protein.BOND_LIMIT / world.angstrom
            broken = metrics_protein.bond_violations(positions, world.bonds, lengths, limit)
            series["bond_violations"] = np.where(np.isfinite(positions).all(axis=(1, 2)), broken, np.nan)
    if world.kind == "molecular":
        speed = velocities * (world.angstrom / world.femtosecond)
        for symbol, values in metrics_molecular.element_temperatures(speed, case.species, case.masses).items():
            series[f"temperature_{symbol}"] = values
        good = positions[np.isfinite(positions).all(axis=(1, 2))]
        if len(good) > FEWEST_FOR_DIFFUSION:
            found.diffusion = metrics_molecular.diffusion(
                good * world.angstrom, world.stride * world.femtosecond, masses=case.masses
            )
        found.frames = good[int(PAIR_START * len(good)) :]
    return found


def _kinetic(world: World, velocities: Array, masses: Array) -> Array:
    """(F,) kinetic energy over the number of particles."""
    return world.energy * metrics.kinetic_energy(velocities, masses) / max(len(masses), 1)


def score_reference(world: World, case: Case) -> Score:
    """The reference's own drift, temperatures and violations."""
    return _by_itself(world, case, case.positions, case.velocities)


def score(world: World, case: Case, positions: Array, velocities: Array, horizons: Sequence[int]) -> Score:
    """Every metric of a rollout from ``case``.

    Args:
        world: what is known of the system.
        case: start and reference.
        positions: (F, N, 3), the start first; NaN after a stop.
        velocities: (F, N, 3).
        horizons: strides at which densities are compared.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        found = _by_itself(world, case, positions, velocities)
        series, moving = found.series, case.moving
        series["mse"] = metrics.squared_error(positions, case.positions, moving)
        series["mae"] = metrics.absolute_error(positions, case.positions, moving)
        series["velocity_mse"] = metrics.squared_error(velocities, case.velocities, moving)
        found.kinetic = _kinetic(world, case.velocities[:, moving], case.masses[moving])
        series["kinetic_energy_error"] = np.abs(series["kinetic_energy"] - found.kinetic)
        centres = [metrics.centre_of_mass(x[:, moving], case.masses[moving]) for x in (positions, case.positions)]
        series["centre_of_mass_error"] = np.linalg.norm(centres[0] - centres[1], axis=1)
        if world.kind == "protein":
            series["rmsd"] = metrics_protein.rmsd(positions, case.positions)
        found.failures = metrics.find_failure(positions, case.positions, moving, case.linear)
    for horizon in horizons:
        x, y = positions[horizon][moving], case.positions[horizon][moving]
        if np.isfinite(x).all():
            _densities(found, world, case, x, y, horizon)
    return found


def _densities(found: Score, world: World, case: Case, x: Array, y: Array, horizon: int) -> None:
    def note(name: str, value: float) -> None:
        found.at.setdefault(name, {})[horizon] = value

    if case.sinkhorn:
        points = sample(len(x))
        clouds = sinkhorn_divergence(x[points], y[points], cell=case.cell)
        note("sinkhorn", clouds.value)
        found.unconverged += not clouds.converged
    if world.kind == "liquid" and world.radius is not None:
        note("grid_density_error", grid_density_error(x, y, world.radius, bounds=world.walls, cell=case.cell))
        local = local_density(x, y, world.radius, case.cell)
        if local is not None:
            note("local_density_error", local.error)
            note("local_density_ratio", local.ratio)


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if np.isfinite(value)]
    return float(np.mean(finite)) if finite else float("nan")


def combine(scores: Sequence[Score], horizons: Sequence[int], stride: float, reference: bool = False) -> dict[str, Any]:
    """Means over the starts that still run: ``series``, a row a horizon, and when they failed.

    Args:
        scores: one a start.
        horizons: strides of the rows.
        stride: time of a stride.
        reference: only what is said of it by itself.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        stacked = {name: np.stack([score.series[name] for score in scores]) for name in scores[0].series}
        series: dict[str, list[float]] = {}
        for name, values in stacked.items():
            rule = np.max if name == "outside_worst" else np.mean
            series[name] = [
                float(rule(column[np.isfinite(column)])) if np.isfinite(column).any() else float("nan")
                for column in values.T
            ]
    if not reference:
        series["running"] = np.isfinite(stacked["mse"]).mean(axis=0).tolist()
        series["kinetic_energy_error"] = _relative(stacked["kinetic_energy_error"], scores)
    rows = []
    for horizon in horizons:
        row: dict[str, Any] = {"strides": horizon, "time": horizon * stride}
        row |= {name: values[horizon] for name, values in series.items()}
        if not reference:
            errors = stacked["mse"][:, horizon]
            errors = errors[np.isfinite(errors)]
            row["starts"] = len(errors)
            row["mse_error"] = float(np.std(errors, ddof=1) / np.sqrt(len(errors))) if len(errors) > 1 else float("nan")
            for name in {name for score in scores for name in score.at}:
                row[name] = _mean([score.at[name][horizon] for score in scores if horizon in score.at.get(name, {})])
        rows.append(row)
    found: dict[str, Any] = {"horizons": rows, "series": series}
    if not reference:
        found["failure"] = _failures(scores)
    profiles = [score.rmsf for score in scores if score.rmsf is not None]
    if profiles and len({len(profile) for profile in profiles}) == 1:
        found["rmsf"] = np.mean(profiles, axis=0).tolist()
    diffusions = [score.diffusion for score in scores if score.diffusion is not None and _whole(score)]
    if diffusions:
        error = float(np.sqrt(sum(d.error**2 for d in diffusions)) / len(diffusions))
        factor = metrics_molecular.CM2_PER_S_PER_ANGSTROM2_PER_FS
        found["diffusion"] = {
            "value": factor * _mean([d.value for d in diffusions]),
            "error": factor * error,
            "lags_fs": diffusions[0].lags,
            "starts": len(diffusions),
        }
    return found


def _whole(score: Score) -> bool:
    """Whether a rollout ran to its end: lags and profiles of shorter ones mean something else."""
    return bool(np.isfinite(score.series["centre_of_mass_drift"][-1]))


def _relative(deviations: Array, scores: Sequence[Score]) -> list[float]:
    """(F,) mean deviation over the mean of the reference, both over the starts that run: no start of hardly any
    kinetic energy (a body of fluid at rest) decides alone."""
    kinetic = np.stack([np.zeros(0) if score.kinetic is None else score.kinetic for score in scores])
    kinetic = np.where(np.isfinite(deviations), kinetic, 0.0).sum(axis=0)
    total = np.where(np.isfinite(deviations), deviations, 0.0).sum(axis=0)
    return [float(d / k) if k > 0 else float("nan") for d, k in zip(total, kinetic, strict=True)]


def _failures(scores: Sequence[Score]) -> dict[str, Any]:
    """Of each standard: how many starts failed, the earliest and the median stride (None: most did not)."""
    failures = [score.failures for score in scores if score.failures is not None]
    found: dict[str, Any] = {"starts": len(failures), "strides": max((f.strides for f in failures), default=0)}
    standards = {
        "strides_until_failure": [failure.broken for failure in failures],
        "not_finite": [failure.not_finite for failure in failures],
        "jump": [failure.jump for failure in failures],
        "worse_than_still": [failure.worse_than_still for failure in failures],
        "worse_than_linear": [failure.worse_than_linear for failure in failures],
    }
    for name, strides in standards.items():
        failed = sorted(stride for stride in strides if stride is not None)
        middle = sorted(np.inf if stride is None else float(stride) for stride in strides)
        median = middle[len(middle) // 2] if middle else np.inf
        found[name] = {
            "failed": len(failed),
            "earliest": failed[0] if failed else None,
            "median": int(median) if np.isfinite(median) else None,
        }
    return found


def pairs_of(world: World, cases: Sequence[Case], scores: Sequence[Score]) -> list[PairFunction]:
    """Pair distributions of a molecular liquid over all starts of the same atoms and cell; else nothing."""
    if world.kind != "molecular" or not cases:
        return []
    first = cases[0]
    chosen = [
        score.frames
        for case, score in zip(cases, scores, strict=True)
        if score.frames is not None and np.array_equal(case.species, first.species)
        and case.cell is not None and first.cell is not None and np.allclose(case.cell, first.cell)
    ]  # fmt: skip
    frames = [frame for part in chosen for frame in part]
    if not frames or first.cell is None:
        return []
    frames = frames[:: max(-(-len(frames) // PAIR_FRAMES), 1)]
    from egnn_md.simulation.molecules import infer_bonds

    bonds = infer_bonds(
        first.species, first.positions[0] * world.angstrom, first.cell * world.angstrom, np.ones(3, dtype=bool)
    )
    return metrics_molecular.pair_distributions(
        np.stack(frames) * world.angstrom, first.species, first.cell * world.angstrom, bonds
    )
