"""Export a model as a self-describing TorchScript file, read its description, and run it without egnn_md.

EGNN_MD_MODEL names another model than the shipped one.
"""

from __future__ import annotations

import os
from importlib.resources import files

import ase.io
import torch
import vesin_torch  # noqa: F401 - the file's neighbour list is vesin's, which registers itself on import

from egnn_md import export_torchscript, load_model
from egnn_md.export import read_artefact

water = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
assert isinstance(water, ase.Atoms)
model = load_model(os.environ.get("EGNN_MD_MODEL", "water"))
export_torchscript(model, "water.pt", water.numbers.tolist(), periodic=True)

for key, value in read_artefact("water.pt").model_dump().items():
    text = str(value)
    print(f"{key}: {text if len(text) < 80 else text[:77] + '...'}")

# What TorchForce does: positions and box in nanometres go in, kJ/mol come out.
module = torch.jit.load("water.pt")
positions = torch.tensor(water.positions * 0.1, dtype=torch.float32)
box = torch.tensor(water.cell.array * 0.1, dtype=torch.float32)
print(f"energy: {float(module(positions, box)):.2f} kJ/mol")
