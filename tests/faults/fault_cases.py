"""Runs that are meant to be disturbed."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from ase.build import bulk
from ase.io import write
from rich.console import Console
from torch import Tensor

from egnn_md.models import LennardJones
from egnn_md.models.base import Potential
from egnn_md.simulation import MDRequest, RunResult, simulate


def lennard_jones() -> LennardJones:
    """Argon with a short cutoff."""
    return LennardJones(0.0104, 3.4, 5.0)


def request(folder: Path, name: str, **changes: Any) -> MDRequest:
    """A run of 32 argon atoms in ``folder / name``."""
    structure = folder / "argon.extxyz"
    if not structure.exists():
        write(structure, bulk("Ar", "fcc", a=5.3, cubic=True) * (2, 2, 2))
    values: dict[str, Any] = {
        "structure": str(structure),
        "engine": "ase",
        "ensemble": "nvt",
        "steps": 60,
        "timestep": 4.0,
        "temperature": 60.0,
        "friction": 10.0,
        "dtype": "float64",
        "minimize": False,
        "frame_interval": 8,
        "log_interval": 3,
        "checkpoint_interval": 20,
        "output": folder / name,
    }
    if changes.get("engine") == "openmm":
        values["platform"] = "Reference"
    return MDRequest.parse({**values, **changes})


def run(wanted: MDRequest, model: Potential | None = None, **options: Any) -> tuple[RunResult, str]:
    """Run with the Lennard-Jones model unless another is given. Returns the result and what was said."""
    said = io.StringIO()
    console = Console(file=said, width=400)
    result = simulate(wanted, model=model or lennard_jones(), console=console, **options)
    return result, said.getvalue()


class Brittle(Potential):
    """Pushes atom ``victim`` away from atom 0 and gives no number once it is further than ``reach`` (Å)."""

    def __init__(self, victim: int, reach: float, push: float = 0.5) -> None:
        super().__init__(3.0, [])
        self.victim = int(victim)
        self.reach = float(reach)
        self.push = float(push)

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """(N,) energies of which only the victim's differs from zero; only the victim feels a force."""
        distance = (positions[self.victim] - positions[0].detach()).pow(2).sum().sqrt().to(torch.float64)
        energy = -self.push * distance + 1e-12 * torch.sqrt(self.reach - distance)
        nothing = torch.zeros(positions.shape[0], dtype=torch.float64, device=positions.device)
        mine = torch.arange(positions.shape[0], device=positions.device) == self.victim
        return torch.where(mine, energy, nothing)
