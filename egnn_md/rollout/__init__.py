"""Rollouts of trained propagators.

``egnn_md.rollout`` is this package and can be called: ``egnn_md.rollout(model, start, steps)`` is
:func:`egnn_md.rollout.core.rollout`. Names are imported when they are first used, as in :mod:`egnn_md`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egnn_md.rollout.core import RolloutResult, rollout
    from egnn_md.rollout.guards import Failure, Guards, RolloutError
    from egnn_md.rollout.state import State, state_at
    from egnn_md.rollout.stepper import Stepper

_HOMES = {
    "Failure": "guards",
    "Guards": "guards",
    "RolloutError": "guards",
    "RolloutResult": "core",
    "State": "state",
    "Stepper": "stepper",
    "rollout": "core",
    "state_at": "state",
}
__all__ = ["Failure", "Guards", "RolloutError", "RolloutResult", "State", "Stepper", "rollout", "state_at"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"egnn_md.rollout.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _CallableModule(ModuleType):
    """A function and a package of one name: importing the package would otherwise hide the function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return import_module("egnn_md.rollout.core").rollout(*args, **kwargs)


sys.modules[__name__].__class__ = _CallableModule
