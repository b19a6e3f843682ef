"""``egnn-md bench growth``: cost against size at constant density, and the power that it grows with."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md_benchmarks.clouds import GROWTH_NEIGHBOURS, cloud_size
from egnn_md_benchmarks.common import Options, Tell, begin
from egnn_md_benchmarks.md import fit_line
from egnn_md_benchmarks.model import case_of, measure_case, plan
from egnn_md_benchmarks.paths import DEFAULT, check_paths
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.timing import choose_clock
from egnn_md_benchmarks.workloads import check_quantities

SIZES = ("1000", "3162", "10000", "31623", "100000", "316228", "1000000")
COLUMNS = (
    Column("nodes", "nodes", "count"),
    Column("edges", "edges", "count"),
    Column("quantity", "quantity"),
    Column("path", "path"),
    Column("median", "median", "time"),
    Column("spread", "spread", "percent"),
    Column("per_node", "a particle", "time"),
    Column("peak_memory", "peak memory", "bytes"),
    Column("ratio_to_published", "vs published", "ratio"),
    Column("note", ""),
)


def exponent(sizes: np.ndarray, seconds: np.ndarray) -> tuple[float, float]:
    """α of t = a Nᵅ and its standard error, by least squares of the logarithms (NaN for fewer than two sizes)."""
    if len(sizes) < 2:
        return float("nan"), float("nan")
    line = fit_line(np.log(np.asarray(sizes, dtype=float)), np.log(np.asarray(seconds, dtype=float)))
    return line.slope, line.error


def run(options: Options, tell: Tell = print) -> Record:
    """Measure; sizes are numbers of particles.

    Raises:
        InputError: sizes that are no numbers, unknown paths or quantities, sizes that were named and do not fit.
    """
    from egnn_md.training.memory import keep_freed_memory

    options.check()
    keep_freed_memory()  # as train and rollout do: page faults of huge tensors are no work of a network
    for name in options.sizes:
        if not name.isdigit():
            raise InputError(f"--sizes {name}: sizes are numbers of particles here, such as {','.join(SIZES[:3])}")
    sizes = [cloud_size(f"cloud-{int(name)}").name for name in options.sizes or SIZES]
    paths = check_paths(options.paths or DEFAULT)
    quantities = check_quantities(options.quantities or ("forward", "step"))
    if "forces" in quantities:
        raise InputError("the published network has no forces; --quantities forward,step")
    cases = [case_of(size, options) for size in dict.fromkeys(sizes)]
    # what does not fit is left out and said, unless every size was named
    skipped = plan(cases, paths, quantities, replace(options, paths=()))
    record, peaks = begin("growth", options, tell=tell)
    record.settings |= {
        "sizes": sizes,
        "paths": paths,
        "quantities": quantities,
        "clock": choose_clock(options.device).name,
    }
    for case in cases:
        measure_case(case, paths, quantities, options, skipped, record, peaks, tell)
    good = [row for row in record.rows if row["status"] == "ok"]
    for row in good:
        row["per_node"] = row["median"] / row["nodes"]
    record.more["fits"] = fits(good)
    for fit in record.more["fits"]:
        if fit["points"] > 1:
            known = f" ± {fit['error']:.3f}" if np.isfinite(fit["error"]) else ""
            record.notes.append(
                f"{fit['quantity']}, {fit['path']}: time grows as N^{fit['exponent']:.3f}{known} over {fit['points']} "
                f"sizes from {fit['from']:,} to {fit['to']:,}"
            )
    record.notes.append(
        f"Published network on clouds of constant density, {GROWTH_NEIGHBOURS} neighbours a particle; least squares of "
        f"the logarithms, ± standard error; median of interleaved repeats ({record.settings['clock']})."
    )
    return record


def fits(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The exponent of every quantity and path."""
    out = []
    for quantity, path in dict.fromkeys((row["quantity"], row["path"]) for row in rows):
        own = [row for row in rows if (row["quantity"], row["path"]) == (quantity, path)]
        nodes = np.array([row["nodes"] for row in own])
        power, error = exponent(nodes, np.array([row["median"] for row in own]))
        ends = {"points": len(own), "from": int(nodes.min()), "to": int(nodes.max())}
        out.append({"quantity": quantity, "path": path, "exponent": power, "error": error, **ends})
    return out


def charts(record: Record) -> list[Any]:
    """Time and memory against particles, a line a path, for each quantity."""
    from egnn_md.report.charts import Chart, Series

    drawn = []
    good = [row for row in record.rows if row["status"] == "ok"]
    for quantity in dict.fromkeys(row["quantity"] for row in good):
        for key, label in (("median", "s"), ("peak_memory", "bytes")):
            series = []
            for colour, fit in enumerate(f for f in record.more["fits"] if f["quantity"] == quantity):
                own = [r for r in good if (r["quantity"], r["path"]) == (quantity, fit["path"]) and r.get(key)]
                if own:
                    name = fit["path"]
                    if key == "median" and fit["points"] > 1:
                        name = f"{name}, N^{fit['exponent']:.2f}"
                    x, y = np.array([r["nodes"] for r in own]), np.array([r[key] for r in own])
                    series.append(Series(name, x, y, "points", colour))
            if series:
                title = f"{quantity}: {'time' if key == 'median' else 'peak memory'}"
                drawn.append(Chart(f"{quantity}-{key}", title, "particles", label, tuple(series), y_log=True))
    return drawn
