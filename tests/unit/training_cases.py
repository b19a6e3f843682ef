"""A small labelled set and a run small enough for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from egnn_md.training.config import TrainConfig
from egnn_md.training.config_file import validate


def argon(count: int, seed: int = 0, atoms: int = 6, *, periodic: bool = True) -> list[Atoms]:
    """Jittered argon with Lennard-Jones labels (energies, forces, stress) and the info key ``run``."""
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        grid = np.stack(np.meshgrid(*[np.arange(2)] * 3, indexing="ij"), -1).reshape(-1, 3)[:atoms]
        structure = Atoms("Ar" * atoms, grid * 3.9 + rng.normal(scale=0.25, size=(atoms, 3)))
        if periodic:
            structure.set_cell(np.eye(3) * 8.0)
            structure.pbc = True
        structure.calc = LennardJones(sigma=3.4, epsilon=0.05, rc=7.0, smooth=True)
        results = {"energy": structure.get_potential_energy(), "forces": structure.get_forces()}
        if periodic:
            results["stress"] = structure.get_stress()
        structure.calc = SinglePointCalculator(structure, **results)
        structure.info.update(run=index // 3, teacher="lj")
        out.append(structure)
    return out


def write_labels(path: Path, frames: list[Atoms]) -> Path:
    """Extended XYZ with full precision."""
    write(path, frames, format="extxyz")
    return path


def tiny(directory: Path, **changes: Any) -> TrainConfig:
    """Configuration of a run of a few seconds; ``changes`` replace top-level keys."""
    labels = directory / "labels.extxyz"
    if not labels.exists():
        write_labels(labels, argon(18))
    content: dict[str, Any] = {
        "data": {"train": [str(labels)], "valid_fraction": 0.2, "group_by": "run"},
        "model": {
            "cutoff": 5.0,
            "hidden": 8,
            "layers": 2,
            "virtual_nodes": 1,
            "vector_channels": 2,
            "basis": 4,
        },
        "optimizer": {"lr": 1e-2, "weight_decay": 1e-3},
        "schedule": {"warmup_steps": 3},
        "ema_decay": 0.9,
        "max_steps": 12,
        "validate_every": 5,
        "checkpoint_every": 4,
        "log_every": 1,
        "batch_size": 4,
        "tensorboard": False,
        "output": str(directory / "run"),
        **changes,
    }
    return validate(TrainConfig, content, "test")
