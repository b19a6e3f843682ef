"""Snapshots of peptides in vacuum from flexible Amber14 (ff14SB) dynamics with a perturbed force field.

The force field only decides *where* the reference method is asked. Every run draws its bond lengths, angles and the
height of its torsion barriers anew, so that the labels cover the geometry that GFN2-xTB prefers; a harmonic trap (or
its opposite) about the origin biases the radius of gyration, so that folded and extended forms are both there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ase import Atoms
from ase.neighborlist import neighbor_list

from .builder import FORCE_FIELD, Peptide, build

#: Backbone basins (phi, psi in degrees) that runs start from; every fourth start is anywhere.
BASINS = ((-65, -40), (-120, 130), (-70, 150), (-80, 75), (55, 45), (-150, 160), (70, -60))
SPREAD = 20.0  # degrees about a basin
BOND_SPREAD = 0.0015  # nm; Amber's and GFN2-xTB's bond lengths differ by up to twice that
ANGLE_SPREAD = np.radians(2.5)
TORSION_RANGE = (0.5, 1.2)
HOT = 900.0  # K; half a picosecond of it redraws the side chains
CIS_PROLINE = 0.1  # share of prolines whose peptide bond starts as cis
TRANSFER_REACH = 3.5  # Å, of a hydrogen to the heavy atom that may take it
ACID_REACH = 5.0
PROTON_ROOM = 1.4  # Å, of an added proton to all atoms but its base
BOND_REACH = 1.9  # Å, between heavy atoms
TRANSFER_WEIGHTS = {8: 1.0, 16: 1.0, 7: 0.2, 6: 0.03}  # of donors by atomic number
MINIMUM_CONTACT = 0.7  # Å; below it the reference method's SCF is not to be trusted


@dataclass(frozen=True)
class Run:
    """One force-field run.

    Attributes:
        molecules: one peptide, or two that are kept together.
        temperature: K.
        trap: kJ/mol/nm² of the harmonic well about the origin on every heavy atom; negative spreads them.
        perturb: draw a new force field.
        seed: of everything random in the run.
    """

    molecules: tuple[Peptide, ...]
    temperature: float
    trap: float = 0.0
    perturb: bool = True
    seed: int = 0


def random_peptide(
    sequence: str, rng: np.random.Generator, states: dict[int, str] | None = None, *, cis: float = CIS_PROLINE
) -> Peptide:
    """The peptide with backbone dihedrals drawn from the basins, or from anywhere."""
    n = len(sequence)
    centres = np.array([BASINS[int(k)] for k in rng.integers(len(BASINS), size=n)], dtype=float)
    angles = centres + rng.normal(scale=SPREAD, size=(n, 2))
    anywhere = rng.random(n) < 0.25
    angles[anywhere] = rng.uniform(-180.0, 180.0, size=(n, 2))[anywhere]
    # the ring holds proline's phi
    angles[[letter == "P" for letter in sequence], 0] = -65.0
    omega = [0.0 if letter == "P" and rng.random() < cis else 180.0 for letter in sequence]
    return build(sequence, phi=angles[:, 0].tolist(), psi=angles[:, 1].tolist(), omega=omega, states=states)


def joined(molecules: Sequence[Peptide], rng: np.random.Generator, gap: float = 3.0) -> tuple[Any, np.ndarray]:
    """Topology and positions (Å) of the molecules side by side, randomly turned, centred at the origin."""
    from openmm import Vec3, app, unit

    modeller = None
    placed: list[np.ndarray] = []
    for molecule in molecules:
        turn, upper = np.linalg.qr(rng.normal(size=(3, 3)))
        turn = turn * np.sign(np.diag(upper))
        turn[:, 0] *= np.sign(np.linalg.det(turn))  # a rotation: a reflection would make D amino acids
        where = (molecule.positions - molecule.positions.mean(0)) @ turn.T
        if placed:
            shift = max(p[:, 0].max() for p in placed) - where[:, 0].min() + gap
            where = where + np.array([shift, 0.0, 0.0])
        placed.append(where)
        quantity = [Vec3(*(row * 0.1)) for row in where] * unit.nanometer
        if modeller is None:
            modeller = app.Modeller(molecule.topology, quantity)
        else:
            modeller.add(molecule.topology, quantity)
    assert modeller is not None, "no molecules"
    positions = np.concatenate(placed)
    return modeller.topology, positions - positions.mean(0)


def force_field_system(topology: Any, run: Run, rng: np.random.Generator) -> Any:
    """Flexible ff14SB in vacuum, perturbed and biased as ``run`` says."""
    import openmm
    from openmm import app, unit

    system = app.ForceField(FORCE_FIELD).createSystem(
        topology, nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False
    )
    if run.perturb:
        barrier = rng.uniform(*TORSION_RANGE)
        for force in system.getForces():
            if isinstance(force, openmm.HarmonicBondForce):
                for i in range(force.getNumBonds()):
                    a, b, length, k = force.getBondParameters(i)
                    length = length + rng.normal(scale=BOND_SPREAD) * unit.nanometer
                    force.setBondParameters(i, a, b, length, k * rng.uniform(0.7, 1.1))
            elif isinstance(force, openmm.HarmonicAngleForce):
                for i in range(force.getNumAngles()):
                    a, b, c, angle, k = force.getAngleParameters(i)
                    angle = angle + rng.normal(scale=ANGLE_SPREAD) * unit.radian
                    force.setAngleParameters(i, a, b, c, angle, k * rng.uniform(0.7, 1.1))
            elif isinstance(force, openmm.PeriodicTorsionForce):
                for i in range(force.getNumTorsions()):
                    a, b, c, d, period, phase, k = force.getTorsionParameters(i)
                    force.setTorsionParameters(i, a, b, c, d, period, phase, k * barrier)
    if run.trap:
        trap = openmm.CustomExternalForce("0.5*trap*(x^2+y^2+z^2)")
        trap.addGlobalParameter("trap", run.trap)
        for atom in topology.atoms():
            if atom.element.symbol != "H":
                trap.addParticle(atom.index, [])
        system.addForce(trap)
    system.addForce(openmm.CMMotionRemover())
    return system


def force_field_trajectory(
    run: Run, frames: int, stride_ps: float = 0.4, equilibration_ps: float = 1.0
) -> Iterator[Atoms]:
    """Yield ``frames`` snapshots of Langevin dynamics (1 fs, 5/ps); ``info`` holds charge, states and seed.

    A snapshot with a contact below ``MINIMUM_CONTACT`` is left out.
    """
    import openmm
    from openmm import unit

    rng = np.random.default_rng(run.seed)
    topology, positions = joined(run.molecules, rng)
    system = force_field_system(topology, run, rng)
    integrator = openmm.LangevinMiddleIntegrator(run.temperature, 5.0, 0.001)
    integrator.setRandomNumberSeed(run.seed % 2_000_000_000 + 1)
    # of fewer than a hundred atoms: quicker than the CPU platform, and the same structures from the same seed
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions(positions * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=300)
    if run.perturb:
        integrator.setTemperature(HOT)
        context.setVelocitiesToTemperature(HOT, run.seed % 2_000_000_000 + 2)
        integrator.step(500)
        integrator.setTemperature(run.temperature)
    context.setVelocitiesToTemperature(run.temperature, run.seed % 2_000_000_000 + 3)
    integrator.step(round(equilibration_ps * 1000))
    template = Atoms([atom.element.atomic_number for atom in topology.atoms()], positions)
    template.info.update(
        states="+".join("-".join(m.states) for m in run.molecules),
        charge=sum(m.charge for m in run.molecules),
        temperature=run.temperature,
        seed=run.seed,
    )
    for _ in range(frames):
        integrator.step(round(stride_ps * 1000))
        snapshot = template.copy()
        snapshot.positions = context.getState(getPositions=True).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
        snapshot.positions -= snapshot.positions.mean(0)
        if closest_contact(snapshot) >= MINIMUM_CONTACT:
            yield snapshot


def stretched(atoms: Atoms, rng: np.random.Generator, *, acids: bool = False) -> Atoms | None:
    """Copy with one to three X-H bonds pulled out or pushed in, and everything shaken.

    A force field never breaks a bond, and data that hold an acid and its anion would let a network take a proton away
    for nothing: these structures say what it costs. O-H, N-H and S-H are taken more often than C-H.

    Args:
        atoms: molecules with all their hydrogens.
        rng: of the bonds, lengths and displacements.
        acids: take one O-H or S-H only, and let it leave in another direction, too; None if there is none.
    """
    out = atoms.copy()
    first, second, lengths = neighbor_list("ijd", atoms, 1.45)
    bonds = [
        (i, j)
        for i, j, length in zip(first.tolist(), second.tolist(), lengths, strict=True)
        if atoms.numbers[i] == 1 and atoms.numbers[j] != 1 and length == lengths[first == i].min()
    ]
    if acids:
        bonds = [(i, j) for i, j in bonds if atoms.numbers[j] in (8, 16)]
        if not bonds:
            return None
        i, j = bonds[int(rng.integers(len(bonds)))]
        direction = atoms.positions[i] - atoms.positions[j]
        direction += 0.25 * rng.normal(size=3) * np.linalg.norm(direction)
        out.positions[i] = atoms.positions[j] + rng.uniform(0.85, 2.6) * direction
        return out
    weights = np.array([1.0 if atoms.numbers[j] == 6 else 3.0 * len(bonds) / 8 for _, j in bonds])
    chosen = rng.choice(len(bonds), size=int(rng.integers(1, 4)), replace=False, p=weights / weights.sum())
    for i, j in (bonds[int(k)] for k in chosen):
        most = 1.5 if atoms.numbers[j] == 6 else 2.2
        out.positions[i] = atoms.positions[j] + rng.uniform(0.85, most) * (atoms.positions[i] - atoms.positions[j])
    out.positions += rng.normal(scale=rng.uniform(0.0, 0.04), size=out.positions.shape)
    return out


def transferred(atoms: Atoms, rng: np.random.Generator, *, acids: bool = False) -> Atoms | None:
    """Copy with one proton on its way to, or at, another heavy atom nearby; None if no X-H has one.

    A potential that never saw an acid's proton at an amide may find that it belongs there. O-H and S-H are taken most
    often, N-H now and then, C-H seldom; half of the protons have arrived.

    Args:
        atoms: molecules with all their hydrogens.
        rng: of the bond, the acceptor and the place.
        acids: take carboxylic protons only, look further for an acceptor, and let most of them arrive: what it costs
            to part two charges.
    """
    first, second, lengths = neighbor_list("ijd", atoms, ACID_REACH if acids else TRANSFER_REACH)
    hydrogens = atoms.numbers == 1
    found = sorted(zip(first.tolist(), second.tolist(), lengths.tolist(), strict=True), key=lambda each: each[2])
    donor: dict[int, int] = {}
    for i, j, _ in found:
        if hydrogens[i] and not hydrogens[j]:
            donor.setdefault(i, j)
    # the donor's own neighbours are near, and are not where a proton goes
    bonded = {(i, j) for i, j, length in found if length < BOND_REACH}
    ways = [
        (i, j, TRANSFER_WEIGHTS[int(atoms.numbers[donor[i]])] / length**2)
        for i, j, length in found
        if i in donor and not hydrogens[j] and j != donor[i] and (donor[i], j) not in bonded
    ]
    if acids:
        carboxylic = {j for i, j in bonded if atoms.numbers[j] == 8 and _bonded_oxygens(i, bonded, atoms) == 2}
        ways = [
            (i, j, 1.0)
            for i, j, _ in ways
            if donor[i] in carboxylic
            and atoms.numbers[j] in (7, 8)
            and not any((carbon, j) in bonded for carbon, oxygen in bonded if oxygen == donor[i])  # the same group
        ]
    if not ways:
        return None
    weights = np.array([way[2] for way in ways])
    i, j, _ = ways[int(rng.choice(len(ways), p=weights / weights.sum()))]
    out = atoms.copy()
    towards = atoms.positions[i] - atoms.positions[j]
    end = atoms.positions[j] + rng.uniform(0.95, 1.25) * towards / np.linalg.norm(towards)
    share = 1.0 if rng.random() < (0.75 if acids else 0.5) else rng.uniform(0.2, 1.0)
    out.positions[i] += share * (end - atoms.positions[i])
    out.positions += rng.normal(scale=0.03, size=out.positions.shape)
    return out


def protonated(atoms: Atoms, rng: np.random.Generator) -> Atoms | None:
    """Copy with one more proton at any heavy atom that has room for it; the charge grows by one.

    What a proton is worth at a base is learned from such ions. None if no room was found, or for a cation.

    Args:
        atoms: molecules; ``info["charge"]`` their total charge, e.
        rng: of the base and the place.
    """
    if atoms.info["charge"] > 0:
        return None
    heavy = np.flatnonzero(atoms.numbers > 1)
    weights = np.where(atoms.numbers[heavy] == 6, 0.15, 1.0)
    for _ in range(20):
        j = int(rng.choice(heavy, p=weights / weights.sum()))
        distances = np.linalg.norm(atoms.positions - atoms.positions[j], axis=1)
        neighbours = np.flatnonzero((distances > 0) & (distances < BOND_REACH))
        away = -np.mean((atoms.positions[neighbours] - atoms.positions[j]) / distances[neighbours, None], axis=0)
        direction = away + 0.5 * rng.normal(size=3)
        length = rng.uniform(1.3, 1.45) if atoms.numbers[j] == 16 else rng.uniform(0.95, 1.15)
        place = atoms.positions[j] + length * direction / np.linalg.norm(direction)
        others = np.linalg.norm(atoms.positions - place, axis=1)
        others[j] = np.inf
        if others.min() < PROTON_ROOM:
            continue
        out = atoms.copy()
        out += Atoms("H", [place])
        out.positions += rng.normal(scale=0.03, size=out.positions.shape)
        out.info["charge"] = atoms.info["charge"] + 1
        return out
    return None


def _bonded_oxygens(index: int, bonded: set[tuple[int, int]], atoms: Atoms) -> int:
    return sum(atoms.numbers[j] == 8 for i, j in bonded if i == index) if atoms.numbers[index] == 6 else 0


def closest_contact(atoms: Atoms) -> float:
    """Smallest distance (Å) between two atoms."""
    distances = neighbor_list("d", atoms, 1.5)
    return float(distances.min()) if len(distances) else np.inf
