"""Conservation of energy: drift at the time step, and how the scatter of the total energy scales with it.

Velocity Verlet conserves a shadow energy that differs from the true one by O(Δt²): for smooth, conservative forces
the total energy scatters about its mean four times less at half the time step, and does not drift. A jump in the
energy, or forces that are not its gradient, break one or both.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from egnn_md.report.charts import Chart, Series
from egnn_md.report.statistics import Drift, Estimate, drift
from egnn_md.validation.context import Context
from egnn_md.validation.report_part import PartReport, with_error
from egnn_md.validation.runs import FinishedRun

BLOCKS = 5
LOG_ROWS = 400  # of the stretch in which two time steps are compared
SECOND_ORDER = (3.0, 5.0)  # ratios of the scatter that count as second order; 4 is exact
SIGMAS = 3.0
#: meV/atom/ps of drift that heats by less than 1 K in 10 ps: 3 k_B T/2 an atom each for kinetic and potential energy
NEGLIGIBLE = 0.026


def nve_run(context: Context, picoseconds: float, divide: int = 1) -> FinishedRun:
    """NVE from the equilibrated run at the first temperature, with the time step over ``divide``.

    Rows of the logs of two such runs are at the same times.
    """
    request = context.request
    start = context.equilibrated(context.temperature)
    steps = request.steps(picoseconds) * divide
    stretch = request.steps(min(context.plan.nve, picoseconds))
    return context.run(
        "nve" if divide == 1 else f"nve-1-{divide}", steps, 2, ensemble="nve", temperature=context.temperature,
        timestep=request.timestep / divide, continue_from=start.directory.path, minimize=False,
        log_interval=max(stretch // LOG_ROWS, 1) * divide,
    )  # fmt: skip


def long_nve(context: Context) -> FinishedRun:
    """The run at the full time step, long enough for diffusion too."""
    return nve_run(context, max(context.plan.length, context.plan.nve))


def energies(run: FinishedRun, picoseconds: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Times (ps) and total energies from the start (meV/atom) of the first ``picoseconds``."""
    times = run.log["time_ps"]
    values = 1000 * (run.log["total_eV"] - run.log["total_eV"][0]) / len(run.structure)
    chosen = np.ones(len(times), dtype=bool) if picoseconds is None else times <= picoseconds * (1 + 1e-9)
    return times[chosen], values[chosen]


def scatter_ratio(coarse: np.ndarray, fine: np.ndarray) -> Estimate:
    """Scatter of ``coarse`` over that of ``fine``, with the error from :data:`BLOCKS` stretches of time.

    Both are taken about their own line, which in a stretch follows a drift too.
    """

    def scatter(values: np.ndarray) -> float:
        found = drift(np.arange(len(values), dtype=float), values)
        return float("nan") if found is None else found.scatter

    whole = scatter(coarse) / scatter(fine)
    pairs = zip(np.array_split(coarse, BLOCKS), np.array_split(fine, BLOCKS), strict=True)
    parts = np.array([scatter(a) / scatter(b) for a, b in pairs])
    return Estimate(whole, float(parts.std(ddof=1) / np.sqrt(BLOCKS)), float(parts.std(ddof=1)))


def measure(context: Context) -> PartReport:
    """The part ``nve``."""
    report = PartReport("nve")
    run = long_nve(context)
    half = nve_run(context, context.plan.nve, 2)
    times, values = energies(run)
    fit = drift(times, values)
    assert fit is not None  # a run has MIN_STEPS at least
    length = float(times[-1])
    near = SIGMAS * fit.error
    quiet = abs(fit.slope) <= near or abs(fit.slope) <= NEGLIGIBLE
    reading = "no drift that the run could tell from zero" if abs(fit.slope) <= near else "a drift beyond its error"
    reading += f", over {length:.3g} ps"
    if abs(fit.slope) > near:
        reading += f"; {NEGLIGIBLE} would heat by 1 K in 10 ps"
    value = with_error(fit.slope, fit.error, "meV/atom/ps")
    report.verdict("Energy drift, NVE", value, reading, "good" if quiet else "look")
    report.number("nve_drift", fit.slope, "meV/atom/ps", error=fit.error)
    report.number("nve_scatter", fit.scatter, "meV/atom")
    stretch = min(context.plan.nve, length)
    coarse, fine = energies(run, stretch), energies(half, stretch)
    rows = min(len(coarse[0]), len(fine[0]))
    ratio = scatter_ratio(coarse[1][:rows], fine[1][:rows])
    dt = context.request.timestep
    low, high = SECOND_ORDER
    second = low - ratio.error <= ratio.value <= high + ratio.error
    why = "4 is a smooth conservative potential under a second-order integrator"
    if not second:
        why += (
            "; less points to forces that jump or are not the energy's gradient, to rounding in float32, "
            "or to a time step so short that both see rounding alone"
            if ratio.value < low
            else "; more points to a time step at the edge of stability"
        )
    report.verdict(
        f"Energy scatter at {dt:g} fs over that at {dt / 2:g} fs", with_error(ratio.value, ratio.error), why,
        "good" if second else "look",
    )  # fmt: skip
    report.estimate("scatter_ratio", ratio, "")
    report.card |= {"nve_drift_meV_per_atom_per_ps": fit.slope, "nve_drift_error": fit.error, "nve_ps": length}
    report.card["energy_scatter_ratio_at_half_timestep"] = ratio.value
    finer = drift(*fine)
    _tables(report, fit, finer, dt, length, stretch)
    _chart(report, context.folder, times, values, fit, coarse, fine, dt)
    return report


def _tables(report: PartReport, fit: Drift, finer: Drift | None, dt: float, length: float, stretch: float) -> None:
    rows = [[f"{dt:g} fs", f"{length:.4g}", with_error(fit.slope, fit.error), f"{fit.scatter:.3g}"]]
    if finer is not None:
        rows.append([f"{dt / 2:g} fs", f"{stretch:.4g}", with_error(finer.slope, finer.error), f"{finer.scatter:.3g}"])
        report.number("nve_drift_at_half_timestep", finer.slope, "meV/atom/ps", error=finer.error)
    head = ["time step", "length / ps", "drift / (meV/atom/ps)", "scatter / (meV/atom)"]
    report.table("Total energy", head, rows, "Slope of a least-squares line; its error counts the correlation.")


def _chart(
    report: PartReport,
    folder: Path,
    times: np.ndarray,
    values: np.ndarray,
    fit: Drift,
    coarse: tuple[np.ndarray, np.ndarray],
    fine: tuple[np.ndarray, np.ndarray],
    dt: float,
) -> None:
    thin = slice(None, None, max(len(times) // 2000, 1))
    line = fit.intercept + fit.slope * times
    report.chart(
        Chart(
            "drift", "Total energy in NVE", "time / ps", "energy / (meV/atom)",
            (
                Series(f"{dt:g} fs", times[thin], values[thin], "thin"),
                Series("fit", times[[0, -1]], line[[0, -1]], "dash", 1),
            ),
        ),
        folder,
    )  # fmt: skip
    report.chart(
        Chart(
            "scaling", "The same start at two time steps", "time / ps", "energy / (meV/atom)",
            (Series(f"{dt:g} fs", *coarse), Series(f"{dt / 2:g} fs", *fine, "line", 1)),
            note="Second order: the second curve moves four times less.",
        ),
        folder,
    )  # fmt: skip
