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
) -> None:
    """Train a potential on labelled structures, or (task: propagator) a propagator on trajectories."""
    from rich.console import Console

    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.training.tasks import load_any_config, run_training

    keep_freed_memory()
    console = Console()
    result = run_training(load_any_config(config, overrides or []), resume=resume, console=console)
    if not result.finished:
        raise typer.Exit(130)
    for line in result.summary:
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"model: {result.model}", highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("train")(command)
