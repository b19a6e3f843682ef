"""``egnn-md train``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def command(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in the configured output directory.")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set optimizer.lr=1e-3."),
    ] = None,
    devices: Annotated[
        int | None, typer.Option("--devices", help="Processes to start, each with a device of its own.")
    ] = None,
    graph_devices: Annotated[
        int | None, typer.Option("--graph-devices", help="Of them, those that share one graph; all if not given.")
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option("--partition", help="How a graph is divided: bisection, random, k-means, metis or spectral."),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option("--mode", help="exact: as on one device; paper: without edges between devices."),
    ] = None,
    max_restarts: Annotated[
        int,
        typer.Option(
            "--max-restarts", min=0, help="Start all processes again, from the last checkpoint, when one is lost."
        ),
    ] = 0,
) -> None:
    """Train a potential on labelled structures, or (task: propagator) a propagator on trajectories."""
    from rich.console import Console

    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.training.tasks import load_any_config, run_training

    keep_freed_memory()
    console = Console()
    options = {"devices": devices, "graph_devices": graph_devices, "partition": partition, "mode": mode}
    chosen = [f"{key}={value}" for key, value in options.items() if value is not None]
    settings = load_any_config(config, [*(overrides or []), *chosen])
    result = run_training(settings, resume=resume, console=console, max_restarts=max_restarts)
    if not result.finished:
        raise typer.Exit(130)
    if result.model is None:  # a rank that leaves speaking to the first one
        return
    for line in result.summary:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"model: {result.model}", highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("train")(command)
