"""``egnn-md check``: run the public validators on a model and say what holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from egnn_md.testing import CheckResult


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("check")(command)


def command(
    model: Annotated[str, typer.Argument(help="Name of an installed model, or path of a model file.")],
    dtype: Annotated[
        str, typer.Option(help="float64 or float32, for the exact laws; derivatives are always float64.")
    ] = "float64",
    seed: Annotated[int, typer.Option(help="Of the random structures, rotations and directions.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for programs.")] = False,
) -> None:
    """Test a model against physics: symmetries, gradients, smoothness, periodic copies, small cases.

    The exit code is 1 if a check fails, 2 if the model cannot be read.
    """
    import torch
    from rich.console import Console

    from egnn_md.checkpoint import load_model
    from egnn_md.errors import InputError
    from egnn_md.models import Potential
    from egnn_md.testing import run_checks

    if dtype not in ("float32", "float64"):
        raise InputError(f"--dtype must be float32 or float64, not {dtype!r}")
    potential = load_model(model)
    if not isinstance(potential, Potential):
        raise InputError(f"{model} is a {type(potential).__name__}; the checks are for potentials")
    # the progress line goes where it cannot mix with the answer
    with Console(stderr=True).status("checking") as status:
        results = run_checks(
            potential,
            torch.float64 if dtype == "float64" else torch.float32,
            seed=seed,
            progress=lambda name: status.update(f"checking {name}"),
        )
    passed = all(result.passed for result in results)
    if as_json:
        report = {"model": model, "dtype": dtype, "seed": seed, "passed": passed}
        print(json.dumps(report | {"checks": [result.as_dict() for result in results]}, indent=2))
    else:
        show(model, results, Console(highlight=False, width=max(Console().width, 100)))
    if not passed:
        raise typer.Exit(1)


def show(model: str, results: list[CheckResult], console: Console) -> None:
    """Print the results as a table and one line that sums them up."""
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("check")
    table.add_column("")
    table.add_column("largest deviation", justify="right")
    table.add_column("allowed", justify="right")
    table.add_column("unit")
    table.add_column("worst on", overflow="fold")
    for row in results:
        state = "[green]ok[/]" if row.passed else "[red]FAILS[/]"
        table.add_row(
            escape(row.name), state, f"{row.value:.1e}", f"{row.tolerance:.0e}", row.unit, escape(row.note)
        )
    console.print(table)
    failures = [row.name for row in results if not row.passed]
    if failures:
        counts = f"{len(failures)} of {len(results)} checks fail"
        console.print(
            f"\n{escape(model)}: {counts}: {escape(', '.join(failures))}", style="red", soft_wrap=True
        )
    else:
        console.print(f"\n{escape(model)}: all {len(results)} checks hold.", style="green", soft_wrap=True)
