"""What the tests of SPH liquids share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from egnn_md.errors import MissingDependencyError
from egnn_md_systems.liquid import splishsplash
from egnn_md_systems.liquid.presets import PRESETS
from egnn_md_systems.liquid.scene import Body, Scene

TINY = PRESETS["tiny"]


def simulator_missing() -> str:
    try:
        splishsplash.check_simulator()
    except MissingDependencyError as error:
        return str(error)
    return ""


simulator = pytest.mark.skipif(bool(simulator_missing()), reason=simulator_missing() or "there")


def one_body(preset: Any, centre: tuple, size: tuple, velocity: tuple = (0.0, 0.0, 0.0), name: str = "test") -> Scene:
    body = Body(shape="box", size=size, centre=centre, rotation=(0, 0, 0), velocity=velocity)
    return Scene(name=name, seed=0, preset=preset, bodies=(body,))


def cubic_spline(distance: np.ndarray, support: float) -> np.ndarray:
    """The simulator's kernel: ``8/(π h³) · (6 q³ - 6 q² + 1)`` up to q = r/h = 1/2, ``16/(π h³) · (1 - q)³`` beyond."""
    q = distance / support
    near, far = 6 * q**3 - 6 * q**2 + 1, 2 * (1 - q) ** 3
    return 8 / (np.pi * support**3) * np.where(q <= 0.5, near, np.where(q <= 1, far, 0.0))
