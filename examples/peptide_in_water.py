"""Alanine dipeptide by a network, the water around it by a force field: NPT in OpenMM, and a look at the terms.

EGNN_MD_PEPTIDE is the path of another model than the shipped one; EGNN_MD_SHORT=1 runs a few steps only.
"""

from __future__ import annotations

import os

import openmm
from openmm import Vec3, app, unit

from egnn_md_openmm import create_mixed_system, force_field_system, select_atoms
from egnn_md_systems.alanine_dipeptide import structure_path

SHORT = os.environ.get("EGNN_MD_SHORT") == "1"
MODEL = os.environ.get("EGNN_MD_PEPTIDE", "alanine-dipeptide")
STEPS = 4 if SHORT else 2000
CUTOFF = 0.8 if SHORT else 0.9  # nm
EDGE = 1.8 if SHORT else 2.4  # nm
ML = 1  # force group

pdb = app.PDBFile(str(structure_path()))
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(app.ForceField("amber14-all.xml", "amber14/tip3p.xml"), boxSize=Vec3(EDGE, EDGE, EDGE))
topology = modeller.topology

classical = force_field_system(
    topology, nonbondedMethod=app.PME, nonbondedCutoff=CUTOFF * unit.nanometer, constraints=None, rigidWater=True
)
peptide = select_atoms(topology)  # everything but water and ions
system = create_mixed_system(topology, classical, peptide, MODEL, interpolate=True, force_group=ML)
system.addForce(openmm.MonteCarloBarostat(1.0, 300.0, 2 if SHORT else 25))  # bar, K, steps

integrator = openmm.LangevinMiddleIntegrator(300.0, 1.0, 0.001)  # K, 1/ps, ps
integrator.setRandomNumberSeed(1)
simulation = app.Simulation(topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=2 if SHORT else 200)
simulation.context.setVelocitiesToTemperature(300.0, 2)
simulation.step(STEPS)

for share in (0.0, 0.5, 1.0):  # 0: the force field alone; 1: the peptide's inner energy by the network
    simulation.context.setParameter("lambda_interpolate", share)
    total, inside = (
        simulation.context.getState(energy=True, groups=groups).getPotentialEnergy()._value for groups in (-1, 1 << ML)
    )
    print(f"lambda {share}: {total:.1f} kJ/mol, of which inside the peptide {inside:.1f}")
