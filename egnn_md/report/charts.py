"""Charts described once and drawn twice: by plotly for the page, by matplotlib for the PNGs."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = ("#2563a8", "#d1602a", "#2f8f5b", "#8a4fa3", "#b8860b", "#5b6770", "#c2417f", "#17909c", "#7a5230")
GRID = "#e6e9ee"
LEGEND_WIDTH = 440  # pixels of a narrow chart
TEXT = "#2b3440"


@dataclass(frozen=True)
class Series:
    """One line: x and y (n,), a style of ``line``, ``thin`` (pale, noisy data), ``dash`` or ``points``."""

    name: str
    x: np.ndarray
    y: np.ndarray
    style: str = "line"
    colour: int = 0


@dataclass(frozen=True)
class Chart:
    """One chart. ``level`` is a dashed horizontal line (value, label); ``y_range`` cuts the axis, unless ``y_log``.

    Values that are not finite, or not positive on a logarithmic axis, leave a gap.
    """

    key: str
    title: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    note: str = ""
    level: tuple[float, str] | None = None
    y_range: tuple[float, float] | None = None
    wide: bool = field(default=False)
    y_log: bool = field(default=False)

    def values(self, series: Series) -> np.ndarray:
        """(n,) y of a series with NaN for what cannot be drawn."""
        y = np.asarray(series.y, dtype=float)
        return np.where(np.isfinite(y) & ((y > 0) | (not self.y_log)), y, np.nan)


def to_plotly(chart: Chart) -> dict[str, Any]:
    """``{"data": [...], "layout": {...}}`` for ``Plotly.newPlot``, plain JSON values."""
    data: list[dict[str, Any]] = []
    named: set[str] = set()  # lines of one name share one entry of the legend
    for series in chart.series:
        colour = COLOURS[series.colour % len(COLOURS)]
        line: dict[str, Any] = {"color": colour, "width": 1 if series.style == "thin" else 2}
        if series.style == "dash":
            line["dash"] = "dash"
        data.append(
            {
                "type": "scatter",
                "mode": "lines+markers" if series.style == "points" else "lines",
                "name": series.name,
                "legendgroup": series.name,
                "showlegend": series.name not in named,
                "x": [float(f"{v:.7g}") for v in series.x],
                "y": [None if np.isnan(v) else float(f"{v:.7g}") for v in chart.values(series)],
                "line": line,
                "opacity": 0.45 if series.style == "thin" else 1.0,
            }
        )
        named.add(series.name)
    axis: dict[str, Any] = {
        "gridcolor": GRID,
        "zerolinecolor": GRID,
        "linecolor": "#b9c0ca",
        "ticks": "outside",
    }
    layout: dict[str, Any] = {
        "margin": {"l": 64, "r": 16, "t": 38 + 20 * _legend_rows(chart), "b": 48},  # legend below the mode bar
        "height": 340,
        "autosize": True,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "#ffffff",
        "hovermode": "x unified",
        "modebar": {"bgcolor": "rgba(255,255,255,0.8)", "color": "#98a2ad", "activecolor": "#2563a8"},
        "showlegend": len(chart.series) > 1,
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "font": {"size": 12}},
        "xaxis": {**axis, "title": {"text": chart.x_label}},
        "yaxis": {**axis, "title": {"text": chart.y_label}, "automargin": True, "exponentformat": "power"},
    }
    if chart.y_log:
        layout["yaxis"] |= {"type": "log", "exponentformat": "power", "dtick": 1 if _decades(chart) >= 2 else "D2"}
    elif chart.y_range is not None:
        layout["yaxis"]["range"] = list(chart.y_range)
    if chart.level is not None:
        value, label = chart.level
        layout["shapes"] = [
            {
                "type": "line",
                "xref": "paper",
                "x0": 0,
                "x1": 1,
                "y0": value,
                "y1": value,
                "line": {"color": "#7b8794", "width": 1.5, "dash": "dot"},
            }
        ]
        layout["annotations"] = [
            {
                "xref": "paper",
                "x": 1,
                "y": value,
                "xanchor": "right",
                "yanchor": "bottom",
                "text": label,
                "showarrow": False,
                "font": {"size": 11, "color": "#5b6770"},
                "bgcolor": "rgba(255,255,255,0.75)",
            }
        ]
    return {"data": data, "layout": layout}


def _legend_rows(chart: Chart) -> int:
    """Rows of the legend, roughly: plotly sets it in columns as wide as the longest name."""
    names = list(dict.fromkeys(series.name for series in chart.series))
    columns = max(LEGEND_WIDTH // (46 + 7 * max(map(len, names))), 1)
    return -(-len(names) // columns) if len(names) > 1 else 0


def _decades(chart: Chart) -> float:
    """Powers of ten from the smallest to the largest value that a logarithmic axis shows."""
    values = np.concatenate([chart.values(series) for series in chart.series])
    values = values[np.isfinite(values)]
    return float(np.log10(values.max() / values.min())) if len(values) else 0.0


def to_png(chart: Chart, path: Path, heading: str) -> None:
    """Draw into ``path``, without a display and without touching matplotlib's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4.2), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for index, series in enumerate(chart.series):
        first = all(other.name != series.name for other in chart.series[:index])
        axes.plot(
            series.x,
            chart.values(series),
            label=series.name if first else None,
            color=COLOURS[series.colour % len(COLOURS)],
            linewidth=0.8 if series.style == "thin" else 1.6,
            alpha=0.5 if series.style == "thin" else 1.0,
            linestyle="--" if series.style == "dash" else "-",
            marker="o" if series.style == "points" else None,
            markersize=4,
        )
    if chart.level is not None:
        axes.axhline(chart.level[0], color="#7b8794", linestyle=":", linewidth=1.2, label=chart.level[1])
    if chart.y_log:
        axes.set_yscale("log")
    elif chart.y_range is not None:
        axes.set_ylim(*chart.y_range)
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.set_title(f"{chart.title} – {heading}", fontsize=11, loc="left")
    axes.grid(color=GRID)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    if len(chart.series) > 1 or chart.level is not None:
        axes.legend(frameon=False, fontsize=9)
    figure.savefig(path)
