"""Rows, notes and charts of ``egnn-md bench scaling``; every row says whether it was measured or modelled."""

from __future__ import annotations

from typing import Any

import numpy as np

from egnn_md.distributed.wire import Traffic
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.scaling_measure import LEAST
from egnn_md_benchmarks.scaling_model import LAUNCH, PAPER_BYTES, PAPER_RANKS, PAPER_SPEEDUP
from egnn_md_benchmarks.scaling_parts import Collective, Piece

COLUMNS = (
    Column("what", "what"),
    Column("ranks", "ranks", "count"),
    Column("basis", "basis"),
    Column("who", "rank, or device and network"),
    Column("particles", "particles", "count"),
    Column("edges", "edges", "count"),
    Column("halo", "halo", "count"),
    Column("layer_bytes", "B a layer", "bytes"),
    Column("layer_messages", "messages", "count"),
    Column("compute", "compute", "time"),
    Column("talk", "communication", "time"),
    Column("step", "a step", "time"),
    Column("speedup", "speedup", "ratio"),
    Column("peak_memory", "peak memory", "bytes"),
    Column("inputs", "inputs", "bytes"),
    Column("note", ""),
)


def ring(item: Collective, size: int) -> tuple[int, int]:
    """Messages and bytes that one rank sends in a collective, as :class:`egnn_md.distributed.wire.Wire` counts them."""
    if item.kind == "exchange":
        return item.peers, item.sent
    return 2 * (size - 1), 2 * item.sent * (size - 1) // size


def part_row(
    scaling: str,
    quantity: str,
    piece: Piece,
    seconds: dict[str, Any],
    exchange: Collective | None,
    reduction: Collective | None,
    traffic: Traffic | None,
    calls: int,
) -> dict[str, Any]:
    """What one part is, says in a layer's forward pass and in a step (``traffic`` of ``calls`` steps), and takes."""
    row: dict[str, Any] = {
        "what": f"{scaling}, {quantity}",
        "scaling": scaling,
        "quantity": quantity,
        "ranks": piece.size,
        "basis": "measured",
        "who": str(piece.rank),
        "rank": piece.rank,
        "particles": piece.graph.num_nodes,
        "edges": piece.graph.num_edges,
        "halo": piece.halo,
        "compute": seconds["median"],
        **{key: seconds[key] for key in ("low", "high", "spread", "times") if key in seconds},
    }
    said = [ring(item, piece.size) for item in (exchange, reduction) if item is not None]
    if traffic is not None:
        row |= {
            "layer_messages": sum(messages for messages, _ in said),
            "layer_bytes": sum(size for _, size in said),
            "messages": traffic.messages // calls,
            "bytes": traffic.bytes // calls,
            "exchanges": traffic.exchanges // calls,
            "reductions": traffic.reductions // calls,
        }
    return row


def step_row(
    scaling: str, quantity: str, ranks: int, basis: str, who: str, compute: float, step: float
) -> dict[str, Any]:
    """A step of all ranks together."""
    return {
        "what": f"{scaling}, {quantity}",
        "scaling": scaling,
        "quantity": quantity,
        "ranks": ranks,
        "basis": basis,
        "who": who,
        "compute": compute,
        "talk": step - compute,
        "step": step,
    }


def memory_ratios(record: Record) -> list[dict[str, Any]]:
    """For every quantity and P the greatest peak of a rank over that of one process, and the same with inputs."""
    out = []
    rows = [r for r in record.rows if r.get("basis") == "measured" and "rank" in r and r["scaling"] == "strong"]
    for quantity in dict.fromkeys(row["quantity"] for row in rows):
        own = [row for row in rows if row["quantity"] == quantity and row.get("peak_memory") is not None]
        whole = [row for row in own if row["ranks"] == 1]
        for number in sorted({row["ranks"] for row in own if row["ranks"] > 1}):
            parts = [row for row in own if row["ranks"] == number]
            if whole and len(parts) == number:
                peak = max(row["peak_memory"] for row in parts)
                everything = max(row["peak_memory"] + row["inputs"] + row["weights"] for row in parts)
                one = whole[0]
                all_of_one = one["peak_memory"] + one["inputs"] + one["weights"]
                out.append(
                    {
                        "quantity": quantity,
                        "ranks": number,
                        "peak": peak,
                        "ratio": peak / max(one["peak_memory"], 1),
                        "device_bytes": everything,
                        "device_ratio": everything / all_of_one,
                    }
                )
    return out


def notes(record: Record) -> list[str]:
    """What a reader must know beside the table; ratios are put into ``record.more`` as well."""
    out = [
        "Measured: a part by itself, with the communication's own copies but nobody who answers; compute is the median "
        f"of interleaved repeats ({record.settings['clock']}). Bytes and messages that a rank sends a layer: one "
        "exchange and one reduction (counted as a ring) of a forward pass; those of a whole step are in results.json.",
        "Modelled: no measurement. A step is the slowest part's compute plus latency and bandwidth of every collective "
        "(egnn_md_benchmarks.scaling_model), nothing overlapping. Networks: "
        + "; ".join(f"{link['name']}: {link['source']}" for link in record.more["links"])
        + ". H100 floor: counted operations and bytes (the edges' forward pass done again) at stated peaks, kernels "
        "started in no time; H100 k × floor: k times that, as this CPU takes k times its own floor, and at least "
        f"{1e6 * LAUNCH:g} µs (assumed) for every kernel.",
    ]
    for item in record.more["gpu"]:
        out.append(
            f"{item['scaling']}, {item['quantity']}: k = {item['times_floor']:.2f}, {item['launches']} operators "
            f"counted, {1e3 * LAUNCH * item['launches']:.2f} ms to start them."
        )
    ratios = memory_ratios(record)
    record.more["memory"] = ratios
    for item in ratios:
        out.append(
            f"{item['quantity']}, {item['ranks']} ranks, measured: the greatest peak of a rank is "
            f"{item['peak'] / 1e6:.1f} MB, {item['ratio']:.3f} of one process's (above inputs and weights); with them "
            f"{item['device_bytes'] / 1e6:.1f} MB, {item['device_ratio']:.3f}."
        )
    for item in record.more["measured"]:
        link = item["link"]
        speed = f"{link['bandwidth'] / 1e9:.3g} GB/s" if np.isfinite(link["bandwidth"]) else "no bandwidth to be seen"
        out.append(
            f"{item['quantity']}, {item['ranks']} processes: measured {item['step']['median']:.4g} s a step (spread "
            f"{100 * item['step']['spread']:.1f} %), modelled {item['modelled']:.4g} s, {100 * item['deviation']:+.1f} "
            f"%; {item['quiet']} of {item['rounds']} rounds without other programs (all rounds count where fewer than "
            f"{LEAST} are); gloo here: {1e6 * link['latency']:.0f} µs an exchange's message, "
            f"{1e6 * link['reduction_latency']:.0f} µs a message of a reduction, {speed}."
        )
    if record.settings["system"] == "fluid113k":
        out += _beside_the_paper(record, ratios)
    return out


def _beside_the_paper(record: Record, ratios: list[dict[str, Any]]) -> list[str]:
    said = []
    for row in record.rows:
        if row.get("basis") == "modelled" and row["ranks"] == PAPER_RANKS and row["scaling"] == "strong":
            said.append(f"{row['quantity']}, {row['who']}: {row.get('speedup', float('nan')):.2f}")
    bytes_a_device = [item for item in ratios if item["ranks"] == PAPER_RANKS]
    out = []
    if said:
        out.append(
            f"Speedup on {PAPER_RANKS} devices, modelled: {'; '.join(said)}. The paper's measured one: {PAPER_SPEEDUP} "
            "(of the published network without edges between devices)."
        )
    for item in bytes_a_device:
        out.append(
            f"Memory a device of {PAPER_RANKS}, {item['quantity']}, measured on this CPU: "
            f"{item['device_bytes'] / 1e9:.3f} GB; the paper's: {PAPER_BYTES / 1e9:.2f} GB."
        )
    return out


def charts(record: Record) -> list[Any]:
    """Step time, speedup (or efficiency) and memory against ranks."""
    from egnn_md.report.charts import Chart, Series

    drawn: list[Any] = []
    good = [row for row in record.rows if row["status"] == "ok"]
    for scaling, quantity in dict.fromkeys((row["scaling"], row["quantity"]) for row in good):
        rows = [row for row in good if (row["scaling"], row["quantity"]) == (scaling, quantity)]
        modelled = [row for row in rows if row["basis"] == "modelled" and "link" in row]
        real = [row for row in rows if row["basis"] == "measured" and "step" in row]
        real.sort(key=lambda row: row["ranks"])
        for device in dict.fromkeys(row["device"] for row in modelled):
            times, ratios = [], []
            for colour, link in enumerate(dict.fromkeys(r["link"] for r in modelled if r["ranks"] > 1)):
                own = [r for r in modelled if r["device"] == device and (r["link"] == link or r["ranks"] == 1)]
                own.sort(key=lambda row: row["ranks"])
                x = np.array([row["ranks"] for row in own])
                name = f"{link} (modelled)"
                times.append(Series(name, x, np.array([row["step"] for row in own]), "points", colour))
                key = "speedup" if scaling == "strong" else "efficiency"
                values = np.array([row.get(key, float("nan")) for row in own])
                ratios.append(Series(name, x, values, "points", colour))
            if not times:
                continue
            x = np.array(sorted({row["ranks"] for row in modelled}))
            if scaling == "strong":
                ratios.append(Series("ideal", x, x.astype(float), "dash", 5))
            if device.startswith("this CPU") and real and scaling == "strong":
                where = np.array([row["ranks"] for row in real])
                values = np.array([row["step"] for row in real])
                times.append(Series("gloo here (measured)", where, values, "points", 7))
            head, tag = f"{scaling} scaling, {quantity}: ", f"{scaling}-{quantity}-{len(drawn)}"
            note = f"{device}; modelled from parts measured alone" if "CPU" in device else f"{device}; modelled"
            drawn.append(Chart(tag + "-time", head + "time of a step", "ranks", "s", tuple(times), note, y_log=True))
            label = "speedup" if scaling == "strong" else "efficiency"
            drawn.append(Chart(tag + "-ratio", head + label, "ranks", label, tuple(ratios), note))
        memory = [r for r in rows if "rank" in r and r.get("peak_memory") is not None]
        if memory:
            x = np.array(sorted({row["ranks"] for row in memory}))
            most = np.array([max(r["peak_memory"] for r in memory if r["ranks"] == p) for p in x], dtype=float)
            lines = [Series("greatest of a rank (measured)", x, most, "points", 0)]
            lines.append(Series("one process over ranks", x, most[0] * x[0] / x, "dash", 5))
            title = f"{scaling} scaling, {quantity}: peak memory a rank"
            drawn.append(Chart(f"{scaling}-{quantity}-memory", title, "ranks", "bytes", tuple(lines), y_log=True))
    return drawn
