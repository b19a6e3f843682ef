"""The comparison as a page: a table, charts, one picture, and numbers for other programs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.report.charts import COLOURS, GRID, Chart, Series, to_plotly
from egnn_md.report.page import asset, script_json, template
from egnn_md.report.statistics import Estimate
from egnn_md.rollout.metrics_molecular import pair_difference
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.machine import machine, versions

from .measure import DIFFUSION_LEAST, ENERGY_INTERVAL, OH_LIMITS, TEMPERATURE_LIMITS, Measures

MAX_POINTS = 400  # a curve
PAIRS = ("O-O", "O-H", "H-H")


def with_error(value: Estimate | None, digits: int) -> str:
    """``301 ± 4``; the error is left out where it cannot be told."""
    if value is None:
        return "–"
    text = f"{value.value:.{digits}f}"
    return text if math.isnan(value.error) else f"{text} ± {value.error:.{digits}f}"


def steps_text(measures: Measures) -> str:
    """Strides until failure, the median over rollouts; with a sign in front where half of them did not fail."""
    steps = sorted(measures.steps)
    sign = "over " if 2 * measures.failed <= len(steps) else ""
    return f"{sign}{statistics.median(steps):g}"


def table(found: Sequence[Measures], speed: dict[str, float]) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """Head and rows (name, cells): a row a quantity, a column a way to make dynamics."""
    reference = found[0]
    rows: list[tuple[str, list[str]]] = []

    def row(name: str, values: Sequence[str]) -> None:
        rows.append((name, list(values)))

    row("Time covered by a step / fs", ["0.5", *(f"{m.runs[0].interval:g}" for m in found[1:])])
    row("Strides until failure, median", ["–", *(steps_text(m) for m in found[1:])])
    row("fewest and most", ["–", *(f"{min(m.steps)} to {max(m.steps)}" for m in found[1:])])
    row("Rollouts that failed", ["–", *(f"{m.failed} of {len(m.steps)}" for m in found[1:])])
    row("Time until failure, median / fs", [f"{_time(m):.0f}" if m.failed else f"over {_time(m):.0f}" for m in found])
    for symbol in sorted(reference.mean_temperatures):
        row(f"Temperature of {symbol} / K", [with_error(m.mean_temperatures.get(symbol), 0) for m in found])
    row("O-H length / Å", [f"{m.bond[0]:.4f}, spread {m.bond[1]:.4f}" for m in found])
    for name in PAIRS:
        differences = [pair_difference(m.pairs, reference.pairs).get(name) for m in found]
        row(f"g(r) {name}: mean distance to the potential's", ["0", *(_number(d) for d in differences[1:])])
    row("Slope of the O displacement / 6 / (1e-5 cm²/s)", [with_error(m.diffusion, 2) for m in found])
    row("Energy drift / (meV/atom/ps)", [with_error(m.drift, 2) for m in found])
    row("Speed of the centre of mass at the end / rms speed of O", [f"{m.centre_speed:.2g}" for m in found])
    if speed:
        row("ns/day, one thread", [_number(speed.get(m.name)) for m in found])
        base = speed[reference.name]
        row("Speed against the potential", [f"{speed[m.name] / base:.2f}" for m in found])
    return ["", *(m.name for m in found)], rows


def _time(measures: Measures) -> float:
    return float(np.median([run.times[-1] for run in measures.runs]))


def _number(value: float | None) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.3g}"


def markdown(head: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> str:
    """The table for a README."""
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join([name, *cells]) + " |" for name, cells in rows)]) + "\n"


def notes(found: Sequence[Measures], duration: float) -> list[str]:
    """What a reader must know to judge the numbers."""
    reference, others = found[0], found[1:]
    longest = max(run.times[-1] for run in reference.runs)
    text = [
        f"{len(reference.runs)} trajectories of the potential ({longest:g} fs of constant energy) and "
        f"{len(others[0].runs) if others else 0} rollouts of {duration:g} fs for each propagator, started from frames "
        f"of them; {len(reference.runs[0].species) // 3} molecules in a periodic box. No rollout was trained on these "
        "frames.",
        f"A rollout has failed when an O-H bond leaves {OH_LIMITS[0]:g} to {OH_LIMITS[1]:g} Å or the kinetic "
        f"temperature leaves {TEMPERATURE_LIMITS[0]:g} to {TEMPERATURE_LIMITS[1]:g} times that of its start. Every "
        "measure uses the frames before that; a rollout that fails early has few of them, close to its start.",
        f"Energies are the potential's, on frames {ENERGY_INTERVAL:g} fs apart, plus the kinetic energy of the "
        "rollout's velocities. Errors are standard errors over runs.",
    ]
    if max(duration, longest) < DIFFUSION_LEAST:
        text.append(
            f"Runs are too short for a self-diffusion coefficient (it takes some {DIFFUSION_LEAST / 1000:g} ps): the "
            "slope of the displacement compares the ways with each other and is not that coefficient."
        )
    return text


def charts(found: Sequence[Measures]) -> list[Chart]:
    """Pair distributions, temperatures, energy, displacement; one colour a way."""
    drawn = []
    for name in PAIRS:
        lines = []
        peak = 1.0
        for colour, measures in enumerate(found):
            for pair in measures.pairs:
                if pair.name == name:
                    lines.append(Series(measures.name, pair.r, pair.g, colour=colour))
                    outside = pair.g[pair.r > pair.bonded]
                    if colour == 0 and len(outside):
                        peak = float(outside.max())
        drawn.append(
            Chart(f"g-{name}", f"Pair distribution {name}", "r / Å", "g(r)", tuple(lines), y_range=(0.0, 1.6 * peak))
        )
    for symbol in sorted(found[0].temperatures):
        lines = [
            Series(m.name, *_thin(*m.temperatures[symbol]), colour=c) for c, m in enumerate(found) if m.temperatures
        ]
        # one broken rollout must not flatten all the others
        level = float(np.nanmean(found[0].temperatures[symbol][1]))
        drawn.append(
            Chart(
                f"temperature-{symbol}", f"Temperature of {symbol}", "t / ps", "T / K", tuple(lines),
                note="Mean over the rollouts that are still whole.", y_range=(0.4 * level, 1.8 * level),
            )
        )  # fmt: skip
    lines = []
    for colour, measures in enumerate(found):
        lines += [Series(measures.name, times, values, "thin", colour) for times, values in measures.energy]
    title, unit = "Total energy against the start", "ΔE / (meV/atom)"
    drawn.append(Chart("energy", title, "t / ps", unit, tuple(lines), y_range=_range(lines)))
    lines = [
        Series(m.name, *_thin(*m.displacement), colour=c) for c, m in enumerate(found) if m.displacement is not None
    ]
    drawn.append(Chart("displacement", "Mean squared displacement of O", "t / ps", "⟨|Δr|²⟩ / Å²", tuple(lines)))
    return drawn


def _range(lines: Sequence[Series]) -> tuple[float, float]:
    """Nine tenths of all values, with room."""
    values = np.concatenate([line.y for line in lines])
    low, high = np.nanpercentile(values, [5, 95])
    room = 0.3 * max(high - low, 1.0)
    return float(low - room), float(high + room)


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    every = max(-(-len(x) // MAX_POINTS), 1)
    return x[::every], y[::every]


def picture(drawn: Sequence[Chart], path: Path) -> None:
    """All charts in one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 3
    rows = -(-len(drawn) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.1 * rows), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    names: dict[str, Any] = {}
    for index, chart in enumerate(drawn):
        axes = figure.add_subplot(rows, columns, index + 1)
        for series in chart.series:
            thin = series.style == "thin"
            (line,) = axes.plot(
                series.x,
                chart.values(series),
                color=COLOURS[series.colour % len(COLOURS)],
                linewidth=0.7 if thin else 1.4,
                alpha=0.6 if thin else 1.0,
            )
            if not thin:
                names.setdefault(series.name, line)
        if chart.y_range is not None:
            axes.set_ylim(*chart.y_range)
        axes.set_xlabel(chart.x_label)
        axes.set_ylabel(chart.y_label)
        axes.set_title(chart.title, fontsize=10, loc="left")
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
    figure.legend(names.values(), names.keys(), loc="outside lower center", ncols=len(names), frameon=False)
    figure.savefig(path)


def write_page(
    output: Path, found: Sequence[Measures], speed: dict[str, float], *, duration: float, command: str
) -> str:
    """Write ``compare.html``, ``compare.png``, ``compare.json``, ``compare.md`` into ``output``.

    Args:
        output: directory, which exists.
        found: the potential's own dynamics first.
        speed: name to ns/day; may be empty.
        duration: fs of a rollout.
        command: that made it.

    Returns:
        the table as Markdown.
    """
    from plotly.offline import get_plotlyjs

    head, rows = table(found, speed)
    text, drawn, told = markdown(head, rows), charts(found), notes(found, duration)
    facts = machine("cpu")
    page = template("evaluation.html").render(
        title="Water: propagators beside the potential",
        css=asset("page.css"),
        version=versions().get("egnn-md", ""),
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        cards=[(m.name, steps_text(m), "strides") for m in found[1:]],
        notes=told,
        tables=[
            {
                "title": "Measures",
                "head": head,
                "rows": [(name, [(cell, False) for cell in cells]) for name, cells in rows],
                "note": f"Made by: {command}" if command else "",
            }
        ],
        viewer=None,
        viewer_caption="",
        charts=[{"title": c.title, "note": c.note, "json": script_json(to_plotly(c))} for c in drawn],
        facts=[("Ran on", [("Processor", facts.get("processor", "")), ("Cores", facts.get("cores", ""))])],
        plotly=get_plotlyjs(),
        script=asset("viewer.js"),
    )
    with writing(output / "compare.png"):
        picture(drawn, output / "compare.png")
    write_atomic(output / "compare.html", page.encode())
    write_atomic(output / "compare.md", text.encode())
    write_json(
        output / "compare.json",
        {
            "command": command,
            "table": {name: dict(zip(head[1:], cells, strict=True)) for name, cells in rows},
            "steps": {m.name: m.steps for m in found[1:]},
            "failures": {m.name: [run.failure for run in m.runs] for m in found[1:]},
            "notes": told,
            "versions": versions(),
        },
    )
    return text
