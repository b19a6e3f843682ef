"""What a potential needs to know of an OpenMM topology and system, checked."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from egnn_md.errors import ExportError, InputError

if TYPE_CHECKING:
    import openmm
    from openmm import app

    from egnn_md.export import ArtefactInfo


def describe(atom: app.topology.Atom) -> str:
    """``atom 4 (HW1 of HOH 2)``."""
    return f"atom {atom.index} ({atom.name} of {atom.residue.name} {atom.residue.id})"


def atomic_numbers(topology: app.Topology) -> list[int]:
    """Atomic number of every atom of the topology, 0 for those without an element."""
    return [0 if atom.element is None else int(atom.element.atomic_number) for atom in topology.atoms()]


def choose_atoms(topology: app.Topology, atoms: Iterable[int] | None) -> list[int] | None:
    """The subset as a list of indices, or None for all of the topology.

    Raises:
        InputError: an index that is not a whole number, is out of range or comes twice; an empty subset.
    """
    if atoms is None:
        return None
    try:
        chosen = [operator.index(index) for index in atoms]
    except TypeError as error:
        raise InputError(f"`atoms` must hold whole numbers: {error}") from error
    count = topology.getNumAtoms()
    if not chosen:
        raise InputError("`atoms` is empty; leave it out to act on every atom")
    seen: set[int] = set()
    for index in chosen:
        if not 0 <= index < count:
            raise InputError(f"`atoms` names atom {index}, but the topology has {count} (counted from 0)")
        if index in seen:
            raise InputError(f"`atoms` names atom {index} twice")
        seen.add(index)
    return chosen


def check_atoms(system: openmm.System, topology: app.Topology, atoms: Sequence[int] | None) -> None:
    """Refuse what no potential can act on: atoms without an element, virtual sites, a foreign system.

    OpenMM-ML builds interpolating systems around a system without particles; that one is accepted.

    Raises:
        InputError: names the first such atom.
    """
    members = list(topology.atoms())
    if not members:
        raise InputError("the topology has no atoms")
    particles = system.getNumParticles()
    if particles not in (0, len(members)):
        raise InputError(
            f"the system has {particles} particles and the topology {len(members)} atoms; "
            "both must describe the same particles in the same order"
        )
    for index in range(len(members)) if atoms is None else atoms:
        remedy = "leave it out with atoms=[...]"
        if members[index].element is None:
            raise InputError(
                f"{describe(members[index])} has no element, so the potential cannot act on it; if it is a "
                f"virtual site or an extra particle, {remedy}, else set its element in the topology"
            )
        if particles and system.isVirtualSite(index):
            raise InputError(f"{describe(members[index])} is a virtual site of the system; {remedy}")


def resolve_periodic(system: openmm.System, topology: app.Topology, periodic: bool | None) -> bool:
    """Whether the potential is to see periodic images: as asked, else as topology or system say.

    Raises:
        InputError: periodic was asked for, but neither topology nor system has a box.
    """
    boxed = topology.getPeriodicBoxVectors() is not None
    repeats = boxed or system.usesPeriodicBoundaryConditions()
    if periodic is None:
        return repeats
    if periodic and not repeats and system.getNumParticles():
        raise InputError("periodic=True, but the topology has no box; call topology.setPeriodicBoxVectors(...) first")
    return bool(periodic)


def molecule_tree(topology: app.Topology, atoms: Sequence[int] | None) -> list[int]:
    """The bonds of a molecule as :class:`egnn_md_openmm.whole.Whole` wants them; None means all atoms.

    Raises:
        InputError: the topology's bonds do not connect the atoms.
    """
    from egnn_md_openmm.whole import bond_tree

    chosen = list(range(topology.getNumAtoms())) if atoms is None else list(atoms)
    tree = bond_tree(chosen, ((bond.atom1.index, bond.atom2.index) for bond in topology.bonds()))
    if tree is None:
        raise InputError(
            f"the topology's bonds do not connect the {len(chosen)} atoms, so they cannot be put together across the "
            "box's boundary as one molecule; add the bonds (topology.addBond), or let the model see the box"
        )
    return tree


def check_artefact(
    info: ArtefactInfo, path: object, topology: app.Topology, atoms: Sequence[int] | None, periodic: bool
) -> None:
    """Refuse an artefact that was exported for something else than this topology.

    Raises:
        ExportError: names the first difference: units, periodicity, particles, subset or elements.
    """
    if info.length_unit != "nanometer" or info.energy_unit != "kilojoule_per_mole":
        raise ExportError(
            f"{path} takes {info.length_unit} and gives {info.energy_unit}; OpenMM needs nanometer and "
            "kilojoule_per_mole: export it again with export_torchscript's default units"
        )
    if info.periodic != periodic:
        states = {True: "periodic", False: "open"}
        raise ExportError(
            f"{path} was exported for {states[info.periodic]} systems, but this one is {states[periodic]} "
            f"(topology box: {topology.getPeriodicBoxVectors()}); export it again with periodic={periodic}, "
            "or set the box of the topology"
        )
    members = list(topology.atoms())
    if info.particles != len(members):
        raise ExportError(
            f"{path} was exported for {info.particles} particles, the topology has {len(members)} atoms; "
            "export it again for this topology"
        )
    everyone = list(range(len(members)))
    exported = everyone if info.atoms is None else info.atoms
    wanted = everyone if atoms is None else list(atoms)
    if sorted(exported) != sorted(wanted):
        first = min(set(exported) ^ set(wanted))
        raise ExportError(
            f"{path} was exported for another subset of atoms: atom {first} is "
            f"{'in the export only' if first in exported else 'asked for but not in the export'}"
        )
    numbers = atomic_numbers(topology)
    for index, number in zip(exported, info.numbers, strict=True):
        if numbers[index] != number:
            from ase.data import chemical_symbols

            raise ExportError(
                f"{path} was exported for other elements: {describe(members[index])} is "
                f"{chemical_symbols[numbers[index]]} in the topology and {chemical_symbols[number]} in the "
                "export; export it again for this topology"
            )
