"""The page and the numbers of a learning loop: what every round brought."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.learning.config import LearnConfig
from egnn_md.report.charts import Chart, Series, to_plotly, to_png
from egnn_md.report.evaluation import number, plain
from egnn_md.report.page import asset, script_json, template
from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.machine import versions
from egnn_md.simulation.progress import duration

GROUPS = 10  # of structures, by their spread
DEFINITIONS = {
    "Spread": "Of an atom: sqrt(mean over members of |F_m - F|²) with F the members' mean force; of a structure: its "
    "root mean square, or its largest, over the atoms. Divided by the number of members, not by one less.",
    "Error": "Length of the difference between the committee's mean force on an atom and the reference method's; over "
    "a structure as the spread. RMSE and MAE are over force components, as in `egnn-md train`.",
    "Rank correlation": "Spearman's ρ of spread and error: 1 if the spread puts structures (or atoms) in the order of "
    "their errors, 0 if it knows nothing of them.",
    "New labels": "Structures that the committee of the round before was run into, chosen for their spread; its rank "
    "correlation is over these few, which are alike in that all are uncertain.",
    "Single members": "Mean of the members' own force RMSE on the test set; the committee's mean is a better model.",
}
STAGES = ("run", "select", "label", "train", "measure")
Row = tuple[str, Callable[[dict[str, Any]], Any]]


def _at(*path: str) -> Callable[[dict[str, Any]], Any]:
    def find(record: dict[str, Any]) -> Any:
        value: Any = record
        for key in path:
            value = value.get(key) if isinstance(value, dict) else None
        return value

    return find


def _single(record: dict[str, Any]) -> float | None:
    values = _at("test", "member_force_rmse")(record)
    return float(np.mean(values)) if values else None


#: Rows of the first table; True: the smallest is the best, False: the largest, None: no contest.
ERRORS: tuple[tuple[str, Callable[[dict[str, Any]], Any], bool | None], ...] = (
    ("Force RMSE / (meV/Å)", _at("test", "errors", "force_rmse"), True),
    ("Force MAE / (meV/Å)", _at("test", "errors", "force_mae"), True),
    ("Largest force error / (meV/Å)", _at("test", "errors", "force_max"), True),
    ("Energy RMSE / (meV/atom)", _at("test", "errors", "energy_rmse"), True),
    ("Energy RMSE without the mean offset / (meV/atom)", _at("test", "errors", "energy_rmse_centred"), True),
    ("Force RMSE of single members / (meV/Å)", _single, True),
    ("Rank correlation, structures", _at("test", "spearman", "force"), False),
    ("Rank correlation, worst atoms of structures", _at("test", "spearman", "max_force"), False),
    ("Rank correlation, atoms", _at("test", "spearman", "atom"), False),
    ("Rank correlation, energies", _at("test", "spearman", "energy"), False),
    ("Mean force spread / (meV/Å)", _at("test", "mean_force_std"), None),
    ("Mean force error / (meV/Å)", _at("test", "mean_force_error"), None),
)
BROUGHT: tuple[Row, ...] = (
    ("Structures learned from", _at("learned_from")),
    ("New labels", _at("labels", "new")),
    ("Labels that failed", _at("labels", "failed")),
    ("Labels too hard to learn from", _at("labels", "too_hard")),
    ("Candidates", _at("selection", "candidates")),
    ("Median spread of candidates / (eV/Å)", _at("selection", "spread", "median")),
    ("90 % of them below / (eV/Å)", _at("selection", "spread", "90%")),
    ("Largest spread / (eV/Å)", _at("selection", "spread", "maximum")),
    ("Runs", _at("runs", "runs")),
    ("Runs that failed", _at("runs", "failed")),
    ("Runs stopped by the spread", _at("runs", "uncertain")),
    ("Rank correlation on the new labels", _at("test", "new_labels", "spearman", "force")),
)


def write_learning_report(
    folder: Path, config: LearnConfig, records: list[dict[str, Any]], seconds: dict[str, float]
) -> Path:
    """Write report.html, report.json and PNGs into ``folder``.

    Args:
        folder: of the loop.
        config: of the loop.
        records: of the rounds from 0 (the first training) on.
        seconds: wall time of every stage.

    Raises:
        OutputError: a file cannot be written.
    """
    charts = _charts(records)
    for chart in charts:
        with writing(folder / f"{chart.key}.png"):
            to_png(chart, folder / f"{chart.key}.png", Path(config.output).name)
    rounds = [{**record, "seconds": _times(index, seconds)} for index, record in enumerate(records)]
    numbers = {"config": config.model_dump(mode="json"), "rounds": rounds, "versions": versions()}
    write_json(folder / "report.json", plain({**numbers, "definitions": DEFINITIONS}))
    page = folder / "report.html"
    write_atomic(page, _render(config, records, seconds, charts).encode())
    return page


def _times(index: int, seconds: dict[str, float]) -> dict[str, float]:
    return {stage: seconds[f"{index}/{stage}"] for stage in STAGES if f"{index}/{stage}" in seconds}


def _names(records: list[dict[str, Any]]) -> list[str]:
    return ["start" if index == 0 else f"round {index}" for index in range(len(records))]


def _error_table(records: list[dict[str, Any]]) -> dict[str, Any]:
    rows = []
    for name, find, smaller in ERRORS:
        values = [find(record) for record in records]
        known = [value for value in values if value is not None]
        best = None if smaller is None or len(set(known)) < 2 else min(known) if smaller else max(known)
        rows.append((name, [(number(value), value is not None and value == best) for value in values]))
    temperatures = list(_at("test", "force_rmse_by_temperature")(records[0]) or {})
    for kelvin in temperatures if len(temperatures) > 1 else []:
        values = [_at("test", "force_rmse_by_temperature", kelvin)(record) for record in records]
        rows.append((f"Force RMSE at {kelvin} K / (meV/Å)", [(number(value), False) for value in values]))
    count = int(_at("test", "errors", "structures")(records[0]) or 0)
    return {
        "title": "On the test set",
        "head": ["", *_names(records)],
        "rows": rows,
        "note": f"{count} structures that no member has learned from.",
    }


def _brought_table(records: list[dict[str, Any]], seconds: dict[str, float]) -> dict[str, Any]:
    rows = [(name, [(number(find(record)), False) for record in records]) for name, find in BROUGHT]
    times = [_times(index, seconds) for index in range(len(records))]
    for stage in STAGES:
        rows.append(
            (f"Time to {stage}", [(duration(t[stage]) if stage in t else "–", False) for t in times]),
        )
    reasons = [reason for record in records for reason in (_at("runs", "reasons")(record) or [])]
    return {
        "title": "What the rounds brought",
        "head": ["", *_names(records)],
        "rows": rows,
        "note": f"Failures: {'; '.join(reasons[:5])}" if reasons else "",
    }


def _grouped(spread: np.ndarray, error: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of spread and error over equally large groups in the order of the spread."""
    order = np.argsort(spread, kind="stable")
    groups = [group for group in np.array_split(order, min(GROUPS, len(order))) if len(group)]
    return np.array([spread[g].mean() for g in groups]), np.array([error[g].mean() for g in groups])


def _charts(records: list[dict[str, Any]]) -> list[Chart]:
    x = np.arange(len(records), dtype=float)

    def values(find: Callable[[dict[str, Any]], Any]) -> np.ndarray:
        return np.array([np.nan if find(r) is None else float(find(r)) for r in records])

    errors = Chart(
        "force-error", "Force error on the test set", "round", "force RMSE / (meV/Å)",
        (
            Series("committee", x, values(_at("test", "errors", "force_rmse")), "points", 0),
            Series("mean of single members", x, values(_single), "points", 1),
        ),
        note="Round 0 has learned from the starting set only.",
    )  # fmt: skip
    ranks = Chart(
        "rank-correlation", "Does the spread know the error?", "round", "Spearman's ρ",
        tuple(
            Series(name, x, values(_at("test", "spearman", key)), "points", colour)
            for colour, (name, key) in enumerate([("structures", "force"), ("worst atoms", "max_force"),
                                                  ("atoms", "atom"), ("energies", "energy")])
        ),
        note="Rank correlation of spread and true error on the test set.", y_range=(-0.2, 1.02),
    )  # fmt: skip
    lines = []
    for index, (name, record) in enumerate(zip(_names(records), records, strict=True)):
        found = _at("test", "structures")(record)
        if found:
            lines.append(Series(name, *_grouped(np.array(found["force_std"]), np.array(found["force_error"])),
                                "points", index))  # fmt: skip
    calibration = Chart(
        "spread-error", "True error of structures by their spread", "force spread / (meV/Å)",
        "force error / (meV/Å)", tuple(lines),
        note=f"Test structures in the order of their spread, in at most {GROUPS} groups: means of a group.",
    )  # fmt: skip
    return [errors, ranks, *([calibration] if lines else [])]


def _render(
    config: LearnConfig, records: list[dict[str, Any]], seconds: dict[str, float], charts: list[Chart]
) -> str:
    from plotly.offline import get_plotlyjs

    first, last = (_at("test", "errors", "force_rmse")(record) for record in (records[0], records[-1]))
    rho = _at("test", "spearman", "force")(records[-1])
    new = sum(_at("labels", "new")(record) or 0 for record in records)
    cards = [
        ("Force RMSE", number(last), "meV/Å"),
        ("at the start", number(first), "meV/Å"),
        ("Rank correlation", number(rho), "structures"),
        ("New labels", str(new), f"in {len(records) - 1} rounds"),
        ("Wall time", duration(sum(seconds.values())), ""),
    ]
    verdicts = [
        f"{new} new labels in {len(records) - 1} rounds took the force RMSE on the test set from {first:.1f} to "
        f"{last:.1f} meV/Å."
    ]
    settings = config.model_dump(mode="json")
    facts = [
        (name.capitalize(), [(key.replace("_", " "), str(value)) for key, value in settings[name].items()])
        for name in ("committee", "run", "select", "label", "train")
    ]
    return str(
        template("evaluation.html").render(
            title=f"Active learning: {Path(config.output).name}",
            made=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
            version=versions().get("egnn-md", ""),
            verdicts=verdicts,
            cards=cards,
            notes=[],
            tables=[_error_table(records), _brought_table(records, seconds)],
            viewer=None,
            charts=[{"title": c.title, "note": c.note, "json": script_json(to_plotly(c))} for c in charts],
            facts=facts,
            meanings=list(DEFINITIONS.items()),
            css=asset("page.css"),
            plotly=get_plotlyjs(),
            script=asset("viewer.js"),
        )
    )
