"""The atoms of a larger system that a model computes: how to choose them, and what they must not be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from egnn_md.errors import InputError
from egnn_md.models.charges import check_charge
from egnn_md.simulation.hydrogens import HYDROGEN, check_hydrogens
from egnn_md.simulation.protonation import residue_charge
from egnn_md_openmm.topology import describe

if TYPE_CHECKING:
    import openmm
    from openmm import app

SOLVENT = frozenset({"HOH", "WAT", "TIP3", "TP3", "SOL", "NA", "CL", "K", "MG", "CA", "ZN", "NA+", "CL-", "K+"})

#: Forces whose terms inside the region OpenMM-ML neither removes nor can tell from the others.
INSEPARABLE = (
    "AmoebaGeneralizedKirkwoodForce", "AmoebaMultipoleForce", "AmoebaTorsionTorsionForce", "AmoebaVdwForce",
    "AmoebaWcaDispersionForce", "CustomHbondForce", "CustomManyParticleForce", "GayBerneForce",
    "HippoNonbondedForce",
)  # fmt: skip
FRACTION = 0.05  # e; charges of a force field's molecule add up to a whole number within this


def select_atoms(
    topology: app.Topology, *, residues: Iterable[str] | None = None, chains: Iterable[str] | None = None
) -> list[int]:
    """Indices of the atoms of a region: residues and chains by name, by default everything but water and ions.

    Args:
        topology: of the whole system.
        residues: names, e.g. ``("ACE", "ALA", "NME")``.
        chains: identifiers, e.g. ``"A"``; with ``residues``, both must hold.

    Raises:
        InputError: a name that does not occur (the message lists those that do), or nothing chosen.
    """
    names = None if residues is None else _listed(residues, "residues")
    letters = None if chains is None else _listed(chains, "chains")
    there = {residue.name for residue in topology.residues()}, {chain.id for chain in topology.chains()}
    for wanted, known, what in ((names, there[0], "residue"), (letters, there[1], "chain")):
        for name in wanted or ():
            if name not in known:
                raise InputError(f"the topology has no {what} {name!r}; it has {', '.join(sorted(known))}")
    chosen = [
        atom.index
        for atom in topology.atoms()
        if (letters is None or atom.residue.chain.id in letters)
        and (atom.residue.name in names if names is not None else atom.residue.name.upper() not in SOLVENT)
    ]
    if not chosen:
        raise InputError("this selection holds no atom; name residues or chains of the topology")
    return chosen


def _listed(names: Iterable[str], what: str) -> list[str]:
    found = [names] if isinstance(names, str) else list(names)
    if not found:
        raise InputError(f"`{what}` is empty; leave it out to take everything but water and ions")
    return found


def check_region(
    topology: app.Topology, system: openmm.System | None, atoms: Sequence[int], *, model: Any = None
) -> None:
    """Refuse a region that mechanical embedding cannot treat, or that the model does not know.

    Args:
        topology: of the whole system, with its bonds.
        system: the force field's, before or after OpenMM-ML has taken the region's terms out of it; None, or one
            without particles, where it is not known: then only what the topology shows is checked.
        atoms: the region.
        model: the potential, for its charges; None leaves them unchecked.

    Raises:
        InputError: a bond between region and rest, a constraint or virtual site in the region, forces that cannot be
            taken apart, missing hydrogens, a total charge that the model was not trained on.
    """
    members = list(topology.atoms())
    region = set(atoms)
    known = system is not None and system.getNumParticles() == len(members)
    bonds = [(bond.atom1.index, bond.atom2.index) for bond in topology.bonds()]
    links = [*bonds, *(_links(system) if known else ())]
    for first, second in links:
        if (first in region) != (second in region):
            inside, outside = (first, second) if first in region else (second, first)
            raise InputError(
                f"{describe(members[inside])} of the ML region is bonded to {describe(members[outside])} outside it; "
                "take the whole molecule into the region: bonds cannot be cut, there are no link atoms here"
            )
    elements = getattr(model, "elements", None)
    if elements is None or HYDROGEN in elements:
        check_region_hydrogens(topology, atoms)
    if known:
        _check_system(system, members, region)
        charge = region_charge(system, atoms)
        if charge is not None and model is not None:
            check_charge(model, charge, f"the ML region of {len(region)} atoms, by the force field's charges,")


def check_region_hydrogens(topology: app.Topology, atoms: Sequence[int] | None = None) -> None:
    """Refuse residues of the region (None: all) without their hydrogens; see :func:`check_hydrogens`."""
    check_hydrogens(*_residues(topology, atoms))


def check_topology(topology: app.Topology, model: Any) -> None:
    """Refuse a topology without its hydrogens, or with a charge that its residues show and the model does not know.

    Only for a model of real atoms, all of them: one that knows hydrogen.

    Raises:
        InputError: see :func:`check_hydrogens` and :func:`check_charge`.
    """
    if HYDROGEN not in getattr(model, "elements", ()):
        return
    residues, bonds = _residues(topology)
    check_hydrogens(residues, bonds)
    charge = residue_charge(residues, bonds)
    if charge is not None:
        check_charge(model, charge, "the topology, by the hydrogens of its residues,")


def _residues(
    topology: app.Topology, atoms: Sequence[int] | None = None
) -> tuple[list[tuple[str, list[int]]], list[tuple[int, int]]]:
    """Label and atomic numbers of each residue (of ``atoms``, None: all), and the bonds, counted through these."""
    wanted = None if atoms is None else set(atoms)
    residues: list[tuple[str, list[int]]] = []
    places: dict[int, int] = {}
    for residue in topology.residues():
        mine = [atom for atom in residue.atoms() if wanted is None or atom.index in wanted]
        if mine:
            places |= {atom.index: len(places) + k for k, atom in enumerate(mine)}
            numbers = [0 if atom.element is None else int(atom.element.atomic_number) for atom in mine]
            residues.append((f"{residue.name} {residue.id}", numbers))
    pairs = ((bond.atom1.index, bond.atom2.index) for bond in topology.bonds())
    return residues, [(places[a], places[b]) for a, b in pairs if a in places and b in places]


def region_charge(system: openmm.System, atoms: Iterable[int]) -> int | None:
    """Total charge (e) of ``atoms`` by the force field; None if it has no charges.

    Raises:
        InputError: it is far from a whole number: the region is no set of whole molecules.
    """
    import openmm
    from openmm import unit

    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            charges = (force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge) for i in atoms)
            total = float(sum(charges))
            if abs(total - round(total)) > FRACTION:
                raise InputError(
                    f"the force field's charges of the ML region add up to {total:.3f} e; the region must be made of "
                    "whole molecules, whose charge is a whole number"
                )
            return round(total)
    return None


def constraints_inside(system: openmm.System, atoms: Iterable[int]) -> list[tuple[int, int]]:
    """Pairs of atoms of the region whose distance the system keeps fixed."""
    region = set(atoms)
    pairs = (system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints()))
    return [(i, j) for i, j in pairs if i in region and j in region]


def _links(system: openmm.System) -> Iterator[tuple[int, int]]:
    """Bonds and constraints of the system, which a topology without bonds would not show."""
    import openmm

    for force in system.getForces():
        if isinstance(force, openmm.HarmonicBondForce):
            for k in range(force.getNumBonds()):
                first, second = force.getBondParameters(k)[:2]
                yield first, second
    for k in range(system.getNumConstraints()):
        first, second = system.getConstraintParameters(k)[:2]
        yield first, second


def _check_system(system: openmm.System, members: Sequence[app.topology.Atom], region: set[int]) -> None:
    fixed = constraints_inside(system, region)
    if fixed:
        first, second = (describe(members[i]) for i in fixed[0])
        raise InputError(
            f"the distance between {first} and {second} of the ML region is constrained, and the model would work "
            f"against it ({len(fixed)} such pairs); make the force field's system with constraints=None (rigidWater "
            "may stay), or drop these constraints with remove_constraints=True"
        )
    for index in range(system.getNumParticles()):
        if not system.isVirtualSite(index):
            continue
        site = system.getVirtualSite(index)
        parents = [site.getParticle(k) for k in range(site.getNumParticles())]
        if index in region or region.intersection(parents):
            raise InputError(
                f"{describe(members[index])} is a virtual site in the ML region or on its atoms, of which the model "
                "knows nothing; use a force field without virtual sites for these residues"
            )
    for force in system.getForces():
        kind = type(force).__name__
        if kind == "DrudeForce":
            pairs = (force.getParticleParameters(k)[:2] for k in range(force.getNumParticles()))
            touched = next((pair for pair in pairs if region.intersection(pair)), None)
            if touched is not None:
                raise InputError(
                    f"{describe(members[touched[1]])} of the ML region carries a Drude particle, of which the model "
                    "knows nothing; use a force field with fixed charges for these residues"
                )
        elif kind in INSEPARABLE:
            raise InputError(
                f"the system has a {kind}, whose terms inside the ML region cannot be taken out; use a force field "
                "with bonds, angles, torsions and a NonbondedForce (Amber, CHARMM, OPLS)"
            )
