"""What one run's section holds: its charts, and the numbers that sum it up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from egnn_md.report.charts import Chart, Series
from egnn_md.report.load import LoadedRun
from egnn_md.report.pairs import PairFunction, pair_functions
from egnn_md.report.statistics import Drift, Estimate, average, drift, running_mean

MAX_POINTS = 2000


@dataclass(frozen=True)
class Numbers:
    """Sums of a run; None where a quantity does not exist."""

    temperature: Estimate | None
    density: Estimate | None
    drift: Drift | None
    speed: float | None
    pairs: list[PairFunction]


def measure(run: LoadedRun) -> Numbers:
    """Averages over the settled part; the drift of the total energy (meV/atom/ps) over all of an nve run."""
    log = run.log
    settled = log["time_ps"] >= run.settled
    slope = None
    if run.request.ensemble == "nve":
        slope = drift(log["time_ps"], 1000 * (log["total_eV"] - log["total_eV"][0]) / run.atoms)
    speed = run.record.get("ns_per_day")
    if speed is None:
        rows = log["speed_ns_day"][np.isfinite(log["speed_ns_day"])]
        speed = float(np.median(rows)) if len(rows) else None
    return Numbers(
        temperature=average(log["temperature_K"][settled]),
        density=average(log["density_g_cm3"][settled]) if run.request.ensemble == "npt" else None,
        drift=slope,
        speed=speed,
        pairs=pair_functions(run),
    )


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    stride = max(-(-len(x) // MAX_POINTS), 1)
    return x[::stride], y[::stride]


def _smooth(time: np.ndarray, values: np.ndarray, name: str, colour: int) -> tuple[Series, ...]:
    """Values, and over them their running mean over a twentieth of the run where there is enough of it."""
    if len(values) < 60:
        return (Series(name, *_thin(time, values), colour=colour),)
    mean = running_mean(values, len(values) // 20)
    return (
        Series(name, *_thin(time, values), style="thin", colour=colour),
        Series("running mean", *_thin(time, mean), colour=colour),
    )


def charts(run: LoadedRun, numbers: Numbers) -> list[Chart]:
    """The charts of a run, most telling first."""
    log = run.log
    time = log["time_ps"]
    found = [_energy(run)]
    if numbers.drift is not None:
        found.append(_drift(run, numbers.drift))
    request = run.request
    level = None if request.ensemble == "nve" else (request.temperature, f"thermostat {request.temperature:g} K")
    found.append(
        Chart(
            "temperature",
            "Temperature",
            "time / ps",
            "temperature / K",
            _smooth(time, log["temperature_K"], "temperature", 1),
            level=level,
        )
    )
    if request.ensemble == "npt":
        found.append(
            Chart(
                "density",
                "Density",
                "time / ps",
                "density / (g/cm³)",
                _smooth(time, log["density_g_cm3"], "density", 2),
            )
        )
    if numbers.pairs:
        found.append(_pairs(numbers.pairs))
    speed = np.isfinite(log["speed_ns_day"])
    if speed.sum() > 1:
        found.append(
            Chart(
                "speed",
                "Speed",
                "time / ps",
                "ns/day",
                _smooth(time[speed], log["speed_ns_day"][speed], "speed", 3),
                note="Between successive rows of the log, writing included.",
            )
        )
    return found


def _energy(run: LoadedRun) -> Chart:
    log = run.log
    series = []
    for colour, (column, name) in enumerate(
        (("potential_eV", "potential"), ("kinetic_eV", "kinetic"), ("total_eV", "total"))
    ):
        change = 1000 * (log[column] - log[column][0]) / run.atoms
        series.append(Series(name, *_thin(log["time_ps"], change), colour=colour))
    return Chart(
        "energy",
        "Energy",
        "time / ps",
        "change / (meV/atom)",
        tuple(series),
        note=f"Changes since the first row, where the potential energy is {log['potential_eV'][0]:.4f} eV "
        f"and the kinetic energy {log['kinetic_eV'][0]:.4f} eV.",
    )


def _drift(run: LoadedRun, fit: Drift) -> Chart:
    time = run.log["time_ps"]
    total = 1000 * (run.log["total_eV"] - run.log["total_eV"][0]) / run.atoms
    ends = np.array([time[0], time[-1]])
    return Chart(
        "drift",
        "Conservation of the total energy",
        "time / ps",
        "change / (meV/atom)",
        (
            Series("total energy", *_thin(time, total), colour=2),
            Series("linear fit", ends, fit.intercept + fit.slope * ends, style="dash", colour=1),
        ),
        note=f"Drift {fit.slope:.3g} ± {fit.error:.1g} meV/atom/ps; scatter about the line {fit.scatter:.2g} meV/atom.",
    )


def _pairs(pairs: list[PairFunction]) -> Chart:
    series = tuple(Series(p.name, p.r, p.g, colour=i) for i, p in enumerate(pairs))
    outside = [float(p.g[p.r > p.bonded].max()) for p in pairs if np.any(p.r > p.bonded)]
    top = 1.15 * max([*outside, 1e-6])
    cut = [p for p in pairs if p.g.max() > top]
    notes = [f"mean of {pairs[0].frames} frames"]
    if not pairs[0].normalised:
        notes = [f"distribution of distances in {pairs[0].frames} frames (an open system has no g(r))"]
    if cut:
        peaks = ", ".join(f"{p.name} {p.g.max():.3g} at {p.r[np.argmax(p.g)]:.2f} Å" for p in cut)
        notes.append(f"peaks within molecules go beyond the axis: {peaks}")
    text = "; ".join(notes)
    return Chart(
        "rdf",
        "Pair distribution functions" if pairs[0].normalised else "Distances",
        "r / Å",
        "g(r)" if pairs[0].normalised else "probability / (1/Å)",
        series,
        note=text[0].upper() + text[1:] + ".",
        y_range=(0.0, top),
    )


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None or not np.isfinite(value) else float(f"{value:.{digits}g}")


def _estimate(value: Estimate | None) -> dict[str, float | None] | None:
    if value is None:
        return None
    return {
        "mean": _rounded(value.value),
        "error": _rounded(value.error),
        "deviation": _rounded(value.spread),
    }


def summary(run: LoadedRun, numbers: Numbers) -> dict[str, Any]:
    """``report.json``'s entry of a run: numbers with their units in the keys."""
    record, fit = run.record, numbers.drift
    return {
        "name": run.name,
        "status": record.get("status"),
        "engine": record.get("engine"),
        "ensemble": run.request.ensemble,
        "model": {k: record.get("model", {}).get(k) for k in ("source", "digest")},
        "atoms": run.atoms,
        "formula": run.structure.formula,
        "steps": int(run.log["step"][-1]),
        "timestep_fs": run.request.timestep,
        "length_ps": _rounded(float(run.log["time_ps"][-1])),
        "frames": run.frames.total,
        "averages_from_ps": _rounded(run.settled),
        "temperature_K": _estimate(numbers.temperature),
        "density_g_cm3": _estimate(numbers.density),
        "drift_meV_atom_ps": None
        if fit is None
        else {
            "slope": _rounded(fit.slope),
            "error": _rounded(fit.error),
            "scatter_meV_atom": _rounded(fit.scatter),
        },
        "speed_ns_day": _rounded(numbers.speed),
        "pair_peaks_A": {p.name: {"r": _rounded(p.peak[0]), "g": _rounded(p.peak[1])} for p in numbers.pairs if p.peak},
    }
