"""Put a molecule into a box of water and relax all of it by the force field, before the network takes over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.files import write_atomic
from egnn_md_openmm import force_field_system

FORCE_FIELD = ("amber14-all.xml", "amber14/tip3p.xml")
WATER = "tip3p"  # where OpenMM's ready box of water is put in; every three-site model fits there
CUTOFF = 9.0  # Å
TIMESTEP = 0.002  # ps; all bonds to hydrogen are constrained while the force field is alone
SETTLE_ITERATIONS = 200


def nonbonded(cutoff: float) -> dict[str, Any]:
    """``createSystem``'s options of a periodic system: PME, rigid water, a cutoff in Å."""
    from openmm import app, unit

    return {
        "nonbondedMethod": app.PME,
        "nonbondedCutoff": cutoff * unit.angstrom,
        "rigidWater": True,
    }


def solvate(
    solute: Path,
    output: Path,
    *,
    edge: float = 24.0,
    equilibrate: float = 10.0,
    temperature: float = 300.0,
    pressure: float = 1.0,
    seed: int = 0,
    force_field: tuple[str, ...] = FORCE_FIELD,
    cutoff: float = CUTOFF,
    platform: str = "CPU",
) -> Path:
    """Write ``output``, a PDB of ``solute`` in a cube of water at about the density that the force field wants.

    Args:
        solute: PDB with hydrogens and without water.
        output: written atomically.
        edge: of the cube, Å.
        equilibrate: ps of NPT by the force field alone; 0 minimises only.
        temperature, pressure: K, bar.
        seed: of velocities, thermostat and barostat.
        force_field: files of OpenMM for solute and water.
        cutoff: Å, of the force field.
        platform: of OpenMM.

    Raises:
        InputError: a solute that cannot be read, has missing hydrogens or unknown residues, or does not fit.
    """
    import openmm
    from openmm import app, unit

    try:
        pdb = app.PDBFile(str(solute))
    except Exception as error:  # the reader raises whatever a damaged line leads to
        raise InputError(f"{solute} cannot be read as a PDB file: {error}") from error
    positions = np.array(pdb.positions.value_in_unit(unit.angstrom))
    force_field_system(pdb.topology, force_field)  # complains about the molecule by itself, before water is around it
    extent = float(np.ptp(positions, axis=0).max())
    if edge < max(2.0 * cutoff + 2.0, extent + cutoff):
        raise InputError(
            f"--edge {edge:g} Å is too small: it must exceed twice the cutoff of {cutoff:g} Å by 2 Å, since the box "
            f"will shrink, and the molecule's extent of {extent:.1f} Å by the cutoff"
        )
    modeller = app.Modeller(pdb.topology, pdb.positions)
    size = openmm.Vec3(edge, edge, edge) * unit.angstrom
    modeller.addSolvent(app.ForceField(*force_field), model=WATER, boxSize=size, neutralize=True)
    topology = modeller.topology
    system = force_field_system(topology, force_field, constraints=app.HBonds, **nonbonded(cutoff))
    barostat = openmm.MonteCarloBarostat(pressure, temperature)
    barostat.setRandomNumberSeed(seed + 1)
    system.addForce(barostat)
    integrator = openmm.LangevinMiddleIntegrator(temperature, 1.0, TIMESTEP)
    integrator.setRandomNumberSeed(seed + 1)
    simulation = app.Simulation(topology, system, integrator, openmm.Platform.getPlatformByName(platform))
    simulation.context.setPositions(modeller.positions)
    simulation.minimizeEnergy(maxIterations=SETTLE_ITERATIONS)
    simulation.context.setVelocitiesToTemperature(temperature, seed + 1)
    simulation.step(round(equilibrate / TIMESTEP))
    state = simulation.context.getState(positions=True, enforcePeriodicBox=True)
    topology.setPeriodicBoxVectors(state.getPeriodicBoxVectors())
    temporary = output.with_name("new-" + output.name)
    output.parent.mkdir(parents=True, exist_ok=True)
    with temporary.open("w", encoding="ascii") as file:
        app.PDBFile.writeFile(topology, state.getPositions(), file, keepIds=True)
    write_atomic(output, temporary.read_bytes())
    temporary.unlink()
    return output
