"""Structures that dynamics hardly visits and must not be drawn into: one atom of a frame out of its place.

Errors of forces near known minima do not tell whether another minimum lies too deep. A potential that does not know
what a proton costs at another base lets it go there, and has as small a force error as one that does.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from ase import Atoms
from ase.data import covalent_radii
from ase.neighborlist import neighbor_list

NEAR = 5.0  # Å, where the nearest neighbour is looked for
REACH = 3.5  # Å, of a hydrogen to the heavy atom that may take it
BONDED = 1.25  # times the sum of the covalent radii
COMPRESSED = (0.9, 0.8)  # of the distance to the nearest neighbour
STRETCHED = (1.3, 1.6, 2.0)
ROOM = 1.1  # Å, of a moved hydrogen to every atom but its new neighbour
SHORTEST = 0.5  # Å; below it no reference method is to be trusted


@dataclass(frozen=True)
class Distortion:
    """One atom moved.

    Attributes:
        kind: ``compressed`` or ``stretched`` (towards or away from its nearest neighbour), or ``moved`` (a hydrogen at
            another heavy atom).
        atom: its index.
        other: index of the atom that it was pushed to, pulled from, or given to.
        factor: of their distance; 0 for a moved hydrogen.
        position: (3,) Å, where it is now.
    """

    kind: str
    atom: int
    other: int
    factor: float
    position: np.ndarray

    def applied(self, atoms: Atoms) -> Atoms:
        """A copy of the frame with that atom there."""
        found: Atoms = atoms.copy()
        found.positions[self.atom] = self.position
        return found

    def words(self, atoms: Atoms) -> str:
        """For a reader."""
        symbols = atoms.get_chemical_symbols()
        one, other = f"{symbols[self.atom]} {self.atom}", f"{symbols[self.other]} {self.other}"
        if self.kind == "moved":
            return f"{one} moved to {other}"
        return f"{one} at {self.factor:g} times its distance from {other}"


def distortions(atoms: Atoms, rng: np.random.Generator) -> Iterator[Distortion]:
    """The three kinds in turn, each in random order until it has no more.

    Args:
        atoms: a frame; cells and periodic images count.
        rng: of the order.
    """
    queues = [iter(rng.permutation(np.array(kind, dtype=object))) for kind in _every(atoms) if kind]
    while queues:
        for queue in list(queues):
            found = next(queue, None)
            while found is not None and not _has_room(atoms, found):
                found = next(queue, None)
            if found is None:
                queues.remove(queue)
            else:
                yield found


def _every(atoms: Atoms) -> tuple[list[Distortion], list[Distortion], list[Distortion]]:
    first, second, lengths, vectors = neighbor_list("ijdD", atoms, NEAR)
    order = np.lexsort((second, lengths, first))
    first, second, lengths, vectors = first[order], second[order], lengths[order], vectors[order]
    nearest = {int(i): k for k, i in reversed(list(enumerate(first)))}
    hydrogens = atoms.numbers == 1
    # the lightest element moves: its vibrations are the widest
    light = atoms.numbers == atoms.numbers.min()
    compressed: list[Distortion] = []
    stretched: list[Distortion] = []
    for i, k in nearest.items():
        if not light[i]:
            continue
        for kind, factors, into in (("compressed", COMPRESSED, compressed), ("stretched", STRETCHED, stretched)):
            for factor in factors:
                place = atoms.positions[i] + (1 - factor) * vectors[k]
                if factor * lengths[k] > SHORTEST:
                    into.append(Distortion(kind, i, int(second[k]), factor, place))
    moved = []
    radii = covalent_radii[atoms.numbers]
    bonded = lengths < BONDED * (radii[first] + radii[second])
    partners = {(int(i), int(j)) for i, j in zip(first[bonded], second[bonded], strict=True)}
    for k, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        donor = int(second[nearest[i]])
        if not hydrogens[i] or hydrogens[j] or lengths[k] > REACH or j == donor or (donor, j) in partners:
            continue
        bond = radii[i] + radii[j]
        place = atoms.positions[i] + (1 - bond / lengths[k]) * vectors[k]
        moved.append(Distortion("moved", i, j, 0.0, place))
    return compressed, stretched, moved


def _has_room(atoms: Atoms, distortion: Distortion) -> bool:
    """False where the atom would sit on a third one, which would be another distortion."""
    others = [j for j in range(len(atoms)) if j not in (distortion.atom, distortion.other)]
    if distortion.kind == "compressed" or not others:
        return True
    moved = distortion.applied(atoms)
    return float(moved.get_distances(distortion.atom, others, mic=bool(atoms.pbc.any())).min()) > ROOM
