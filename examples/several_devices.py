"""Water over several devices in ASE; the same script runs under torchrun on several machines.

    python several_devices.py
    torchrun --standalone --nproc-per-node 2 several_devices.py

EGNN_MD_MODEL names another model than the shipped one; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os
import sys
from importlib.resources import files

import ase.io
from ase import units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from egnn_md.distributed import ParallelPotential, serve
from egnn_md_ase import FastEGNNCalculator

if serve():  # under torchrun every rank but the first works here until the first one is done
    sys.exit()

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
UNDER_TORCHRUN = "WORLD_SIZE" in os.environ

atoms = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
assert isinstance(atoms, ase.Atoms)
atoms = atoms.repeat((1, 1, 1) if SHORT else (2, 2, 2))
model = os.environ.get("EGNN_MD_MODEL", "water")
with ParallelPotential(model, devices=None if UNDER_TORCHRUN else 2) as potential:
    atoms.calc = FastEGNNCalculator(potential)
    MaxwellBoltzmannDistribution(atoms, temperature_K=300)
    VelocityVerlet(atoms, 0.5 * units.fs).run(4 if SHORT else 200)
    print(f"{len(atoms)} atoms over {potential.devices} devices: E = {atoms.get_total_energy():.4f} eV")
    for rank, report in enumerate(potential.reports):
        print(f"rank {rank}: {report.particles} atoms, {report.halo} in the halo, {report.edges} edges")
