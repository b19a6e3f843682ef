"""What a benchmark leaves: ``results.json`` and a page that opens offline, and the table on the terminal.

``results.json``: ``schema``, ``benchmark``, ``command``, ``settings``, ``machine``, ``versions``, ``started``,
``seconds``, ``peaks``, ``notes``, ``warnings``, ``rows`` and whatever a benchmark adds (``fits``). A row has
``status``: ``ok``; ``unavailable``, ``skipped`` or ``failed`` with a ``reason``. Times are seconds, memory is bytes.
"""

from __future__ import annotations

import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.simulation.files import write_atomic, write_json, writing
from egnn_md.simulation.machine import versions

if TYPE_CHECKING:
    from egnn_md.report.charts import Chart

SCHEMA = 1
STATUS = ("ok", "unavailable", "skipped", "failed")


@dataclass(frozen=True)
class Column:
    """One column of a table: a row's key (dots go deeper), the heading, and how a number is said."""

    key: str
    title: str
    kind: str = "text"  # text, count, time, bytes, ratio, percent, number


@dataclass
class Record:
    """One run of a benchmark, as it is being measured."""

    benchmark: str
    settings: dict[str, Any]
    machine: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    peaks: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    begin: float = field(default_factory=time.perf_counter)

    def add(self, status: str = "ok", **row: Any) -> dict[str, Any]:
        """Append a row and return it."""
        assert status in STATUS
        self.rows.append({"status": status, **row})
        return self.rows[-1]

    def to_dict(self) -> dict[str, Any]:
        """JSON values; what is not finite becomes null."""
        record = {
            "schema": SCHEMA,
            "benchmark": self.benchmark,
            "command": shlex.join(["egnn-md", *sys.argv[1:]]),
            "settings": self.settings,
            "machine": self.machine,
            "versions": versions(),
            "started": self.started,
            "seconds": round(time.perf_counter() - self.begin, 1),
            "peaks": self.peaks,
            "notes": self.notes,
            "warnings": self.warnings,
            "rows": self.rows,
            **self.more,
        }
        found = _plain(record)
        assert isinstance(found, dict)
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if value is None or isinstance(value, str | int):
        return value
    return str(value)


def say(value: Any, kind: str) -> str:
    """A value for a reader; a dash for a number that there is not."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "" if kind == "text" else "–"
    if kind == "count":
        return f"{value:,}"
    if kind == "time":
        for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
            if abs(value) * factor >= 1 or unit == "µs":
                return f"{value * factor:.3g} {unit}" if abs(value) * factor < 999.5 else f"{value * factor:.0f} {unit}"
    if kind == "bytes":
        for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
            if abs(value) >= factor or unit == "kB":
                return f"{value / factor:.3g} {unit}" if abs(value) < 999.5 * factor else f"{value / factor:.0f} {unit}"
    if kind == "ratio":
        return f"{value:.2f}×"
    if kind == "percent":
        return f"{100 * value:.1f} %"
    if kind == "number":
        return f"{value:.3g}"
    return str(value)


def cell(row: dict[str, Any], column: Column) -> str:
    """Text of one cell."""
    value: Any = row
    for part in column.key.split("/"):
        value = value.get(part) if isinstance(value, dict) else None
    return say(value, column.kind)


def table_rows(rows: Sequence[dict[str, Any]], columns: Sequence[Column]) -> list[list[str]]:
    """Texts of all cells; what was not measured says why in its last cell."""
    out = []
    for row in rows:
        cells = [cell(row, column) for column in columns]
        if row["status"] != "ok":
            cells[-1] = f"{row['status']}: {row.get('reason', '')}"
        out.append(cells)
    return out


def show(record: Record, columns: Sequence[Column], console: Any) -> None:
    """The table, and what must be known with it, on the terminal."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column.title, justify="left" if column.kind == "text" else "right", overflow="fold")
    for cells in table_rows(record.rows, columns):
        table.add_row(*map(escape, cells))
    console.print(table)
    for text in record.notes:
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    for text in record.warnings:
        console.print(f"warning: {text}", style="yellow", highlight=False, markup=False, soft_wrap=True)


def write(record: Record, columns: Sequence[Column], charts: Sequence[Chart], folder: Path) -> tuple[Path, Path]:
    """Write ``index.html`` and ``results.json`` into ``folder``; their paths.

    Raises:
        OutputError: files cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    content = record.to_dict()
    page, numbers = folder / "index.html", folder / "results.json"
    write_json(numbers, content)
    write_atomic(page, _render(content, columns, charts).encode())
    return page, numbers


def _render(content: dict[str, Any], columns: Sequence[Column], charts: Sequence[Chart]) -> str:
    import jinja2
    from plotly.offline import get_plotlyjs

    from egnn_md.report.page import asset, script_json

    text = (files("egnn_md_benchmarks") / "assets" / "bench.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)
    machine = [(key.replace("_", " "), str(value)) for key, value in content["machine"].items()]
    settings = [(key.replace("_", " "), str(value)) for key, value in content["settings"].items()]
    peaks = [
        (peak["name"], f"{peak['flops'] / 1e9:.4g} GFLOP/s, {peak['bandwidth'] / 1e9:.4g} GB/s ({peak['source']})")
        for peak in content["peaks"]
    ]
    found = list(content["versions"].items())
    facts = [("Machine", machine), ("Settings", settings), ("At best", peaks), ("Versions", found)]
    return page.render(
        title=f"egnn-md bench {content['benchmark']}",
        content=content,
        columns=columns,
        rows=table_rows(content["rows"], columns),
        charts=[{"title": c.title, "note": c.note, "json": script_json(_log_plot(c))} for c in charts],
        facts=facts,
        css=asset("page.css"),
        plotly=get_plotlyjs(),
    )


def _log_plot(chart: Chart) -> dict[str, Any]:
    """Plotly's form; an axis of sizes over more than a decade is logarithmic."""
    from egnn_md.report.charts import to_plotly

    drawn = to_plotly(chart)
    x = [value for series in chart.series for value in series.x if value > 0]
    if chart.y_log and x and max(x) > 10 * min(x):
        drawn["layout"]["xaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1}
    return drawn
