"""Liquid water by strides of 8 fs in ASE: warm up with a potential, then let a propagator replace the integrator.

The potential stays on the atoms, so that a log shows its energy along the rollout: how far it drifts is how far the
rollout can be trusted. EGNN_MD_MODEL and EGNN_MD_PROPAGATOR name other models than the shipped ones;
EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import ase.io
import numpy as np
from ase import units
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from egnn_md import load_model
from egnn_md.rollout import RolloutError
from egnn_md_ase import FastEGNNCalculator, PropagatorDynamics

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
WARM_UP, STRIDES = (4, 4) if SHORT else (2000, 50)

atoms = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
assert isinstance(atoms, ase.Atoms)
atoms.calc = FastEGNNCalculator(os.environ.get("EGNN_MD_MODEL", "water"))
rng = np.random.default_rng(1)
MaxwellBoltzmannDistribution(atoms, temperature_K=300, rng=rng)
Stationary(atoms)
Langevin(atoms, 0.5 * units.fs, temperature_K=300, friction=0.01 / units.fs, rng=rng).run(WARM_UP)

model = load_model(os.environ.get("EGNN_MD_PROPAGATOR", "water-8fs"))
dynamics = PropagatorDynamics(atoms, model, trajectory="strides.traj")


def show(atoms: ase.Atoms) -> None:
    time, energy = dynamics.get_time() / units.fs, atoms.get_total_energy() / len(atoms)
    print(f"{time:6g} fs   E = {energy:.4f} eV/atom   T = {atoms.get_temperature():.0f} K")


dynamics.attach(show, 1 if SHORT else 5, atoms)
try:
    dynamics.run(STRIDES)
except RolloutError as error:  # the atoms and the trajectory hold everything before
    print(error)
print(f"{len(ase.io.read('strides.traj', ':'))} frames in strides.traj")
