"""What went wrong inside a force: OpenMM passes on a bare text, here is the error behind it.

A script that knows nothing of this module still reads the Python traceback, since it is part of the text that OpenMM
passes on.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from egnn_md.errors import SimulationError

_last: Exception | None = None


def remember(error: Exception | None) -> None:
    """Keep the error that a callback is about to raise into OpenMM (None forgets it)."""
    global _last
    _last = error


def with_traceback(error: Exception) -> Exception:
    """The error to raise into OpenMM in the place of ``error``: its message, and below that its Python traceback."""
    trace = "".join(traceback.format_exception(error)).rstrip()
    return RuntimeError(f"{error}\n\nPython traceback of what failed inside the force:\n{trace}")


def last_error() -> Exception | None:
    """The last exception raised inside a PythonForce of this package in this process, with its traceback."""
    return _last


@contextmanager
def readable_errors() -> Iterator[None]:
    """Run OpenMM calls so that an error inside one of our forces arrives as itself.

    A PythonForce's own exception (a :class:`SimulationError` that names the atom, or anything else) takes
    the place of the bare ``OpenMMException``; the TorchScript traceback of a TorchForce is reduced to its
    message.

    Raises:
        SimulationError: the potential met positions or forces that are not finite.
        OpenMMException: anything else that OpenMM itself complains about.
    """
    from egnn_md_openmm.dependencies import import_openmm

    openmm = import_openmm()
    remember(None)
    try:
        yield
    except openmm.OpenMMException as error:
        original = last_error()
        if original is not None:
            raise original from error
        text = str(error)
        if "TorchScript" in text:
            found = re.findall(r"^(?:builtins\.)?RuntimeError: (?:egnn_md: )?(.*)$", text, flags=re.MULTILINE)
            message = found[-1] if found else text.strip()
            raise SimulationError(f"the potential failed inside OpenMM: {message}") from error
        raise
