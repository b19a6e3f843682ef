"""Long runs from several seeds at the highest temperature: how many steps until a guard stops them."""

from __future__ import annotations

from egnn_md.report.charts import Chart, Series
from egnn_md.report.statistics import average
from egnn_md.simulation.progress import duration
from egnn_md.validation.context import Context
from egnn_md.validation.report_part import PartReport, with_error
from egnn_md.validation.request import FS_PER_PS
from egnn_md.validation.runs import failure_reason, failure_step

CONFIDENT = 3.0  # events that zero seen ones rule out at 95 %: -ln 0.05


def measure(context: Context) -> PartReport:
    """The part ``stability``."""
    report = PartReport("stability")
    kelvin, steps, seeds = max(context.request.temperatures), context.plan.stability_steps, context.plan.seeds
    timestep = context.request.timestep
    about = duration(steps * seeds * context.model_seconds())
    context.say(f"stability: {seeds} runs of {steps:,} steps at {kelvin:g} K, about {about}")
    rows, series, reached, failures = [], [], [], []
    for seed in range(seeds):
        run = context.run(
            f"stability-{seed}", steps, 300 + seed, may_fail=True, structure=context.structure_path(),
            ensemble="nvt", temperature=kelvin,
        )  # fmt: skip
        mean = average(run.log["temperature_K"][len(run.log["step"]) // 5 :])
        warm = "–" if mean is None else with_error(mean.value, mean.error)
        if run.failed:
            at, reason = failure_step(run), failure_reason(run)
            failures.append((at, reason))
            reached.append(at)
            rows.append([f"seed {seed}", f"{at:,}", warm, reason])
        else:
            reached.append(steps)
            rows.append([f"seed {seed}", f"{steps:,}", warm, "finished"])
        report.number("steps_survived", reached[-1], "steps", of=f"seed {seed}")
        series.append(Series(f"seed {seed}", run.log["time_ps"], run.log["temperature_K"], "thin", seed))
    length = steps * timestep / FS_PER_PS
    value = f"{len(failures)} of {seeds} failed in {steps:,} steps"
    if failures:
        first = min(failures)
        reading = f"{length:.3g} ps each at {kelvin:g} K; the earliest at step {first[0]:,}: {first[1]}"
    else:
        bound = sum(reached) * timestep / FS_PER_PS / CONFIDENT
        reading = f"{length:.3g} ps each at {kelvin:g} K. At 95 % confidence failures are rarer than one in "
        reading += f"{bound:.2g} ps"
    report.verdict("Long runs", value, reading, "bad" if failures else "good")
    report.number("failed", len(failures), "runs", of=f"{seeds} seeds")
    report.card |= {"stability": value, "stability_temperature_K": kelvin}
    head = ["", "steps", "temperature / K", "end"]
    report.table("Steps until failure", head, rows, "NVT (Langevin) from the minimised structure, warming up first.")
    note = f"The thermostat holds {kelvin:g} K."
    report.chart(
        Chart("temperature", "Temperature of the long runs", "time / ps", "K", tuple(series), note=note,
              y_range=(0.0, 2 * kelvin)),
        context.folder,
    )  # fmt: skip
    return report
