"""A salt bridge pulled apart: capped lysine (+1) and aspartate (-1) in a large periodic cell.

The reference is a force field with fixed charges (ff14SB) and particle-mesh Ewald. GFN2-xTB cannot be asked: beyond
some 9 Å it moves charge from one ion to the other (its self-interaction error), so that its energy no longer falls
off as 1/r.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from ase import Atoms
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from egnn_md_systems.peptide.builder import Peptide, build
from egnn_md_systems.peptide.sampling import Run, force_field_trajectory, joined

FORCE_FIELD = "amber14/protein.ff14SB.xml"
CLOSEST = 2.2  # Å, between atoms of the two molecules
FURTHEST = 15.0  # Å, between the charged groups
EDGES = (34.0, 38.0)  # Å, of the cell
TEMPERATURE = 300.0
#: Of each molecule, the same in every set: what is asked for is the energy between the two, not within them.
CONFORMERS, CONFORMER_SEED = 6, 11


def molecules() -> tuple[Peptide, Peptide]:
    """ACE-LYS-NME with a charged side chain, and ACE-ASP-NME."""
    return build("K", states={0: "LYS"}), build("D", states={0: "ASP"})


def charged_atom(peptide: Peptide) -> int:
    """Index of the ammonium nitrogen or of the carboxylate carbon."""
    name = {"LYS": "NZ", "ASP": "CG"}[peptide.states[0]]
    return next(atom.index for atom in peptide.topology.atoms() if atom.name == name)


def conformers(peptide: Peptide, count: int, seed: int) -> list[np.ndarray]:
    """``count`` conformers (N, 3), Å, of one molecule in vacuum at 300 K: the same from the same positions and seed."""
    run = Run((peptide,), TEMPERATURE, perturb=False, seed=seed)
    return [atoms.positions for atoms in force_field_trajectory(run, count, stride_ps=0.5)]


def pair(
    first: np.ndarray, second: np.ndarray, ends: tuple[int, int], distance: float, rng: np.random.Generator
) -> np.ndarray | None:
    """Positions of both, turned at random, with atoms ``ends`` at ``distance`` (Å); None where they overlap."""
    a = Rotation.random(rng=rng).apply(first - first[ends[0]])
    b = Rotation.random(rng=rng).apply(second - second[ends[1]])
    direction = rng.normal(size=3)
    b = b + distance * direction / np.linalg.norm(direction)
    return None if cdist(a, b).min() < CLOSEST else np.concatenate([a, b])


def structures(count: int, seed: int, start: Path, *, nearest: float = 3.0) -> Iterator[Atoms]:
    """``count`` pairs whose charged groups are ``nearest`` to 15 Å apart, uniformly.

    Args:
        count: how many.
        seed: of distances, turns and cells.
        start: file of :func:`write_topology`, whose positions the dynamics starts from. A molecule built again has
            its hydrogens elsewhere, and a second call would not know what the first one labelled.
        nearest: Å.

    Yields:
        Atoms whose ``info`` holds ``distance`` and ``gap``, the smallest distance between atoms of the two (Å).
    """
    positive, negative = started(start)
    ends = (charged_atom(positive), charged_atom(negative))
    rng = np.random.default_rng(seed)
    shapes = [
        conformers(peptide, CONFORMERS, CONFORMER_SEED + index) for index, peptide in enumerate((positive, negative))
    ]
    numbers = np.concatenate([peptide.atoms().numbers for peptide in (positive, negative)])
    split = len(positive.positions)
    made = 0
    while made < count:
        distance = float(rng.uniform(nearest, FURTHEST))
        chosen = [shape[rng.integers(len(shape))] for shape in shapes]
        positions = pair(chosen[0], chosen[1], ends, distance, rng)
        if positions is None:
            continue
        atoms = Atoms(numbers, positions, cell=np.diag(rng.uniform(*EDGES, size=3)), pbc=True)
        atoms.positions += 0.5 * atoms.cell.lengths() - atoms.positions.mean(0)
        gap = float(cdist(positions[:split], positions[split:]).min())
        atoms.info.update(distance=round(distance, 4), gap=round(gap, 4), charge=0, seed=seed)
        made += 1
        yield atoms


def started(path: Path) -> tuple[Peptide, Peptide]:
    """:func:`molecules` with the positions of a file of :func:`write_topology`."""
    from openmm import app, unit

    positions = app.PDBFile(str(path)).getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    first, second = molecules()
    split = len(first.positions)
    return replace(first, positions=positions[:split]), replace(second, positions=positions[split:])


def write_topology(path: Path) -> None:
    """PDB of both molecules in the order of the structures, for the force field."""
    from openmm import app

    topology, positions = joined(molecules(), np.random.default_rng(0))
    with path.open("w", encoding="ascii") as file:
        app.PDBFile.writeFile(topology, positions, file)  # a PDB file has no unit but Å
