"""``egnn-md generate nbody``; light at import, the work is loaded when it is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def _numbers(text: str | None, option: str) -> tuple[int, ...] | None:
    """Whole numbers between commas.

    Raises:
        InputError: something else.
    """
    from egnn_md.errors import InputError

    if text is None:
        return None
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError:
        raise InputError(f"{option} {text}: whole numbers with commas between them are needed, as 30,40") from None


def command(
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the data set; one that was interrupted goes on.")
    ],
    preset: Annotated[str, typer.Option(help="full: 5000,2000,2000 systems; small: 500,200,200; tiny.")] = "full",
    splits: Annotated[
        str | None, typer.Option(metavar="TRAIN,VALID,TEST", help="Numbers of systems instead of the preset's.")
    ] = None,
    particles: Annotated[int | None, typer.Option(help="Particles a system. (preset: 100, tiny 20)")] = None,
    frames: Annotated[int | None, typer.Option(help="Frames, 0.1 time units apart. (preset: 42)")] = None,
    keep: Annotated[
        str | None,
        typer.Option(metavar="F,F,…", help="Store these frames only, e.g. 30,40 for the benchmark's pair."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Random start states.")] = 0,
    double: Annotated[bool, typer.Option("--double", help="Store float64 instead of float32.")] = False,
    threads: Annotated[int | None, typer.Option(help="Cores to use. (default: all)")] = None,
) -> None:
    """Charged particles in open space, the paper's first benchmark. Run it again to go on where it stopped."""
    import os

    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    from egnn_md_systems.nbody.dataset import PARTS, generate, make_settings

    settings = make_settings(
        preset,
        splits=_numbers(splits, "--splits"),
        particles=particles,
        frames=frames,
        keep=_numbers(keep, "--keep"),
        seed=seed,
        double=double,
    )
    console = Console()
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks = {part: bar.add_task(part, total=total) for part, total in zip(PARTS, settings.splits, strict=True)}
    told = dict.fromkeys(PARTS, -1)

    def show(part: str, done: int) -> None:
        bar.update(tasks[part], completed=done)
        total = settings.splits[PARTS.index(part)]
        tenth = 10 * done // total if total else 10
        if not console.is_terminal and tenth > told[part]:
            told[part] = tenth
            console.print(f"{part}: {done} of {total} systems", highlight=False, soft_wrap=True)

    cores = len(os.sched_getaffinity(0)) if threads is None else threads
    try:
        with bar:
            generate(output, settings, threads=cores, report=show)
    except KeyboardInterrupt:
        console.print("interrupted; the same command goes on from here", highlight=False)
        raise typer.Exit(130) from None
    counts = ", ".join(f"{total} {part}" for part, total in zip(PARTS, settings.splits, strict=True))
    console.print(f"{counts}: {output}", highlight=False, soft_wrap=True, markup=False)


def register(app: typer.Typer) -> None:
    """Add the command (entry point ``nbody`` of the group ``egnn_md.generators``)."""
    app.command("nbody")(command)
