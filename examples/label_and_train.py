"""From structures to a trained potential in one file: argon with a Lennard-Jones teacher.

The same two calls label with GFN2-xTB (``method="gfn2-xtb"``) and train on anything. Every file lands in the
working directory, and running it again continues instead of starting over. EGNN_MD_SHORT=1 is a toy run.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import yaml
from ase import Atoms
from ase.build import bulk

from egnn_md import load_model
from egnn_md.data.labelling import label

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"


def structures(count: int, seed: int = 1) -> Iterator[Atoms]:
    """Argon crystals of 32 atoms, stretched and shaken."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
        atoms.set_cell(atoms.cell * rng.uniform(0.97, 1.05), scale_atoms=True)
        atoms.positions += rng.normal(scale=0.15, size=(len(atoms), 3))
        yield atoms


def main() -> None:
    """Label, train, and read the model back."""
    from egnn_md.training.train import load_config, train  # here, so that the labelling processes skip it

    teacher = {"epsilon": 0.0104, "sigma": 3.4, "rc": 6.0, "smooth": True}
    done = label(structures(8 if SHORT else 200), "argon.extxyz", method="lj", options=teacher)
    print(f"{done.labelled} labelled, {done.skipped} there already, {done.failed} failed")
    config = {
        "data": {"train": "argon.extxyz", "valid_fraction": 0.25},
        "model": {"cutoff": 6.0, "hidden": 8 if SHORT else 32, "layers": 2, "virtual_nodes": 0},
        "max_steps": 10 if SHORT else 2000,
        "validate_every": 5 if SHORT else 200,
        "tensorboard": False,
        "output": "argon",
    }
    Path("argon.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    result = train(load_config("argon.yaml"), resume=True)
    assert result.model is not None
    model = load_model(result.model)
    print(f"force RMSE {result.errors['valid']['force_rmse']:.1f} meV/Å on structures it was not trained on")
    print(f"elements {model.elements}, cutoff {model.cutoff} Å, in {result.model}")


if __name__ == "__main__":  # labelling starts processes that import this file
    main()
