"""``egnn-md generate liquid``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def parse_scenes(text: str) -> dict[str, int]:
    """Numbers of training, validation and test scenes out of ``24,4,4`` (missing ones are 0).

    Raises:
        ConfigError: no such list.
    """
    from egnn_md.data.trajectories import PARTS
    from egnn_md.errors import ConfigError

    words = text.split(",")
    if len(words) > len(PARTS) or not all(word.strip().isdigit() for word in words):
        raise ConfigError(f"--scenes {text!r}: give up to three counts (train,valid,test) such as 24,4,4")
    counts = [int(word) for word in words] + [0] * (len(PARTS) - len(words))
    return dict(zip(PARTS, counts, strict=True))


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory of the data set.")],
    preset: Annotated[str, typer.Option(help="tiny, small, water3d or fluid113k.")] = "small",
    scenes: Annotated[str, typer.Option(metavar="TRAIN,VALID,TEST", help="How many scenes of each part.")] = "24,4,4",
    frames: Annotated[int | None, typer.Option(help="Frames of a scene; the preset's if not given.")] = None,
    interval: Annotated[
        float | None, typer.Option(help="Seconds between two frames; the preset's if not given.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Scene k depends on this and on k only.")] = 0,
    jobs: Annotated[int, typer.Option(help="Simulations at the same time, one thread each.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a data set; complete scenes are kept.")] = False,
    time_limit: Annotated[float, typer.Option(help="Seconds after which one simulation counts as hanging.")] = 36000.0,
) -> None:
    """SPH liquids by SPlisHSPlasH: random bodies of fluid fall and splash in a closed box."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from egnn_md_systems.liquid.generate import Summary, generate
    from egnn_md_systems.liquid.presets import get_preset

    console = Console()
    chosen = get_preset(preset, frames=frames, frame_interval=interval)
    counts = parse_scenes(scenes)
    total = sum(counts.values())
    bar = Progress(
        TextColumn("frames"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
    )
    shown = -1
    with bar:
        task = bar.add_task("frames", total=total * chosen.frames, note="")

        def show(current: int, summary: Summary) -> None:
            nonlocal shown
            over = summary.made + summary.skipped + len(summary.failures)
            note = f"{over} of {total} scenes" + (f", {len(summary.failures)} failed" if summary.failures else "")
            bar.update(task, completed=over * chosen.frames + current, note=note)
            if not console.is_terminal and over != shown:
                console.print(note, highlight=False)
                shown = over

        summary = generate(
            output,
            chosen,
            counts,
            seed=seed,
            jobs=jobs,
            resume=resume,
            time_limit=time_limit,
            progress=show,
        )
    console.print(
        f"{summary.made} scenes simulated, {summary.skipped} were there already: {output}",
        highlight=False,
        soft_wrap=True,
    )
    if summary.shortened:
        console.print(f"with a shorter time step: {', '.join(summary.shortened)}", highlight=False, soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``, the ``egnn-md generate`` group."""
    app.command("liquid")(command)
