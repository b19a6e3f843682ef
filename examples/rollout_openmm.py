"""Liquid water by strides of 8 fs in OpenMM: reporters, a checkpoint, and the same way again from it.

EGNN_MD_PROPAGATOR names another propagator than the shipped one; EGNN_MD_SHORT=1 runs a few strides only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import numpy as np
from openmm import app, unit

from egnn_md import load_model
from egnn_md_openmm import PropagatorSimulation

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
STRIDES = 2 if SHORT else 25

pdb = app.PDBFile(str(files("egnn_md_systems.water") / "water64.pdb"))
model = load_model(os.environ.get("EGNN_MD_PROPAGATOR", "water-8fs"))
simulation = PropagatorSimulation(pdb.topology, model, pdb.positions, np.zeros((pdb.topology.getNumAtoms(), 3)))
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 3)
simulation.reporters += [
    app.DCDReporter("strides.dcd", 1),
    app.StateDataReporter("strides.csv", 1, step=True, time=True, kineticEnergy=True, temperature=True),
]
simulation.step(STRIDES)
simulation.saveCheckpoint("strides.chk")
simulation.step(STRIDES)
end = simulation.context.getState(positions=True).getPositions(asNumpy=True)

simulation.reporters.clear()
simulation.loadCheckpoint("strides.chk")
simulation.step(STRIDES)
again = simulation.context.getState(positions=True).getPositions(asNumpy=True)

with open("strides.csv") as table:
    header, *rows = table.read().splitlines()
print(header)
print(rows[-1])
print(f"from the checkpoint: {abs(again - end).max()} away")
