"""OpenMM and its PyTorch plugin, imported when they are needed, with the command that installs them."""

from __future__ import annotations

import importlib
import logging
from types import ModuleType

from egnn_md.errors import MissingDependencyError

INSTALL = "pip install 'egnn-md[openmm]'"


def import_openmm() -> ModuleType:
    """The ``openmm`` module. Raises MissingDependencyError with the command that installs it."""
    try:
        return importlib.import_module("openmm")
    except ImportError as error:
        raise MissingDependencyError(f"OpenMM is needed, but its import fails ({error}): {INSTALL}") from error


def import_openmmtorch() -> ModuleType:
    """The ``openmmtorch`` module, with the neighbour list's TorchScript class and the fused operators registered.

    Raises:
        MissingDependencyError: it is missing, or was built for another PyTorch or CUDA.
    """
    import_openmm()
    # the plugin goes through the old module name simtk.openmm, whose warning would greet every user
    root = logging.getLogger()
    root.addFilter(_not_about_simtk)
    try:
        module = importlib.import_module("openmmtorch")
    except (ImportError, OSError) as error:
        raise MissingDependencyError(
            f"implementation='torch' needs the OpenMM plugin for PyTorch, but its import fails ({error}): "
            f"{INSTALL}, or choose implementation='python'"
        ) from error
    finally:
        root.removeFilter(_not_about_simtk)
    importlib.import_module("vesin_torch")
    importlib.import_module("egnn_md.kernels.ops")
    return module


def python_force_class() -> type:
    """``openmm.PythonForce``. Raises MissingDependencyError where OpenMM is older than it."""
    openmm = import_openmm()
    if not hasattr(openmm, "PythonForce"):
        raise MissingDependencyError(
            f"OpenMM {openmm.__version__} has no PythonForce: {INSTALL}, or choose implementation='torch'"
        )
    return openmm.PythonForce


def _not_about_simtk(record: logging.LogRecord) -> bool:
    return "simtk.openmm" not in record.getMessage()
