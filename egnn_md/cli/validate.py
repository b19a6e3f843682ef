"""``egnn-md validate``: measure a potential against its reference method, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from egnn_md.validation import Validation

_WHAT, _HOW, _MORE, _OUT = "What is measured", "How runs are made", "Instead of the budget's", "Output"
_COLOURS = {"good": "green", "look": "yellow", "bad": "red"}


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("validate")(command)


def command(
    model: Annotated[str, typer.Argument(help="Name of an installed potential, or path of a model file.")],
    against: Annotated[
        str | None,
        typer.Option(help="Reference method, e.g. gfn2-xtb, or a file of labels.", rich_help_panel=_WHAT),
    ] = None,
    against_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the reference method; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    structure: Annotated[
        Path | None, typer.Option(help="Structure that the runs begin with.", rich_help_panel=_WHAT)
    ] = None,
    teacher_structure: Annotated[
        Path | None,
        typer.Option(help="A smaller one, for the reference method's own runs.", rich_help_panel=_WHAT),
    ] = None,
    labels: Annotated[
        list[Path] | None,
        typer.Option(help="Labels that no training has seen; may be repeated.", rich_help_panel=_WHAT),
    ] = None,
    temperatures: Annotated[
        str, typer.Option(help="K, commas between. Most is measured at the first.", rich_help_panel=_WHAT)
    ] = "300",
    parts: Annotated[
        str | None,
        typer.Option(
            help="Of: errors, nve, structure, diffusion, density, stability, size, holes. (default: all)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    budget: Annotated[str, typer.Option(help="short, standard or long.", rich_help_panel=_WHAT)] = "standard",
    charge: Annotated[int, typer.Option(help="Total charge of the structures, e.", rich_help_panel=_WHAT)] = 0,
    engine: Annotated[str, typer.Option(help="ase or openmm, for the model.", rich_help_panel=_HOW)] = "ase",
    device: Annotated[str, typer.Option(help="Torch device.", rich_help_panel=_HOW)] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32 or float64.", rich_help_panel=_HOW)] = "float32",
    timestep: Annotated[float, typer.Option(help="fs.", rich_help_panel=_HOW)] = 0.5,
    friction: Annotated[float, typer.Option(help="1/ps.", rich_help_panel=_HOW)] = 1.0,
    pressure: Annotated[float, typer.Option(help="bar.", rich_help_panel=_HOW)] = 1.0,
    seed: Annotated[int, typer.Option(rich_help_panel=_HOW)] = 0,
    processes: Annotated[int, typer.Option(help="Labels made at a time.", rich_help_panel=_HOW)] = 1,
    threads: Annotated[int, typer.Option(help="Of each of them.", rich_help_panel=_HOW)] = 1,
    teacher_minutes: Annotated[
        float | None, typer.Option(help="Of the reference method, in all.", rich_help_panel=_MORE)
    ] = None,
    frames: Annotated[
        int | None, typer.Option(help="Of the model's own, labelled at each temperature.", rich_help_panel=_MORE)
    ] = None,
    equilibration: Annotated[float | None, typer.Option(help="ps.", rich_help_panel=_MORE)] = None,
    length: Annotated[
        float | None, typer.Option(help="ps of the runs that averages come from.", rich_help_panel=_MORE)
    ] = None,
    nve: Annotated[float | None, typer.Option(help="ps compared at two time steps.", rich_help_panel=_MORE)] = None,
    density: Annotated[float | None, typer.Option(help="ps of NPT.", rich_help_panel=_MORE)] = None,
    stability_steps: Annotated[int | None, typer.Option(help="Of each long run.", rich_help_panel=_MORE)] = None,
    seeds: Annotated[int | None, typer.Option(help="Long runs.", rich_help_panel=_MORE)] = None,
    copies: Annotated[str | None, typer.Option(help="Larger cell, e.g. 2x1x1.", rich_help_panel=_MORE)] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Directory. (default: validation-MODEL, here)", rich_help_panel=_OUT, show_default=False),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a validation with other settings.", rich_help_panel=_OUT)
    ] = False,
    write_card: Annotated[
        bool, typer.Option("--write-card", help="Put the numbers into the model file's card.", rich_help_panel=_OUT)
    ] = False,
    title: Annotated[
        str | None, typer.Option(help="Heading of the page.", rich_help_panel=_OUT, show_default=False)
    ] = None,
) -> None:
    """Decide whether to trust a potential: errors, energy drift, structure, diffusion, density, stability, size, holes.

    Examples:

      egnn-md validate water --labels systems/water/data/test.extxyz.xz --output runs/errors

      egnn-md validate water --against gfn2-xtb --structure systems/water/water64.pdb --budget short

    Run it again to go on where it stopped. A part that fails is on the page with its error, the others are done all
    the same, and the exit code is 1. The directory holds index.html (opens offline), validation.json, validation.csv
    and PNGs.
    """
    from rich.console import Console

    from egnn_md.cli.label import parse_options
    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.validation import InterruptedRun, ValidateRequest, validate
    from egnn_md.validation import write_card as write
    from egnn_md.validation.request import parse_copies

    keep_freed_memory()
    values: dict[str, Any] = {
        "model": model, "against": against, "against_options": parse_options(against_option or []),
        "structure": None if structure is None else str(structure),
        "teacher_structure": None if teacher_structure is None else str(teacher_structure),
        "labels": tuple(map(str, labels or [])), "temperatures": _numbers(temperatures),
        "parts": None if parts is None else tuple(word.strip() for word in parts.split(",") if word.strip()),
        "budget": budget, "charge": charge, "engine": engine, "device": device, "dtype": dtype, "timestep": timestep,
        "friction": friction, "pressure": pressure, "seed": seed, "processes": processes, "threads": threads,
        "teacher_minutes": teacher_minutes, "frames": frames, "equilibration": equilibration, "length": length,
        "nve": nve, "density": density, "stability_steps": stability_steps, "seeds": seeds,
        "copies": None if copies is None else parse_copies(copies),
        "output": output or Path(f"validation-{Path(model).stem}"), "title": title,
    }  # fmt: skip
    console = Console(stderr=True)
    try:
        result = validate(ValidateRequest.parse(values), overwrite=overwrite, console=console)
    except InterruptedRun as stop:
        console.print("stopped; run the same command again to go on")
        raise typer.Exit(stop.exit_code) from None
    show(result)
    if write_card:
        typer.echo(f"the card of {write(model, result.record)} holds these numbers now")
    if result.failed:
        typer.echo(f"failed: {', '.join(result.failed)}", err=True)
        raise typer.Exit(1)


def _numbers(text: str) -> tuple[float, ...]:
    from egnn_md.errors import ConfigError

    try:
        return tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"--temperatures takes numbers with commas between, not {text!r}") from error


def show(result: Validation, console: Console | None = None) -> None:
    """Print the first table of the page, and where the page is."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from egnn_md.validation.page import verdict_rows

    console = console or Console(highlight=False)
    console = Console(highlight=False, width=max(console.width, 110), file=console.file)
    table = Table(box=None, pad_edge=False)
    for name in ("measured", "", "value", "how to read it"):
        table.add_column(name, overflow="fold", no_wrap=name == "")
    for row in verdict_rows(result.parts):
        colour = _COLOURS.get(row["mark"])
        mark = f"[{colour}]{row['mark']}[/]" if colour else ""
        table.add_row(escape(row["what"]), mark, escape(row["value"]), escape(row["reading"]))
    console.print(table)
    written = result.written
    size = written.page.stat().st_size / 1e6
    typer.echo(f"{written.page} ({size:.1f} MB); {written.numbers.name}, {written.table.name} and PNGs beside it")
