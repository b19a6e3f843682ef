"""Engines of a rollout: who owns the loop. The stepper is the same in all of them.

``none`` is here. ASE and OpenMM register theirs in the entry-point group ``egnn_md.rollout_engines`` as a function
``(stepper, units) -> RolloutEngine``.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import Any, Protocol

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.rollout.stepper import Stepper
from egnn_md.rollout.units import EngineUnits

ENGINE_GROUP = "egnn_md.rollout_engines"


class RolloutEngine(Protocol):
    """Advances the stepper that it was made with."""

    def advance(self) -> None:
        """One stride. Raises RolloutError when the only system fails."""

    def describe(self) -> dict[str, Any]:
        """JSON values for the record."""


class PlainEngine:
    """No engine: the stepper alone."""

    def __init__(self, stepper: Stepper) -> None:
        self.stepper = stepper

    def advance(self) -> None:
        """One stride of every system."""
        self.stepper.step()

    def describe(self) -> dict[str, Any]:
        """JSON values for the record."""
        return {"engine": "none"}


def open_engine(name: str, stepper: Stepper, units: EngineUnits) -> RolloutEngine:
    """The engine called ``name`` around ``stepper``.

    Raises:
        InputError: no plugin offers it.
        MissingDependencyError: the plugin's engine is not installed.
    """
    if name == "none":
        return PlainEngine(stepper)
    found = {point.name: point for point in entry_points(group=ENGINE_GROUP)}
    if name not in found:
        raise InputError(f"--engine {name} is not installed (installed: {', '.join(['none', *sorted(found)])})")
    try:
        make = found[name].load()
    except ImportError as error:
        if isinstance(error, MissingDependencyError):
            raise
        raise MissingDependencyError(
            f"--engine {name} cannot be loaded ({error}); install it with pip install 'egnn-md[{name}]'"
        ) from error
    engine: RolloutEngine = make(stepper, units)
    return engine
