"""From all atoms to C-alpha beads: positions by choosing atoms, forces by the map with the least noise.

The potential of mean force F of the beads obeys, for a linear map R = M r of positions (Ciccotti, Kapral and
Vanden-Eijnden 2005, ChemPhysChem 6, 1809; Noid et al. 2008, J. Chem. Phys. 128, 244114),

    -∂F/∂R = ⟨ B f(r) ⟩_R    for every constant B with  B Mᵀ = 1,

and, where the dynamics holds bond lengths, for those B that do not notice the forces of the constraints: equal
coefficients for all atoms that constraints tie together (Krämer et al. 2023, J. Phys. Chem. Lett. 14, 3970). The beads
are atoms, so M picks one atom a bead, and the two conditions read: a bead's own C-alpha group (the carbon and its
hydrogens) counts once, the groups of the other C-alphas do not count, and every other group (a heavy atom with its
hydrogens) may have any coefficient. All these maps have the same mean. Their noise differs, and since ⟨B f⟩_R is
the same, the map with the smallest ⟨|B f|²⟩, or
⟨|B f - prior|²⟩, has the smallest noise: a linear least-squares problem a bead.

================================  =====================================================
symbol                            variable
================================  =====================================================
f_g: sum of forces of group g     ``grouped`` (frames, groups, 3), eV/Å
B_Ig                              ``coefficients`` (beads, groups)
F_I = Σ_g B_Ig f_g                :meth:`ForceMap.forces`
================================  =====================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

Array = NDArray[np.float64]
#: Ridge relative to the mean square of a group's force. It only matters where two groups cannot be told apart.
RIDGE = 1e-4


def constraint_groups(atoms: int, constraints: Iterable[tuple[int, int]]) -> NDArray[np.int64]:
    """Number of the group (atoms tied together by constraints) of every atom, (atoms,); numbers ascend from 0."""
    parent = list(range(atoms))

    def root(atom: int) -> int:
        while parent[atom] != atom:
            atom = parent[atom]
        return atom

    for first, second in constraints:
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    roots = np.array([root(atom) for atom in range(atoms)])
    return np.unique(roots, return_inverse=True)[1].astype(np.int64)


@dataclass(frozen=True)
class ForceMap:
    """A valid force map of beads that are atoms.

    Attributes:
        beads: (beads,) index of each bead's atom.
        groups: (atoms,) group of each atom, see :func:`constraint_groups`.
        coefficients: (beads, groups).
    """

    beads: NDArray[np.int64]
    groups: NDArray[np.int64]
    coefficients: Array

    def __post_init__(self) -> None:
        own = self.groups[self.beads]
        if len(set(own.tolist())) != len(own):
            raise InputError(f"constraints tie beads together (groups {own.tolist()}), so no force map exists")
        if not np.allclose(self.coefficients[:, own], np.eye(len(own)), rtol=0, atol=1e-9):
            raise InputError("the map counts a bead's own group other than once, or another bead's group at all")

    @property
    def by_atom(self) -> Array:
        """(beads, atoms) coefficients."""
        return self.coefficients[:, self.groups]

    def forces(self, forces: NDArray[np.floating]) -> Array:
        """(frames, beads, 3) from all atoms' forces without those of the constraints, (frames, atoms, 3)."""
        return np.asarray(np.einsum("ba,fad->fbd", self.by_atom, forces.astype(np.float64), optimize=True))


def basic_map(beads: Sequence[int] | NDArray[np.int64], groups: NDArray[np.int64]) -> ForceMap:
    """A bead's force is that on its own group: the simplest valid map and the noisiest."""
    chosen = np.asarray(beads, dtype=np.int64)
    return ForceMap(chosen, groups, np.eye(int(groups.max()) + 1)[groups[chosen]])


def residue_map(
    beads: Sequence[int] | NDArray[np.int64], groups: NDArray[np.int64], residues: NDArray[np.int64]
) -> ForceMap:
    """A bead's force is that on its whole residue; ``residues`` gives each atom's, and the first is that of bead 0."""
    chosen = np.asarray(beads, dtype=np.int64)
    coefficients = np.zeros((len(chosen), int(groups.max()) + 1))
    for bead, atom in enumerate(chosen):
        coefficients[bead, groups[residues == residues[atom]]] = 1.0
    return ForceMap(chosen, groups, coefficients)


def quietest_map(
    beads: Sequence[int] | NDArray[np.int64],
    groups: NDArray[np.int64],
    forces: NDArray[np.floating],
    known: NDArray[np.floating] | None = None,
) -> ForceMap:
    """The valid map with the smallest mean square of mapped forces, less a known part, on the given frames.

    Args:
        beads: index of each bead's atom.
        groups: of the atoms.
        forces: (frames, atoms, 3), eV/Å, without those of the constraints.
        known: (frames, beads, 3), eV/Å, any function of the beads' positions near their mean force, such as a
            prior's. It has no noise, so it does not move the optimum; it makes it come out of fewer frames.

    Raises:
        InputError: fewer force components than coefficients to fit.
    """
    chosen = np.asarray(beads, dtype=np.int64)
    count = int(groups.max()) + 1
    if 3 * len(forces) < 10 * count:
        raise InputError(f"{len(forces)} frames are too few for a force map with {count} coefficients a bead")
    membership = np.eye(count)[groups]
    gram, cross = np.zeros((count, count)), np.zeros((count, len(chosen)))
    for part in np.array_split(np.arange(len(forces)), max(1, len(forces) // 1000)):
        sums = np.einsum("fad,ag->fdg", forces[part].astype(np.float64), membership, optimize=True)
        grouped = sums.reshape(-1, count)
        gram += grouped.T @ grouped / (3 * len(forces))
        if known is not None:
            cross += grouped.T @ known[part].swapaxes(1, 2).reshape(-1, len(chosen)) / (3 * len(forces))
    own = groups[chosen]
    free = np.setdiff1d(np.arange(count), own)
    coefficients = np.eye(count)[own]
    matrix = gram[np.ix_(free, free)] + RIDGE * np.trace(gram) / count * np.eye(len(free))
    # d/dx ⟨|f_own + Σ x_g f_g - known|²⟩ = 0
    coefficients[:, free] = -np.linalg.solve(matrix, gram[np.ix_(free, own)] - cross[free]).T
    return ForceMap(chosen, groups, coefficients)
