"""``egnn-md generate adk`` (molecular dynamics) and ``egnn-md generate trajectory`` (data sets); light at import."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_PHYSICS, _MACHINE, _OUTPUT = "Physics", "Machine", "Output"
_READ, _SPLIT = "Reading", "Split"


def _option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=False)


def register(app: typer.Typer) -> None:
    """Add the command ``adk`` (entry point ``adk`` of the group ``egnn_md.generators``)."""
    app.command("adk")(adk)


def register_trajectory(app: typer.Typer) -> None:
    """Add the command ``trajectory`` (entry point ``trajectory`` of the group ``egnn_md.generators``)."""
    app.command("trajectory")(trajectory)


# Every option is None unless it was given: a resumed run must tell given options from those left out.
def adk(
    output: Annotated[Path, _option("Directory of the run. Required.", _OUTPUT)],
    start: Annotated[str | None, _option("closed, open, or a PDB file. (default: closed)", _PHYSICS)] = None,
    duration: Annotated[float | None, _option("ps, from the run's first frame. (default: 100)", _PHYSICS)] = None,
    timestep: Annotated[float | None, _option("fs. (default: 4)", _PHYSICS)] = None,
    frame_interval: Annotated[float | None, _option("fs between frames. (default: 20)", _OUTPUT)] = None,
    temperature: Annotated[float | None, _option("K. (default: 300)", _PHYSICS)] = None,
    friction: Annotated[float | None, _option("1/ps, of the Langevin thermostat. (default: 0.1)", _PHYSICS)] = None,
    equilibrate: Annotated[float | None, _option("ps before the first frame. (default: 2)", _PHYSICS)] = None,
    equilibration_friction: Annotated[float | None, _option("1/ps, during those. (default: 2)", _PHYSICS)] = None,
    minimize: Annotated[int | None, _option("Iterations of the minimiser. (default: 30)", _PHYSICS)] = None,
    cutoff: Annotated[float | None, _option("nm, of all pair terms; 0 for none. (default: 1)", _PHYSICS)] = None,
    hydrogen_mass: Annotated[float | None, _option("amu. (default: 1.5)", _PHYSICS)] = None,
    save: Annotated[
        str | None, _option("Atoms kept: backbone, ca, all, or an mdtraj selection. (default: backbone)", _OUTPUT)
    ] = None,
    block: Annotated[int | None, _option("Frames a file, and between checkpoints. (default: 50)", _OUTPUT)] = None,
    platform: Annotated[
        str | None, _option("auto (CUDA, HIP, OpenCL or CPU, what is there), or a platform's name.", _MACHINE)
    ] = None,
    threads: Annotated[int | None, _option("Of the CPU platform. (default: OpenMM's choice)", _MACHINE)] = None,
    seed: Annotated[int | None, _option("Of velocities and thermostat. (default: 0)", _PHYSICS)] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in --output; --duration may grow.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in --output.")] = False,
) -> None:
    """Molecular dynamics of a protein (adenylate kinase), its backbone kept with velocities.

    amber14 with GBn2 implicit solvent, bonds to hydrogen constrained. The start "closed" or "open" comes with
    MDAnalysisTests.

    Examples:

      egnn-md generate adk --start closed --duration 80 --threads 1 --output runs/adk_closed

      egnn-md generate adk --resume --duration 200 --output runs/adk_closed
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("output", "resume", "overwrite") and value is not None
    }
    raise typer.Exit(run(given, output, resume=resume, overwrite=overwrite))


def run(given: dict[str, Any], output: Path, *, resume: bool, overwrite: bool) -> int:
    """Run with the options that were given. Returns the exit code: 0, 130 (Ctrl-C) or 143 (SIGTERM)."""
    from egnn_md.errors import ConfigError
    from egnn_md_systems.adk.generate import generate, stored_settings
    from egnn_md_systems.adk.settings import MDSettings

    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    settings = stored_settings(output).changed(given) if resume else MDSettings.parse(given)
    return generate(settings, output, resume=resume, overwrite=overwrite).exit_code


def trajectory(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Runs of `generate adk`, trajectory files (DCD, XTC, TRR, ...), adk-equilibrium or adk-dims.",
        ),
    ],
    output: Annotated[Path, _option("Directory of the data set. Required.", _OUTPUT)],
    topology: Annotated[
        Path | None, _option("PSF, PDB or GRO file of a trajectory file: all its atoms.", _READ)
    ] = None,
    select: Annotated[str, typer.Option(help="backbone, ca, all, or an mdtraj selection.")] = "backbone",
    frame_interval: Annotated[
        float | None, _option("fs between frames, where the file has no times (DCD).", _READ)
    ] = None,
    skip: Annotated[int, typer.Option(help="Frames left out at the start of every source.", rich_help_panel=_READ)] = 0,
    frames: Annotated[int | None, _option("Frames used of every source, after --skip. (default: all)", _READ)] = None,
    every: Annotated[int, typer.Option(help="Use each so-manieth of these frames.", rich_help_panel=_READ)] = 1,
    periodic: Annotated[
        bool,
        typer.Option("--periodic", help="Keep the cell. Else cut molecules are put together.", rich_help_panel=_READ),
    ] = False,
    align: Annotated[
        str,
        typer.Option(help="Lay every frame onto: first, a frame's number, or a structure file. none: leave them."),
    ] = "none",
    features: Annotated[
        str,
        typer.Option(help="Inputs of an atom, with commas: charge, alpha, residue. auto: charge if known; or none."),
    ] = "auto",
    split: Annotated[
        str,
        typer.Option(help="Shares of train, valid, test in time; or published.", rich_help_panel=_SPLIT),
    ] = "70,15,15",
    stride: Annotated[
        float | None, _option("fs; the longest step that a propagator will be trained for.", _SPLIT)
    ] = None,
    gap: Annotated[
        float | None, _option("fs left out between parts. (default: 10 frames, or the stride if longer)", _SPLIT)
    ] = None,
    repeats: Annotated[
        int, typer.Option(help="So many times train, valid, test in a row, for a drifting one.", rich_help_panel=_SPLIT)
    ] = 1,
    system: Annotated[str | None, _option("Name of the system in the metadata.", _OUTPUT)] = None,
    data_home: Annotated[Path | None, _option("Where adk-equilibrium is downloaded to.", _READ)] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is in --output.")] = False,
) -> None:
    """A data set for propagators from any protein trajectory that mdtraj reads.

    Examples:

      egnn-md generate trajectory runs/adk_closed --stride 100 --output runs/adk

      egnn-md generate trajectory md.xtc --topology md.pdb --select ca --align first --output runs/mine

      egnn-md generate trajectory adk-equilibrium --split published --output runs/adk_published
    """
    from rich.console import Console

    from egnn_md.simulation.progress import say
    from egnn_md_systems.adk.dataset import DatasetOptions, convert

    options = {name: value for name, value in locals().items() if name in DatasetOptions.__dataclass_fields__}
    summary = convert(sources, output, DatasetOptions(**options), overwrite=overwrite)
    console = Console()
    for part, lengths in summary.frames.items():
        say(console, f"{part}: {' + '.join(str(n) for n in lengths)} frames")
    velocities = "with" if summary.velocities else "without"
    named = ", ".join(summary.features) or "none"
    say(
        console,
        f"{summary.atoms} atoms, a frame every {summary.frame_interval:g} fs, {velocities} velocities, "
        f"features: {named}: {summary.output}",
    )
