"""``egnn-md bench md``: time a step and where it goes, over boxes and engines, and whether a run keeps its pace."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any

import numpy as np

from egnn_md.errors import EgnnMdError, InputError, MissingDependencyError
from egnn_md_benchmarks.common import Options, Tell, begin, refuse
from egnn_md_benchmarks.md_parts import ENGINES, PARTS, make_run
from egnn_md_benchmarks.memory import resident
from egnn_md_benchmarks.paths import Unavailable, check_paths
from egnn_md_benchmarks.results import Column, Record
from egnn_md_benchmarks.water import SIZES, UNIT_ATOMS, water_atoms_count, water_box
from egnn_md_benchmarks.workloads import Case, check_size, expected_shape

PATHS = ("plain", "fused")
TEMPERATURE = 300.0
RELAX_STEPS = 60
WINDOWS = 20
SOAK = 1000  # steps; a slope over fewer says nothing
MS = 1e3
COLUMNS = (
    Column("size", "size"),
    Column("engine", "engine"),
    Column("path", "path"),
    Column("steps", "steps", "count"),
    Column("step", "a step", "time"),
    Column("ns_per_day", "ns/day", "number"),
    Column("parts/list", "list", "time"),
    Column("parts/model", "model", "time"),
    Column("parts/copies", "copies", "time"),
    Column("parts/integrator", "integrator", "time"),
    Column("overhead", "overhead", "percent"),
    Column("memory", "process", "bytes"),
    Column("memory_slope", "bytes a step", "number"),
    Column("pace", "pace / 1,000 steps", "percent"),
    Column("note", ""),
)


@dataclass(frozen=True)
class Line:
    """A straight line through points: slope, its standard error, and the value at the middle."""

    slope: float
    error: float
    middle: float


def fit_line(x: np.ndarray, y: np.ndarray) -> Line:
    """Least squares; the error is NaN for two points."""
    centred = x - x.mean()
    spread = float((centred**2).sum())
    slope = float((centred * (y - y.mean())).sum()) / spread
    rest = y - y.mean() - slope * centred
    error = float(np.sqrt((rest**2).sum() / (len(x) - 2) / spread)) if len(x) > 2 else float("nan")
    return Line(slope, error, float(y.mean()))


def run(options: Options, tell: Tell = print) -> Record:
    """Measure. ``options.more``: ``engines``, ``steps``, ``timestep`` (fs).

    Raises:
        InputError: unknown sizes or engines, a box that does not fit into memory.
        MissingDependencyError: an engine was named and is not installed.
    """
    options.check()
    sizes = [check_size(name) for name in options.sizes or SIZES[:4]]
    for name in sizes:
        water_atoms_count(name)
    named = tuple(options.more.get("engines") or ())
    engines = list(dict.fromkeys(named or ENGINES))
    for engine in engines:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    paths = check_paths(options.paths or PATHS)
    for path in paths:
        if path not in PATHS:
            raise InputError(f"--paths {path} is no path of dynamics; known: {', '.join(PATHS)}")
    steps, timestep = int(options.more.get("steps", 100)), float(options.more.get("timestep", 0.5))
    if steps < 1 or not timestep > 0:
        raise InputError(f"--steps must be at least 1 and --timestep above 0, not {steps} and {timestep:g}")
    for name in sizes:
        case = Case(name, options.device, options.dtype, options.seed, options.model)
        refuse(f"{name}, dynamics,", expected_shape(case), "plain", "forces", options)
    record, _ = begin("md", options, peaks=False, tell=tell)
    record.settings |= {"sizes": sizes, "engines": engines, "paths": paths, "steps": steps, "timestep": timestep}
    for name in sizes:
        atoms = started(name, options, tell)
        for engine, path in product(engines, paths):
            tell(f"{name}: {engine}, {path}")
            head = {"size": name, "engine": engine, "path": path, "atoms": len(atoms)}
            try:
                record.add(**head, **measure(engine, path, atoms.copy(), options, steps, timestep))
            except (MissingDependencyError, Unavailable) as error:
                if named and isinstance(error, MissingDependencyError):
                    raise
                record.add("unavailable", **head, reason=str(error))
            except EgnnMdError:
                raise
            except Exception as error:  # what an engine says of a force that failed; the others are still measured
                text = str(error).strip().splitlines()
                record.add("failed", **head, reason=f"{type(error).__name__}: {text[0][:200] if text else ''}")
    record.notes += [
        "list + model + copies + integrator = a step, by construction: copies is what the force takes beside list and "
        "model (wrapping, checks, conversion), integrator what the step takes beside the force. "
        "Overhead = 1 - model / step.",
        *(f"{engine}: {how}." for engine, how in dict.fromkeys(
            (row["engine"], row["how"]) for row in record.rows if row["status"] == "ok"
        )),
        f"NVE at {timestep:g} fs from {TEMPERATURE:g} K, wall time, the default skin of each engine. "
        "Memory is resident memory of the whole process at the end; bytes a step and pace (change of a step's "
        f"time in 1,000 steps) are slopes over the second half of runs of {SOAK:,} steps and more, ± standard error.",
    ]  # fmt: skip
    return record


def started(name: str, options: Options, tell: Tell) -> Any:
    """The box with velocities; a lattice is relaxed first."""
    from ase.units import kB

    atoms = water_box(water_atoms_count(name), options.seed)
    if len(atoms) % UNIT_ATOMS:
        from ase.optimize import FIRE2

        from egnn_md_ase import FastEGNNCalculator

        tell(f"{name}: relaxing the lattice")
        atoms.calc = FastEGNNCalculator(options.model, device=options.device, dtype=options.dtype)
        FIRE2(atoms, logfile=None).run(fmax=0.5, steps=RELAX_STEPS)  # type: ignore[arg-type]
        atoms.calc = None
    masses = atoms.get_masses()[:, None]
    momenta = np.random.default_rng(options.seed).standard_normal((len(atoms), 3)) * np.sqrt(masses * kB * TEMPERATURE)
    atoms.set_momenta(momenta - masses * momenta.sum(0) / masses.sum())  # at rest as a whole
    return atoms


def measure(engine: str, path: str, atoms: Any, options: Options, steps: int, timestep: float) -> dict[str, Any]:
    """One run: the median step, its parts, and every window's time and memory."""
    simulation = make_run(engine, path, atoms, options, timestep)
    simulation.steps(3 * max(options.warmup, 1))
    windows = min(WINDOWS, steps)
    ends = np.linspace(0, steps, windows + 1).round().astype(int)
    rows: list[dict[str, Any]] = []
    with simulation.timed():
        simulation.steps(1)
        simulation.timers.take()
        for first, last in pairwise(ends):
            start = time.perf_counter()
            simulation.steps(int(last - first))
            seconds = (time.perf_counter() - start) / float(last - first)
            rows.append({"step": int(last), "seconds": seconds, "memory": resident()})
            simulation.between()
    whole = sum(row["seconds"] * float(count) for row, count in zip(rows, np.diff(ends), strict=True))
    parts, mean = simulation.parts(whole, steps), whole / steps
    found: dict[str, Any] = {
        "steps": steps,
        "step": mean,
        "median_step": float(np.median([row["seconds"] for row in rows])),
        "ns_per_day": timestep * 1e-6 * 86400.0 / mean,
        "parts": {name: parts[name] for name in PARTS},
        "overhead": 1.0 - parts["model"] / mean,
        "memory": rows[-1]["memory"],
        "how": simulation.how,
        "windows": rows,
        **simulation.statistics(),
    }
    if steps >= SOAK:
        found |= slopes(rows)
    return found


def slopes(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Growth of memory (bytes a step) and of the time of a step (fraction of it in 1,000 steps), with errors.

    Over the second half of the windows: in the first one allocators and caches settle.
    """
    rows = rows[len(rows) // 2 :]
    x = np.array([row["step"] for row in rows], dtype=float)
    memory = fit_line(x, np.array([row["memory"] for row in rows], dtype=float))
    pace = fit_line(x, np.array([row["seconds"] for row in rows]))
    return {
        "memory_slope": memory.slope,
        "memory_slope_error": memory.error,
        "pace": 1000 * pace.slope / pace.middle,
        "pace_error": 1000 * pace.error / pace.middle,
        "note": f"± {memory.error:.2g} bytes a step, ± {100_000 * pace.error / pace.middle:.2g} % pace",
    }


def charts(record: Record) -> list[Any]:
    """Time a step against atoms by engine; its parts for the default engine; memory and pace over long runs."""
    from egnn_md.report.charts import Chart, Series

    good = [row for row in record.rows if row["status"] == "ok"]
    kinds = list(dict.fromkeys(f"{row['engine']}, {row['path']}" for row in good))
    drawn, lines = [], []
    for colour, engine in enumerate(kinds):
        own = sorted((r for r in good if f"{r['engine']}, {r['path']}" == engine), key=lambda r: r["atoms"])
        x = np.array([row["atoms"] for row in own])
        lines.append(Series(engine, x, np.array([MS * row["step"] for row in own]), "points", colour))
        parts = [
            Series(part, x, np.array([MS * row["parts"][part] for row in own]), "points", index)
            for index, part in enumerate(PARTS)
        ]
        title, note = f"Parts of a step, {engine}", own[0]["how"]
        drawn.append(Chart(f"parts-{colour}", title, "atoms", "ms", tuple(parts), note=note, y_log=True))
    if lines:
        drawn.insert(0, Chart("step", "Time of a step", "atoms", "ms", tuple(lines), y_log=True))
    for key, title, unit, factor in (("seconds", "Pace", "ms a step", MS), ("memory", "Resident memory", "MB", 1e-6)):
        series = tuple(
            Series(
                f"{row['size']}, {row['engine']}, {row['path']}",
                np.array([w["step"] for w in row["windows"]]),
                np.array([factor * w[key] for w in row["windows"]]),
                "points",
                colour,
            )
            for colour, row in enumerate(good)
            if row["steps"] >= SOAK
        )
        if series:
            drawn.append(Chart(f"windows-{key}", f"{title} over the run", "step", unit, series))
    return drawn
