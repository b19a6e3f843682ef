"""``python -m egnn_md_systems.liquid.step DATA``: time and memory of one propagator step over one frame of a scene.

For each fraction ``p`` of edges left out, in a process of its own: the neighbour list (and the choice of the edges
that go), then the network without gradients. Without ``--model`` the network is a fresh one of the published sizes
(``published-fluid113k.yaml``): its answers are worth nothing, its time and memory are those of a trained one.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from egnn_md.checkpoint import load_model
from egnn_md.data.trajectories import TrajectorySet, open_trajectories
from egnn_md.data.windows import build_graph, check_same_world, model_velocities
from egnn_md.errors import ConfigError, EgnnMdError, InputError
from egnn_md.models.propagator import FastEGNNPropagator
from egnn_md.simulation.machine import processor
from egnn_md.training.config_file import read_yaml, validate
from egnn_md.training.propagator_build import build_propagator
from egnn_md.training.propagator_config import PropagatorTrainConfig

PUBLISHED = Path(__file__).parent / "published-fluid113k.yaml"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        data: directory of a data set, or one of its HDF5 files.
        part: train, valid or test; None where the directory has one only.
        scene: number of the scene in the part.
        frame: of the scene.
        model: name or file of a propagator, None for a fresh one.
        drop: fraction of the longest edges that is left out.
        threads: of torch.
        repeats: timed runs after one that warms up.
    """

    data: Path
    part: str | None = None
    scene: int = 0
    frame: int = 0
    model: str | None = None
    drop: float = 0.0
    threads: int = 2
    repeats: int = 5


@dataclass(frozen=True)
class StepCost:
    """One row: times are medians in seconds (wall clock, and processor time of all threads), memory in bytes.

    Attributes:
        particles, edges: of the graph; directed edges, after dropping.
        found: directed edges before dropping.
        neighbors, neighbors_cpu: making the graph from positions.
        forward, forward_cpu: the network on that graph.
        graph_memory: highest resident memory while the graph was made, above that with model and frame in memory.
        memory: the same, of the whole step.
        displacement: root mean square of what the step moved, so that nobody measures a network that did nothing.
    """

    drop: float
    particles: int
    found: int
    edges: int
    neighbors: float
    neighbors_cpu: float
    forward: float
    forward_cpu: float
    graph_memory: int
    memory: int
    displacement: float


def load_or_make(model: str | None, data: TrajectorySet, drop: float) -> FastEGNNPropagator:
    """The propagator to measure, with this fraction of the longest edges left out; the weights do not depend on it.

    Raises:
        ConfigError: a model of another kind, or ``drop`` outside [0, 1].
        InputError: a model of another world than the data.
    """
    if not 0 <= drop <= 1:
        raise ConfigError(f"--drop {drop}: a fraction of the edges, between 0 and 1, is needed")
    if model is None:
        config = validate(PropagatorTrainConfig, read_yaml(PUBLISHED), PUBLISHED.name)
        # the radius is that of the data, or the graph of a coarser set would be empty
        section = {key: value for key, value in config.model.items() if key != "cutoff"}
        config = config.model_copy(update={"model": section})
        made = build_propagator(config, data, torch.float32, PUBLISHED.name)
    else:
        loaded = load_model(model)
        if not isinstance(loaded, FastEGNNPropagator):
            raise ConfigError(f"--model {model} is a {type(loaded).__name__}, but a propagator is needed")
        made = loaded
    check_same_world(made.config, data.metadata, str(data.path))
    made.config = made.config.model_copy(
        update={"drop": "longest" if drop > 0 else "none", "drop_fraction": float(drop)}
    )
    return made.eval().requires_grad_(False)


def _resident(field: str) -> int:
    """Bytes of ``VmRSS`` (now) or ``VmHWM`` (highest so far) of this process; the highest where there is no /proc."""
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _timed(run: Callable[[], Any], repeats: int) -> tuple[float, float]:
    """Median wall and processor time (s); each result is freed before the next run."""
    wall, used = [], []
    for _ in range(repeats):
        start, start_used = time.perf_counter(), time.process_time()
        result = run()
        wall.append(time.perf_counter() - start)
        used.append(time.process_time() - start_used)
        del result
    return statistics.median(wall), statistics.median(used)


def measure(request: Request) -> StepCost:
    """Measure one step in this process; memory means something only in a fresh one.

    Raises:
        ConfigError: fewer than one repeat or thread, a model that is no propagator.
        InputError: no such scene or frame, a periodic set, a model of another world.
    """
    if request.repeats < 1 or request.threads < 1:
        raise ConfigError(f"{request.repeats} repeats, {request.threads} threads: at least one of each is needed")
    torch.set_num_threads(request.threads)
    data = open_trajectories(request.data, request.part)
    if any(data.metadata.pbc):
        raise InputError(f"{data.path} is periodic; this measures liquids in closed boxes")
    if not 0 <= request.scene < len(data):
        raise InputError(f"{data.path} holds scenes 0 to {len(data) - 1}, not {request.scene}")
    scene = data[request.scene]
    if not 0 <= request.frame < len(scene):
        raise InputError(f"scene {scene.name!r} has frames 0 to {len(scene) - 1}, not {request.frame}")
    model = load_or_make(request.model, data, request.drop)
    everything = model.config.model_copy(update={"drop": "none", "drop_fraction": 0.0})
    positions = torch.as_tensor(scene.positions[request.frame]).float()
    velocities = torch.as_tensor(model_velocities(scene, request.frame, model.config, data.metadata)).float()
    species = torch.as_tensor(scene.species)
    features = None if scene.features is None else torch.as_tensor(scene.features).float()

    def graph(config: Any = model.config) -> Any:
        return build_graph(config, positions, velocities, species, features=features)

    with torch.inference_mode():
        with contextlib.suppress(OSError):  # the highest mark of the imports and of loading is not the step's
            Path("/proc/self/clear_refs").write_text("5")
        before = _resident("VmRSS")
        made = graph()
        graph_memory = _resident("VmHWM") - before
        moved = model.predict(made).positions - positions
        memory = _resident("VmHWM") - before
        displacement = float(moved.double().pow(2).sum(1).mean().sqrt())
        edges = made.num_edges
        forward, forward_cpu = _timed(lambda: model.predict(made), request.repeats)
        neighbors, neighbors_cpu = _timed(graph, request.repeats)
        found = edges if request.drop == 0 else graph(everything).num_edges
    return StepCost(
        drop=request.drop,
        particles=len(positions),
        found=found,
        edges=edges,
        neighbors=neighbors,
        neighbors_cpu=neighbors_cpu,
        forward=forward,
        forward_cpu=forward_cpu,
        graph_memory=graph_memory,
        memory=memory,
        displacement=displacement,
    )


def measure_apart(request: Request) -> StepCost:
    """:func:`measure` in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(measure, request).result()


def table(costs: list[StepCost]) -> str:
    """The rows as Markdown."""
    lines = [
        "| p | particles | edges | neighbour list (s) | network (s) | processor time (s) | peak memory (GB) |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| {cost.drop:g} | {cost.particles:,} | {cost.edges:,} | {cost.neighbors:.3g} | {cost.forward:.3g} "
        f"| {cost.neighbors_cpu:.3g} + {cost.forward_cpu:.3g} | {cost.memory / 1e9:.2f} |"
        for cost in costs
    ]
    return "\n".join(lines)


def main(
    data: Annotated[Path, typer.Argument(help="Data set of egnn-md generate liquid, or one of its .h5 files.")],
    model: Annotated[str | None, typer.Option(help="Name or file of a propagator; a fresh one if not given.")] = None,
    part: Annotated[str | None, typer.Option(help="train, valid or test, where there are several.")] = None,
    scene: Annotated[int, typer.Option(help="Number of the scene in its part.")] = 0,
    frame: Annotated[int, typer.Option(help="Frame of the scene.")] = 0,
    drop: Annotated[
        list[float] | None, typer.Option(help="Fraction of the longest edges left out; again for more. (default: 0)")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of torch.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs, after one that warms up; medians are printed.")] = 5,
    output: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file, too.")] = None,
) -> None:
    """Time and memory of one propagator step over one frame of a liquid scene."""
    load = os.getloadavg()[0]
    request = Request(data, part, scene, frame, model, threads=threads, repeats=repeats)
    costs = [measure_apart(Request(**{**vars(request), "drop": fraction})) for fraction in drop or [0.0]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    typer.echo(
        f"{model or 'a fresh network of the published sizes'}, frame {frame}, {threads} threads on {cores} cores "
        f"({processor()}), load {load:.1f} before; medians of {repeats}\n\n{table(costs)}"
    )
    if output is not None:
        content = {
            "data": str(data),
            "scene": scene,
            "frame": frame,
            "model": model,
            "threads": threads,
            "repeats": repeats,
            "processor": processor(),
            "cores": cores,
            "load": load,
            "torch": torch.__version__,
            "steps": [asdict(cost) for cost in costs],
        }
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(content, indent=1) + "\n")


def run() -> None:
    """As :func:`egnn_md.cli.main.main`: our own errors end in one readable line and exit code 2."""
    try:
        typer.run(main)
    except EgnnMdError as error:
        print(f"step: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    run()
