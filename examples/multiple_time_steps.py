"""Liquid water with two time steps: a flexible force field every 0.5 fs, the network every 2 fs.

The energy is the network's: the force field is taken away again in the outer step. The script compares the drift of the
total energy with that of a single step of 2 fs. EGNN_MD_MODEL names another model; EGNN_MD_SHORT=1 runs a few steps.
"""

from __future__ import annotations

import os
from importlib.resources import files

import numpy as np
import openmm
from openmm import app, unit
from openmm.mtsintegrator import MTSIntegrator

from egnn_md_openmm import create_system, multiple_time_step_system

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
STEPS, EVERY = (4, 2) if SHORT else (500, 5)
MODEL = os.environ.get("EGNN_MD_MODEL", "water")
OUTER, INNER_STEPS = 2 * unit.femtosecond, 4

pdb = app.PDBFile(str(files("egnn_md_systems.water") / "water64.pdb"))
cheap = app.ForceField("amber14/tip3pfb.xml").createSystem(
    pdb.topology, nonbondedMethod=app.CutoffPeriodic, nonbondedCutoff=0.6 * unit.nanometer, rigidWater=False
)
systems = {
    "one step": (create_system(pdb.topology, MODEL, implementation="python"), openmm.VerletIntegrator(OUTER)),
    "two steps": (
        multiple_time_step_system(pdb.topology, MODEL, cheap, implementation="python"),
        MTSIntegrator(OUTER, [(2, 1), (1, INNER_STEPS)]),
    ),
}
for name, (system, integrator) in systems.items():
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.minimizeEnergy(maxIterations=2 if SHORT else 100)
    simulation.context.setVelocitiesToTemperature(100 * unit.kelvin, 1)
    totals = []
    for _ in range(STEPS // EVERY):
        simulation.step(EVERY)
        state = simulation.context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy()).value_in_unit(unit.kilojoule_per_mole))
    print(f"{name}: total energy {np.mean(totals):.2f} kJ/mol, it varies by {np.std(totals):.3f} kJ/mol")
