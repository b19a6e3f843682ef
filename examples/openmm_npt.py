"""Liquid water at constant pressure in OpenMM, by TorchForce and a Monte Carlo barostat.

EGNN_MD_MODEL names another model than the shipped one; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import openmm
from openmm import app, unit

from egnn_md_openmm import create_system

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
STEPS = 4 if SHORT else 4000

pdb = app.PDBFile(str(files("egnn_md_systems.water") / "water64.pdb"))
system = create_system(pdb.topology, os.environ.get("EGNN_MD_MODEL", "water"), implementation="torch")
barostat = openmm.MonteCarloBarostat(1.0 * unit.bar, 300 * unit.kelvin, 2 if SHORT else 25)
barostat.setRandomNumberSeed(1)
system.addForce(barostat)

integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond)
integrator.setRandomNumberSeed(2)
simulation = app.Simulation(pdb.topology, system, integrator)
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy(maxIterations=2 if SHORT else 50)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 3)
log = app.StateDataReporter(
    "npt.csv", 2 if SHORT else 20, step=True, potentialEnergy=True, temperature=True, density=True
)
simulation.reporters.append(log)
simulation.step(STEPS)

with open("npt.csv") as table:
    header, *rows = table.read().splitlines()
print(header)
print(rows[-1])
