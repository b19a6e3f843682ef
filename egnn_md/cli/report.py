"""``egnn-md report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("report")(command)


def command(
    runs: Annotated[list[Path], typer.Argument(help="Run directories; several become sections of one page.")],
    output: Annotated[
        Path | None,
        typer.Option(help="HTML file. (default: report.html in the run, or beside several)", show_default=False),
    ] = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page.", show_default=False)] = None,
) -> None:
    """Write a page about runs: energies, temperature, drift, pair functions, speed, a 3D view.

    The page needs no network. PNGs and report.json with the numbers are written beside it.
    """
    from egnn_md.report import write_report

    report = write_report(runs, output, title)
    typer.echo(f"{report.page} ({report.page.stat().st_size / 1e6:.1f} MB)")
    typer.echo(f"{report.numbers} and {len(report.pictures)} pictures beside it")
