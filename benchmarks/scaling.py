"""``egnn-md bench scaling``: one system over P devices: what each part holds, says and takes, and a model of a step.

Measured: parts (particles, edges, halo, messages, bytes), the time of each part alone, its peak memory, and with
``--measure`` real steps of P processes over gloo. Modelled: everything that is called so, by
:mod:`egnn_md_benchmarks.scaling_model` from those numbers and stated networks and devices.
"""

from __future__ import annotations

import gc
from dataclasses import asdict, replace
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from egnn_md.devices import find_dtype
from egnn_md.distributed.part import check_mode
from egnn_md.distributed.partition import METHODS, partition
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.nn.communication import Alone
from egnn_md_benchmarks.clouds import cloud_size
from egnn_md_benchmarks.common import Options, Tell, begin, refuse
from egnn_md_benchmarks.counts import H100, Peak, count
from egnn_md_benchmarks.model import case_of
from egnn_md_benchmarks.paths import Unavailable, check_paths
from egnn_md_benchmarks.results import Record
from egnn_md_benchmarks.scaling_measure import ChildError, part_memory, real_steps, summarise
from egnn_md_benchmarks.scaling_model import LINKS, Device, Link, check_links, step_seconds
from egnn_md_benchmarks.scaling_parts import (
    Collective,
    PartWork,
    Piece,
    layer_traffic,
    part_shape,
    pieces,
    whole_graph,
)
from egnn_md_benchmarks.scaling_table import COLUMNS, charts, notes, part_row, step_row
from egnn_md_benchmarks.timing import choose_clock, interleaved, summary
from egnn_md_benchmarks.workloads import QUANTITIES, Case, check_quantities, check_size, expected_shape

__all__ = ["COLUMNS", "charts", "run"]

RANKS = (1, 2, 4, 8)
Key = tuple[int, int]  # P, rank


def check_ranks(words: tuple[str, ...], default: tuple[int, ...], least: int, name: str) -> list[int]:
    """Ascending numbers of ranks. Raises InputError for what is none."""
    for word in words:
        if not word.isdigit() or int(word) < least:
            raise InputError(f"--{name} {word}: numbers of ranks, at least {least}, with commas: 1,2,4,8")
    return sorted({int(word) for word in words}) or list(default)


def run(options: Options, tell: Tell = print) -> Record:
    """Measure and model. ``options.sizes`` is one system; ``options.more``: ``ranks``, ``measure``, ``weak``,
    ``partition``, ``mode``, ``networks``, ``parts`` (False leaves out the parts alone).

    Raises:
        InputError: unknown names, numbers that cannot be, a system that does not fit into memory.
        ModelFileError: the potential cannot be read.
    """
    options.check()
    more = options.more
    if options.device != "cpu":
        raise InputError("parts are measured on CPUs, and GPUs are modelled; --device cpu")
    size = check_size(options.sizes[0] if options.sizes else "fluid113k")
    case, ranks = case_of(size, options), check_ranks(more.get("ranks", ()), RANKS, 1, "ranks")
    measured = check_ranks(more.get("measure", ()), (), 2, "measure")
    if case.network == "published" and cloud_size(size).graphs > 1:
        raise InputError(f"--system {size}: one graph is split over ranks, not a batch of graphs")
    default = ("forward", "step") if case.network == "published" else ("forward", "forces")
    quantities = check_quantities(options.quantities or default)
    for quantity in quantities:
        if case.network not in QUANTITIES[quantity]:
            raise InputError(f"--what {quantity}: the published network has no forces; --what forward,step")
    method, mode = more.get("partition", "bisection"), check_mode(more.get("mode", "exact"))
    if method not in METHODS:
        raise InputError(f"unknown partition method {method!r}; known: {', '.join(METHODS)}")
    links = check_links(more.get("networks") or tuple(LINKS))
    path, shape = check_paths(options.paths or ("fused",))[0], expected_shape(case)
    for quantity in quantities:
        refuse(f"{size}, {quantity} on the path {path!r},", shape, path, quantity, options)
    record, peaks = begin("scaling", options, tell=tell)
    record.settings |= {
        "system": size, "ranks": ranks, "quantities": quantities, "path": path, "partition": method, "mode": mode,
        "clock": choose_clock("cpu").name,
    }  # fmt: skip
    record.more |= {"links": [asdict(link) for link in links], "partitions": [], "measured": [], "gpu": []}
    tell(f"{size}: input")
    divided = divide(case, sorted({*ranks, *measured}), method, mode, record)
    if more.get("parts", True):
        strong = {number: divided[number] for number in ranks}
        for quantity in quantities:
            alone(record, "strong", case, strong, quantity, path, options, peaks, links, tell)
    for number in measured:
        for quantity in quantities:
            tell(f"{size}: {quantity} by {number} processes")
            together(record, case, divided[number], quantity, path, options)
    del divided
    if more.get("weak"):
        for quantity in quantities:
            spread, parts = {}, {}
            for number in ranks:
                kind = "water" if case.network == "potential" else "cloud"
                spread[number] = replace(case, size=check_size(f"{kind}-{int(more['weak']) * number}"))
                parts[number] = divide(spread[number], [number], method, mode, record)[number]
            alone(record, "weak", case, parts, quantity, path, replace(options, memory=False), peaks, links, tell)
    record.notes += notes(record)
    return record


def divide(case: Case, ranks: list[int], method: str, mode: str, record: Record) -> dict[int, list[Piece]]:
    """The input of a case in P parts, for every P; what the divisions are like goes into the record."""
    graph = whole_graph(case)
    out = {}
    for number in ranks:
        owner = owners(graph, number, method)
        quality = owner.quality(graph.edge_index)
        record.more["partitions"].append(
            {"size": case.size, "ranks": number, "imbalance": quality.imbalance, "cut": quality.cut_fraction}
        )
        out[number] = pieces(graph, owner.owner, number, mode=mode)
    return out


def owners(graph: ParticleGraph, ranks: int, method: str) -> Any:
    """The division of a graph, a :class:`egnn_md.distributed.partition.Partition`."""
    periodic = bool(graph.periodic.any())
    return partition(
        graph.positions, ranks, method=method, cell=graph.cell[0] if periodic else None,
        pbc=graph.pbc[0] if periodic else None, edge_index=graph.edge_index,
    )  # fmt: skip


def alone(
    record: Record,
    scaling: str,
    case: Case,
    divided: dict[int, list[Piece]],
    quantity: str,
    path: str,
    options: Options,
    peaks: list[Peak],
    links: list[Link],
    tell: Tell,
) -> None:
    """Every part by itself, and the models made from them; rows are added to the record."""
    tell(f"{case.size}: {quantity}, each of {', '.join(map(str, divided))} parts alone")
    works = {(number, piece.rank): PartWork(case, piece) for number, parts in divided.items() for piece in parts}
    said = {key: work.piece.dry() for key, work in works.items()}
    try:
        calls = {key: work.call(path, quantity, said[key]) for key, work in works.items()}
    except Unavailable as error:
        raise InputError(f"--path {path}: {error}; choose another") from error
    times = interleaved(calls, options.repeats, warmup=options.warmup)
    calls_made = options.repeats + options.warmup
    logs = {key: _log(talk, calls_made) for key, talk in said.items()}
    seconds = {key: summary(taken) for key, taken in times.items()}
    weights = sum(item.numel() for item in next(iter(works.values())).module.parameters())
    for key, work in works.items():
        exchange, reduction = layer_traffic(logs[key])
        traffic = said[key].wire.traffic if key[0] > 1 else None
        row = part_row(scaling, quantity, work.piece, seconds[key], exchange, reduction, traffic, calls_made)
        if options.memory:
            tell(f"{case.size}: memory of {quantity}, part {key[1]} of {key[0]}")
            try:
                found = part_memory(case, work.piece, path, quantity, torch.get_num_threads())
                row |= {"peak_memory": found["bytes"], "inputs": found["inputs"], "weights": found["weights"]}
                row["memory_method"] = found["method"]
            except ChildError as error:
                row["note"] = f"memory not measured: {error}"
        record.add(**row)
    first = min(divided)
    slowest = {number: [seconds[number, p.rank]["median"] for p in parts] for number, parts in divided.items()}
    _models(record, scaling, quantity, divided, slowest, logs, links, "this CPU", {})
    here = max(slowest[first])
    shapes = {key: part_shape(case, work.piece, weights) for key, work in works.items()}
    counted = count(shapes[first, 0], quantity, find_dtype(options.dtype).itemsize)
    floor = (counted["flops"] + counted["recompute"]) / peaks[0].flops
    launches = count_launches(case, path, quantity)
    itemsize = find_dtype(options.dtype).itemsize
    for device in (
        Device("H100 floor", H100),
        Device(f"H100 {here / floor:.1f} × floor", H100, here / floor, launches),
    ):
        compute = {
            number: [device.seconds(shapes[number, p.rank], p.halo, quantity, itemsize) for p in parts]
            for number, parts in divided.items()
        }
        facts = {"times_floor": device.times, "launches": device.launches}
        if device.launches:
            record.more["gpu"].append({"scaling": scaling, "quantity": quantity, "times": here / floor, **facts})
        _models(record, scaling, quantity, divided, compute, logs, links, device.name, facts)
    gc.collect()


def _log(talk: Alone, calls: int) -> list[Collective]:
    """The collectives of one call."""
    wire = getattr(talk, "wire", None)
    if wire is None:
        return []
    log: list[Collective] = wire.group.log
    assert len(log) % calls == 0
    return log[: len(log) // calls]


def _models(
    record: Record,
    scaling: str,
    quantity: str,
    divided: dict[int, list[Piece]],
    compute: dict[int, list[float]],
    logs: dict[Key, list[Collective]],
    links: list[Link],
    device: str,
    facts: dict[str, Any],
) -> None:
    """A row for each P and link."""
    for link in links:
        base = None
        for number, parts in divided.items():
            said = [logs[number, piece.rank] for piece in parts]
            taken = step_seconds(compute[number], said, link)
            if number == 1:
                base = taken
            row = step_row(scaling, quantity, number, "modelled", f"{device}, {link.name}", max(compute[number]), taken)
            row |= {"device": device, "link": link.name, **facts}
            if base is not None:
                # of a system that grows with P the same time is the best there is
                row["speedup"] = base / taken * (number if scaling == "weak" else 1)
                row["efficiency"] = row["speedup"] / number
            if number > 1 or link is links[0]:
                record.add(**row)


def together(record: Record, case: Case, parts: list[Piece], quantity: str, path: str, options: Options) -> None:
    """Real steps of P processes beside the model's; rows are added to the record."""
    number = len(parts)
    try:
        answers = real_steps(case, parts, path, quantity, torch.get_num_threads(), options.repeats, options.warmup)
    except ChildError as error:
        head = step_row("strong", quantity, number, "measured", "all processes, gloo", float("nan"), float("nan"))
        record.add("failed", **head, reason=str(error))
        return
    found = summarise(answers)
    link = found.pop("link")
    modelled = step_seconds(found["alone"], found.pop("logs"), link)
    real = found["step"]["median"]
    head = {"scaling": "strong", "quantity": quantity, "ranks": number}
    for piece, seconds, memory, inputs in zip(parts, found["alone"], found["memory"], found["inputs"], strict=True):
        row = part_row("strong", quantity, piece, {"median": seconds}, None, None, None, 1)
        del row["rank"]  # not a part alone
        record.add(**row | {"who": f"{piece.rank}, a process", "peak_memory": memory, "inputs": inputs})
    record.add(
        **step_row("strong", quantity, number, "measured", "all processes, gloo", max(found["alone"]), real),
        times=found["step"]["times"], spread=found["step"]["spread"], peak_memory=max(found["memory"]),
        note=f"{found['quiet']} of {found['rounds']} rounds quiet; memory: the greatest of a process",
    )  # fmt: skip
    row = step_row("strong", quantity, number, "modelled", "this CPU, gloo here", max(found["alone"]), modelled)
    row["deviation"] = modelled / real - 1
    record.add(**row, note=f"{100 * row['deviation']:+.1f} % of the measured step")
    said = {"modelled": modelled, "deviation": row["deviation"], "link": asdict(link)}
    record.more["measured"].append({**head, **found, **said})


class _Launches(TorchDispatchMode):
    """Counts operators that make something; a view is no kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        makes = isinstance(found, torch.Tensor | tuple | list) and not getattr(function, "is_view", False)
        self.number += int(makes and "aten.detach" not in str(function) and "aten.empty" not in str(function))
        return found


def count_launches(case: Case, path: str, quantity: str) -> int:
    """Operators that torch runs in one call, views left out: about the number of kernels that a GPU must start."""
    tiny = case.tiny()
    (piece,) = pieces(whole_graph(tiny), torch.zeros(0, dtype=torch.int64), 1)
    call = PartWork(tiny, piece).call(path, quantity, Alone())
    call()
    with _Launches() as counted:
        call()
    return counted.number
