"""The page of an evaluation: tables, charts and an animation from what :mod:`egnn_md.rollout.evaluate` measured."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from egnn_md.report.animation import animation_data
from egnn_md.report.charts import Chart, to_plotly, to_png
from egnn_md.report.evaluation_charts import evaluation_charts
from egnn_md.report.page import asset, script_json, template
from egnn_md.rollout.definitions import DEFINITIONS, time_unit, title_of, unit_of
from egnn_md.rollout.evaluate import REFERENCE, Evaluation
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.machine import versions
from egnn_md.simulation.progress import duration

DIGITS = 7  # of metrics.json
SHOWN = 4  # of the page
#: Columns of a horizon's table, in this order, where they were measured.
COLUMNS = (
    "mse", "mse_error", "mae", "velocity_mse", "sinkhorn", "grid_density_error", "local_density_error",
    "local_density_ratio", "kinetic_energy_error", "momentum_drift", "centre_of_mass_drift", "centre_of_mass_error",
    "outside", "outside_worst", "rmsd", "radius_of_gyration", "bond_violations",
)  # fmt: skip
# the kinetic energy's error does not compete: baselines that keep their velocities cannot lose
SMALLER_IS_BETTER = {
    "mse", "mae", "velocity_mse", "sinkhorn", "grid_density_error", "local_density_error", "centre_of_mass_error",
    "outside", "outside_worst", "rmsd", "bond_violations",
}  # fmt: skip
SINGLE = {
    "seconds_per_stride": "s", "seconds_per_window": "s", "ns_per_day": "ns/day", "rmsf_mean": "", "rmsf_error": "",
    "rmsf_correlation": "",
}  # fmt: skip
SURVIVORS = (
    "* Mean over the starts that still run only. Those that failed, usually the worst, are left out, so these numbers "
    "flatter the model and do not compete."
)
FAILED_TITLES = ("strides_until_failure", "not_finite", "jump", "worse_than_still", "worse_than_linear")


@dataclass(frozen=True)
class Written:
    """Files of an evaluation."""

    page: Path
    numbers: Path
    table: Path
    pictures: tuple[Path, ...]


def number(value: Any) -> str:
    """How the page says a number of metrics.json; a dash for none."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return str(value) if isinstance(value, int | str) else f"{value:.{SHOWN}g}"


def plain(value: Any) -> Any:
    """JSON values: numbers of seven digits, None for what is not finite."""
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if hasattr(value, "item") and not isinstance(value, str):
        value = value.item()
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    return value


def write_evaluation(evaluation: Evaluation, output: Path | str, title: str | None = None) -> Written:
    """Write metrics.json, metrics.csv, PNGs and index.html into the directory ``output``.

    Raises:
        OutputError: files cannot be written.
    """
    folder = Path(output)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    record = plain(evaluation.record)
    record["definitions"] = _definitions(record)
    record.setdefault("versions", versions())
    charts = evaluation_charts(evaluation, record)
    pictures = []
    for chart in charts:
        picture = folder / f"{chart.key}.png"
        with writing(picture):
            to_png(chart, picture, record["system"] or "evaluation")
        pictures.append(picture)
    write_json(folder / "metrics.json", record)
    write_atomic(folder / "metrics.csv", _csv(record).encode())
    write_atomic(folder / "index.html", _render(evaluation, record, charts, title).encode())
    return Written(folder / "index.html", folder / "metrics.json", folder / "metrics.csv", tuple(pictures))


def _definitions(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    units = record["units"]
    found = {}
    for name, definition in DEFINITIONS.items():
        found[name] = {"title": definition.title, "unit": unit_of(name, units), "text": definition.text}
    return found


def _csv(record: dict[str, Any]) -> str:
    """A row a number: model, metric, unit, strides (empty: over all), time, value."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("model", "metric", "unit", "strides", "time", "value"))
    units, stride = record["units"], record["stride"]
    for model, found in record["results"].items():
        for metric, value in found.get("one_step", {}).items():
            writer.writerow((model, f"one_step_{metric}", unit_of(metric, units), 1, plain(stride), value))
        for row in found.get("horizons", []):
            extra = {k: v for k, v in row.items() if k not in found.get("series", {})}
            for metric, value in extra.items():
                if metric not in ("strides", "time", "starts"):
                    writer.writerow((model, metric, unit_of(metric, units), row["strides"], row["time"], value))
        for metric, values in found.get("series", {}).items():
            for step, value in enumerate(values):
                writer.writerow((model, metric, unit_of(metric, units), step, plain(step * stride), value))
        for metric, value in found.get("failure", {}).items():
            if isinstance(value, dict):
                for which, stride_number in value.items():
                    unit = "starts" if which == "failed" else "strides"
                    writer.writerow((model, f"{metric}_{which}", unit, "", "", stride_number))
        for metric, unit in SINGLE.items():
            if metric in found:
                writer.writerow((model, metric, unit or unit_of(metric, units), "", "", found[metric]))
        if "diffusion" in found:
            writer.writerow((model, "diffusion", unit_of("diffusion", units), "", "", found["diffusion"]["value"]))
        if "trust" in found:
            writer.writerow((model, "trusted", "strides", "", "", found["trust"]["strides"]))
    return text.getvalue()


def _table(
    title: str, metrics: list[str], models: dict[str, dict[str, Any]], units: dict[str, str], note: str = ""
) -> dict[str, Any]:
    """A row a metric, a column a model; the best value of a row is marked.

    The reference does not compete, nor a model that has lost starts: its means are over easier ones, and starred.
    """
    rows = []
    most = max((found.get("starts") or 0 for found in models.values()), default=0)
    starts = {name: found.get("starts") or 0 for name, found in models.items() if name != REFERENCE}
    racing = {name for name, left in starts.items() if left == most}
    lost = {name for name, left in starts.items() if 0 < left < most}
    for metric in metrics:
        values = {name: found.get(metric) for name, found in models.items()}
        if all(value is None for value in values.values()):
            continue
        rivals = [value for name, value in values.items() if name in racing and value is not None]
        judged = metric in SMALLER_IS_BETTER and len({number(value) for value in rivals}) > 1
        best = min(rivals) if judged else None
        cells = []
        for name, value in values.items():
            star = "*" if name in lost and metric != "starts" and value is not None else ""
            cells.append((number(value) + star, best is not None and value == best and name in racing))
        rows.append((_heading(metric, units), cells))
    notes = [SURVIVORS if lost else "", note]
    return {"title": title, "head": ["", *models], "rows": rows, "note": " ".join(text for text in notes if text)}


def _heading(metric: str, units: dict[str, str]) -> str:
    if metric == "starts":
        return "Starts that run"
    if metric not in DEFINITIONS and not metric.startswith("temperature_"):
        return f"{title_of('pair_difference')}, {metric}"
    unit = unit_of(metric, units)
    return f"{title_of(metric)} / {'(' + unit + ')' if '/' in unit else unit}" if unit else title_of(metric)


def _tables(record: dict[str, Any]) -> list[dict[str, Any]]:
    results, units = record["results"], record["units"]
    windows, rollouts = record["data"]["windows"], record["rollouts"]
    one = {name: found["one_step"] for name, found in results.items() if "one_step" in found}
    note = f"Mean over {windows['used']:,} windows of {windows['of']:,}."
    tables = [_table("One step", ["mse", "mse_error", "mae", "velocity_mse"], one, units, note)]
    left = "; ".join(f"{row['strides']} strides: {row['reason']}" for row in rollouts["left_out"])
    for index, horizon in enumerate(rollouts["horizons"]):
        models = {name: found["horizons"][index] for name, found in results.items() if found.get("horizons")}
        temperatures = {key for row in models.values() for key in row if key.startswith("temperature_")}
        last = index == len(rollouts["horizons"]) - 1
        time = f", {number(horizon * record['stride'])} {time_unit(units)}" if time_unit(units) else ""
        title = f"After {horizon} stride{'s' if horizon > 1 else ''}{time}"
        note = f"Horizons left out: {left}." if last and left else ""
        tables.append(_table(title, [*COLUMNS, *sorted(temperatures), "starts"], models, units, note))
    tables.append(_failure_table(record))
    found = {name: _structure(entry) for name, entry in results.items()}
    keys = list(dict.fromkeys(key for row in found.values() for key in row))
    title = "Fluctuations" if "rmsf_mean" in keys else "Structure and diffusion"
    tables.append(_table(title, keys, found, units, "Over whole rollouts; see the definitions below."))
    return [table for table in tables if table["rows"]]


def _structure(entry: dict[str, Any]) -> dict[str, Any]:
    found = dict(sorted(entry.get("pair_difference", {}).items()))
    if "diffusion" in entry:
        value, error = entry["diffusion"]["value"], entry["diffusion"]["error"]
        found["diffusion"] = f"{value:.2e} ± {error:.1e}" if error is not None else f"{value:.2e}"
    return found | {key: entry[key] for key in ("rmsf_mean", "rmsf_error", "rmsf_correlation") if key in entry}


def _failure_table(record: dict[str, Any]) -> dict[str, Any]:
    found = {name: entry for name, entry in record["results"].items() if "failure" in entry}
    rows = []
    for name in FAILED_TITLES:
        cells = []
        for entry in found.values():
            one, text = entry["failure"][name], "none"
            if one["failed"]:
                middle = "" if one["median"] is None else f", median {one['median']}"
                text = f"{one['failed']} of {entry['failure']['starts']}, earliest {one['earliest']}{middle}"
            cells.append((text, False))
        rows.append((DEFINITIONS[name].title, cells))
    for key, name in (("seconds_per_stride", "Seconds a stride and start"), ("ns_per_day", "Speed / (ns/day)")):
        if any(key in entry for entry in found.values()):
            rows.append((name, [(number(entry.get(key)), False) for entry in found.values()]))
    note = f"Of {record['rollouts']['strides']} strides; starts that failed, and at which stride (from 1)."
    note += " Times are of all starts rolled out together, neighbour lists included."
    return {"title": "Until failure", "head": ["", *found], "rows": rows if found else [], "note": note}


def _cards(record: dict[str, Any]) -> list[tuple[str, str, str]]:
    results, units = record["results"], record["units"]
    models = [name for name in results if name not in (REFERENCE, "stay still", "linear")]
    cards = []
    if models:
        first = results[models[0]]["one_step"]["mse"]
        cards.append(("One-step MSE", number(first), unit_of("mse", units)))
        for name in ("linear", "stay still"):
            other = results[name]["one_step"]["mse"]
            if first and other is not None:
                cards.append((f"{name.capitalize()}, one step", number(other), f"{other / first:.3g} times"))
    cards += [
        ("Stride", number(record["stride"]), f"{time_unit(units)} ({record['stride_frames']} frames)".strip()),
        ("Rollouts", f"{len(record['rollouts']['starts'])}", f"of {record['rollouts']['strides']} strides"),
        ("Particles", " to ".join(dict.fromkeys(f"{n:,}" for n in _ends(record["data"]["particles"]))), ""),
    ]
    return cards


def _ends(values: list[int]) -> tuple[int, int]:
    return values[0], values[-1]


def _facts(record: dict[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    data, rollouts, machine, units = record["data"], record["rollouts"], record.get("machine", {}), record["units"]
    tables = [
        (
            "Data",
            [
                ("System", record["system"]),
                ("Data", f"{data['path']}, part {data['part']}"),
                ("Trajectories", f"{data['trajectories']:,}"),
                ("Units", ", ".join(f"{k} {v}" for k, v in record["units"].items())),
                ("Stride", f"{number(record['stride'])} {time_unit(units)}, {record['stride_frames']} frames"),
                ("Walls", ", ".join(f"{low:g} to {high:g}" for low, high in rollouts["walls"] or [])),
                ("Interaction radius", "" if rollouts["radius"] is None else number(rollouts["radius"])),
                ("Command", record.get("command", "")),
                ("Wall time", duration(record["seconds"])),
            ],
        ),
    ]
    for model in record.get("models", []):
        config = model["config"]
        size = f"{config['messages']}, hidden {config['hidden']}, {config['layers']} layers, C "
        size += str(config["virtual_nodes"])
        dropped = f"{config['drop']} {config['drop_fraction']:g}" if config["drop"] != "none" else "none"
        tables.append(
            (
                model["name"],
                [
                    ("File", model["file"]),
                    ("Network", size),
                    ("Parameters", f"{model['parameters']:,}"),
                    ("Cutoff", "all pairs" if config["cutoff"] is None else number(config["cutoff"])),
                    ("Dropped edges", dropped),
                    ("Velocity", config["velocity"]),
                    ("Description", str(model["card"].get("description", ""))),
                    ("Digest", model["digest"]),
                ],
            )
        )
    ran = [("Ran on", [(key.replace("_", " "), str(value)) for key, value in machine.items() if key != "host"])]
    ran[0][1].append(("Versions", ", ".join(f"{k} {v}" for k, v in record.get("versions", {}).items())))
    return [(name, [(k, v) for k, v in rows if v]) for name, rows in [*tables, *ran]]


def _meanings(record: dict[str, Any]) -> list[tuple[str, str]]:
    """Definitions of what this page shows."""
    used = {key for found in record["results"].values() for key in (*found, *found.get("series", {}))}
    used |= {key for found in record["results"].values() for row in found.get("horizons", []) for key in row}
    used |= {"temperature"} if any(key.startswith("temperature_") for key in used) else set()
    used |= {*FAILED_TITLES, "trusted"}
    return [(d["title"], d["text"]) for name, d in record["definitions"].items() if name in used]


def _notes(record: dict[str, Any]) -> list[str]:
    notes = list(record["notes"])
    if record["units"].get("length", "none") == "none":
        notes.append("The data have no units: L and T are their own length and time.")
    return notes


def _caption(data: dict[str, Any]) -> str:
    text = f"{len(data['times'])} of {data['frames']} frames of the first start"
    if data["shown"] < data["particles"]:
        text += f", {data['shown']:,} of {data['particles']:,} particles, drawn at random"
    text += "; a rollout that was stopped stands at its last good frame"
    if "colours" in data:
        text += "; colours are bands of the height at the start"
    return text + "."


def _render(evaluation: Evaluation, record: dict[str, Any], charts: list[Chart], title: str | None) -> str:
    from plotly.offline import get_plotlyjs

    viewer = animation_data(evaluation)
    return template("evaluation.html").render(
        title=title or f"Evaluation: {record['system'] or 'propagator'}",
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=versions().get("egnn-md", ""),
        cards=_cards(record),
        verdicts=[found["trust"]["text"] for found in record["results"].values() if "trust" in found],
        notes=_notes(record),
        tables=_tables(record),
        viewer=None if viewer is None else script_json(viewer),
        viewer_caption="" if viewer is None else _caption(viewer),
        charts=[{"title": c.title, "note": c.note, "json": script_json(to_plotly(c))} for c in charts],
        facts=_facts(record),
        meanings=_meanings(record),
        css=asset("page.css"),
        plotly=get_plotlyjs(),
        script=asset("viewer.js"),
    )
