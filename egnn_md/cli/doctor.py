"""``egnn-md doctor``: what is installed, which engines and devices work, and how to get the missing ones."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from egnn_md.diagnostics import Diagnosis

_COLOURS = {"works": "green", "missing": "yellow", "fails": "red"}


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("doctor")(command)


def command(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
    quick: Annotated[bool, typer.Option("--quick", help="Look only, try no engine.")] = False,
    timeout: Annotated[float, typer.Option(help="Seconds that each engine may take.")] = 120.0,
) -> None:
    """Say what is installed, which engines and devices work, and how to get the missing ones.

    The exit code is 0 unless models cannot be evaluated at all; a missing engine is no error.
    """
    from egnn_md.diagnostics import diagnose

    if as_json:
        diagnosis = diagnose(probe=not quick, timeout=timeout)
        print(json.dumps(diagnosis.to_dict(), indent=2))
    else:
        from rich.console import Console

        console = Console(highlight=False)
        with console.status("trying the engines" if not quick else "looking"):
            diagnosis = diagnose(probe=not quick, timeout=timeout)
        show(diagnosis, console)
    if not diagnosis.core_ok:
        raise typer.Exit(1)


def show(diagnosis: Diagnosis, console: Console) -> None:
    """Print the diagnosis as tables, then every problem with its remedy."""
    from rich.markup import escape
    from rich.table import Table

    machine = diagnosis.devices
    console.print(
        f"egnn-md {diagnosis.version or '(not installed)'}, Python {diagnosis.python}, {machine['system']}, "
        f"{machine['cores']} cores, {machine['memory_gib']:.0f} GiB memory\n"
    )
    table = Table("package", "installed", "wanted", "for", box=None, pad_edge=False)
    for row in diagnosis.packages:
        if row.required and row.fits and row.purpose == "core":
            continue  # the small ones are worth a line only when something is wrong with them
        colour = "green" if row.fits else ("red" if row.required else "yellow")
        version = f"[{colour}]{escape(row.version or 'missing')}[/]"
        table.add_row(row.name, version, escape(row.wanted), row.purpose)
    console.print(table)
    if diagnosis.engines:
        table = Table("engine", "state", "", box=None, pad_edge=False)
        for engine in diagnosis.engines:
            state = f"[{_COLOURS[engine.status]}]{engine.status}[/]"
            table.add_row(engine.title, state, escape(engine.detail))
        console.print()
        console.print(table)
    remedies: dict[str, list[str]] = {}
    for row in diagnosis.packages:
        if row.version is None and not row.required:
            remedies.setdefault(row.install, []).append(row.name)
    if remedies:
        console.print("\nTo get what is missing:")
        for install, names in remedies.items():
            console.print(f"  {', '.join(names)}: {escape(install)}", soft_wrap=True)
    for problem in diagnosis.problems:
        console.print(f"\n[red]Problem:[/] {escape(problem.text)}", soft_wrap=True)
        console.print(f"  Remedy: {escape(problem.remedy)}", soft_wrap=True)
    if diagnosis.core_ok:
        console.print("\nThe core works.", style="green")
    else:
        console.print("\nThe core does not work: models cannot be evaluated here.", style="red")
