"""``egnn-md learn``: run, select, label, train, and again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("learn")(command)


def command(
    config: Annotated[Path, typer.Argument(help="YAML configuration.")],
    rounds: Annotated[int | None, typer.Option("--rounds", min=0, help="Rounds in all, instead of the file's.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a key, e.g. --set select.count=30."),
    ] = None,
) -> None:
    """Improve a committee by its own doubts: run it, label what it disagrees about, train on that, repeat.

    Run it again to go on where it stopped, after a kill too. More --rounds than before add rounds.

    Examples:

      egnn-md learn examples/learn/ethanol.yaml

      egnn-md learn examples/learn/ethanol.yaml --rounds 5

    The output directory holds report.html, report.json, the last committee.safetensors, and a folder a round.
    """
    from rich.console import Console

    from egnn_md.learning import learn, load_learn_config
    from egnn_md.training.memory import keep_freed_memory

    keep_freed_memory()
    more = [] if rounds is None else [f"rounds={rounds}"]
    settings = load_learn_config(config, [*(overrides or []), *more])
    result = learn(settings, console=Console())
    if not result.finished:
        raise typer.Exit(result.exit_code)
