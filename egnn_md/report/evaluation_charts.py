"""Charts of an evaluation: every model, stay still, linear and the reference over the strides."""

from __future__ import annotations

from typing import Any

import numpy as np

from egnn_md.report.charts import Chart, Series
from egnn_md.rollout.definitions import DEFINITIONS, time_unit, title_of, unit_of
from egnn_md.rollout.evaluate import REFERENCE, Evaluation

BASELINES = ("stay still", "linear")
#: metric → (logarithmic axis, shown for the baselines too)
OVER_TIME = {
    "mse": (True, True),
    "centre_of_mass_error": (False, True),
    "momentum_drift": (False, False),
    "kinetic_energy": (False, False),
    "outside": (False, True),
    "rmsd": (False, True),
    "radius_of_gyration": (False, True),
    "bond_violations": (False, True),
}
AT_HORIZONS = {"sinkhorn": True, "grid_density_error": False, "local_density_error": False}
PALE, DASHED = 5, "dash"
FREE = (0, 1, 3, 6, 7, 8)  # colours of models; the others are the baselines' and the reference's


def _colours(results: dict[str, Any]) -> dict[str, int]:
    """Models take colours from the first; baselines and reference have theirs."""
    models = [name for name in results if name not in (*BASELINES, REFERENCE)]
    found = {name: FREE[index % len(FREE)] for index, name in enumerate(models)}
    return {**found, "stay still": PALE, "linear": 4, REFERENCE: 2}


def _array(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def evaluation_charts(evaluation: Evaluation, record: dict[str, Any]) -> list[Chart]:
    """Charts of what was measured; those without a value are left out."""
    results, units = record["results"], record["units"]
    colours = _colours(results)
    found = []
    unit = time_unit(units)
    x_label = f"strides of {record['stride']:.4g} {unit}" if unit else f"strides of {record['stride_frames']} frames"
    for metric, (log, with_baselines) in OVER_TIME.items():
        series = []
        for name, entry in results.items():
            values = entry.get("series", {}).get(metric)
            if values is None or (name in BASELINES and not with_baselines):
                continue
            y = _array(values)
            start = 1 if log else 0
            style = "dash" if name in (*BASELINES, REFERENCE) else "line"
            if len(y) - start < 12 and style == "line":
                style = "points"
            series.append(Series(name, np.arange(start, len(y)), y[start:], style, colours[name]))
        if series and any(np.isfinite(each.y).any() for each in series):
            found.append(
                Chart(metric, title_of(metric), x_label, _axis(metric, units), tuple(series),
                      note=DEFINITIONS[metric].text, y_log=log)
            )  # fmt: skip
    found += [chart for chart in (_at_horizons(m, log, record, colours, x_label) for m, log in AT_HORIZONS.items())
              if chart is not None]  # fmt: skip
    found += _temperatures(results, x_label)
    found += _profiles(record, colours)
    found += _pairs(evaluation, colours)
    shares = {name: _array(entry.get("series", {}).get("running", [1.0])) for name, entry in results.items()}
    running = [
        Series(name, np.arange(len(share)), 100 * share, "line", colours[name])
        for name, share in shares.items()
        if share.min() < 1
    ]
    if running:
        found.append(Chart("running", "Rollouts that still run", x_label, "% of the starts", tuple(running),
                           note=DEFINITIONS["running"].text, y_range=(0.0, 102.0)))  # fmt: skip
    return found


def _axis(metric: str, units: dict[str, str]) -> str:
    unit = unit_of(metric, units)
    return f"{title_of(metric)} / {'(' + unit + ')' if '/' in unit else unit}" if unit else title_of(metric)


def _at_horizons(metric: str, log: bool, record: dict[str, Any], colours: dict[str, int], x_label: str) -> Chart | None:
    series = []
    for name, entry in record["results"].items():
        rows = [row for row in entry.get("horizons", []) if row.get(metric) is not None]
        if rows:
            x, y = np.array([row["strides"] for row in rows]), _array([row[metric] for row in rows])
            series.append(Series(name, x, y, "points", colours[name]))
    if not series or max(len(each.x) for each in series) < 2:
        return None
    return Chart(metric, title_of(metric), x_label, _axis(metric, record["units"]), tuple(series),
                 note=DEFINITIONS[metric].text, y_log=log)  # fmt: skip


def _temperatures(results: dict[str, Any], x_label: str) -> list[Chart]:
    series = []
    names = sorted({k for entry in results.values() for k in entry.get("series", {}) if k.startswith("temperature_")})
    shown = [name for name in results if name not in BASELINES]
    for index, model in enumerate(shown):
        for place, metric in enumerate(names):
            values = results[model].get("series", {}).get(metric)
            if values is not None:
                y = _array(values)
                style = "dash" if model == REFERENCE else "line"
                colour = place if model in (shown[0], REFERENCE) else 2 + index + place
                label = f"{metric.partition('_')[2]}, {model}"
                series.append(Series(label, np.arange(len(y)), y, style, colour))
    if not series:
        return []
    return [Chart("temperature", "Temperature of each element", x_label, "temperature / K", tuple(series),
                  note=DEFINITIONS["temperature"].text)]  # fmt: skip


def _profiles(record: dict[str, Any], colours: dict[str, int]) -> list[Chart]:
    series = []
    for name, entry in record["results"].items():
        if entry.get("rmsf") and name != "stay still":
            y = _array(entry["rmsf"])
            style = "line" if name != REFERENCE else DASHED
            series.append(Series(name, np.arange(len(y)), y, style, colours[name]))
    if not series:
        return []
    return [Chart("rmsf", "RMSF", "particle", _axis("rmsf", record["units"]), tuple(series),
                  note=DEFINITIONS["rmsf"].text)]  # fmt: skip


def _pairs(evaluation: Evaluation, colours: dict[str, int]) -> list[Chart]:
    reference = evaluation.pairs.get(REFERENCE, [])
    charts = []
    for pair in reference:
        outside = pair.r > pair.bonded
        if not outside.any():
            continue
        series = [Series(REFERENCE, pair.r, pair.g, DASHED, 2)]
        for name, found in evaluation.pairs.items():
            if name in (REFERENCE, *BASELINES):
                continue
            series += [Series(name, each.r, each.g, "line", colours[name]) for each in found
                       if each.name == pair.name]  # fmt: skip
        top = 1.3 * float(pair.g[outside].max())
        note = f"Mean of {pair.frames} frames, the first fifth of every rollout left out."
        title = f"Pair distribution {pair.name}"
        charts.append(Chart(f"g-{pair.name}", title, "r / Å", "g(r)", tuple(series), note, y_range=(0.0, top)))
    return charts
