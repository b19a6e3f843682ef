"""``egnn-md rollout``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_RUN, _START, _OUTPUT, _GUARDS = "Model and engine", "Start", "Output", "Guards (in the model's units)"


def _option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=False)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("rollout")(command)


# Every option is None unless it was given: defaults live in RolloutRequest, and a resumed rollout must be able to
# tell an option that was given from one that was not.
def command(
    system: Annotated[
        str | None,
        typer.Argument(
            help="Registered system, data directory or .h5 file; or a file with positions and velocities: "
            "extended XYZ, ASE trajectory, OpenMM state (.xml, with --topology); or PDB with --temperature.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, _option("Name or path of a propagator. Required.", _RUN)] = None,
    steps: Annotated[int | None, _option("Number of strides, counted from the start. Required.", _RUN)] = None,
    engine: Annotated[str | None, _option("none, ase or openmm. (default: none)", _RUN)] = None,
    device: Annotated[str | None, _option("Torch device: cpu, cuda, cuda:1. (default: cpu)", _RUN)] = None,
    devices: Annotated[
        int | None, _option("Split the model over so many devices; under torchrun all of its. (default: 1)", _RUN)
    ] = None,
    partition: Annotated[
        str | None, _option("bisection, random, k-means, metis or spectral. (default: bisection)", _RUN)
    ] = None,
    mode: Annotated[
        str | None, _option("exact, or paper: edges between devices are dropped. (default: exact)", _RUN)
    ] = None,
    dtype: Annotated[str | None, _option("float32 or float64. (default: as in the model file)", _RUN)] = None,
    skin: Annotated[
        float | None, _option("Of the neighbour lists; changes speed only. (default: by the motion)", _RUN)
    ] = None,
    seed: Annotated[int | None, _option("Of random edge dropping and drawn velocities. (default: 0)", _RUN)] = None,
    start: Annotated[int | None, _option("Frame to start from. (default: 0)", _START)] = None,
    starts: Annotated[
        str | None, _option("Several frames at once, as in 0,30,60; each in its own folder.", _START)
    ] = None,
    part: Annotated[
        str | None, _option("train, valid or test of a data set. (default: test, or the only one)", _START)
    ] = None,
    trajectory_index: Annotated[
        str | None, _option("Trajectory of a data set, or several as in 0,1,2. (default: 0)", _START)
    ] = None,
    topology: Annotated[
        str | None, _option("File with the names, residues and bonds of the particles.", _START)
    ] = None,
    temperature: Annotated[
        float | None, _option("K; draw velocities for a molecular file that has none, such as PDB.", _START)
    ] = None,
    output: Annotated[Path | None, _option("Directory to write. Required.", _OUTPUT)] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option(
            "--format",
            help="dcd, xtc or extxyz; give it again for several. (default: dcd)",
            rich_help_panel=_OUTPUT,
            show_default=False,
        ),
    ] = None,
    every: Annotated[int | None, _option("Strides between frames. (default: 1)", _OUTPUT)] = None,
    log_interval: Annotated[int | None, _option("Strides between rows of log.csv. (default: 1)", _OUTPUT)] = None,
    checkpoint_interval: Annotated[
        int | None, _option("Strides between checkpoints, besides those of --checkpoint-seconds.", _OUTPUT)
    ] = None,
    checkpoint_seconds: Annotated[
        float | None, _option("Most seconds between checkpoints. (default: 20)", _OUTPUT)
    ] = None,
    unit_length: Annotated[
        float | None,
        _option("Å that one length of a model without units, or in metres, is written as. (default: 1)", _OUTPUT),
    ] = None,
    max_displacement: Annotated[
        float | None,
        _option("Stop a particle that moves further in a stride. (default: cutoff, or size of the system)", _GUARDS),
    ] = None,
    min_distance: Annotated[
        float | None, _option("Stop when two particles come nearer. (default: not looked at)", _GUARDS)
    ] = None,
    wall_tolerance: Annotated[
        float | None, _option("Stop a particle this far outside the walls. (default: reach of a wall)", _GUARDS)
    ] = None,
    max_crowding: Annotated[
        float | None,
        _option("Stop when particles have so many times the neighbours of the start. (default: 10)", _GUARDS),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the one in --output from its checkpoint.", rich_help_panel=_START),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a rollout that is in --output.", rich_help_panel=_START)
    ] = False,
) -> None:
    """Let a trained propagator run ahead on its own predictions.

    Examples:

      egnn-md rollout nbody --model model.safetensors --steps 20 --output runs/nbody

      egnn-md rollout data/liquid --model liquid.safetensors --starts 0,30,60 --steps 50 --output runs/liquid

      egnn-md rollout runs/nbody/final.extxyz --model model.safetensors --engine ase --steps 20 --output runs/more

      egnn-md rollout --resume --output runs/liquid

    The directory holds run.json (with the model's digest), log.csv, topology.pdb, the trajectories, a checkpoint,
    and at the end final.extxyz, the exact last state. Ctrl-C stops with a checkpoint.
    """
    given = {
        name: value for name, value in locals().items() if name not in ("resume", "overwrite") and value is not None
    }
    from egnn_md.training.memory import keep_freed_memory

    keep_freed_memory()
    raise typer.Exit(run(given, resume=resume, overwrite=overwrite))


def _numbers(text: str, name: str) -> tuple[int, ...]:
    from egnn_md.errors import ConfigError

    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(f"{name} {text}: whole numbers are needed, separated by commas, as in 0,30,60") from None


def run(given: dict[str, Any], *, resume: bool, overwrite: bool) -> int:
    """Roll out with the options that were given. Returns the exit code: 0, 130 (Ctrl-C) or 143 (SIGTERM).

    Raises:
        ConfigError: an option is missing, impossible, or not to be changed.
        See also :func:`egnn_md.rollout.run.run_rollout`.
    """
    from rich.console import Console

    from egnn_md.distributed.session import restarted, serve
    from egnn_md.errors import ConfigError
    from egnn_md.rollout.directory import RolloutDirectory
    from egnn_md.rollout.request import RolloutRequest
    from egnn_md.rollout.run import run_rollout

    if serve():  # under torchrun, every rank but the first
        return 0
    if "output" not in given:
        raise ConfigError("--output is missing: name the directory that the rollout is written to")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if "start" in given and "starts" in given:
        raise ConfigError("--start and --starts exclude each other")
    if "start" in given:
        given["starts"] = (given.pop("start"),)
    elif "starts" in given:
        given["starts"] = _numbers(given["starts"], "--starts")
    if "trajectory_index" in given:
        given["trajectory_index"] = _numbers(given["trajectory_index"], "--trajectory-index")
    if restarted() and not overwrite and RolloutDirectory(given["output"]).checkpoint.exists():
        resume = True
    if resume:
        request = RolloutDirectory(given["output"]).rollout_request().changed(given)
    else:
        request = RolloutRequest.parse(given)
    return run_rollout(request, resume=resume, overwrite=overwrite, console=Console(stderr=True)).exit_code
