"""What an engine has to offer so that the driver can run it; the engines themselves are plugins."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any, Protocol

import numpy as np

from egnn_md.errors import InputError, MissingDependencyError, SimulationError
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.structure import Structure

ENGINE_GROUP = "egnn_md.engines"


class EngineError(SimulationError):
    """The engine or the model refused to go on (OpenMM: "Particle coordinate is NaN")."""


@dataclass(frozen=True)
class Observation:
    """positions (N, 3) Å, velocities (N, 3) Å/fs, cell (3, 3) Å, forces (N, 3) eV/Å, potential energy eV.

    Forces and energy are None where they were not asked for and would have cost an evaluation.
    """

    positions: np.ndarray
    velocities: np.ndarray
    cell: np.ndarray
    forces: np.ndarray | None
    energy: float | None


class Engine(Protocol):
    """One system, ready to be stepped. Everything that crosses this line is in Å, fs, eV."""

    def describe(self) -> dict[str, Any]:
        """Name, version, integrator, platform, device, precision: JSON values for the run record."""

    def minimize(self, steps: int, force: float, stop: Callable[[], bool]) -> int:
        """Relax positions until no force exceeds ``force`` (eV/Å), for at most ``steps`` iterations.

        It ends early when ``stop()`` says so. Returns the number of iterations.
        """

    def constrain(self, pairs: np.ndarray, lengths: np.ndarray) -> None:
        """From here on keep the distances of ``pairs`` (M, 2) at ``lengths`` (M,), Å; M may be 0."""

    def place(self, positions: np.ndarray, velocities: np.ndarray, cell: np.ndarray) -> None:
        """Set the state, brought onto the constraints."""

    def step(self, count: int) -> None:
        """Advance. Raises EngineError if the engine refuses."""

    def observe(self, *, full: bool = True) -> Observation:
        """The state now. May hold NaN; the guards look at it. Forces and energy for certain if ``full``."""

    def save(self) -> bytes:
        """The state, random numbers included, for ``restore``."""

    def restore(self, state: bytes) -> None:
        """Go back to a saved state. Raises ValueError if it does not fit this machine or version."""

    def settle(self) -> None:
        """Drop caches, so that the run goes on exactly as one that was restored from ``save`` would."""


#: Makes the engine for a structure, and says what the run's record tells about the model (JSON values).
EngineFactory = Callable[[Structure, MDRequest], tuple[Engine, dict[str, Any]]]


def load_engine(name: str) -> Callable[..., Any]:
    """``run_md`` of the plugin that registered the engine ``name``.

    Raises:
        InputError: no plugin offers it.
        MissingDependencyError: the plugin's engine is not installed.
    """
    found = {point.name: point for point in entry_points(group=ENGINE_GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none"
        raise InputError(f"--engine {name} is not installed (installed: {known})")
    try:
        run_md = found[name].load()
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(
            f"--engine {name} cannot be loaded ({error}); install it with pip install 'egnn-md[{name}]'"
        ) from error
    if not callable(run_md):
        raise InputError(f"--engine {name}: its entry point is not callable")
    return run_md
