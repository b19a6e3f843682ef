"""``egnn-md label``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def parse_options(texts: list[str]) -> dict[str, Any]:
    """``key=value`` words with YAML values, as keyword options.

    Raises:
        ConfigError: a word without ``=``, or a value that is no YAML.
    """
    from egnn_md.training.config_file import apply_overrides

    return {key: value for text in texts for key, value in apply_overrides({}, [text], "--option").items()}


def command(
    structures: Annotated[
        list[Path], typer.Argument(help="Structure files (anything that ASE reads), all frames.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Label file (extended XYZ) to extend.")],
    method: Annotated[
        str, typer.Option(help="Reference: gfn2-xtb, gfn1-xtb, openmm, emt, lj, or one that a package registered.")
    ] = "gfn2-xtb",
    processes: Annotated[int, typer.Option(help="Structures labelled at the same time.")] = 1,
    threads: Annotated[int, typer.Option(help="Threads inside each process.")] = 1,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="KEY=VALUE", help="Option of the method, e.g. accuracy=0.1; may be repeated."),
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try again what failed in an earlier run.")
    ] = False,
) -> None:
    """Compute reference energies, forces and stresses. Run it again to go on where it stopped."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from egnn_md.data.labelling import LabelSummary, label
    from egnn_md.data.structures import read_frames

    console = Console()
    frames = [atoms for path in structures for atoms in read_frames(path)]
    bar = Progress(
        TextColumn("labelling"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    with bar:
        task = bar.add_task("labelling", total=len(frames), note="")

        def show(summary: LabelSummary) -> None:
            over = summary.labelled + summary.skipped + summary.failed
            note = f"{summary.failed} failed" if summary.failed else ""
            bar.update(task, completed=over, note=note)
            if not console.is_terminal and summary.labelled and summary.labelled % 50 == 0:
                console.print(f"{over} of {len(frames)} {note}", highlight=False)

        summary = label(
            frames,
            output,
            method,
            options=parse_options(option or []),
            processes=processes,
            threads=threads,
            retry_failed=retry_failed,
            progress=show,
        )
    console.print(
        f"{summary.labelled} labelled, {summary.skipped} were there already, {summary.failed} failed: "
        f"{output}",
        highlight=False,
        soft_wrap=True,
    )
    for message in sorted(set(summary.failures))[:5]:
        console.print(f"  {message}", highlight=False, soft_wrap=True, markup=False)
    if summary.interrupted:
        console.print("interrupted; the same command goes on from here", highlight=False)
        raise typer.Exit(130)
    if summary.failed and not summary.labelled:
        raise typer.Exit(1)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("label")(command)
