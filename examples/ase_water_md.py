"""Liquid water in ASE: minimise, heat to 300 K, run Langevin dynamics, write a trajectory.

EGNN_MD_MODEL names another model than the shipped one; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import ase.io
import numpy as np
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import FIRE

from egnn_md_ase import FastEGNNCalculator

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
STEPS = 4 if SHORT else 2000

atoms = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
assert isinstance(atoms, ase.Atoms)
atoms.calc = FastEGNNCalculator(os.environ.get("EGNN_MD_MODEL", "water"))

FIRE(atoms, logfile=None).run(fmax=0.5, steps=4 if SHORT else 100)
rng = np.random.default_rng(1)
MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
dynamics = Langevin(
    atoms,
    timestep=0.5 * units.fs,
    temperature_K=300,
    friction=0.01 / units.fs,
    rng=rng,
    trajectory="water.traj",
    loginterval=2 if SHORT else 20,
)
dynamics.run(STEPS)

frames = ase.io.read("water.traj", ":")
print(f"{STEPS * 0.5:g} fs, {len(frames)} frames in water.traj")
print(f"E = {atoms.get_total_energy():.3f} eV, T = {atoms.get_temperature():.0f} K")
