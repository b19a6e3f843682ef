"""Diffusion out of the NVE run, and the temperatures of the elements, which are equal in equilibrium."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egnn_md.report.charts import Chart, Series
from egnn_md.report.statistics import Estimate, average
from egnn_md.rollout.metrics_molecular import (
    CM2_PER_S_PER_ANGSTROM2_PER_FS,
    diffusion,
    element_temperatures,
    mean_squared_displacement,
    unwrap,
)
from egnn_md.validation.context import Context
from egnn_md.validation.part_nve import long_nve
from egnn_md.validation.report_part import PartReport, with_error
from egnn_md.validation.request import FS_PER_PS
from egnn_md.validation.runs import FinishedRun

STRETCHES = 3  # of the run, whose coefficients tell the error of its finite length
SIGMAS = 3.0
DIFFUSIVE = (0.8, 1.2)  # exponents of the mean squared displacement that count as Einstein's regime
CAGE = 1.0  # Å² that atoms must have gone by the last lag: rattling among neighbours is no diffusion
FIT = (0.1, 0.4)  # lags, as shares of the run
UNIT = "10⁻⁵ cm²/s"
SCALE = CM2_PER_S_PER_ANGSTROM2_PER_FS * 1e5  # from Å²/fs to UNIT


def coefficient(
    positions: np.ndarray, interval: float, masses: np.ndarray, chosen: np.ndarray | None = None
) -> Estimate | None:
    """D in 10⁻⁵ cm²/s of the ``chosen`` (N,) of all particles (None: of all); None if there are too few frames.

    Its error is the larger of two: over groups of particles, and over stretches of the run.

    Args:
        positions: (F, N, 3) Å, unwrapped, of all particles, whose centre of mass is held still.
        interval: fs between frames.
        masses: (N,) amu.
        chosen: bool.
    """
    whole = diffusion(positions, interval, masses=masses, fit=FIT, chosen=chosen)
    if whole is None:
        return None
    stretches = np.array_split(positions, STRETCHES)
    parts = [diffusion(part, interval, masses=masses, fit=FIT, chosen=chosen) for part in stretches]
    values = np.array([part.value for part in parts if part is not None])
    spread = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
    return Estimate(whole.value * SCALE, max(whole.error, spread) * SCALE, spread * SCALE)


def exponent(displacement: np.ndarray) -> float:
    """Slope of log msd against log time over the lags of the fit: 1 is diffusion, 2 free flight, 0 a solid."""
    last = max(int(FIT[1] * (len(displacement) - 1)), 3)
    first = max(int(np.ceil(FIT[0] * (len(displacement) - 1))), 1)
    lags = np.arange(first, last + 1)
    return float(np.polyfit(np.log(lags), np.log(np.maximum(displacement[lags], 1e-12)), 1)[0])


def measure(context: Context) -> PartReport:
    """The part ``diffusion``."""
    report = PartReport("diffusion")
    _equipartition(report, context)
    if not context.structure().periodic:
        report.notes.append("Diffusion: the structure has no periodic cell, so this does not apply.")
        return report
    run = long_nve(context)
    frames, structure = run.frames, run.structure
    interval = float(np.diff(frames.steps)[0]) * run.request.timestep
    positions = unwrap(frames.positions, frames.cells)
    found = coefficient(positions, interval, structure.masses)
    if found is None:
        report.notes.append("Diffusion: the run has too few frames; give more --length.")
        return report
    kelvin = average(run.log["temperature_K"])
    assert kelvin is not None
    centre = np.einsum("n,fnd->fd", structure.masses / structure.masses.sum(), positions)
    displacement = mean_squared_displacement(positions - centre[:, None])
    power = exponent(displacement.mean(axis=1))
    length = float(frames.steps[-1] - frames.steps[0]) * run.request.timestep / FS_PER_PS
    gone = float(displacement.mean(axis=1)[int(FIT[1] * (len(displacement) - 1))])
    settled = DIFFUSIVE[0] <= power <= DIFFUSIVE[1] and gone >= CAGE
    reading = f"NVE of {length:.3g} ps at {kelvin.value:.0f} K; "
    reading += (
        "displacements grow as in a liquid"
        if settled
        else f"displacements grow as t^{power:.2f} to {gone:.2g} Å² (diffusion: as t, beyond {CAGE:g} Å²): the run is "
        "too short or this is no liquid, and this is no diffusion coefficient yet"
    )
    value = with_error(found.value, found.error, UNIT)
    report.verdict("Diffusion coefficient", value, reading, "number" if settled else "look")
    report.estimate("diffusion", found, UNIT)
    report.number("displacement_exponent", power, "")
    if settled:
        report.card |= {"diffusion_1e-5_cm2_per_s": found.value, "diffusion_error": found.error}
    rows = [["all atoms", with_error(found.value, found.error)]]
    for number in np.unique(structure.numbers):
        mine = structure.numbers == number
        symbol = structure.symbols[int(np.flatnonzero(mine)[0])]
        one = coefficient(positions, interval, structure.masses, mine)
        if one is not None and mine.sum() > 1 and len(np.unique(structure.numbers)) > 1:
            rows.append([symbol, with_error(one.value, one.error)])
            report.estimate("diffusion", one, UNIT, of=symbol)
    note = "Einstein's relation. Not corrected for the finite cell, which slows diffusion (Yeh and Hummer, J. Phys. "
    note += "Chem. B 108, 15873, 2004). Errors: the larger of that over groups of atoms and over thirds of the run."
    report.table("Diffusion", ["", f"D / ({UNIT})"], rows, note)
    _chart(report, context.folder, displacement, interval, run)
    return report


def _equipartition(report: PartReport, context: Context) -> None:
    """Temperatures of the elements in each NVT run, beside the thermostat's."""
    rows, worst, where = [], 0.0, ""
    for kelvin in context.request.temperatures:
        run = context.nvt(kelvin)
        structure = run.structure
        found = element_temperatures(run.frames.velocities, structure.numbers, structure.masses)
        for symbol, values in found.items():
            mean = average(values)
            if mean is None or not mean.error > 0:
                continue
            off = abs(mean.value - kelvin) / mean.error
            if off > worst:
                worst, where = off, f"{symbol} at {kelvin:g} K: {with_error(mean.value, mean.error, 'K')}"
            rows.append([f"{symbol}, {kelvin:g} K", with_error(mean.value, mean.error), f"{off:.1f}"])
            report.estimate("element_temperature", mean, "K", of=f"{symbol} at {kelvin:g} K")
    if not rows:
        return
    good = worst <= SIGMAS
    report.verdict(
        "Temperatures of the elements", f"{worst:.1f} errors off at most",
        f"{where}; "
        + ("all elements share the thermostat's temperature" if good else "an element is hotter or colder: forces that "
        "are not a gradient, a time step too long, or a run that has not settled"),
        "good" if good else "look",
    )  # fmt: skip
    report.table("Temperatures of the elements", ["NVT", "K", "errors off"], rows)


def _chart(report: PartReport, folder: Path, displacement: np.ndarray, interval: float, run: FinishedRun) -> None:
    shown = max(len(displacement) // 2, 2)
    times = np.arange(shown) * interval / FS_PER_PS
    series = [Series("all atoms", times, displacement[:shown].mean(axis=1))]
    numbers = np.unique(run.structure.numbers)
    for place, number in enumerate(numbers if len(numbers) > 1 else []):
        mine = run.structure.numbers == number
        symbol = run.structure.symbols[int(np.flatnonzero(mine)[0])]
        series.append(Series(symbol, times, displacement[:shown, mine].mean(axis=1), "thin", place + 1))
    report.chart(
        Chart("displacement", "Mean squared displacement", "time / ps", "Å²", tuple(series),
              note=f"The coefficient is the slope between {100 * FIT[0]:.0f} and {100 * FIT[1]:.0f} % of the run."),
        folder,
    )  # fmt: skip
