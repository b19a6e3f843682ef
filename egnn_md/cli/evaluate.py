"""``egnn-md evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

PATIENCE = 30.0
_WHAT, _OUTPUT = "What is measured", "Output and device"


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("evaluate")(command)


def command(
    model: Annotated[str, typer.Argument(help="Name or path of a propagator.")],
    system: Annotated[str, typer.Argument(help="Registered system, data directory or .h5 file.")],
    part: Annotated[str, typer.Option(help="train, valid or test.", rich_help_panel=_WHAT)] = "test",
    compare: Annotated[
        list[Path] | None,
        typer.Option(help="Another propagator of the same stride; give it again for more.", rich_help_panel=_WHAT),
    ] = None,
    horizons: Annotated[
        str, typer.Option(help="Strides at which errors are given.", rich_help_panel=_WHAT)
    ] = "1,5,10,20,50",
    strides: Annotated[
        int | None,
        typer.Option(
            help="Length of the rollouts. (default: the last horizon)", rich_help_panel=_WHAT, show_default=False
        ),
    ] = None,
    starts: Annotated[int, typer.Option(help="How many rollouts, spread over the part.", rich_help_panel=_WHAT)] = 16,
    frames: Annotated[
        str | None,
        typer.Option(
            help="Start at these frames of every trajectory only, e.g. 30. (default: all that fit)",
            rich_help_panel=_WHAT,
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        int, typer.Option(help="One-step windows at most, drawn at random; 0 for all.", rich_help_panel=_WHAT)
    ] = 2000,
    seed: Annotated[int, typer.Option(help="Of that draw, and of random edge dropping.", rich_help_panel=_WHAT)] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory. (default: evaluation-MODEL, here)",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="Torch device: cpu, cuda, cuda:1.", rich_help_panel=_OUTPUT)] = "cpu",
    title: Annotated[
        str | None, typer.Option(help="Heading of the page.", rich_help_panel=_OUTPUT, show_default=False)
    ] = None,
) -> None:
    """Measure propagators on trajectories they have not seen, beside stay still and linear.

    Examples:

      egnn-md evaluate runs/nbody/model.safetensors nbody --frames 30 --horizons 1

      egnn-md evaluate fast.safetensors data/liquid --compare egnn.safetensors --starts 4 --output results

    One-step errors are over all windows of the part (or --windows of them), rollouts over --starts starts at
    once. The directory holds index.html (needs no network), metrics.json, metrics.csv and PNGs; the page begins
    with how far each rollout can be trusted.
    """
    import shlex
    import sys

    from rich.console import Console

    from egnn_md.report.evaluation import write_evaluation
    from egnn_md.rollout.evaluate import evaluate_files
    from egnn_md.rollout.plan import EvaluationSettings
    from egnn_md.simulation.machine import machine, versions

    settings = EvaluationSettings(
        part=part,
        starts=starts,
        frames=None if frames is None else _numbers(frames, "--frames"),
        horizons=_numbers(horizons, "--horizons"),
        strides=strides,
        windows=windows,
        seed=seed,
    )
    console = Console(stderr=True)
    with console.status("reading") as status:
        evaluation = evaluate_files(
            [model, *map(str, compare or [])],
            system,
            settings,
            device=device,
            progress=_teller(console, status),
        )
        status.update("writing")
        evaluation.record["command"] = shlex.join(["egnn-md", *sys.argv[1:]])
        evaluation.record["machine"] = machine(device)
        evaluation.record["versions"] = versions()
        written = write_evaluation(evaluation, output or Path(f"evaluation-{Path(model).stem}"), title)
    _show(evaluation.record, console)
    typer.echo(f"{written.page} ({written.page.stat().st_size / 1e6:.1f} MB)")
    typer.echo(f"{written.numbers}, {written.table} and {len(written.pictures)} pictures beside it")


def _teller(console: Any, status: Any) -> Any:
    """Progress: the line of ``status`` on a terminal; elsewhere a line of its own every ``PATIENCE`` seconds."""
    import time

    told = time.monotonic()

    def tell(text: str, done: int, total: int) -> None:
        nonlocal told
        status.update(f"{text} {done}/{total}")
        if not console.is_terminal and time.monotonic() - told > PATIENCE:
            told = time.monotonic()
            console.print(f"{text} {done}/{total}", highlight=False, markup=False)

    return tell


def _numbers(text: str, option: str) -> tuple[int, ...]:
    from egnn_md.errors import ConfigError

    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers with commas, not {text!r}") from error


def _show(record: dict[str, Any], console: object) -> None:
    """The errors that matter, as a table on the terminal."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from egnn_md.report.evaluation import number
    from egnn_md.rollout.definitions import unit_of

    assert isinstance(console, Console)
    horizons, starred = record["rollouts"]["horizons"], False
    unit = unit_of("mse", record["units"])
    table = Table(box=None, pad_edge=False, title=f"MSE / {unit}", title_justify="left")
    table.add_column("model")
    table.add_column("one step", justify="right")
    for horizon in horizons:
        table.add_column(f"{horizon} stride{'s' if horizon > 1 else ''}", justify="right")
    most = len(record["rollouts"]["starts"])
    for name, found in record["results"].items():
        if "one_step" in found:
            rows = found.get("horizons") or [{}] * len(horizons)
            # means of rollouts that lost starts are starred: the survivors are the easier ones
            cells = [number(row.get("mse")) + ("*" if 0 < row.get("starts", most) < most else "") for row in rows]
            starred |= any(cell.endswith("*") for cell in cells)
            table.add_row(escape(name), number(found["one_step"]["mse"]), *cells)
    console.print(table)
    if starred:
        console.print("* over the starts that still run only")
    for found in record["results"].values():
        if "trust" in found:
            console.print(found["trust"]["text"], highlight=False, markup=False, soft_wrap=True)
    for row in record["rollouts"]["left_out"]:
        console.print(f"{row['strides']} strides left out: {row['reason']}", highlight=False, soft_wrap=True)
