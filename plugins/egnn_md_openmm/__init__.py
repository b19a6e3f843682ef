"""Trained models in OpenMM: potentials as ``TorchForce``, ``PythonForce`` and through OpenMM-ML; propagators.

Importing this package imports neither OpenMM nor PyTorch; the functions below do when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egnn_md_openmm.failures import last_error, readable_errors
    from egnn_md_openmm.mixed import create_mixed_system, force_field_system
    from egnn_md_openmm.multistep import multiple_time_step_system
    from egnn_md_openmm.propagator import PropagatorSimulation
    from egnn_md_openmm.region import select_atoms
    from egnn_md_openmm.system import add_potential, create_system, load_system
    from egnn_md_openmm.uncertainty import CommitteeSpread, UncertaintyReporter

_HOME = {
    "CommitteeSpread": "uncertainty",
    "PropagatorSimulation": "propagator",
    "UncertaintyReporter": "uncertainty",
    "add_potential": "system",
    "create_mixed_system": "mixed",
    "create_system": "system",
    "force_field_system": "mixed",
    "load_system": "system",
    "last_error": "failures",
    "multiple_time_step_system": "multistep",
    "select_atoms": "region",
    "readable_errors": "failures",
}
__all__ = [
    "CommitteeSpread",
    "PropagatorSimulation",
    "UncertaintyReporter",
    "add_potential",
    "create_mixed_system",
    "create_system",
    "force_field_system",
    "last_error",
    "load_system",
    "multiple_time_step_system",
    "readable_errors",
    "select_atoms",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"egnn_md_openmm.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
