"""``egnn-md bench model``: forward, energy and forces, training step, on every path, beside what nothing can beat."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from egnn_md.devices import find_dtype
from egnn_md.errors import InputError
from egnn_md_benchmarks.clouds import PAPER
from egnn_md_benchmarks.common import Options, Tell, begin, refuse, too_large
from egnn_md_benchmarks.counts import Peak, Shape, count, floors
from egnn_md_benchmarks.memory import measure_in_child
from egnn_md_benchmarks.paths import DEFAULT, Unavailable, check_paths
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.timing import choose_clock, interleaved, summary, wait
from egnn_md_benchmarks.workloads import QUANTITIES, Case, Work, check_quantities, check_size, expected_shape, make_work

SIZES = (*PAPER, "water-192", "water-648", "water-1536", "water-5184")
CHILD_TIMEOUT = 1800.0
COLUMNS = (
    Column("size", "size"),
    Column("nodes", "nodes", "count"),
    Column("edges", "edges", "count"),
    Column("quantity", "quantity"),
    Column("path", "path"),
    Column("median", "median", "time"),
    Column("spread", "spread", "percent"),
    Column("ratio_to_plain", "vs plain", "ratio"),
    Column("ratio_to_published", "vs published", "ratio"),
    Column("peak_memory", "peak memory", "bytes"),
    Column("floor", "floor here", "time"),
    Column("floor_h100", "floor H100", "time"),
    Column("note", ""),
)


def run(options: Options, tell: Tell = print) -> Record:
    """Measure. ``options.more``: ``peak_seconds``, and ``hidden``, ``layers``, ``virtual_nodes`` of the published one.

    Raises:
        InputError: unknown names, a device that is not there, a named size that does not fit into memory, a named
            path that does not exist here.
        ModelFileError: the potential cannot be read.
    """
    options.check()
    sizes = [check_size(name) for name in options.sizes or SIZES]
    paths = check_paths(options.paths or DEFAULT)
    quantities = check_quantities(options.quantities or tuple(QUANTITIES))
    cases = [case_of(name, options) for name in dict.fromkeys(sizes)]
    skipped = plan(cases, paths, quantities, options)
    record, peaks = begin("model", options, tell=tell)
    record.settings |= {"sizes": sizes, "paths": paths, "quantities": quantities}
    clock = choose_clock(options.device)
    record.settings["clock"] = clock.name
    for case in cases:
        measure_case(case, paths, quantities, options, skipped, record, peaks, tell)
    record.notes += notes(record, cases)
    return record


def case_of(size: str, options: Options) -> Case:
    """The case of a size."""
    widths = {key: int(options.more[key]) for key in ("hidden", "layers", "virtual_nodes") if key in options.more}
    return Case(size, options.device, options.dtype, options.seed, options.model, **widths)


def plan(cases: list[Case], paths: list[str], quantities: list[str], options: Options) -> dict[tuple[str, ...], str]:
    """What does not fit into memory, by (size, path, quantity), before anything is tried.

    Raises:
        InputError: named by size and path and too large, or nothing of a named size fits, or nothing to measure.
    """
    skipped: dict[tuple[str, ...], str] = {}
    for case in cases:
        shape, wanted = expected_shape(case), [q for q in quantities if case.network in QUANTITIES[q]]
        combinations = [(path, quantity) for quantity in wanted for path in paths if _exists(case, path)]
        for path, quantity in combinations:
            what = f"{case.size}, {quantity} on the path {path!r},"
            if options.sizes and options.paths:
                refuse(what, shape, path, quantity, options)
            reason = too_large(what, shape, path, quantity, options)
            if reason:
                skipped[case.size, path, quantity] = reason
        if options.sizes and combinations and all((case.size, *pair) in skipped for pair in combinations):
            path, quantity = combinations[0]
            refuse(f"{case.size}, {quantity} on the path {path!r},", shape, path, quantity, options)
    if paths == ["published"] and all(case.network == "potential" for case in cases):
        raise InputError("boxes of water have no published path; choose others with --paths, or --sizes nbody,protein")
    if not any(case.network in QUANTITIES[q] for case in cases for q in quantities):
        raise InputError(f"none of the sizes has the quantity {', '.join(quantities)}: forces are a potential's")
    return skipped


def _exists(case: Case, path: str) -> bool:
    return not (path == "published" and case.network == "potential")


def measure_case(
    case: Case,
    paths: list[str],
    quantities: list[str],
    options: Options,
    skipped: dict[tuple[str, ...], str],
    record: Record,
    peaks: list[Peak],
    tell: Tell,
) -> None:
    """All paths and quantities of one size; rows are added to ``record``."""
    tell(f"{case.size}: inputs")
    work = make_work(case)
    rows: list[dict[str, Any]] = []
    for quantity in quantities:
        if case.network not in QUANTITIES[quantity]:
            continue
        calls: dict[str, Callable[[], Any]] = {}
        made: dict[str, dict[str, Any]] = {}
        for path in paths:
            if not _exists(case, path):
                continue
            head = _head(case, work.shape, quantity, path)
            if (case.size, path, quantity) in skipped:
                record.add("skipped", **head, reason=skipped[case.size, path, quantity])
                continue
            tell(f"{case.size}: {quantity}, {path}")
            found = first_call(work, path, quantity, options, record, head)
            if found is not None:
                calls[path], made[path] = found
        tell(f"{case.size}: {quantity}, repeats")
        times = interleaved(calls, options.repeats, warmup=options.warmup, device=options.device)
        for path, seconds in times.items():
            row = made[path]
            row.update(summary(seconds))
            if path == "compiled":
                row["compile_seconds"] = max(row.pop("first_seconds") - row["median"], 0.0)
                row["note"] = f"compiled in {row['compile_seconds']:.1f} s"
            row.pop("first_seconds", None)
            rows.append(row)
        add_ratios([made[path] for path in times])
        add_floors([made[path] for path in times], work.shape, quantity, options, peaks)
        calls.clear()
    del work
    gc.collect()
    if options.memory:
        add_memory(rows, case, options, tell)


def _head(case: Case, shape: Shape, quantity: str, path: str) -> dict[str, Any]:
    return {
        "size": case.size,
        "network": case.network,
        "nodes": shape.nodes,
        "edges": shape.edges,
        "graphs": shape.graphs,
        "quantity": quantity,
        "path": path,
    }


def first_call(
    work: Work, path: str, quantity: str, options: Options, record: Record, head: dict[str, Any]
) -> tuple[Callable[[], Any], dict[str, Any]] | None:
    """The call, tried once, and its row; None, and a row that says why, where there is none.

    Raises:
        InputError: the path was named and is not to be had.
    """
    try:
        call = work.call(path, quantity)
        begin_at = time.perf_counter()
        call()
        wait(options.device)
        taken = time.perf_counter() - begin_at
    except Unavailable as error:
        if path in options.paths:
            raise InputError(f"--paths {path}: {error}; leave it out") from error
        record.add("unavailable", **head, reason=str(error))
        return None
    except (RuntimeError, NotImplementedError) as error:  # compilers and allocators fail in many ways
        record.add("failed", **head, reason=f"{type(error).__name__}: {str(error).splitlines()[0][:200]}")
        return None
    return call, record.add(**head, first_seconds=taken)


def add_ratios(rows: list[dict[str, Any]]) -> None:
    """``ratio_to_plain`` and ``ratio_to_published``: how many times faster, where those were measured."""
    medians = {row["path"]: row["median"] for row in rows}
    for row in rows:
        for reference in ("plain", "published"):
            if reference in medians and row["median"] > 0:
                row[f"ratio_to_{reference}"] = medians[reference] / row["median"]


def add_floors(rows: list[dict[str, Any]], shape: Shape, quantity: str, options: Options, peaks: list[Peak]) -> None:
    """``counts``, ``floors`` of every peak, and ``floor`` (this machine), ``floor_h100`` (float32)."""
    counted = count(shape, quantity, find_dtype(options.dtype).itemsize)
    found = floors(counted, peaks)
    for row in rows:
        row["counts"], row["floors"] = counted, found
        if peaks:
            row["floor"] = found[peaks[0].name]["floor"]
            row["floor_h100"] = found["H100, float32"]["floor"]


def add_memory(rows: list[dict[str, Any]], case: Case, options: Options, tell: Tell) -> None:
    """``peak_memory`` and ``memory_method`` of each row, measured in a process of its own."""
    import torch

    for row in rows:
        tell(f"{case.size}: memory of {row['quantity']}, {row['path']}")
        answer = measure_in_child(
            case.to_dict(), row["path"], row["quantity"], torch.get_num_threads(), CHILD_TIMEOUT
        )
        if "error" in answer:
            row["memory_error"] = answer["error"]
            row["note"] = f"memory not measured: {answer['error']}"
        else:
            row["peak_memory"], row["memory_method"] = answer["bytes"], answer["method"]


def notes(record: Record, cases: list[Case]) -> list[str]:
    """What a reader must know beside the table."""
    out = [
        f"Times: median of interleaved repeats ({record.settings['clock']}); spread: quartile distance over it. "
        "vs: how many times faster than that path."
    ]
    methods = sorted({row["memory_method"] for row in record.rows if "memory_method" in row})
    if methods:
        out.append(f"Peak memory: above inputs and weights, one call in a process of its own ({', '.join(methods)}).")
    networks = {case.network for case in cases}
    if "published" in networks:
        out.append(
            "Published network: clouds of random points with the paper's numbers of particles and edges; edge features "
            "[d, d], node features [|v|, q]; a step is forward, MSE + λ MMD and backward, without the optimiser."
        )
    if "potential" in networks:
        out.append(
            "Potential: periodic boxes of water; a step is the loss on energy and forces and its gradient (second "
            "derivatives), with the SiLU that training uses (except compiled); a box has no published path."
        )
    out.append(
        "Floor: the larger of operations over the best matrix product and bytes over the best triad of this machine; "
        "H100: 67 TFLOP/s float32 and 3.35 TB/s as stated by the maker."
    )
    return out


def charts(record: Record) -> list[Any]:
    """Time and memory against the number of edges, a line a path, for each network and quantity."""
    from egnn_md.report.charts import Chart, Series

    drawn = []
    good = [row for row in record.rows if row["status"] == "ok"]
    for network, quantity in dict.fromkeys((row["network"], row["quantity"]) for row in good):
        rows = sorted(
            (row for row in good if (row["network"], row["quantity"]) == (network, quantity)), key=lambda r: r["edges"]
        )
        paths = list(dict.fromkeys(row["path"] for row in rows))
        for key, label in (("median", "time / s"), ("peak_memory", "peak memory / bytes")):
            series = []
            for colour, path in enumerate(paths):
                own = [row for row in rows if row["path"] == path and row.get(key)]
                if own:
                    x, y = np.array([r["edges"] for r in own]), np.array([r[key] for r in own])
                    series.append(Series(path, x, y, "points", colour))
            if key == "median":
                own = [row for row in rows if row["path"] == paths[0] and row.get("floor")]
                x, y = np.array([r["edges"] for r in own]), np.array([r["floor"] for r in own])
                series.append(Series("floor", x, y, "dash", 5))
            if series:
                title = f"{network}: {quantity}, {label.split(' / ')[0]}"
                drawn.append(
                    Chart(f"{network}-{quantity}-{key}", title, "edges", label, tuple(series), y_log=True)
                )
    return drawn
