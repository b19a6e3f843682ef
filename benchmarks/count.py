"""``egnn-md bench count``: operations and bytes of every size, and the times that nothing can beat; runs no network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from egnn_md.devices import find_dtype
from egnn_md_benchmarks.clouds import PAPER, cloud_size, network_config
from egnn_md_benchmarks.common import Options, Tell, begin
from egnn_md_benchmarks.counts import Shape, count, floors
from egnn_md_benchmarks.model import case_of
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.water import SIZES as BOXES
from egnn_md_benchmarks.workloads import QUANTITIES, Case, check_quantities, check_size, expected_shape

COLUMNS = (
    Column("size", "size"),
    Column("nodes", "nodes", "count"),
    Column("edges", "edges", "count"),
    Column("quantity", "quantity"),
    Column("gflop", "GFLOP", "number"),
    Column("joined", "as published", "number"),
    Column("recompute", "recompute", "number"),
    Column("bytes", "bytes", "bytes"),
    Column("gather", "gathered", "bytes"),
    Column("intensity", "FLOP a byte", "number"),
    Column("here/compute", "compute here", "time"),
    Column("here/memory", "memory here", "time"),
    Column("h100/compute", "compute H100", "time"),
    Column("h100/memory", "memory H100", "time"),
    Column("tf32/compute", "compute tf32", "time"),
    Column("note", ""),
)
GIGA = 1e9


def with_weights(case: Case) -> Shape:
    """Sizes of a case with the number of its network's parameters."""
    shape = expected_shape(case)
    if case.network == "potential":
        from egnn_md.checkpoint import load_model

        return replace(shape, weights=sum(item.numel() for item in load_model(case.model).parameters()))
    import torch

    from egnn_md.nn.fast_egnn import FastEGNN

    config = network_config(cloud_size(case.size), case.hidden, case.layers, case.virtual_nodes)
    with torch.device("meta"):  # sizes without numbers
        network = FastEGNN(config)
    return replace(shape, weights=sum(item.numel() for item in network.parameters()))


def run(options: Options, tell: Tell = print) -> Record:
    """Count. Raises InputError for unknown sizes or quantities, ModelFileError where the potential cannot be read."""
    options.check()
    sizes = [check_size(name) for name in options.sizes or (*PAPER, *BOXES)]
    quantities = check_quantities(options.quantities or tuple(QUANTITIES))
    record, peaks = begin("count", options, tell=tell)
    record.settings |= {"sizes": sizes, "quantities": quantities}
    for name in dict.fromkeys(sizes):
        case = case_of(name, options)
        shape = with_weights(case)
        for quantity in quantities:
            if case.network not in QUANTITIES[quantity]:
                continue
            counted = count(shape, quantity, find_dtype(options.dtype).itemsize)
            times = list(floors(counted, peaks).values())
            row: dict[str, Any] = {
                **counted,
                "gflop": counted["flops"] / GIGA,
                "recompute": counted["recompute"] / GIGA,
                "intensity": counted["flops"] / counted["bytes"],
                **dict(zip(("here", "h100", "tf32"), times, strict=True)),
            }
            if "joined" in counted:
                row["joined"] = counted["joined"] / GIGA
            record.add(size=name, network=case.network, nodes=shape.nodes, edges=shape.edges, quantity=quantity, **row)
    record.notes += [
        "GFLOP: what must be done. As published: with the joined first map. Recompute: more, if nothing of a pair is "
        "stored for the backward pass. Bytes: rows once; gathered: a sender's row once a pair.",
        "Here: the best matrix product and the best triad of this machine, measured; H100: stated by the maker (67 "
        "TFLOP/s float32, 494 TFLOP/s dense tf32, 3.35 TB/s). The larger of compute and memory is the floor.",
        "Pairs of boxes of water are estimated from their density.",
    ]
    return record


def charts(record: Record) -> list[Any]:
    """Floors against edges, here and on an H100, for every quantity."""
    from egnn_md.report.charts import Chart, Series

    drawn = []
    for network, quantity in dict.fromkeys((row["network"], row["quantity"]) for row in record.rows):
        own = [row for row in record.rows if (row["network"], row["quantity"]) == (network, quantity)]
        own.sort(key=lambda row: row["edges"])
        x = np.array([row["edges"] for row in own])
        lines = []
        for colour, (key, label) in enumerate((("here", "here"), ("h100", "H100, float32"), ("tf32", "H100, tf32"))):
            y = np.array([row[key]["floor"] for row in own])
            lines.append(Series(label, x, y, "points", colour))
        title = f"{network}: floor of {quantity}"
        drawn.append(Chart(f"{network}-{quantity}", title, "edges", "s", tuple(lines), y_log=True))
    return drawn
