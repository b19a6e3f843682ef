"""The report: one HTML file that opens offline, PNGs beside it, and the numbers as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from egnn_md.errors import InputError
from egnn_md.report.charts import Chart, to_plotly, to_png
from egnn_md.report.contents import Numbers, charts, measure, summary
from egnn_md.report.load import LoadedRun, load_run
from egnn_md.report.viewer import viewer_data
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.machine import versions
from egnn_md.simulation.progress import duration


@dataclass(frozen=True)
class Report:
    """What was written: the page, the numbers, the pictures."""

    page: Path
    numbers: Path
    pictures: tuple[Path, ...]


def script_json(value: Any) -> str:
    """JSON that may stand inside a ``<script>``: nothing in it can end the element."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def write_report(runs: Sequence[Path | str], output: Path | str | None = None, title: str | None = None) -> Report:
    """Write the report of one or several runs.

    Args:
        runs: run directories, in the order of the page's sections.
        output: HTML file; by default ``report.html`` in the run directory, or, of several, in the directory
            that holds them all.
        title: heading of the page.

    Raises:
        InputError: a directory that is no run or has nothing to show yet.
        OutputError: files cannot be written.
    """
    paths = [Path(run) for run in runs]
    if not paths:
        raise InputError("name at least one run directory")
    loaded = [load_run(path) for path in paths]
    loaded = _distinct(loaded)
    page = _page_path(paths, output)
    with writing(page):
        page.parent.mkdir(parents=True, exist_ok=True)
    measured = [measure(run) for run in loaded]
    drawn = [charts(run, numbers) for run, numbers in zip(loaded, measured, strict=True)]
    pictures = _pictures(page.parent, loaded, drawn)
    summaries = [summary(run, numbers) for run, numbers in zip(loaded, measured, strict=True)]
    text = _render(loaded, measured, drawn, title)
    write_atomic(page, text.encode())
    numbers_path = page.with_suffix(".json")
    write_json(numbers_path, {"runs": summaries, "versions": versions()})
    return Report(page, numbers_path, tuple(pictures))


def _page_path(paths: list[Path], output: Path | str | None) -> Path:
    if output is not None:
        page = Path(output)
        return page / "report.html" if page.is_dir() or page.suffix == "" else page
    if len(paths) == 1:
        return paths[0] / "report.html"
    return Path(os.path.commonpath([path.resolve().parent for path in paths])) / "report.html"


def _distinct(runs: list[LoadedRun]) -> list[LoadedRun]:
    """Runs whose names tell them apart: ``a/nve`` and ``b/nve`` where ``nve`` alone would not."""
    from dataclasses import replace

    names = [run.name for run in runs]
    if len(set(names)) == len(names):
        return runs
    return [
        replace(run, name=f"{run.path.resolve().parent.name}-{run.name}-{index + 1}") for index, run in enumerate(runs)
    ]


def _pictures(folder: Path, runs: list[LoadedRun], drawn: list[list[Chart]]) -> list[Path]:
    found = []
    for run, run_charts in zip(runs, drawn, strict=True):
        for chart in run_charts:
            path = folder / (f"{chart.key}.png" if len(runs) == 1 else f"{run.name}-{chart.key}.png")
            with writing(path):
                to_png(chart, path, run.name)
            found.append(path)
    return found


def _with_error(value: float, error: float, digits: int) -> str:
    text = f"{value:.{digits}f}"
    return text if math.isnan(error) else f"{text} ± {error:.{digits}f}"


def _cards(run: LoadedRun, numbers: Numbers) -> list[tuple[str, str, str]]:
    """Name, value and unit of the numbers at the top of a section."""
    log = run.log
    cards = [
        ("Length", f"{log['time_ps'][-1]:g}", "ps"),
        ("Steps", f"{int(log['step'][-1]):,}", f"of {run.request.timestep:g} fs"),
    ]
    if numbers.temperature is not None:
        mean = numbers.temperature
        cards.append(("Temperature", _with_error(mean.value, mean.error, 1), "K"))
    if numbers.drift is not None:
        fit = numbers.drift
        cards.append(("Energy drift", _with_error(fit.slope, fit.error, 4), "meV/atom/ps"))
        cards.append(("Energy scatter", f"{fit.scatter:.3g}", "meV/atom"))
    if numbers.density is not None:
        mean = numbers.density
        cards.append(("Density", _with_error(mean.value, mean.error, 4), "g/cm³"))
    if numbers.speed is not None:
        cards.append(("Speed", f"{numbers.speed:.3g}", "ns/day"))
    for pair in numbers.pairs[:1]:
        if pair.peak is not None and pair.normalised:
            cards.append((f"First {pair.name} peak", f"{pair.peak[1]:.2f}", f"at {pair.peak[0]:.2f} Å"))
    return cards


def _facts(run: LoadedRun) -> list[tuple[str, list[tuple[str, str]]]]:
    """Tables of what ran on what."""
    record, request = run.record, run.request
    model, engine, machine = record.get("model", {}), record.get("engine", {}), record.get("machine", {})
    card = model.get("card") or {}
    system = [
        ("Atoms", f"{run.atoms:,} ({run.structure.formula})"),
        ("Molecules", f"{run.structure.molecules.count:,}"),
        (
            "Boundaries",
            "periodic" if run.structure.periodic else "open" if not run.structure.pbc.any() else "partly periodic",
        ),
        ("Start", f"state of {request.continue_from}" if request.continue_from else str(request.structure)),
        ("Ensemble", _ensemble(run)),
        ("Seed", str(request.seed)),
        ("Frames", f"{run.frames.total:,} in {request.trajectory}, every {request.frame_interval} steps"),
        ("Wall time", duration(float(record.get("seconds", 0.0)))),
    ]
    if "minimisation" in record:
        relaxed = record["minimisation"]
        system.insert(
            4,
            (
                "Minimised",
                f"{relaxed['energy_before']:.3f} to {relaxed['energy_after']:.3f} eV, "
                f"largest force {relaxed['largest_force']:.3f} eV/Å",
            ),
        )
    about = [
        ("Model", str(card.get("name") or model.get("source", ""))),
        (
            "Kind",
            f"{model.get('kind', '')}, {model.get('parameters', 0):,} parameters, cutoff {model.get('cutoff', 0):g} Å",
        ),
        ("Description", str(card.get("description", ""))),
        ("Teacher", str(card.get("teacher", ""))),
        ("Intended use", str(card.get("intended_use", ""))),
        ("Limits", str(card.get("limits", ""))),
        ("Measured", _measured(card.get("measured"))),
        ("Licence", str(card.get("licence", ""))),
        ("Digest", str(model.get("digest", ""))),
    ]
    ran = [
        ("Engine", f"{engine.get('engine', '')} {engine.get('version', '')}"),
        ("Integrator", str(engine.get("integrator", ""))),
        ("Force", str(engine.get("force", ""))),
        ("Platform", _flat({engine.get("platform", ""): None, **(engine.get("platform_properties") or {})})),
        ("Device, precision", f"{engine.get('device', '')}, {engine.get('precision', '')}"),
        ("Processor", f"{machine.get('processor', '')}, {machine.get('cores', '')} cores"),
        ("GPU", str(machine.get("gpu", ""))),
        ("System", str(machine.get("system", ""))),
        ("Versions", _flat(record.get("versions"))),
        ("Began", _when(record)),
    ]
    tables = [("Simulation", system), ("Model", about), ("Ran on", ran)]
    return [(name, [(k, v) for k, v in rows if v and v.strip(", ")]) for name, rows in tables]


def _ensemble(run: LoadedRun) -> str:
    request = run.request
    if request.ensemble == "nve":
        return "NVE"
    text = f"{request.ensemble.upper()}, {request.temperature:g} K, friction {request.friction:g}/ps"
    return text + (f", {request.pressure:g} bar" if request.ensemble == "npt" else "")


def _flat(values: Any) -> str:
    if not isinstance(values, dict):
        return "" if values is None else str(values)
    return ", ".join(str(k) if v is None else f"{k} {_flat_value(v)}" for k, v in values.items() if k)


#: What training writes into a card, best source first, and how a reader wants it said.
_ERRORS = (("force_rmse", "force RMSE", "meV/Å"), ("energy_rmse_centred", "energy RMSE", "meV/atom"))
_SETS = (("test", "held-out"), ("valid", "validation"))


def _measured(values: Any) -> str:
    """The errors that matter out of a card's many; all of what a card of another making says."""
    found = values if isinstance(values, dict) else {}
    for prefix, name in _SETS:
        if all(f"{prefix}_{key}" in found for key, _, _ in _ERRORS):
            errors = ", ".join(f"{text} {found[f'{prefix}_{key}']:.3g} {unit}" for key, text, unit in _ERRORS)
            count = found.get(f"{prefix}_structures")
            return f"{errors} (after the mean offset) on {f'{count:g} ' if count else ''}{name} structures"
    return _flat(_scalars(values))


def _scalars(values: Any) -> Any:
    """A card's numbers without the configurations that training leaves beside them."""
    if not isinstance(values, dict):
        return values
    return {k: v for k, v in values.items() if isinstance(v, int | float | str) or _only_numbers(v)}


def _only_numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, int | float | str) for v in value.values())


def _flat_value(value: Any) -> str:
    if isinstance(value, dict):
        return f"({_flat(value)})"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _when(record: dict[str, Any]) -> str:
    segments = record.get("segments") or []
    if not segments:
        return ""
    text = str(segments[0].get("started", "")).replace("T", " ").replace("+00:00", " UTC")
    resumed = len(segments) - 1
    return text + (f", resumed {resumed} time{'s' if resumed > 1 else ''}" if resumed else "")


def asset(name: str) -> str:
    """Text of a file of ``assets/``."""
    return (files("egnn_md.report") / "assets" / name).read_text(encoding="utf-8")


def template(name: str) -> Any:
    """jinja2's template of an asset; values are escaped."""
    import jinja2

    loader = jinja2.FunctionLoader(asset)
    return jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, loader=loader).get_template(name)


def _render(runs: list[LoadedRun], measured: list[Numbers], drawn: list[list[Chart]], title: str | None) -> str:
    from plotly.offline import get_plotlyjs

    sections = []
    for run, numbers, run_charts in zip(runs, measured, drawn, strict=True):
        viewer = viewer_data(run)
        sections.append(
            {
                "name": run.name,
                "ensemble": run.request.ensemble.upper(),
                "engine": (run.record.get("engine") or {}).get("engine", run.request.engine),
                "status": run.record.get("status", ""),
                "error": run.record.get("error", ""),
                "cards": _cards(run, numbers),
                "charts": [{"title": c.title, "note": c.note, "json": script_json(to_plotly(c))} for c in run_charts],
                "viewer": None if viewer is None else script_json(viewer),
                "shown": None if viewer is None else viewer,
                "facts": _facts(run),
                "settled": run.settled,
            }
        )
    return template("page.html").render(
        title=title or f"Molecular dynamics of {runs[0].structure.formula}",
        made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        version=versions().get("egnn-md", ""),
        sections=sections,
        css=asset("page.css"),
        plotly=get_plotlyjs(),
        script=asset("viewer.js"),
    )
