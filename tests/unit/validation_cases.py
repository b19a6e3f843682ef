"""Argon for tests of validation: structures, labels, a request that takes seconds, and numbers out of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.io
from ase.build import bulk
from ase.cluster import Icosahedron
from rich.console import Console

from egnn_md.data.labelling import label
from egnn_md.validation import ValidateRequest, Validation, validate

EPSILON, SIGMA, CUTOFF = 0.0104, 3.4, 5.5
QUIET = Console(quiet=True)
TINY: dict[str, Any] = {
    "budget": "short", "timestep": 5.0, "frames": 3, "equilibration": 0.3, "length": 0.6, "nve": 0.3, "density": 0.6,
    "stability_steps": 60, "seeds": 2, "dtype": "float64", "processes": 0, "copies": (2, 1, 1),
}  # fmt: skip


def teacher(sigma: float = SIGMA, cutoff: float = CUTOFF) -> dict[str, Any]:
    return {"against": "lj", "against_options": {"epsilon": EPSILON, "sigma": sigma, "rc": cutoff, "smooth": False}}


def crystal(folder: Path) -> str:
    atoms = bulk("Ar", cubic=True, a=5.6) * (2, 2, 2)
    atoms.rattle(0.05, seed=1)
    ase.io.write(folder / "argon.extxyz", atoms)
    return str(folder / "argon.extxyz")


def cluster(folder: Path) -> str:
    atoms = Icosahedron("Ar", 2, 5.3)
    ase.io.write(folder / "cluster.xyz", atoms)
    return str(folder / "cluster.xyz")


def labelled(folder: Path) -> Path:
    """Four small cells with Lennard-Jones labels, at 50 and 90 K as they say."""
    atoms = bulk("Ar", cubic=True, a=5.6)
    frames = []
    for seed, kelvin in enumerate((50, 50, 90, 90)):
        frame = atoms.copy()
        frame.rattle(0.1, seed=seed)
        frame.info["temperature"] = kelvin
        frames.append(frame)
    label(frames, folder / "labels.extxyz", "lj", options={"sigma": SIGMA, "epsilon": EPSILON}, processes=0)
    return folder / "labels.extxyz"


def run(folder: Path, model: Any, **values: Any) -> Validation:
    request = ValidateRequest.parse({**TINY, "model": "test", "output": folder, **values})
    return validate(request, model=model, console=QUIET)


def number(result: Validation, quantity: str, of: str = "") -> Any:
    found = [
        row
        for part in result.parts
        for row in part.numbers
        if row["quantity"] == quantity and (not of or row["of"] == of)
    ]
    assert found, quantity
    return found[0]["value"]


def mark(result: Validation, what: str) -> str:
    return next(v["mark"] for part in result.parts for v in part.verdicts if v["what"].startswith(what))
