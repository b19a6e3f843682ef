"""Table, numbers and picture out of compared runs."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.training.logs import read_csv

if TYPE_CHECKING:
    from egnn_md_systems.compare import Variant

REFERENCE = "egnn"


def summarise_row(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over seeds of the test errors (validation errors where there is no test part)."""
    good = [r for r in results if "failed" not in r]
    part = "test" if good and all("test" in r["errors"] for r in good) else "valid"
    values = [float(r["errors"][part]["mse"]) for r in good]
    velocities = [float(r["errors"][part]["velocity_mse"]) for r in good]
    return {
        "part": part,
        "mse": statistics.fmean(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "velocity_mse": statistics.fmean(velocities) if velocities else None,
        "each": values,
        "seeds": [int(r["seed"]) for r in good],
        "seconds": statistics.fmean([float(r["budget"]["seconds"]) for r in good]) if good else None,
        "parameters": good[0]["parameters"] if good else None,
        "failed": [str(r["failed"]) for r in results if "failed" in r],
    }


def collect(
    variants: Sequence[Variant],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    speed: Mapping[str, Mapping[str, Any]],
    steps: int,
    command: str,
) -> dict[str, Any]:
    """Everything that ``results.json`` holds."""
    models = {v.label: {**summarise_row(rows[v.label]), "settings": v.settings} for v in variants}
    good = [r for results in rows.values() for r in results if "failed" not in r]
    references: dict[str, dict[str, float]] = {}
    if good:
        errors = good[0]["errors"].get("test") or good[0]["errors"]["valid"]
        references = {
            name: {"mse": errors[name], "velocity_mse": errors[f"{name}_velocity"]} for name in ("still", "linear")
        }
    egnn = models.get(REFERENCE, {}).get("mse")
    for label, row in models.items():
        row["ratio_to_egnn"] = row["mse"] / egnn if egnn and row["mse"] else None
        row["ratio_to_linear"] = row["mse"] / references["linear"]["mse"] if row["mse"] else None
        row["speed"] = dict(speed.get(label, {}))
    first = good[0] if good else None
    config = next(iter(rows.values()))[0]["config"]
    return {
        "command": command,
        "budget": {
            "steps": steps,
            "batch_size": first["config"].get("batch_size", 10) if first else None,
            "samples_seen": first["budget"]["samples_seen"] if first else None,
            "epochs": first["budget"]["epochs"] if first else None,
            "machine": first["budget"]["machine"] if first else None,
        },
        "data": first["training_data"] if first else None,
        "units": first["units"] if first else None,
        "references": references,
        "models": models,
        "reference_speed": dict(speed.get(REFERENCE, {})),
        "config": {key: value for key, value in config.items() if key not in ("output", "name", "seed")},
    }


def _number(value: float | None, digits: int = 4) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:.{digits}g}"


def table(results: Mapping[str, Any]) -> str:
    """``results.md``: the table and how it was made."""
    budget, data = results["budget"], results["data"]
    part = next(iter(results["models"].values()))["part"]
    unit = (results["units"] or {}).get("length", "none")
    square = "" if unit == "none" else f" ({unit}²)"
    lines = [
        f"| model | C | p | MSE{square} | ± | of EGNN | of linear | forward | step | s a run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in results["references"].items():
        shown = {"still": "stay still", "linear": "linear"}[name]
        relative = row["mse"] / results["references"]["linear"]["mse"]
        lines.append(f"| {shown} | | | {_number(row['mse'])} | | | {_number(relative, 3)} | | | |")
    for label, row in results["models"].items():
        settings, speed = row["settings"], row["speed"]
        drop = settings["model.drop_fraction"]
        kind = " random" if settings["model.drop"] == "random" else ""
        cells = [
            label,
            str(settings["model.virtual_nodes"]),
            f"{drop:g}{kind}" if drop else "0",
            _number(row["mse"]),
            "" if row["spread"] is None else _number(row["spread"], 2),
            "" if row["ratio_to_egnn"] is None else _number(row["ratio_to_egnn"], 3),
            _number(row["ratio_to_linear"], 3),
            _number(speed.get("forward_ratio"), 3),
            _number(speed.get("step_ratio"), 3),
            _number(row["seconds"], 3),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    seeds = next(iter(results["models"].values()))["seeds"]
    clock = results["reference_speed"].get("clock")
    machine = budget["machine"] or {}
    lines += [
        "",
        f"MSE: one stride, mean over particles and the three components, {part} part"
        + ("" if data is None else f" ({data.get(f'{part}_windows', data.get('valid_windows'))} samples)")
        + f"; {'mean over' if len(seeds) > 1 else 'one'} seed{'s' if len(seeds) > 1 else ''} "
        + f"{', '.join(map(str, seeds))}{', ± is their standard deviation' if len(seeds) > 1 else ''}.",
    ]
    if clock:
        reference = results["reference_speed"]
        lines.append(
            f"Times are relative to EGNN on all edges, measured in turns ({clock}, medians): its forward pass "
            f"takes {1e3 * reference['forward']:.1f} ms and its training step {1e3 * reference['step']:.1f} ms for a "
            f"batch of {reference['batch_size']}; reading and finding edges is not in them."
        )
    lines += [
        f"Budget: {budget['steps']} steps of {budget['batch_size']} samples"
        + (f" ({budget['epochs']:g} epochs of {data['windows']} samples)" if data else "")
        + ", equal for every model, in the same order.",
        f"Machine: {machine.get('gpu', machine.get('processor', 'unknown'))}, torch threads: "
        f"{machine.get('torch_threads')}.",
    ]
    if data is not None:
        name = data["system"] or "unnamed"
        lines.append(f"Data: {name}, training digest {data['digest'][:12]}, stride {data['stride']:g}.")
    for label, row in results["models"].items():
        lines += [f"{label} failed: {text}" for text in row["failed"]]
    lines += ["", "```", results["command"], "```", ""]
    return "\n".join(lines)


def draw(path: Path, results: Mapping[str, Any], curves: Mapping[str, Sequence[tuple[float, float]]]) -> Path:
    """``results.png``: the test error of each model, and how the validation error fell.

    Args:
        path: file to write.
        results: of :func:`collect`.
        curves: (step, validation MSE) of each model's first seed.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels = list(results["models"])
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, max(3.0, 0.35 * len(labels) + 1.5)), layout="constrained")
    for place, label in enumerate(labels):
        row = results["models"][label]
        left.barh(place, row["mse"] or 0.0, color="#4c78a8" if row["settings"]["model.virtual_nodes"] else "#9aa5b1")
        left.plot(row["each"], [place] * len(row["each"]), "k.", markersize=4)
    for name, style in (("linear", "--"), ("still", ":")):
        if name in results["references"]:
            left.axvline(results["references"][name]["mse"], color="k", linestyle=style, linewidth=1, label=name)
    left.set_yticks(range(len(labels)), labels)
    left.invert_yaxis()
    left.set_xlabel("one-step MSE")
    left.legend(loc="lower right")
    for label, points in curves.items():
        if points:
            right.plot(*zip(*points, strict=True), marker=".", label=label)
    right.set_yscale("log")
    right.set_xlabel("step")
    right.set_ylabel("validation MSE")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def write_results(
    output: Path,
    variants: Sequence[Variant],
    rows: Mapping[str, Sequence[Mapping[str, Any]]],
    speed: Mapping[str, Mapping[str, Any]],
    steps: int,
    command: str,
) -> list[Path]:
    """Write ``results.json``, ``results.md`` and ``results.png``.

    Args:
        output: directory.
        variants: rows of the table, in order.
        rows: results of every seed by label.
        speed: of :func:`egnn_md_systems.compare_timing.measure_speed`.
        steps: budget of each run.
        command: that made them.

    Returns:
        The files.
    """
    results = collect(variants, rows, speed, steps, command)
    output.mkdir(parents=True, exist_ok=True)
    (output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (output / "results.md").write_text(table(results))
    curves = {}
    for variant in variants:
        log = Path(rows[variant.label][0]["config"]["output"]) / "valid.csv"
        points = read_csv(log) if log.is_file() else []
        curves[variant.label] = [(float(row["step"]), float(row["mse"])) for row in points]
    return [output / "results.json", output / "results.md", draw(output / "results.png", results, curves)]
