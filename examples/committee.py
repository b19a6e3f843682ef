"""A committee in one file: it drives like any model, and says where its members disagree.

Three potentials of argon that saw the same few labels, with other seeds. EGNN_MD_SHORT=1 is a toy run.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import yaml
from ase import units
from ase.build import bulk
from ase.md.verlet import VelocityVerlet

from egnn_md import load_model, make_committee, save_model
from egnn_md.data.labelling import label
from egnn_md_ase import FastEGNNCalculator

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
TEACHER = {"epsilon": 0.0104, "sigma": 3.4, "rc": 6.0, "smooth": True}


def train_members(count: int) -> list[Path]:
    """The same training with ``count`` seeds."""
    from egnn_md.training.train import load_config, train

    rng = np.random.default_rng(1)
    crystals = []
    for _ in range(6 if SHORT else 60):
        crystals.append(bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2))
        crystals[-1].positions += rng.normal(scale=0.15, size=(32, 3))
    label(crystals, "argon.extxyz", method="lj", options=TEACHER, processes=0)
    config = {
        "data": {"train": "argon.extxyz", "valid_fraction": 0.2},
        "model": {"cutoff": 6.0, "hidden": 8 if SHORT else 32, "layers": 1 if SHORT else 2, "virtual_nodes": 0},
        "max_steps": 5 if SHORT else 1000,
        "tensorboard": False,
        "output": "seed-0",
    }
    Path("argon.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    runs = [load_config("argon.yaml", [f"seed={seed}", f"output=seed-{seed}"]) for seed in range(count)]
    return [path for path in (train(run, resume=True).model for run in runs) if path is not None]


def main() -> None:
    """Train, put together, and watch the spread grow as a crystal is heated beyond what was learned."""
    committee = make_committee(train_members(2 if SHORT else 3), name="argon")
    save_model(committee, "committee.safetensors")  # or: egnn-md committee seed-*/model.safetensors -o FILE
    print(f"{load_model('committee.safetensors').count} members in committee.safetensors")

    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    atoms.rattle(0.05, seed=0)
    atoms.calc = FastEGNNCalculator("committee.safetensors")
    for kelvin in (20, 400):
        atoms.set_velocities(np.random.default_rng(0).normal(size=(32, 3)) * np.sqrt(units.kB * kelvin / 39.95))
        VelocityVerlet(atoms, 4 * units.fs).run(5 if SHORT else 100)
        atoms.get_forces()
        found = atoms.calc.results
        worst = int(found["force_std"].argmax())
        print(
            f"{kelvin:4d} K: energy ± {1000 * found['energy_std_per_atom']:.2f} meV an atom, "
            f"force of atom {worst} ± {1000 * found['force_std'][worst]:.0f} meV/Å"
        )


if __name__ == "__main__":
    main()
