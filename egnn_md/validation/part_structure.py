"""Pair distributions, bond lengths and angles beside the reference method's own short run.

Both run alike: the same starts (frames of the model's run at that temperature), thermostat, time step and length.
"""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import numpy as np

from egnn_md.report.charts import Chart, Series
from egnn_md.simulation.files import write_json
from egnn_md.simulation.progress import duration
from egnn_md.validation.context import Context
from egnn_md.validation.distributions import Comparison, Distribution, compare, distributions
from egnn_md.validation.report_part import PartReport, Skipped, with_error
from egnn_md.validation.request import FS_PER_PS, TEACHER_SHARES
from egnn_md.validation.runs import FinishedRun, MovingFrames

SEEDS = 2  # runs of each method
BLOCKS = 2  # of each run
SETTLE = 0.2  # of a run, left out: the reference method leaves the model's ensemble there
FEWEST = 200  # steps of a run; 0.1 ps at 0.5 fs, some periods of the stiffest bonds
CHANCE = 0.05  # below, the blocks say that two distributions differ


def planned_steps(context: Context) -> int:
    """Steps of each run that the reference method's time allows; decided once, then remembered.

    Raises:
        Skipped: fewer than would say anything.
    """
    path = context.work / "structure-plan.json"
    if path.exists():
        return int(json.loads(path.read_text())["steps"])
    teacher = context.need_teacher("distributions beside the reference method")
    seconds = context.teacher_seconds(small=True)
    allowed = 60 * context.plan.teacher_minutes * TEACHER_SHARES["structure"]
    steps = min(int(allowed / (SEEDS * seconds)), context.request.steps(context.plan.length))
    fewest = min(FEWEST, context.request.steps(context.plan.length))
    if steps < fewest:
        atoms = len(context.structure(small=True))
        needed = fewest * SEEDS * seconds / 60 / TEACHER_SHARES["structure"]
        raise Skipped(
            f"a step of {teacher.method} with {atoms} atoms takes {seconds:.3g} s, so {SEEDS} runs of at least "
            f"{fewest} steps do not fit into {duration(allowed)}; give --teacher-minutes {needed:.0f}, or a smaller "
            "--teacher-structure"
        )
    write_json(path, {"steps": steps, "seconds_per_step": seconds})
    context.say(
        f"structure: {SEEDS} runs of {steps:,} steps ({steps * context.request.timestep / FS_PER_PS:.3g} ps) of "
        f"{teacher.method}, about {duration(SEEDS * steps * seconds)} in all"
    )
    return steps


def both_runs(context: Context, steps: int) -> tuple[list[FinishedRun], list[FinishedRun]]:
    """Runs of the model and of the reference method, at the first temperature."""
    kelvin = context.temperature
    starts = context.frames(kelvin, SEEDS, small=True)
    model, teacher = [], []
    for seed, atoms in enumerate(starts):
        values: dict[str, Any] = {
            "structure": context.start_file(f"structure-{seed}", atoms),
            "ensemble": "nvt", "temperature": kelvin, "minimize": False,
        }  # fmt: skip
        model.append(context.run(f"structure-model-{seed}", steps, 100 + seed, **values))
        teacher.append(context.teacher_run(f"structure-teacher-{seed}", steps, 200 + seed, **values))
    return model, teacher


def blocks_of(runs: list[FinishedRun]) -> list[MovingFrames]:
    """:data:`BLOCKS` stretches of each run, its start left out."""
    found = []
    for run in runs:
        settled = run.frames.without_start(SETTLE)
        edges = np.linspace(0, len(settled.steps), BLOCKS + 1).round().astype(int)
        found += [settled.part(int(a), int(b)) for a, b in pairwise(edges)]
    return found


def measure(context: Context) -> PartReport:
    """The part ``structure``."""
    report = PartReport("structure")
    context.need_teacher("distributions beside the reference method")
    steps = planned_steps(context)
    model_runs, teacher_runs = both_runs(context, steps)
    structure = context.structure(small=True)
    # bonds of the file where it has them; the runs' structures found theirs in a hot frame
    model, teacher = distributions([blocks_of(model_runs), blocks_of(teacher_runs)], structure)
    rows, apart = [], []
    assert context.teacher is not None
    for mine, theirs in zip(model, teacher, strict=True):
        found = compare(mine, theirs)
        unit = "°" if mine.kind == "angle" else "Å"
        rows.append(_row(mine, theirs, found, unit))
        report.number("js_divergence", found.divergence, "bit", of=mine.name)
        report.number("js_noise", found.noise, "bit", of=mine.name)
        report.number("overlap", found.overlap, "", of=mine.name)
        report.number("chance", found.chance, "", of=mine.name)
        if mine.kind != "pair" or (mine.weight == 1).all():  # in a cell the mean of g(r) means nothing
            report.number("mean_shift", mine.average - theirs.average, unit, of=mine.name)
        if found.chance < CHANCE:
            apart.append(mine.name)
        _chart(report, mine, theirs, context, unit)
    length = steps * context.request.timestep / FS_PER_PS
    worst = min((compare(m, t).overlap, m.name) for m, t in zip(model, teacher, strict=True))
    report.verdict(
        f"Distributions beside {context.teacher.method}",
        f"{len(model) - len(apart)} of {len(model)} within noise",
        (f"beyond it: {', '.join(apart)}; " if apart else "")
        + f"smallest overlap {worst[0]:.3f} ({worst[1]}; 1 is equal). {SEEDS} runs of {length:.3g} ps each: the "
        "shorter they are, the more hides in the noise",
        "look" if apart else "good",
    )
    report.table(
        "Model and reference method",
        ["", "overlap", "JS divergence / bit", "noise / bit", "chance", "mean or peak, model", "reference"],
        rows,
        f"{len(structure)} atoms at {context.temperature:g} K, {SEEDS} runs of {steps:,} steps, their first "
        f"{100 * SETTLE:.0f} % left out. Noise: the divergence that two such runs of one method would have, from "
        f"blocks. Chance: how often dealing the blocks anew gives as much; below {CHANCE} they differ.",
    )
    report.card |= {"structure_smallest_overlap": worst[0], "structure_beyond_noise": ", ".join(apart) or "none"}
    report.card["structure_ps"] = length
    return report


def _row(mine: Distribution, theirs: Distribution, found: Comparison, unit: str) -> list[str]:
    if mine.kind == "pair":
        shown = [_peak(mine), _peak(theirs)]
    else:
        shown = [_mean(d, unit) for d in (mine, theirs)]
    values = [f"{found.overlap:.4f}", f"{found.divergence:.2e}", f"{found.noise:.2e}", f"{found.chance:.3f}"]
    return [mine.name, *values, *shown]


def _peak(pair: Distribution) -> str:
    best = int(np.argmax(pair.mean))
    return f"{with_error(float(pair.mean[best]), float(pair.error[best]))} at {pair.x[best]:.2f} Å"


def _mean(one: Distribution, unit: str) -> str:
    each = one.shares @ one.x
    error = float(each.std(ddof=1) / np.sqrt(len(each))) if len(each) > 1 else None
    return with_error(one.average, error, unit)


def _chart(report: PartReport, mine: Distribution, theirs: Distribution, context: Context, unit: str) -> None:
    assert context.teacher is not None
    mean, error = theirs.mean, theirs.error
    label = {"pair": "g(r)", "bond": "density / (1/Å)", "angle": "density / (1/°)"}[mine.kind]
    band = f"{context.teacher.method} ± 2 errors"
    report.chart(
        Chart(
            mine.name.replace(" ", "-").replace("(r)", ""), mine.name,
            f"{'angle' if mine.kind == 'angle' else 'distance'} / {unit}", label,
            (
                Series(band, theirs.x, mean + 2 * error, "thin", 1),
                Series(band, theirs.x, np.maximum(mean - 2 * error, 0), "thin", 1),
                Series(context.teacher.method, theirs.x, mean, "line", 1),
                Series("model", mine.x, mine.mean, "dash", 0),
            ),
        ),
        context.folder,
    )  # fmt: skip
