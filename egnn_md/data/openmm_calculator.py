"""OpenMM force fields as a reference method, through ASE's interface."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.units import KJ_PER_MOL_PER_EV

BOND_TOLERANCE = 1.25  # times the sum of covalent radii; hydrogen bonds of water start at twice that
CODE_TAGS = ("Script", "InitializationScript")


@dataclass(frozen=True)
class Molecules:
    """Connectivity guessed from distances.

    Attributes:
        members: atom indices of each molecule, in the order of the structure.
        bonds: pairs of atom indices.
        images: (N, 3) lattice steps that make every molecule whole.
    """

    members: list[list[int]]
    bonds: list[tuple[int, int]]
    images: np.ndarray


def find_molecules(atoms: Atoms) -> Molecules:
    """Molecules by covalent radii. Two hydrogens are never bonded (in hot water they come close).

    Raises:
        InputError: a molecule that is bonded to its own image.
    """
    radii = BOND_TOLERANCE * covalent_radii[atoms.numbers]
    first, second, steps = neighbor_list("ijS", atoms, radii)
    neighbours: list[list[tuple[int, np.ndarray]]] = [[] for _ in range(len(atoms))]
    numbers = atoms.numbers
    bonds: set[tuple[int, int]] = set()
    for i, j, step in zip(first.tolist(), second.tolist(), steps, strict=True):
        if numbers[i] == 1 and numbers[j] == 1:
            continue
        neighbours[i].append((j, step))
        bonds.add((min(i, j), max(i, j)))
    images = np.zeros((len(atoms), 3), dtype=int)
    seen = np.zeros(len(atoms), dtype=bool)
    members: list[list[int]] = []
    for start in range(len(atoms)):
        if seen[start]:
            continue
        seen[start] = True
        stack, molecule = [start], []
        while stack:
            i = stack.pop()
            molecule.append(i)
            for j, step in neighbours[i]:
                if not seen[j]:
                    seen[j] = True
                    images[j] = images[i] + step
                    stack.append(j)
                elif (images[j] != images[i] + step).any():
                    raise InputError(
                        f"atoms {i} and {j} belong to a molecule that is bonded to its own periodic image; "
                        "force fields of molecules cannot describe it"
                    )
        members.append(sorted(molecule))
    return Molecules(members, sorted(bonds), images)


def reduced_cell(cell: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """OpenMM's form of a lattice: lower triangular, positive diagonal, off-diagonals at most half of it.

    Args:
        cell: (3, 3) rows.

    Returns:
        ``rows`` (3, 3) spanning the turned lattice, and the rotation ``Q`` with ``x_turned = x @ Q.T``.
    """
    from ase.cell import Cell

    standard, rotation = Cell(cell).standard_form()
    rows = np.array(standard.array)
    for k in range(3):
        if rows[k, k] < 0:
            rows[k] *= -1
    rows[2] -= rows[1] * np.round(rows[2, 1] / rows[1, 1])
    rows[2] -= rows[0] * np.round(rows[2, 0] / rows[0, 0])
    rows[1] -= rows[0] * np.round(rows[1, 0] / rows[0, 0])
    return rows, np.array(rotation)


def refuse_code(path: str | Path) -> None:
    """Refuse a force-field file that carries Python code, which OpenMM would run.

    Raises:
        InputError: names the tag, or says that the file is no XML.
    """
    path = Path(path)
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise InputError(f"the force field {path} cannot be read: {error}") from error
    for tag in CODE_TAGS:
        if root.find(tag) is not None:
            raise InputError(f"the force field {path} holds Python code (<{tag}>), which is not run here")
    for include in root.iter("Include"):
        inner = path.parent / include.attrib.get("file", "")
        if inner.is_file():
            refuse_code(inner)


class OpenMMForceField(Calculator):
    """Energies (eV) and forces (eV/Å) of an OpenMM force field, with flexible water and no constraints.

    Periodic structures use particle-mesh Ewald, open ones all pairs. Bonded terms need whole molecules, so
    molecules that cross the boundary are put together first.

    Args:
        forcefield: XML files that come with OpenMM or lie on disk. One on disk that carries code is refused.
        topology: PDB file with the residues and bonds, its atoms in the order of the structure; None guesses
            molecules from distances, one residue each (water, ions, small molecules with a template).
        nonbonded_cutoff: Å; at most half the smallest height of a periodic cell, and by default 10 Å or that.
        platform: OpenMM platform.
        threads: of the CPU platform; by default what OMP_NUM_THREADS says, or one.

    Raises:
        MissingDependencyError: OpenMM is not installed.
        InputError: files that cannot be used.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]  # type: ignore[misc]

    def __init__(
        self,
        forcefield: str | Sequence[str] = ("amber14/tip3pfb.xml",),
        topology: str | None = None,
        nonbonded_cutoff: float | None = None,
        platform: str = "CPU",
        threads: int | None = None,
    ) -> None:
        super().__init__()
        try:
            from openmm import app
        except ImportError as error:
            raise MissingDependencyError(
                "the reference method openmm needs OpenMM: pip install 'egnn-md[openmm]'"
            ) from error
        files = [forcefield] if isinstance(forcefield, str) else list(forcefield)
        for file in files:
            if Path(file).is_file():
                refuse_code(file)
        try:
            self._forcefield = app.ForceField(*files)
        except Exception as error:
            raise InputError(f"OpenMM cannot use the force field {files}: {error}") from error
        self._pdb: Any = None
        if topology is not None:
            try:
                self._pdb = app.PDBFile(topology).topology
            except Exception as error:
                raise InputError(f"the topology {topology} cannot be read: {error}") from error
        self._cutoff = nonbonded_cutoff
        self._platform = platform
        self._threads = threads or int(os.environ.get("OMP_NUM_THREADS", "").split(",")[0] or 1)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: list[str] | None = None,
        system_changes: list[str] = all_changes,
    ) -> None:
        """One evaluation. The system is built anew: reference structures rarely repeat.

        Raises:
            InputError: a partly periodic cell, a molecule without a template, or a topology that differs.
        """
        import openmm
        from openmm import unit

        super().calculate(atoms, properties, system_changes)
        structure = self.atoms
        assert structure is not None
        periodic = bool(structure.pbc.all())
        if not periodic and bool(structure.pbc.any()):
            raise InputError(f"pbc = {structure.pbc.tolist()}: OpenMM knows full periodicity or none")
        molecules = find_molecules(structure)
        topology, order = self._topology(structure, molecules)
        positions = structure.positions + molecules.images @ structure.cell.array
        rotation = np.eye(3)
        if periodic:
            rows, rotation = reduced_cell(structure.cell.array)
            positions = positions @ rotation.T
            topology.setPeriodicBoxVectors(rows * 0.1 * unit.nanometer)
        system = self._system(topology, rows if periodic else None)
        integrator = openmm.VerletIntegrator(0.001)
        platform_options = {"Threads": str(self._threads)} if self._platform == "CPU" else {}
        platform = openmm.Platform.getPlatformByName(self._platform)
        context = openmm.Context(system, integrator, platform, platform_options)
        context.setPositions(positions[order] * 0.1)
        state = context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy().value_in_unit(unit.kilojoule_per_mole)
        forces = state.getForces(asNumpy=True).value_in_unit(unit.kilojoule_per_mole / unit.angstrom)
        unordered = np.empty_like(positions)
        unordered[order] = forces
        self.results = {
            "energy": energy / KJ_PER_MOL_PER_EV,
            "free_energy": energy / KJ_PER_MOL_PER_EV,
            "forces": unordered @ rotation / KJ_PER_MOL_PER_EV,
        }

    def _topology(self, atoms: Atoms, molecules: Molecules) -> tuple[Any, list[int]]:
        """OpenMM topology, and the structure's index of each of its atoms."""
        from openmm import app

        if self._pdb is not None:
            elements = [atom.element.atomic_number if atom.element else 0 for atom in self._pdb.atoms()]
            if elements != atoms.numbers.tolist():
                raise InputError(
                    f"the topology has {len(elements)} atoms, the structure {len(atoms)}, or their elements "
                    "differ in order; give the PDB file of this structure"
                )
            return self._pdb, list(range(len(atoms)))
        topology = app.Topology()
        chain = topology.addChain()
        order = [index for molecule in molecules.members for index in molecule]
        built: dict[int, Any] = {}
        for molecule in molecules.members:
            water = sorted(atoms.numbers[molecule].tolist()) == [1, 1, 8]
            residue = topology.addResidue("HOH" if water else "MOL", chain)
            for number, index in enumerate(molecule):
                symbol = atoms.symbols[index]
                element = app.Element.getBySymbol(symbol)
                built[index] = topology.addAtom(f"{symbol}{number}", element, residue)
        for i, j in molecules.bonds:
            topology.addBond(built[i], built[j])
        return topology, order

    def _system(self, topology: Any, rows: np.ndarray | None) -> Any:
        from openmm import app, unit

        options: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
        if rows is not None:
            half = 0.5 * float(np.diag(rows).min())
            cutoff = min(10.0, 0.98 * half) if self._cutoff is None else self._cutoff
            if cutoff > half:
                raise InputError(
                    f"nonbonded_cutoff = {cutoff} Å is more than half the cell ({half:.2f} Å); "
                    "make it smaller"
                )
            options = {
                "nonbondedMethod": app.PME,
                "nonbondedCutoff": cutoff * 0.1 * unit.nanometer,
                "ewaldErrorTolerance": 1e-5,
            }
        try:
            return self._forcefield.createSystem(
                topology, rigidWater=False, constraints=None, removeCMMotion=False, **options
            )
        except Exception as error:  # OpenMM raises plain exceptions and ValueErrors here
            raise InputError(f"the force field does not fit the structure: {error}") from error
