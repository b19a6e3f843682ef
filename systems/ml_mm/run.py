"""A peptide by the network in water by a force field, in one command.

``python -m egnn_md_systems.ml_mm.run --output runs/ml_mm`` puts alanine dipeptide into TIP3P water, relaxes all of it
by Amber for 10 ps, runs 10 ps NPT with the peptide's inner energy by the model ``alanine-dipeptide``, and says what was
seen: density, temperature, energies, and the basins of phi and psi.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from egnn_md.errors import EgnnMdError
from egnn_md.simulation.progress import say

from .engine import MixedRequest, MixedRun, run_mixed
from .observe import describe
from .solvate import CUTOFF, FORCE_FIELD, solvate

DEFAULTS: dict[str, Any] = {
    "model": "alanine-dipeptide",
    "ensemble": "npt",
    "steps": 10_000,
    "timestep": 1.0,
    "frame_interval": 100,
    "log_interval": 100,
    "minimize": False,  # the force field has relaxed all of it, and a quenched liquid would have to warm up again
}


def start_path(output: Path) -> Path:
    """Where the solvated structure is kept: beside the run directory, which holds runs only."""
    return output.with_name(output.name + "-start.pdb")


def command(
    output: Annotated[Path, typer.Option(help="Run directory.")],
    steps: Annotated[int | None, typer.Option(help="Time steps. (default: 10000)", show_default=False)] = None,
    timestep: Annotated[
        float | None, typer.Option(help="fs; the model's hydrogens are not constrained. (default: 1)")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Name or path. (default: alanine-dipeptide)")] = None,
    ensemble: Annotated[str | None, typer.Option(help="nve, nvt or npt. (default: npt)")] = None,
    temperature: Annotated[float | None, typer.Option(help="K. (default: 300)")] = None,
    pressure: Annotated[float | None, typer.Option(help="bar. (default: 1)")] = None,
    seed: Annotated[int | None, typer.Option(help="Of velocities, thermostat and barostat. (default: 0)")] = None,
    solute: Annotated[Path | None, typer.Option(help="PDB of another molecule. (default: alanine dipeptide)")] = None,
    edge: Annotated[float, typer.Option(help="Of the cube of water, Å.")] = 24.0,
    equilibrate: Annotated[float, typer.Option(help="ps by the force field alone; 0 minimises only.")] = 10.0,
    structure: Annotated[
        Path | None, typer.Option(help="PDB of a whole system with box and water, instead of --solute.")
    ] = None,
    region: Annotated[
        str | None, typer.Option(help="Residue names of the model's atoms. (default: all but water and ions)")
    ] = None,
    force_field: Annotated[str | None, typer.Option(help=f"OpenMM's files. (default: {','.join(FORCE_FIELD)})")] = None,
    cutoff: Annotated[float | None, typer.Option(help=f"Å, of the force field. (default: {CUTOFF:g})")] = None,
    platform: Annotated[str | None, typer.Option(help="Reference, CPU, CUDA... (default: CPU)")] = None,
    implementation: Annotated[str | None, typer.Option(help="torch or python. (default: torch)")] = None,
    minimize: Annotated[bool | None, typer.Option("--minimize/--no-minimize", help="Once more.")] = None,
    frame_interval: Annotated[int | None, typer.Option(help="Steps between frames. (default: 100)")] = None,
    log_interval: Annotated[int | None, typer.Option(help="Steps between rows of log.csv. (default: 100)")] = None,
    checkpoint_interval: Annotated[int | None, typer.Option(help="Steps. (default: 1000)")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in --output.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is in --output.")] = False,
) -> None:
    """Run molecular dynamics of a molecule by a model in water by a force field."""
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("resume", "overwrite", "solute", "edge", "equilibrate") and value is not None
    }
    console = Console(stderr=True)
    run = MixedRun(output)
    if resume and run.record.exists():
        request = run.request().changed(given)
    else:
        run.check_free(overwrite=overwrite)
        request = _first_request(given, solute, edge, equilibrate, resume, console)
        resume = False
    result = run_mixed(request, resume=resume, overwrite=overwrite, console=console)
    if result.exit_code == 0:
        typer.echo(describe(run, request))
    raise typer.Exit(result.exit_code)


def _first_request(
    given: dict[str, Any], solute: Path | None, edge: float, equilibrate: float, resume: bool, console: Console
) -> MixedRequest:
    """The request of a new run; the solvated structure is made unless it was given, or is there when resuming."""
    from egnn_md_systems.alanine_dipeptide import structure_path

    values = {**DEFAULTS, **given}
    start = start_path(Path(values["output"]))
    request = MixedRequest.parse({**values, "structure": str(values.get("structure", start))})
    if "structure" not in given and not (resume and start.exists()):
        say(console, f"{equilibrate:g} ps by the force field alone, from {solute or 'alanine dipeptide'} to {start}")
        solvate(
            solute or structure_path(),
            start,
            edge=edge,
            equilibrate=equilibrate,
            temperature=request.temperature,
            pressure=request.pressure,
            seed=request.seed,
            force_field=request.force_field,
            cutoff=request.cutoff,
            platform=request.platform or "CPU",
        )
    return request


def main() -> None:
    """Our own errors end in one readable line and exit code 2."""
    try:
        typer.run(command)
    except EgnnMdError as error:
        print(f"ml_mm: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
