"""What a part of a validation gives: verdicts, numbers, tables and figures, all plain values that JSON keeps."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from egnn_md.report.charts import Chart, to_plotly, to_png
from egnn_md.report.evaluation import plain
from egnn_md.report.statistics import Estimate
from egnn_md.simulation.files import writing

Status = Literal["measured", "skipped", "failed"]
#: of a verdict: nothing to object, worth a look, not to be trusted, a number that only the use can judge
Mark = Literal["good", "look", "bad", "number"]


class Skipped(Exception):  # noqa: N818 - no error: the part does not apply, or costs more than was allowed
    """A part cannot be measured here; the text says why and, where there is one, what would help."""


def with_error(value: float, error: float | None = None, unit: str = "") -> str:
    """``1.234 ± 0.056 unit``: two digits of the error, four of a value without one."""
    tail = f" {unit}" if unit else ""
    if not math.isfinite(value):
        return "–"
    if error is None or not math.isfinite(error) or error <= 0:
        return f"{value:.4g}{tail}"
    if error >= 1e6 or error < 1e-6:
        return f"{value:.3g} ± {error:.1g}{tail}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}{tail}"


@dataclass
class PartReport:
    """Results of one part.

    Attributes:
        name: of the part.
        status: ``measured``, ``skipped`` (with the reason) or ``failed`` (with the error).
        verdicts: rows (what, value, how to read it, mark) of the page's first table.
        numbers: rows (quantity, of what, value, standard error or None, unit) of the CSV.
        card: what the model's card is told.
    """

    name: str
    status: Status = "measured"
    reason: str = ""
    seconds: float = 0.0
    verdicts: list[dict[str, str]] = field(default_factory=list)
    numbers: list[dict[str, Any]] = field(default_factory=list)
    tables: list[dict[str, Any]] = field(default_factory=list)
    figures: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    card: dict[str, float | str] = field(default_factory=dict)

    def verdict(self, what: str, value: str, reading: str, mark: Mark = "number") -> None:
        """Add a row of the first table."""
        self.verdicts.append({"what": what, "value": value, "reading": reading, "mark": mark})

    def number(self, quantity: str, value: Any, unit: str, *, of: str = "", error: Any = None) -> None:
        """Add a row of the CSV."""
        row = {"quantity": quantity, "of": of, "value": value, "error": error, "unit": unit}
        self.numbers.append({key: plain(inner) for key, inner in row.items()})

    def estimate(self, quantity: str, value: Estimate, unit: str, *, of: str = "") -> None:
        """The same of a mean with its error."""
        self.number(quantity, value.value, unit, of=of, error=value.error)

    def table(self, title: str, head: list[str], rows: list[list[str]], note: str = "") -> None:
        """Add a table; the first cell of a row is its heading."""
        self.tables.append({"title": title, "head": head, "rows": rows, "note": note})

    def chart(self, chart: Chart, folder: Path) -> None:
        """Add a chart, and its PNG to ``folder``."""
        path = folder / f"{self.name}-{chart.key}.png"
        with writing(path):
            to_png(chart, path, self.name)
        self.figure(chart.title, chart.note, to_plotly(chart), path.name)

    def figure(self, title: str, note: str, drawing: dict[str, Any], picture: str) -> None:
        """Add a drawing in plotly's terms, whose PNG has the name ``picture``."""
        self.figures.append({"title": title, "note": note, "plotly": drawing, "picture": picture})

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PartReport:
        """What :meth:`as_dict` gave."""
        return cls(**values)
