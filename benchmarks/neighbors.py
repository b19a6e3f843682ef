"""``egnn-md bench neighbors``: the backends of the neighbour list over sizes, in boxes of water and in open clouds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from egnn_md.devices import find_device
from egnn_md.errors import InputError, MissingDependencyError
from egnn_md_benchmarks.clouds import cloud_size, make_cloud
from egnn_md_benchmarks.common import Options, Tell, begin
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.timing import choose_clock, interleaved, summary
from egnn_md_benchmarks.water import water_atoms_count, water_box
from egnn_md_benchmarks.workloads import check_size

SIZES = ("water-192", "water-1536", "water-12288", "water-98304", "nbody", "protein", "water3d", "fluid113k")
BACKENDS = ("vesin", "torch_cluster", "brute")
CUTOFF = 5.0  # Å, of the shipped potential
BRUTE_LIMIT = 3000  # particles; it tests every pair with every image
COLUMNS = (
    Column("size", "size"),
    Column("nodes", "nodes", "count"),
    Column("boundaries", "boundaries"),
    Column("backend", "backend"),
    Column("pairs", "pairs", "count"),
    Column("median", "median", "time"),
    Column("spread", "spread", "percent"),
    Column("per_pair", "a pair", "time"),
    Column("note", ""),
)


def run(options: Options, tell: Tell = print) -> Record:
    """Measure; ``options.paths`` are backends here.

    Raises:
        InputError: unknown sizes or backends, or a named backend that cannot do a named size.
        MissingDependencyError: a named backend is not installed.
    """
    from egnn_md.neighbors import available_backends, neighbor_list

    options.check()
    sizes = [check_size(name) for name in options.sizes or SIZES]
    for name in options.paths:
        if name not in BACKENDS:
            raise InputError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")
        if name not in available_backends():
            raise MissingDependencyError(f"the backend {name} is not installed; torch-cluster: `make cluster`")
    record, _ = begin("neighbors", options, peaks=False, tell=tell)
    record.settings |= {"sizes": sizes, "clock": choose_clock(options.device).name}
    record.settings.pop("quantities")
    for name in sizes:
        tell(f"{name}: inputs")
        positions, cell, pbc, cutoff = structure(name, options)
        head = {"size": name, "nodes": len(positions), "boundaries": "periodic" if bool(pbc.any()) else "open"}
        calls: dict[str, Callable[[], Any]] = {}
        pairs: dict[str, int] = {}
        for backend in options.paths or BACKENDS:
            reason = _cannot(backend, len(positions), bool(pbc.any()))
            if reason:
                status = "unavailable" if backend not in available_backends() else "skipped"
                record.add(status, **head, backend=backend, reason=reason)
                continue

            def call(backend: str = backend) -> Any:
                return neighbor_list(positions, cell, pbc, cutoff, backend=backend)  # noqa: B023

            tell(f"{name}: {backend}")
            pairs[backend], calls[backend] = call()[0].shape[1], call
        times = interleaved(calls, options.repeats, warmup=options.warmup, device=options.device)
        for backend, seconds in times.items():
            row = record.add(**head, backend=backend, pairs=pairs[backend], **summary(seconds))
            row["per_pair"] = row["median"] / max(pairs[backend], 1)
            if pairs[backend] != next(iter(pairs.values())):
                row["note"] = "another number of pairs than the first backend"
    record.notes.append(
        f"Directed pairs within {CUTOFF:g} Å in water, and within what gives about the paper's numbers in clouds; "
        f"sorted by receiver, sender and shift. Median of interleaved repeats ({record.settings['clock']})."
    )
    return record


def _cannot(backend: str, count: int, periodic: bool) -> str | None:
    from egnn_md.neighbors import available_backends

    if backend not in available_backends():
        return "not installed (`make cluster`)"
    if backend == "torch_cluster" and periodic:
        return "knows no periodic cell"
    if backend == "brute" and count > BRUTE_LIMIT:
        return f"tests every pair: for {BRUTE_LIMIT:,} particles at most"
    return None


def structure(name: str, options: Options) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Positions (N, 3), cell (3, 3), pbc (3,) on the device, float64, and the cutoff."""
    device = find_device(options.device)
    if name.startswith("water-"):
        atoms = water_box(water_atoms_count(name), options.seed)
        return (
            torch.from_numpy(atoms.positions).to(device),
            torch.from_numpy(atoms.cell.array.copy()).to(device),
            torch.from_numpy(np.array(atoms.pbc)).to(device),
            CUTOFF,
        )
    cloud = make_cloud(cloud_size(name), options.seed, torch.float64).to(device)
    if cloud.num_graphs > 1:
        raise InputError(f"--sizes {name}: a neighbour list is of one system; leave out :{cloud.num_graphs}")
    longest = float(cloud.edge_features[:, 0].max())
    zeros = torch.zeros(3, 3, dtype=torch.float64, device=device)
    return cloud.positions, zeros, torch.zeros(3, dtype=torch.bool, device=device), longest


def charts(record: Record) -> list[Any]:
    """Time against the number of pairs, a line for each backend and kind of boundaries."""
    from egnn_md.report.charts import Chart, Series

    good = [row for row in record.rows if row["status"] == "ok"]
    lines = []
    for colour, key in enumerate(dict.fromkeys((row["backend"], row["boundaries"]) for row in good)):
        own = sorted((r for r in good if (r["backend"], r["boundaries"]) == key), key=lambda r: r["pairs"])
        x, y = np.array([r["pairs"] for r in own]), np.array([r["median"] for r in own])
        lines.append(Series(", ".join(key), x, y, "points", colour))
    return [Chart("neighbors", "Time of a list", "pairs", "s", tuple(lines), y_log=True)] if lines else []
