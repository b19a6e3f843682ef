"""Cut a droplet of eight waters out of the liquid and relax it in the open with ASE's BFGS.

EGNN_MD_MODEL names another model than the shipped one; EGNN_MD_SHORT=1 takes a few steps only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import ase.io
import numpy as np
from ase.optimize import BFGS

from egnn_md_ase import FastEGNNCalculator
from egnn_md_systems.water.sampling import cluster

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"

liquid = ase.io.read(str(files("egnn_md_systems.water") / "water64.pdb"))
assert isinstance(liquid, ase.Atoms)
drop = cluster(liquid, 8, np.random.default_rng(3))
drop.calc = FastEGNNCalculator(os.environ.get("EGNN_MD_MODEL", "water"))
before = drop.get_potential_energy()
BFGS(drop, logfile=None).run(fmax=0.05, steps=5 if SHORT else 500)
force = np.linalg.norm(drop.get_forces(), axis=1).max()
drop.write("droplet.xyz")
print(f"{before:.3f} → {drop.get_potential_energy():.3f} eV, largest force {force:.3f} eV/Å, in droplet.xyz")
