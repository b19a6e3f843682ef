"""``egnn-md bench``: speed and memory, a subcommand for each question. Heavy imports wait until one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_WHAT, _HOW = "What is measured", "How it is measured"

Sizes = Annotated[
    str | None, typer.Option(help="Names with commas; see above.", rich_help_panel=_WHAT, show_default=False)
]
Paths = Annotated[
    str | None,
    typer.Option(
        help="Of published, plain, fused, compiled. (default: the first three)",
        rich_help_panel=_WHAT,
        show_default=False,
    ),
]
Quantities = Annotated[
    str | None, typer.Option(help="Of forward, forces, step.", rich_help_panel=_WHAT, show_default=False)
]
Model = Annotated[str, typer.Option(help="Potential: name or path.", rich_help_panel=_WHAT)]
Repeats = Annotated[int, typer.Option(help="Rounds; one of every candidate each.", rich_help_panel=_HOW)]
Warmup = Annotated[int, typer.Option(help="Rounds before that are thrown away.", rich_help_panel=_HOW)]
Threads = Annotated[
    int | None,
    typer.Option(help="Of torch, for this command only. (default: torch's)", rich_help_panel=_HOW, show_default=False),
]
Device = Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.", rich_help_panel=_HOW)]
Dtype = Annotated[str, typer.Option(help="float32 or float64.", rich_help_panel=_HOW)]
Output = Annotated[
    Path | None,
    typer.Option(help="Directory. (default: runs/bench/SUBCOMMAND)", rich_help_panel=_HOW, show_default=False),
]
Seed = Annotated[int, typer.Option(help="Of inputs, weights and velocities.", rich_help_panel=_HOW)]
Memory = Annotated[
    bool, typer.Option("--memory/--no-memory", help="Peak memory, each in its own process.", rich_help_panel=_HOW)
]


def register(app: typer.Typer) -> None:
    """Add the sub-app to ``app``."""
    bench = typer.Typer(no_args_is_help=True, help="Measure speed and memory.")
    for function in (model, md, neighbors, peers, growth, count, scaling):
        bench.command(function.__name__)(function)
    app.add_typer(bench, name="bench")


def model(
    sizes: Sizes = None,
    paths: Paths = None,
    quantities: Quantities = None,
    model: Model = "water",
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    seed: Seed = 0,
    memory: Memory = True,
) -> None:
    """Forward pass, energy and forces, and training step of the networks, on every path, beside the floors.

    Sizes: nbody, protein, water3d, fluid113k (the published network; nbody:8 is a batch of 8), and boxes of water,
    water-192 to water-98304 (the potential --model).

    Examples:

      egnn-md bench model --sizes nbody,protein --threads 1

      egnn-md bench model --sizes water-648 --quantities forces --paths plain,compiled
    """
    _run("model", sizes, paths, quantities, model, repeats, warmup, threads, device, dtype, output, seed, memory, {})


def md(
    sizes: Sizes = None,
    engines: Annotated[
        str | None,
        typer.Option(
            help="Of ase, openmm-torch, openmm-python. (default: all)", rich_help_panel=_WHAT, show_default=False
        ),
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps a run; 20,000 show growth.", rich_help_panel=_WHAT)] = 100,
    timestep: Annotated[float, typer.Option(help="fs.", rich_help_panel=_WHAT)] = 0.5,
    paths: Annotated[
        str | None,
        typer.Option(help="Of plain, fused. (default: both)", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    model: Model = "water",
    warmup: Warmup = 1,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    seed: Seed = 0,
) -> None:
    """Time of a dynamics step, ns/day, and where the time goes; memory and pace over a long run.

    Sizes: water-192, water-648, water-1536, water-5184, water-12288, water-41472, water-98304.

    Examples:

      egnn-md bench md --sizes water-192,water-648

      egnn-md bench md --sizes water-192 --engines ase --steps 20000 --output runs/soak
    """
    more = {"engines": _words(engines), "steps": steps, "timestep": timestep}
    _run("md", sizes, paths, None, model, 1, warmup, threads, device, dtype, output, seed, False, more)


def neighbors(
    sizes: Sizes = None,
    backends: Annotated[
        str | None,
        typer.Option(
            help="Of vesin, torch_cluster, brute. (default: those there are)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    threads: Threads = None,
    device: Device = "cpu",
    output: Output = None,
    seed: Seed = 0,
) -> None:
    """Backends of the neighbour list over sizes: time and pairs.

    Sizes: water-192 to water-98304 (periodic); nbody, protein, water3d, fluid113k, cloud-N (open).
    """
    options = (repeats, warmup, threads, device, "float64", output, seed, False)
    _run("neighbors", sizes, backends, None, "water", *options, {})


def peers(
    sizes: Sizes = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            help="mace, tensornet or nequip; again for more. (default: those installed)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    peer_model: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=PATH", help="Trained file of a peer.", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Extended XYZ with forces: errors too.", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    cutoff: Annotated[
        float | None,
        typer.Option(help="Of random peers, Å. (default: our model's)", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    model: Model = "water",
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    seed: Seed = 0,
) -> None:
    """Other potentials on the same boxes of water: energy and forces in the same run, and errors against labels."""
    from egnn_md_benchmarks.peers import peer_files

    more = {
        "peers": tuple(peer or ()),
        "peer_models": peer_files(peer_model or []),
        "labels": None if labels is None else str(labels),
        "cutoff": cutoff,
    }
    _run("peers", sizes, None, None, model, repeats, warmup, threads, device, dtype, output, seed, False, more)


def growth(
    sizes: Sizes = None,
    paths: Paths = None,
    quantities: Quantities = None,
    repeats: Repeats = 3,
    warmup: Warmup = 1,
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
    seed: Seed = 0,
    memory: Memory = True,
) -> None:
    """Cost of the published network against size at constant density, and the power that it grows with.

    Sizes: numbers of particles; by default 1,000 to 1,000,000. What does not fit into memory is left out and said.
    """
    _run("growth", sizes, paths, quantities, "water", repeats, warmup, threads, device, dtype, output, seed, memory, {})


def count(
    sizes: Sizes = None,
    quantities: Quantities = None,
    model: Model = "water",
    threads: Threads = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    output: Output = None,
) -> None:
    """Operations and bytes that a network must do and move, and the times that nothing can beat; runs no network.

    Sizes: nbody, protein, water3d, fluid113k, cloud-N, water-192 to water-98304.
    """
    _run("count", sizes, None, quantities, model, 1, 0, threads, device, dtype, output, 0, False, {})


def scaling(
    system: Annotated[
        str, typer.Option(help="fluid113k, water3d, protein, nbody, cloud-N, water-N.", rich_help_panel=_WHAT)
    ] = "fluid113k",
    particles: Annotated[
        int | None,
        typer.Option(help="Short for --system cloud-N: 1000000.", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    ranks: Annotated[str, typer.Option(help="Numbers of parts, with commas.", rich_help_panel=_WHAT)] = "1,2,4,8",
    what: Annotated[
        str | None,
        typer.Option(
            help="Of forward, step, forces. (default: forward,step; water: forward,forces)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    partition: Annotated[
        str, typer.Option(help="bisection, random, k-means, metis, spectral.", rich_help_panel=_WHAT)
    ] = "bisection",
    mode: Annotated[str, typer.Option(help="exact or paper.", rich_help_panel=_WHAT)] = "exact",
    path: Annotated[str, typer.Option(help="plain, fused or compiled.", rich_help_panel=_WHAT)] = "fused",
    networks: Annotated[
        str | None,
        typer.Option(
            help="Modelled ones: nvlink, infiniband, 25gbe, 10gbe. (default: all)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    weak: Annotated[
        int | None,
        typer.Option(help="Weak scaling, too: particles a rank.", rich_help_panel=_WHAT, show_default=False),
    ] = None,
    measure: Annotated[
        str | None,
        typer.Option(
            help="Numbers of processes that really run, over gloo: 2,4.", rich_help_panel=_HOW, show_default=False
        ),
    ] = None,
    parts: Annotated[
        bool, typer.Option("--parts/--no-parts", help="Parts alone and the models.", rich_help_panel=_HOW)
    ] = True,
    model: Model = "water",
    repeats: Repeats = 5,
    warmup: Warmup = 1,
    threads: Annotated[int, typer.Option(help="Of torch, for every rank.", rich_help_panel=_HOW)] = 1,
    dtype: Dtype = "float32",
    output: Output = None,
    seed: Seed = 0,
    memory: Memory = True,
) -> None:
    """One system over several devices: particles, edges, halo, bytes, compute and memory a rank; a model of a step.

    Parts are measured one after the other, so that any number of ranks can be looked at on any machine. Steps on other
    machines and networks are modelled and called so; --measure runs real ones on this machine.

    Examples:

      egnn-md bench scaling --ranks 1,2,4,8 --what step

      egnn-md bench scaling --system water-5184 --what forces --measure 2

      egnn-md bench scaling --particles 1000000 --what forward --measure 2 --no-parts
    """
    more: dict[str, Any] = {
        "ranks": _words(ranks),
        "measure": _words(measure),
        "weak": weak,
        "partition": partition,
        "mode": mode,
        "networks": _words(networks),
        "parts": parts,
    }
    name = system if particles is None else f"cloud-{particles}"
    _run("scaling", name, path, what, model, repeats, warmup, threads, "cpu", dtype, output, seed, memory, more)


def _words(text: str | None) -> tuple[str, ...]:
    return tuple(word.strip() for word in (text or "").split(",") if word.strip())


def _run(
    name: str,
    sizes: str | None,
    paths: str | None,
    quantities: str | None,
    model: str,
    repeats: int,
    warmup: int,
    threads: int | None,
    device: str,
    dtype: str,
    output: Path | None,
    seed: int,
    memory: bool,
    more: dict[str, Any],
) -> None:
    """Measure, show the table, write the files."""
    import importlib

    from rich.console import Console

    from egnn_md_benchmarks.common import Options
    from egnn_md_benchmarks.results import show, write
    from egnn_md_benchmarks.timing import torch_threads

    module = importlib.import_module(f"egnn_md_benchmarks.{name}")
    folder = output or Path("runs") / "bench" / name
    options = Options(
        sizes=_words(sizes), paths=_words(paths), quantities=_words(quantities), repeats=repeats, warmup=warmup,
        threads=threads, device=device, dtype=dtype, seed=seed, model=model, output=folder, memory=memory, more=more,
    )  # fmt: skip
    console = Console(stderr=True)
    with torch_threads(threads), console.status("beginning") as status:
        record = module.run(options, lambda text: status.update(text))
        status.update("writing")
        page, numbers = write(record, module.COLUMNS, module.charts(record), folder)
    show(record, module.COLUMNS, Console(width=None if Console().is_terminal else 200))
    typer.echo(f"{page} ({page.stat().st_size / 1e6:.1f} MB), {numbers}")
