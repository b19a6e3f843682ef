"""Structures of water to label: flexible force-field dynamics, rattled and strained boxes, clusters.

The force field only decides *where* the reference method is asked. Its bond length and angle are
drawn anew for every run, because a single rigid minimum would leave the network blind to the
intramolecular geometry that the reference method prefers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list as ase_neighbor_list

MASS_OF_WATER = 18.01528  # g/mol
AVOGADRO = 0.602214076  # mol^-1 Å^3 cm^-3 · 1e24
OH_LENGTH_RANGE = (0.94, 1.02)  # Å; GFN2-xTB gives 0.96, TIP3P-FB has 1.012
HOH_ANGLE_RANGE = (103.0, 112.0)  # degrees


@dataclass(frozen=True)
class BoxRun:
    """One force-field run: a box of ``molecules`` waters at ``temperature`` (K), ``density`` (g/cm³)."""

    molecules: int
    temperature: float
    density: float
    shape: str = "cubic"  # cubic | orthorhombic | triclinic
    perturb_force_field: bool = True
    seed: int = 0


def cell_of(run: BoxRun, rng: np.random.Generator) -> np.ndarray:
    """Cell rows (3, 3) in Å with the volume that the density asks for, in OpenMM's reduced form."""
    volume = run.molecules * MASS_OF_WATER / (run.density * AVOGADRO)
    edges = np.ones(3)
    tilts = np.zeros(3)
    if run.shape in ("orthorhombic", "triclinic"):
        edges = rng.uniform(0.93, 1.07, 3)
    if run.shape == "triclinic":
        tilts = rng.uniform(-0.25, 0.25, 3)
    edges = edges / np.prod(edges) ** (1 / 3) * volume ** (1 / 3)
    a, b, c = edges
    return np.array([[a, 0, 0], [tilts[0] * a, b, 0], [tilts[1] * a, tilts[2] * b, c]])


def lattice_start(
    molecules: int, cell: np.ndarray, oh: float, angle: float, rng: np.random.Generator
) -> Atoms:
    """Randomly turned waters on a jittered grid that fills the cell (atoms ordered O, H, H)."""
    n = int(np.ceil(molecules ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), -1).reshape(-1, 3)
    sites = (grid[rng.permutation(len(grid))[:molecules]] + 0.5) / n
    half = np.radians(angle) / 2
    water = oh * np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    positions = []
    for site in sites @ cell:
        rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        positions.append(water @ rotation + site)
    return Atoms("OH2" * molecules, np.concatenate(positions), cell=cell, pbc=True)


def force_field_trajectory(
    run: BoxRun, frames: int, stride_ps: float = 1.0, equilibration_ps: float = 4.0
) -> Iterator[Atoms]:
    """Yield ``frames`` snapshots of flexible TIP3P-FB (Langevin, 1 fs) with a perturbed water geometry."""
    import openmm
    from openmm import app, unit

    rng = np.random.default_rng(run.seed)
    if run.perturb_force_field:
        oh, angle = rng.uniform(*OH_LENGTH_RANGE), rng.uniform(*HOH_ANGLE_RANGE)
    else:
        oh, angle = 1.0118, 108.15
    cell = cell_of(run, rng)
    atoms = lattice_start(run.molecules, cell, oh, angle, rng)

    topology = app.Topology()
    chain = topology.addChain()
    for _ in range(run.molecules):
        residue = topology.addResidue("HOH", chain)
        o, h1, h2 = (
            topology.addAtom(name, app.Element.getBySymbol(name[0]), residue) for name in ("O", "H1", "H2")
        )
        topology.addBond(o, h1)
        topology.addBond(o, h2)
    topology.setPeriodicBoxVectors(cell * 0.1 * unit.nanometer)
    system = app.ForceField("amber14/tip3pfb.xml").createSystem(
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=0.049 * float(cell.diagonal().min()) * unit.nanometer,
        rigidWater=False,
        ewaldErrorTolerance=2e-3,
    )
    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for i in range(force.getNumBonds()):
                a, b, _, k = force.getBondParameters(i)
                force.setBondParameters(i, a, b, oh * 0.1, k)
        elif isinstance(force, openmm.HarmonicAngleForce):
            for i in range(force.getNumAngles()):
                a, b, c, _, k = force.getAngleParameters(i)
                force.setAngleParameters(i, a, b, c, np.radians(angle), k)

    integrator = openmm.LangevinMiddleIntegrator(run.temperature, 5.0, 0.001)
    integrator.setRandomNumberSeed(run.seed + 1)
    platform = openmm.Platform.getPlatformByName("CPU")
    context = openmm.Context(system, integrator, platform, {"Threads": "1"})
    context.setPositions(atoms.positions * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(run.temperature, run.seed + 2)
    integrator.step(round(equilibration_ps * 1000))
    for _ in range(frames):
        integrator.step(round(stride_ps * 1000))
        state = context.getState(getPositions=True)
        snapshot = atoms.copy()
        snapshot.positions = state.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        yield snapshot


def rattled(atoms: Atoms, amplitude: float, rng: np.random.Generator) -> Atoms:
    """Copy with normal displacements of standard deviation ``amplitude`` (Å) on every atom."""
    out = atoms.copy()
    out.positions += rng.normal(scale=amplitude, size=out.positions.shape)
    return out


def strained(atoms: Atoms, amplitude: float, rng: np.random.Generator) -> Atoms:
    """Copy whose cell and atoms are deformed affinely by a random symmetric strain of that size."""
    strain = rng.normal(scale=amplitude, size=(3, 3))
    out = atoms.copy()
    out.set_cell(atoms.cell.array @ (np.eye(3) + (strain + strain.T) / 2), scale_atoms=True)
    return out


def cluster(atoms: Atoms, molecules: int, rng: np.random.Generator) -> Atoms:
    """The ``molecules`` whole waters nearest to a random one, cut out of the box into the open."""
    oxygens = atoms.positions[::3]
    centre = oxygens[rng.integers(len(oxygens))]
    inverse = np.linalg.inv(atoms.cell.array)
    offset = oxygens - centre
    image = -np.round(offset @ inverse) @ atoms.cell.array
    order = np.argsort(np.linalg.norm(offset + image, axis=1))[:molecules]
    positions = np.concatenate([atoms.positions[3 * i : 3 * i + 3] + image[i] for i in order])
    return Atoms("OH2" * molecules, positions - positions.mean(0), pbc=False)


def closest_contact(atoms: Atoms) -> float:
    """Smallest distance (Å) between two atoms, images included."""
    distances = ase_neighbor_list("d", atoms, 1.5)
    return float(distances.min()) if len(distances) else np.inf
