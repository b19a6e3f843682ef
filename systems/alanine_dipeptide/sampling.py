"""Force-field dynamics of alanine dipeptide: plain, or held near a point of the Ramachandran plane.

The force field only decides *where* the reference method is asked. Its bond lengths, angles and
stiffnesses are drawn anew for the runs that ask for it, because one force field's minimum would
leave the network blind to the geometry that the reference method prefers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from ase import Atoms

from .molecule import DIHEDRALS, SYMBOLS, build, topology

PLAIN = "amber14-all.xml"  #: ff14SB
TIMESTEP = 0.5  # fs; nothing is constrained
FRICTION = 5.0  # 1/ps
BOND_SHIFT = 0.03  # Å
ANGLE_SHIFT = 4.0  # degrees
STIFFNESS_RANGE = (0.7, 1.25)


@dataclass(frozen=True)
class Run:
    """One Langevin run.

    Attributes:
        temperature: K.
        start: (phi, psi) of the start, degrees.
        bias: dihedral angles ("phi", "psi", "omega1", "omega2") held near a centre, degrees.
        strength: k of the bias k (1 - cos(angle - centre)), kJ/mol.
        force_field: XML file of OpenMM.
        perturb: draw bond lengths, angles and their stiffness anew.
        seed: of everything.
    """

    temperature: float
    start: tuple[float, float]
    bias: dict[str, float] = field(default_factory=dict)
    strength: float = 60.0
    force_field: str = PLAIN
    perturb: bool = False
    seed: int = 1


def force_field_system(run: Run):  # type: ignore[no-untyped-def]  # OpenMM has no types
    """The OpenMM system of a run: vacuum, no cutoff, no constraints."""
    import openmm
    from openmm import app

    system = app.ForceField(run.force_field).createSystem(
        topology(), nonbondedMethod=app.NoCutoff, constraints=None, rigidWater=False, removeCMMotion=False
    )
    if run.perturb:
        _perturb(system, np.random.default_rng(run.seed))
    for name, centre in run.bias.items():
        force = openmm.CustomTorsionForce("strength * (1 - cos(theta - centre))")
        force.addPerTorsionParameter("strength")
        force.addPerTorsionParameter("centre")
        force.addTorsion(*DIHEDRALS[name], [run.strength, np.radians(centre)])
        system.addForce(force)
    return system


def _perturb(system, rng: np.random.Generator) -> None:  # type: ignore[no-untyped-def]
    import openmm

    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for i in range(force.getNumBonds()):
                a, b, length, k = force.getBondParameters(i)
                shift = 0.1 * rng.uniform(-BOND_SHIFT, BOND_SHIFT)
                force.setBondParameters(i, a, b, length._value + shift, k * rng.uniform(*STIFFNESS_RANGE))
        elif isinstance(force, openmm.HarmonicAngleForce):
            for i in range(force.getNumAngles()):
                a, b, c, angle, k = force.getAngleParameters(i)
                shift = np.radians(rng.uniform(-ANGLE_SHIFT, ANGLE_SHIFT))
                force.setAngleParameters(i, a, b, c, angle._value + shift, k * rng.uniform(*STIFFNESS_RANGE))


def force_field_trajectory(
    run: Run, frames: int, stride_ps: float = 2.0, equilibration_ps: float = 4.0
) -> Iterator[Atoms]:
    """Yield ``frames`` snapshots, ``stride_ps`` apart, of a run that began with a minimisation."""
    import openmm
    from openmm import unit

    integrator = openmm.LangevinMiddleIntegrator(run.temperature, FRICTION, TIMESTEP * 0.001)
    integrator.setRandomNumberSeed(run.seed)
    # on one molecule the Reference platform is the fastest one, and the same seed gives the same bits
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(force_field_system(run), integrator, platform)
    start = build(*run.start, run.bias.get("omega1", 180.0), run.bias.get("omega2", 180.0))
    context.setPositions(start.positions * 0.1)
    openmm.LocalEnergyMinimizer.minimize(context, maxIterations=200)
    context.setVelocitiesToTemperature(run.temperature, run.seed + 1)
    integrator.step(round(equilibration_ps / TIMESTEP * 1000))
    for _ in range(frames):
        integrator.step(round(stride_ps / TIMESTEP * 1000))
        positions = context.getState(getPositions=True).getPositions(asNumpy=True)
        yield Atoms("".join(SYMBOLS), positions.value_in_unit(unit.angstrom))
