"""Molecular dynamics: requests, run directories, guards and the loop that every engine shares."""

from egnn_md.errors import OutputError
from egnn_md.simulation.driver import DriveOptions, RunResult, drive
from egnn_md.simulation.engine import Engine, EngineError, Observation
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.simulate import simulate

__all__ = [
    "DriveOptions",
    "Engine",
    "EngineError",
    "MDRequest",
    "Observation",
    "OutputError",
    "RunDirectory",
    "RunResult",
    "drive",
    "simulate",
]
