"""Small systems for runs of molecular dynamics that take a second."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ase.build import bulk
from ase.io import write
from rich.console import Console

from egnn_md.models import LennardJones
from egnn_md.models.base import Potential
from egnn_md.simulation import MDRequest, RunResult, simulate


def argon(folder: Path, repeat: int = 2) -> Path:
    """Crystal of 4 · repeat³ argon atoms."""
    path = folder / "argon.extxyz"
    write(path, bulk("Ar", "fcc", a=5.3, cubic=True) * (repeat, repeat, repeat))
    return path


def lennard_jones() -> LennardJones:
    """Argon with a short cutoff."""
    return LennardJones(0.0104, 3.4, 5.0)


def request(folder: Path, name: str, **changes: Any) -> MDRequest:
    """A short run of argon in ``folder / name``."""
    values: dict[str, Any] = {
        "engine": "ase",
        "ensemble": "nve",
        "steps": 40,
        "timestep": 4.0,
        "temperature": 60.0,
        "friction": 10.0,
        "dtype": "float64",
        "minimize": False,
        "frame_interval": 10,
        "log_interval": 5,
        "checkpoint_interval": 20,
        "output": folder / name,
    }
    if "continue_from" not in changes:
        values["structure"] = str(argon(folder))
    if changes.get("engine") == "openmm":
        values["platform"] = "Reference"
    return MDRequest.parse({**values, **changes})


def run(wanted: MDRequest, model: Potential | None = None, **options: Any) -> RunResult:
    """Run silently, with the Lennard-Jones model unless another is given."""
    silent = Console(file=io.StringIO())
    return simulate(wanted, model=model or lennard_jones(), console=silent, **options)
