"""Free energy of two water molecules along their O-O distance, by OpenMM's own well-tempered metadynamics.

A system from ``create_system`` is an OpenMM system like any other, so its methods of enhanced sampling apply as they
are. EGNN_MD_MODEL names another model; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os

import numpy as np
import openmm
from ase import Atoms
from openmm import app, unit

from egnn_md.simulation.readers import structure_from_atoms
from egnn_md_openmm import create_system
from egnn_md_openmm.engine import openmm_topology

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
STEPS = 40 if SHORT else 200_000
WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])  # Å

structure = structure_from_atoms(Atoms("OHHOHH", np.concatenate([WATER, WATER - np.array([2.9, 0.3, 0.1])])))
topology = openmm_topology(structure)
system = create_system(topology, os.environ.get("EGNN_MD_MODEL", "water"), implementation="python")

distance = openmm.CustomBondForce("r")
distance.addBond(0, 3)
variable = app.BiasVariable(distance, 0.22, 0.60, 0.015, periodic=False, gridWidth=77)
# a wall, so that the molecules do not part for good
wall = openmm.CustomBondForce("1000*max(0, r - 0.55)^2")
wall.addBond(0, 3)
system.addForce(wall)
height, frequency = 0.5 * unit.kilojoule_per_mole, 10 if SHORT else 100
metadynamics = app.Metadynamics(system, [variable], 300 * unit.kelvin, 5, height, frequency)
integrator = openmm.LangevinMiddleIntegrator(300 * unit.kelvin, 5 / unit.picosecond, 0.5 * unit.femtosecond)
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(structure.positions / 10)
simulation.minimizeEnergy(maxIterations=5 if SHORT else 100)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 2)
metadynamics.step(simulation, STEPS)

free = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
grid = np.linspace(2.2, 6.0, len(free))
shown = free - free.min()
print(f"lowest free energy at {grid[np.argmin(free)]:.2f} Å; bias up to {np.ptp(free):.2f} kJ/mol")
for place in range(0, len(grid), 8):
    print(f"{grid[place]:5.2f} Å {shown[place]:8.2f} kJ/mol")
