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
    """Train a potential on labelled structures."""
    from rich.console import Console

    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.training.train import load_config, train

    keep_freed_memory()
    console = Console()
    result = train(load_config(config, overrides or []), resume=resume, console=console)
    if not result.finished:
        raise typer.Exit(130)
    for part, errors in result.errors.items():
        console.print(
            f"{part}: force RMSE {errors['force_rmse']:.1f} meV/Å, energy RMSE {errors['energy_rmse']:.2f} "
            f"({errors['energy_rmse_centred']:.2f} without the mean offset) meV/atom",
            highlight=False,
            soft_wrap=True,
        )
    console.print(f"model: {result.model}", highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("train")(command)
