"""Part of a system by a model, the rest by a force field: OpenMM-ML's mixed systems, checked and made fit for boxes.

The energy is mechanical embedding's: the force field's of everything, less its terms inside the region, plus the
model's energy of the region as if nothing else were there (``docs/ml_mm.md``).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md_openmm.dependencies import INSTALL, import_openmm
from egnn_md_openmm.region import check_region, check_region_hydrogens, constraints_inside
from egnn_md_openmm.system import resolve_model
from egnn_md_openmm.topology import choose_atoms, describe

if TYPE_CHECKING:
    import openmm
    import torch
    from openmm import app

LAMBDA = "lambda_interpolate"
FORCE_FIELD = ("amber14-all.xml", "amber14/tip3p.xml")


def create_mixed_system(
    topology: app.Topology,
    system: openmm.System,
    ml_atoms: Iterable[int],
    model: Any,
    *,
    interpolate: bool = False,
    remove_constraints: bool = False,
    force_group: int = 0,
    implementation: str = "torch",
    periodic: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    skin: float | str = "auto",
) -> openmm.System:
    """``MLPotential("fastegnn", ...).createMixedSystem(...)`` with all checks, also where OpenMM-ML interpolates.

    Beside what OpenMM-ML does: terms inside the region are taken with the nearest image, so that a molecule that a file
    or the barostat has cut at the boundary has its energy; OpenMM knows the region's molecules; the interpolating force
    has a name, its force group and its derivative (``getState(parameterDerivatives=True)``).

    Args:
        topology: of the whole system, with bonds; its box tells whether the system is periodic.
        system: all of it by a force field; :func:`force_field_system` makes one. It is not changed.
        ml_atoms: indices of the atoms whose interactions with each other the model computes: whole molecules. See
            :func:`egnn_md_openmm.select_atoms`.
        model: a potential, the name of a shipped model, the path of a model file or of an exported artefact.
        interpolate: keep the force field's terms of the region, too, and mix: the global parameter
            ``lambda_interpolate`` of the context goes from 0 (force field) to 1 (model, the default).
        remove_constraints: drop constraints inside the region instead of refusing them.
        force_group: of the model's force, or with ``interpolate`` of all that is inside the region.
        implementation, dtype, device, skin: see :func:`egnn_md_openmm.add_potential`.
        periodic: whether the model sees the box. None: not for a single molecule, which it gets whole and open; yes
            for several, between which the nearest images count.

    Raises:
        InputError: an atom of the region bonded to one outside it, constraints, virtual sites or missing hydrogens in
            the region, a charge that the model does not know, forces that cannot be taken apart, an interpolation that
            would lack terms, several molecules with ``periodic=False`` in a box.
        MissingDependencyError: OpenMM or OpenMM-ML is not installed.
        See also :func:`egnn_md_openmm.add_potential`.
    """
    openmm = import_openmm()
    try:
        from openmmml import MLPotential
    except ImportError as error:
        reason = f"mixed systems need OpenMM-ML, but its import fails ({error})"
        raise MissingDependencyError(f"{reason}: {INSTALL}") from error
    atoms = choose_atoms(topology, ml_atoms)
    assert atoms is not None  # an iterable was given
    members = list(topology.atoms())
    if system.getNumParticles() != len(members):
        raise InputError(
            f"the force field's system has {system.getNumParticles()} particles, the topology {len(members)} atoms; "
            "both must describe the same particles in the same order"
        )
    source = resolve_model(model)
    inside = constraints_inside(system, atoms)
    free = system
    if inside and remove_constraints:
        if interpolate:
            _check_bonds_stay(system, inside, members)
        free = _without_constraints(system, inside)
    check_region(topology, free, atoms, model=source.potential)
    if interpolate:
        _check_interpolable(system)
    potential = MLPotential("fastegnn", modelPath=source.potential if source.path is None else source.path)
    options: dict[str, Any] = {"implementation": implementation, "device": device, "skin": skin}
    options |= {} if dtype is None else {"dtype": dtype}
    options |= {} if periodic is None else {"periodic": periodic}
    mixed = potential.createMixedSystem(
        topology, free, atoms, removeConstraints=True, forceGroup=force_group, interpolate=interpolate, **options
    )
    near_images(mixed)
    if interpolate:
        [force] = [f for f in mixed.getForces() if isinstance(f, openmm.CustomCVForce) and _has_lambda(f)]
        force.setName("FastEGNN and force field")
        force.setForceGroup(force_group)
        force.addEnergyParameterDerivative(LAMBDA)
        if mixed.usesPeriodicBoundaryConditions():
            for index in range(force.getNumCollectiveVariables()):
                _use_nearest_image(force.getCollectiveVariable(index))
    return mixed


def force_field_system(
    topology: app.Topology, files: Iterable[str | Path] = FORCE_FIELD, **options: Any
) -> openmm.System:
    """``ForceField(*files).createSystem(topology, **options)`` whose complaints name the remedy.

    Args:
        topology: with hydrogens and bonds.
        files: of OpenMM's force fields or your own; the default is Amber14 with TIP3P water.
        options: of ``createSystem``: nonbondedMethod, nonbondedCutoff, constraints, rigidWater...

    Raises:
        InputError: missing hydrogens; a residue that no file describes; a file that is missing or wrong.
    """
    import_openmm()
    from openmm import app

    names = [str(file) for file in files]
    try:
        force_field = app.ForceField(*names)
    except Exception as error:  # ForceField raises what its XML parser does, and bare exceptions of its own
        raise InputError(f"the force field {', '.join(names)} cannot be read: {error}") from error
    check_region_hydrogens(topology)
    try:
        return force_field.createSystem(topology, **options)
    except ValueError as error:
        if "template" not in str(error):
            raise
        raise InputError(
            f"the force field ({', '.join(names)}) does not know a residue of this structure: {error} Give a file that "
            "describes it, or complete the residue (atoms: PDBFixer; hydrogens: Modeller.addHydrogens). "
            "Residues of the ML region need one, too: their charges and radii are what the rest of the system feels"
        ) from error


def near_images(system: openmm.System) -> None:
    """Let excluded pairs be those of nearest images, as the region's are wherever its atoms were wrapped to.

    Pairs that a periodic ``NonbondedForce`` leaves out are otherwise those at the distance that positions happen to
    have, and the share of them in reciprocal space would be taken off at the wrong distance.
    """
    import openmm

    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce) and force.usesPeriodicBoundaryConditions():
            force.setExceptionsUsePeriodicBoundaryConditions(True)


def _use_nearest_image(force: openmm.Force) -> None:
    if any(hasattr(force, name) for name in ("addBond", "addAngle", "addTorsion")):
        force.setUsesPeriodicBoundaryConditions(True)


def _has_lambda(force: openmm.CustomCVForce) -> bool:
    return any(force.getGlobalParameterName(k) == LAMBDA for k in range(force.getNumGlobalParameters()))


def _without_constraints(system: openmm.System, pairs: Iterable[tuple[int, int]]) -> openmm.System:
    import copy

    gone = set(pairs)
    free = copy.deepcopy(system)
    for index in reversed(range(free.getNumConstraints())):
        if tuple(free.getConstraintParameters(index)[:2]) in gone:
            free.removeConstraint(index)
    return free


def _check_bonds_stay(
    system: openmm.System, pairs: Iterable[tuple[int, int]], members: list[app.topology.Atom]
) -> None:
    """At lambda 0 a bond that was constrained needs its spring, which OpenMM's force fields leave out."""
    import openmm

    springs = {
        frozenset(force.getBondParameters(k)[:2])
        for force in system.getForces()
        if isinstance(force, openmm.HarmonicBondForce)
        for k in range(force.getNumBonds())
    }
    for pair in pairs:
        if frozenset(pair) not in springs:
            first, second = (describe(members[i]) for i in pair)
            raise InputError(
                f"without its constraint nothing of the force field would hold {first} and {second} together at "
                "lambda_interpolate = 0; make the force field's system with constraints=None, or with "
                "flexibleConstraints=True"
            )


def _check_interpolable(system: openmm.System) -> None:
    """OpenMM-ML puts back bonded terms and those of a NonbondedForce; others would be missing at lambda 0."""
    import openmm

    for force in system.getForces():
        if isinstance(force, openmm.CustomNonbondedForce):
            raise InputError(
                "interpolate=True: OpenMM-ML takes the region's terms out of a CustomNonbondedForce and does not put "
                "them back, so lambda_interpolate = 0 would not be the force field; use one with a NonbondedForce only"
            )
        if isinstance(force, openmm.NonbondedForce) and force.getNonbondedMethod() in (
            openmm.NonbondedForce.CutoffNonPeriodic,
            openmm.NonbondedForce.CutoffPeriodic,
        ):
            raise InputError(
                "interpolate=True: inside the region OpenMM-ML has plain Coulomb terms, without the reaction field of "
                "this cutoff method; make the force field's system with PME (periodic) or NoCutoff (open)"
            )
