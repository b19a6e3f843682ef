"""A trained model through OpenMM-ML: as the whole system, and as one molecule inside a force field.

EGNN_MD_MODEL is the path of another model file than the shipped one; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os
from importlib.resources import files

import openmm
from openmm import app, unit
from openmmml import MLPotential

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"

pdb = app.PDBFile(str(files("egnn_md_systems.water") / "water64.pdb"))
potential = MLPotential("fastegnn", modelPath=os.environ.get("EGNN_MD_MODEL", "water"))
whole = potential.createSystem(pdb.topology)

force_field = app.ForceField("amber14/tip3pfb.xml")
classical = force_field.createSystem(
    pdb.topology, nonbondedMethod=app.PME, nonbondedCutoff=0.6 * unit.nanometer, rigidWater=False
)
first_molecule = [atom.index for atom in next(pdb.topology.residues()).atoms()]
mixed = potential.createMixedSystem(pdb.topology, classical, first_molecule)

for name, system in (("whole system", whole), ("one molecule in TIP3P-FB", mixed)):
    integrator = openmm.LangevinMiddleIntegrator(300, 1.0, 0.0005)  # K, 1/ps, ps
    simulation = app.Simulation(pdb.topology, system, integrator)
    simulation.context.setPositions(pdb.positions)
    simulation.context.setVelocitiesToTemperature(300, 1)
    simulation.step(2 if SHORT else 200)
    energy = simulation.context.getState(getEnergy=True).getPotentialEnergy()
    print(f"{name}: {energy.value_in_unit(unit.kilojoule_per_mole):.1f} kJ/mol")
