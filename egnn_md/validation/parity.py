"""Reference against model, point by point, or as a map of counts where points would hide each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.report.charts import COLOURS, GRID, TEXT
from egnn_md.simulation.files import writing

MAX_POINTS = 1500
BINS = 90
SCALE = "Blues"


def parity_figure(
    title: str, label: str, reference: np.ndarray, found: np.ndarray, path: Path
) -> dict[str, Any]:
    """``Plotly.newPlot`` values of one parity plot, and its PNG at ``path``.

    Args:
        title: of the PNG.
        label: of both axes, with the unit.
        reference: (n,) values of the reference method.
        found: (n,) values of the model.
    """
    low, high = float(min(reference.min(), found.min())), float(max(reference.max(), found.max()))
    room = 0.03 * max(high - low, 1e-9)
    low, high = low - room, high + room
    layout: dict[str, Any] = {
        "margin": {"l": 64, "r": 16, "t": 20, "b": 48}, "height": 340, "autosize": True, "showlegend": False,
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": TEXT},
        "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "#ffffff",
        "xaxis": {"gridcolor": GRID, "range": [low, high], "title": {"text": f"reference, {label}"}},
        "yaxis": {"gridcolor": GRID, "range": [low, high], "title": {"text": f"model, {label}"}, "automargin": True},
        "shapes": [
            {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high,
             "line": {"color": "#7b8794", "width": 1, "dash": "dot"}}
        ],
    }  # fmt: skip
    many = len(reference) > MAX_POINTS
    counts, edges = np.zeros((0, 0)), np.linspace(low, high, BINS + 1)
    data: dict[str, Any]
    if many:
        counts = np.histogram2d(found, reference, bins=(edges, edges))[0]
        shown = [[float(f"{np.log10(c):.3g}") if c else None for c in row] for row in counts]
        middle = [float(f"{v:.5g}") for v in 0.5 * (edges[1:] + edges[:-1])]
        data = {
            "type": "heatmap", "x": middle, "y": middle, "z": shown, "colorscale": SCALE, "zmin": -0.5,
            "hoverongaps": False, "colorbar": {"title": {"text": "log₁₀ count"}, "thickness": 12},
        }  # fmt: skip
        layout["margin"] = {**layout["margin"], "r": 70}
    else:
        data = {
            "type": "scatter", "mode": "markers", "marker": {"color": COLOURS[0], "size": 6, "opacity": 0.6},
            "x": [float(f"{v:.7g}") for v in reference], "y": [float(f"{v:.7g}") for v in found],
        }  # fmt: skip
    with writing(path):
        _png(title, label, reference, found, (low, high), edges if many else None, path)
    return {"data": [data], "layout": layout}


def _png(
    title: str,
    label: str,
    reference: np.ndarray,
    found: np.ndarray,
    limits: tuple[float, float],
    edges: np.ndarray | None,
    path: Path,
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.6), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if edges is None:
        axes.plot(reference, found, "o", color=COLOURS[0], markersize=4, alpha=0.6)
    else:
        drawn = axes.hist2d(reference, found, bins=[edges, edges], cmap=SCALE, norm=LogNorm(vmin=0.5))
        figure.colorbar(drawn[3], ax=axes, label="count")
    axes.plot(limits, limits, ":", color="#7b8794", linewidth=1)
    axes.set_xlim(*limits)
    axes.set_ylim(*limits)
    axes.set_xlabel(f"reference, {label}")
    axes.set_ylabel(f"model, {label}")
    axes.set_title(title, fontsize=11, loc="left")
    figure.savefig(path)
