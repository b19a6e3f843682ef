"""One call that runs a request with the engine it names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from egnn_md.simulation.driver import DriveOptions, RunResult
from egnn_md.simulation.engine import load_engine
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory

if TYPE_CHECKING:
    from egnn_md.models.base import Potential


def simulate(
    request: MDRequest,
    *,
    model: Potential | None = None,
    resume: bool = False,
    overwrite: bool = False,
    console: Console | None = None,
) -> RunResult:
    """Run molecular dynamics.

    Args:
        request: what to do; to resume, the request that ``RunDirectory(path).request()`` gives.
        model: a potential to use instead of the one that ``request.model`` names.
        resume: go on from the checkpoint in ``request.output``.
        overwrite: replace a run that is already there.
        console: where progress goes; standard error by default.

    Raises:
        InputError, ModelFileError, MissingDependencyError: the request cannot be run; nothing was written.
        SimulationError: the physics broke; all earlier frames are on disk.
        OutputError: a file could not be written; the run resumes from its last checkpoint.
    """
    run_md = load_engine(request.engine)
    options = DriveOptions(resume=resume, overwrite=overwrite, console=console)
    result = run_md(request, RunDirectory(request.output), options=options, model=model)
    assert isinstance(result, RunResult)
    return result
