"""Salt water: flexible TIP3P-FB with sodium chloride, 4 pairs of ions among 40 waters (about 5 mol/l)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms

from egnn_md_systems.water.sampling import AVOGADRO, MASS_OF_WATER

FORCE_FIELD = "amber14/tip3pfb.xml"
WATERS, PAIRS = 40, 4
MASS_OF_SALT = 58.44  # g/mol
DENSITIES = (1.10, 1.25)  # g/cm³
TEMPERATURES = (300.0, 400.0)


def cell_edge(density: float, waters: int = WATERS, pairs: int = PAIRS) -> float:
    """Å, of a cube."""
    return float(((waters * MASS_OF_WATER + pairs * MASS_OF_SALT) / (density * AVOGADRO)) ** (1 / 3))


def topology(waters: int, pairs: int) -> Any:
    """Waters, then sodium and chloride in turn."""
    from openmm import app

    made = app.Topology()
    chain = made.addChain()
    for _ in range(waters):
        residue = made.addResidue("HOH", chain)
        names = (("O", "O"), ("H1", "H"), ("H2", "H"))
        o, h1, h2 = (made.addAtom(name, app.Element.getBySymbol(symbol), residue) for name, symbol in names)
        made.addBond(o, h1)
        made.addBond(o, h2)
    for _ in range(pairs):
        for name, symbol in (("NA", "Na"), ("CL", "Cl")):
            made.addAtom(name, app.Element.getBySymbol(symbol), made.addResidue(name, chain))
    return made


def trajectory(
    density: float, temperature: float, frames: int, seed: int, *, waters: int = WATERS, pairs: int = PAIRS
) -> Iterator[Atoms]:
    """``frames`` snapshots, 1 ps apart, after 6 ps, of Langevin dynamics at ``temperature`` (K)."""
    import openmm
    from openmm import app, unit

    rng = np.random.default_rng(seed)
    edge = cell_edge(density, waters, pairs)
    count = waters + 2 * pairs
    n = int(np.ceil(count ** (1 / 3)))
    sites = (np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3) + 0.5) / n * edge
    sites = sites[rng.permutation(len(sites))[:count]]
    water = np.array([[0, 0, 0], [0.8, 0.57, 0], [-0.8, 0.57, 0]])
    positions = [site + water @ np.linalg.qr(rng.normal(size=(3, 3)))[0] for site in sites[:waters]]
    start = np.concatenate([*positions, sites[waters:]])
    numbers = [8, 1, 1] * waters + [11, 17] * pairs
    atoms = Atoms(numbers, start, cell=np.eye(3) * edge, pbc=True)
    made = topology(waters, pairs)
    made.setPeriodicBoxVectors(np.eye(3) * edge * 0.1 * unit.nanometer)
    system = app.ForceField(FORCE_FIELD).createSystem(
        made,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.049 * edge * unit.nanometer,
        rigidWater=False,
        ewaldErrorTolerance=1e-4,
    )
    integrator = openmm.LangevinMiddleIntegrator(temperature, 5.0, 0.001)
    integrator.setRandomNumberSeed(seed + 1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions(start * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=300)
    context.setVelocitiesToTemperature(temperature, seed + 2)
    integrator.step(5000)
    for _ in range(frames):
        integrator.step(1000)
        snapshot = atoms.copy()
        state = context.getState(getPositions=True)
        snapshot.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        snapshot.info.update(temperature=temperature, density=round(density, 3), charge=0, seed=seed)
        yield snapshot


def structures(runs: int, frames: int, seed: int, *, waters: int = WATERS, pairs: int = PAIRS) -> Iterator[Atoms]:
    """Snapshots of ``runs`` runs of their own density, temperatures in turn."""
    for run in range(runs):
        density = float(np.random.default_rng([seed, run]).uniform(*DENSITIES))
        temperature = TEMPERATURES[run % len(TEMPERATURES)]
        yield from trajectory(density, temperature, frames, seed + 10 * run, waters=waters, pairs=pairs)


def write_topology(path: Path, waters: int, pairs: int) -> None:
    """PDB for the force field, whose positions mean nothing."""
    from openmm import app

    made = topology(waters, pairs)
    with path.open("w", encoding="ascii") as file:
        app.PDBFile.writeFile(made, np.zeros((made.getNumAtoms(), 3)), file)
