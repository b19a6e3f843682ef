"""CSV logs that continue without a gap or a duplicate after a kill."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path


class CsvLog:
    """Rows with a ``step`` column, flushed one by one.

    Args:
        path: the file.
        columns: their names; ``step`` first.
        resume_at: keep what is there up to and including this step and drop the rest (it will be computed
            again); None starts a new file.
    """

    def __init__(self, path: str | Path, columns: Sequence[str], resume_at: int | None = None) -> None:
        self.path = Path(path)
        self.columns = list(columns)
        kept: list[dict[str, str]] = []
        if resume_at is not None and self.path.exists():
            kept = [row for row in read_csv(self.path) if int(row["step"]) <= resume_at]
        text = StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(text.getvalue())
        temporary.replace(self.path)

    def append(self, row: Mapping[str, float]) -> None:
        """Write one row; columns that it does not have stay empty."""
        text = StringIO()
        writer = csv.DictWriter(text, self.columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writerow({key: _short(value) for key, value in row.items()})
        with self.path.open("a") as file:
            file.write(text.getvalue())


def _short(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.7g}"


def read_csv(path: str | Path) -> list[dict[str, str]]:
    """Complete rows of a CSV file; a last line that a kill cut short is left out."""
    text = Path(path).read_text()
    whole = text[: text.rfind("\n") + 1]
    return [row for row in csv.DictReader(StringIO(whole)) if row.get("step")]
