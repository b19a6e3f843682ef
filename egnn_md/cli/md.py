"""``egnn-md md``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

_RUN, _ENGINE, _OUTPUT, _START = "What is simulated", "Engine and model", "Output", "Start"
_TRUST = "Uncertainty of a committee"


def _option(text: str, panel: str) -> Any:
    return typer.Option(help=text, rich_help_panel=panel, show_default=False)


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("md")(command)


# Every option is None unless it was given: defaults live in MDRequest, and a resumed run must be able to tell
# an option that was given from one that was not.
def command(
    structure: Annotated[
        str | None,
        typer.Argument(help="PDB, extended XYZ, or any structure file that mdtraj or ASE reads.", show_default=False),
    ] = None,
    output: Annotated[Path | None, _option("Run directory. Required.", _OUTPUT)] = None,
    model: Annotated[str | None, _option("Name or path of a model. (default: water)", _ENGINE)] = None,
    without_prior: Annotated[
        bool | None,
        typer.Option(
            "--without-prior",
            help="Run a model that needs further energy terms by itself.",
            rich_help_panel=_ENGINE,
            show_default=False,
        ),
    ] = None,
    engine: Annotated[str | None, _option("openmm or ase. (default: openmm)", _ENGINE)] = None,
    platform: Annotated[
        str | None, _option("OpenMM platform: Reference, CPU, CUDA, OpenCL. (default: by --device)", _ENGINE)
    ] = None,
    device: Annotated[str | None, _option("Torch device: cpu, cuda, cuda:1. (default: cpu)", _ENGINE)] = None,
    devices: Annotated[
        int | None, _option("Split the model over so many devices; under torchrun all of its. (default: 1)", _ENGINE)
    ] = None,
    partition: Annotated[
        str | None, _option("bisection, random, k-means, metis or spectral. (default: bisection)", _ENGINE)
    ] = None,
    mode: Annotated[
        str | None, _option("exact, or paper: edges between devices are dropped. (default: exact)", _ENGINE)
    ] = None,
    dtype: Annotated[str | None, _option("float32 or float64. (default: float32)", _ENGINE)] = None,
    implementation: Annotated[
        str | None,
        _option("torch (TorchForce) or python (PythonForce), with OpenMM. (default: torch)", _ENGINE),
    ] = None,
    ensemble: Annotated[str | None, _option("nve, nvt or npt. (default: nvt)", _RUN)] = None,
    steps: Annotated[
        int | None, _option("Number of time steps, counted from the start of the run. Required.", _RUN)
    ] = None,
    timestep: Annotated[float | None, _option("Time step in fs. (default: 0.5)", _RUN)] = None,
    temperature: Annotated[
        float | None, _option("K, of the first velocities and the thermostat. (default: 300)", _RUN)
    ] = None,
    pressure: Annotated[float | None, _option("bar, with npt. (default: 1)", _RUN)] = None,
    thermostat: Annotated[
        str | None, _option("langevin or nose-hoover, with nvt and npt. (default: langevin)", _RUN)
    ] = None,
    friction: Annotated[float | None, _option("Of the Langevin thermostat, 1/ps. (default: 1)", _RUN)] = None,
    thermostat_time: Annotated[
        float | None, _option("Time scale of the Nosé-Hoover chain, fs. (default: 100)", _RUN)
    ] = None,
    constraints: Annotated[
        str | None, _option("none, or h-bonds: bonds to hydrogens keep their length. (default: none)", _RUN)
    ] = None,
    hydrogen_mass: Annotated[
        float | None, _option("u, of hydrogens; the atoms they are bonded to give it. (default: 1.008)", _RUN)
    ] = None,
    seed: Annotated[int | None, _option("Of velocities, thermostat and barostat. (default: 0)", _RUN)] = None,
    max_temperature: Annotated[
        float | None,
        _option("K above which the run stops as exploded. (default: 5 times --temperature)", _RUN),
    ] = None,
    max_force: Annotated[float | None, _option("eV/Å above which the run stops. (default: 100)", _RUN)] = None,
    min_distance: Annotated[
        float | None, _option("Å; two atoms closer than this stop the run, 0 for never. (default: 0.5)", _RUN)
    ] = None,
    topology: Annotated[
        str | None, _option("File with the residues and bonds of STRUCTURE, if its own has none.", _START)
    ] = None,
    minimize: Annotated[
        bool | None,
        typer.Option(
            "--minimize/--no-minimize",
            help="Relax the structure first. (default: yes, but no with --continue-from)",
            rich_help_panel=_START,
            show_default=False,
        ),
    ] = None,
    minimize_steps: Annotated[int | None, _option("Most iterations of the minimiser. (default: 200)", _START)] = None,
    minimize_force: Annotated[
        float | None, _option("eV/Å; the minimiser stops when no force is larger. (default: 0.05)", _START)
    ] = None,
    drive: Annotated[
        str | None, _option("Of a committee: mean, or first: one member's forces. (default: mean)", _ENGINE)
    ] = None,
    max_uncertainty: Annotated[
        float | None,
        _option("eV/Å: the largest spread of a committee's forces on an atom. (default: none)", _TRUST),
    ] = None,
    on_uncertainty: Annotated[
        str | None, _option("What a larger one does: stop, or record its structure. (default: stop)", _TRUST)
    ] = None,
    uncertainty_interval: Annotated[
        int | None, _option("Steps between looks at the spread. (default: 20; 20 a member with --drive first)", _TRUST)
    ] = None,
    continue_from: Annotated[
        Path | None, _option("Start with the last positions, velocities and cell of another run.", _START)
    ] = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on with the run in --output from its checkpoint.", rich_help_panel=_START),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a run that is in --output.", rich_help_panel=_START)
    ] = False,
    trajectory: Annotated[str | None, _option("dcd, xtc or extxyz. (default: dcd)", _OUTPUT)] = None,
    frame_interval: Annotated[int | None, _option("Steps between frames. (default: 100)", _OUTPUT)] = None,
    log_interval: Annotated[int | None, _option("Steps between rows of log.csv. (default: 20)", _OUTPUT)] = None,
    checkpoint_interval: Annotated[int | None, _option("Steps between checkpoints. (default: 1000)", _OUTPUT)] = None,
    check_interval: Annotated[
        int | None,
        _option("Steps between looks of the guards against NaN and runaway atoms. (default: 10)", _OUTPUT),
    ] = None,
) -> None:
    """Run molecular dynamics with a trained potential.

    Examples:

      egnn-md md water.pdb --model water --ensemble nvt --steps 4000 --output runs/nvt

      egnn-md md --continue-from runs/nvt --ensemble nve --steps 10000 --output runs/nve

      egnn-md md --resume --output runs/nve

    The run directory holds run.json, log.csv, the trajectory, topology.pdb, a checkpoint, and at the end
    final.pdb and final.extxyz. Ctrl-C stops with a checkpoint.
    """
    given = {
        name: value for name, value in locals().items() if name not in ("resume", "overwrite") and value is not None
    }
    raise typer.Exit(run(given, resume=resume, overwrite=overwrite))


def run(given: dict[str, Any], *, resume: bool, overwrite: bool) -> int:
    """Run with the options that were given. Returns the exit code: 0, 3 (uncertain), 130 (Ctrl-C) or 143 (SIGTERM).

    Raises:
        ConfigError: an option is missing, impossible, or not to be changed.
        See also :func:`egnn_md.simulation.simulate`.
    """
    from rich.console import Console

    from egnn_md.distributed.session import restarted, serve
    from egnn_md.errors import ConfigError
    from egnn_md.simulation.request import MDRequest
    from egnn_md.simulation.rundir import RunDirectory
    from egnn_md.simulation.simulate import simulate
    from egnn_md.simulation.start import check_same_structure

    if serve():  # under torchrun, every rank but the first
        return 0
    if "output" not in given:
        raise ConfigError("--output is missing: name the directory that the run is written to")
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if restarted() and not overwrite and RunDirectory(given["output"]).checkpoint.exists():
        resume = True
    if resume:
        check_same_structure(RunDirectory(given["output"]), given.get("structure"))
        request = RunDirectory(given["output"]).request().changed(given)
    else:
        if "continue_from" in given:
            given.setdefault("minimize", False)
            if "model" not in given:
                given["model"] = RunDirectory(given["continue_from"]).request().model
        request = MDRequest.parse(given)
        request.check_given(given)
    console = Console(stderr=True)
    return simulate(request, resume=resume, overwrite=overwrite, console=console).exit_code
