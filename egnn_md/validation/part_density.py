"""Density in NPT with its error and whether it has settled; pressures of model and reference on the same frames."""

from __future__ import annotations

import numpy as np

from egnn_md.errors import SimulationError
from egnn_md.report.charts import Chart, Series
from egnn_md.report.statistics import Estimate, average, drift, running_mean
from egnn_md.units import BOLTZMANN_EV_PER_K, GPA_PER_EV_PER_CUBIC_ANGSTROM
from egnn_md.validation.context import Context
from egnn_md.validation.part_errors import collect
from egnn_md.validation.report_part import PartReport, Skipped, with_error

DISCARD = 0.5  # of the run
SIGMAS = 2.0


def settled(times: np.ndarray, values: np.ndarray) -> tuple[Estimate, float, float, bool]:
    """Mean of the later part; change along its line, with its error; whether that is within :data:`SIGMAS` of zero."""
    later = slice(int(DISCARD * len(values)), None)
    mean, fit = average(values[later]), drift(times[later], values[later])
    assert mean is not None  # a run has MIN_STEPS rows at least
    assert fit is not None
    span = float(times[-1] - times[later][0])
    change, error = fit.slope * span, fit.error * span
    return mean, change, error, abs(change) <= SIGMAS * error


def measure(context: Context) -> PartReport:
    """The part ``density``."""
    context.needs_cell("density under NPT")
    report = PartReport("density")
    kelvin, pressure = context.temperature, context.request.pressure
    start = context.equilibrated(kelvin)
    run = context.run(
        "npt", context.request.steps(context.plan.density), 3, ensemble="npt", temperature=kelvin,
        continue_from=start.directory.path, minimize=False,
    )  # fmt: skip
    times, values = run.log["time_ps"], run.log["density_g_cm3"]
    mean, change, error, still = settled(times, values)
    # a line that is not flat says that the end is not known better than by what it still moves
    sure = mean.error if still else max(mean.error, abs(change))
    reading = f"at {pressure:g} bar and {kelvin:g} K, the later half of {times[-1]:.3g} ps; "
    reading += (
        "no drift left in it"
        if still
        else f"it still moves by {with_error(change, error)} there: not settled, and the true value may lie outside"
    )
    report.verdict("Density, NPT", with_error(mean.value, sure, "g/cm³"), reading, "number" if still else "look")
    report.number("density", mean.value, "g/cm³", error=sure)
    report.number("density_change", change, "g/cm³", error=error)
    report.card |= {"density_g_per_cm3": mean.value, "density_error": sure, "density_settled": "yes" if still else "no"}
    report.table(
        "Density",
        ["", "g/cm³"],
        [
            ["mean of the later half", with_error(mean.value, mean.error)],
            ["change along its line", with_error(change, error)],
            ["at the start", f"{values[0]:.4f}"],
        ],
        "The mean's error counts the correlation of successive values.",
    )
    report.chart(
        Chart(
            "density", "Density in NPT", "time / ps", "g/cm³",
            (
                Series("density", times, values, "thin"),
                Series("running mean", times, running_mean(values, max(len(values) // 20, 1))),
                Series("average", times[[len(times) // 2, -1]], np.full(2, mean.value), "dash", 1),
            ),
        ),
        context.folder,
    )  # fmt: skip
    _pressures(report, context)
    return report


def _pressures(report: PartReport, context: Context) -> None:
    """Pressures on frames of the model's NVT run: what a barostat with the reference method would see."""
    if context.teacher is None:
        return
    rows = []
    for kelvin in context.request.temperatures:
        try:
            pairs = collect(context.model, [str(context.own_labels(kelvin))], "")
        except (Skipped, SimulationError) as reason:
            report.notes.append(f"Pressures at {kelvin:g} K: {reason}")
            continue
        if any(pair is None for pair in pairs.stress):
            report.notes.append(f"Pressures at {kelvin:g} K: {context.teacher.method} gives no stress.")
            continue
        atoms, volume = len(context.structure()), abs(float(np.linalg.det(context.structure().cell)))
        ideal = atoms * BOLTZMANN_EV_PER_K * kelvin / volume
        both = np.array([[ideal - np.trace(s) / 3 for s in pair] for pair in pairs.stress if pair is not None])
        both *= GPA_PER_EV_PER_CUBIC_ANGSTROM
        model, reference, gap = (average(v) for v in (both[:, 0], both[:, 1], both[:, 0] - both[:, 1]))
        assert model is not None
        assert reference is not None
        assert gap is not None
        rows.append([f"{kelvin:g} K", *(with_error(e.value, e.error) for e in (model, reference, gap))])
        report.estimate("pressure_model", model, "GPa", of=f"{kelvin:g} K")
        report.estimate("pressure_reference", reference, "GPa", of=f"{kelvin:g} K")
        report.estimate("pressure_difference", gap, "GPa", of=f"{kelvin:g} K")
        if kelvin == context.temperature:
            report.verdict(
                "Pressure, model less reference",
                with_error(gap.value, gap.error, "GPa"),
                f"on {len(both)} equal frames at {kelvin:g} K. Over the bulk modulus (water: 2.2 GPa) it is the "
                "relative error of the density",
            )
            report.card["pressure_difference_GPa"] = gap.value
    if rows:
        note = "On the model's own frames at the density of the structure file, ideal part included."
        report.table("Pressures on the same frames / GPa", ["", "model", "reference", "difference"], rows, note)
