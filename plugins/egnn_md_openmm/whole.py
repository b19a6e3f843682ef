"""One molecule in a periodic box, for a network that was trained on molecules without images.

OpenMM's dynamics does not wrap positions, but files do, and so does its barostat for what it takes for a molecule.
Seen without a box, a molecule that was cut at the boundary would be torn apart. Here every atom is put next to the one
that it is bonded to; the energy is that of the open molecule wherever it lies, and smooth, as long as no bond comes
near half the box.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from collections import deque
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from egnn_md.errors import InputError


def bond_tree(atoms: Sequence[int], bonds: Iterable[tuple[int, int]]) -> list[int] | None:
    """For each of ``atoms`` the place (in ``atoms``) of the bonded atom nearer to the first one, which is its own.

    Args:
        atoms: particles of the region.
        bonds: pairs of particles; those with an end outside the region are left out.

    Returns:
        None if the bonds do not connect the region: more than one molecule, or a topology without bonds.
    """
    place = {atom: index for index, atom in enumerate(atoms)}
    bonded: list[list[int]] = [[] for _ in atoms]
    for first, second in bonds:
        if first in place and second in place:
            bonded[place[first]].append(place[second])
            bonded[place[second]].append(place[first])
    parents = [-1] * len(atoms)
    parents[0] = 0
    queue = deque([0])
    while queue:
        here = queue.popleft()
        for there in bonded[here]:
            if parents[there] < 0:
                parents[there] = here
                queue.append(there)
    return None if min(parents) < 0 else parents


def _jumps(parents: Sequence[int]) -> Tensor:
    """(K, M) int64: row k holds each atom's ancestor 2^k bonds up, the last row that of the deepest atom's root."""
    rows = [torch.tensor(list(parents))]
    while bool((rows[-1] != rows[-1][0]).any()):
        rows.append(rows[-1].index_select(0, rows[-1]))
    return torch.stack(rows)


class Whole(torch.nn.Module):
    """Positions (M, 3) of a molecule and a cell (3, 3), rows, to the positions of the whole molecule.

    Args:
        parents: of :func:`bond_tree`; atom 0, the root, stays where it is.

    The lattice vectors that are added are constants, so gradients pass unchanged.
    """

    jumps: Tensor

    def __init__(self, parents: Sequence[int]) -> None:
        super().__init__()
        if not parents or parents[0] != 0:
            raise InputError("`parents` must begin with the root, which is its own parent")
        self.register_buffer("jumps", _jumps(parents))

    def forward(self, x: Tensor, cell: Tensor) -> Tensor:
        """(M, 3), float64, in the units of ``x`` and ``cell``."""
        still = x.detach()
        pairs = still - still.index_select(0, self.jumps[0])
        steps = -torch.round(pairs @ torch.linalg.inv(cell))
        if not bool((steps != 0.0).any()):
            return x
        # sums along the way to the root, in strides of 1, 2, 4... bonds
        for k in range(self.jumps.size(0)):
            steps = steps + steps.index_select(0, self.jumps[k])
        return x + steps @ cell


class WholeArtefact(torch.nn.Module):
    """An artefact for open systems behind ``forward(positions, boxvectors)``: its atoms are made whole first.

    Args:
        region: module of an artefact that was exported with ``periodic=False``.
        parents: of :func:`bond_tree`, in the order of the artefact's atoms.
    """

    def __init__(self, region: torch.jit.ScriptModule, parents: Sequence[int]) -> None:
        super().__init__()
        self.region = region
        self.whole = Whole(parents)

    def forward(self, positions: Tensor, boxvectors: Tensor) -> Tensor:
        """Energy (scalar float64); both in the artefact's units."""
        problem = self.region.problem(positions, boxvectors)
        if len(problem) > 0:
            raise RuntimeError(problem)
        x = positions.to(torch.float64)
        atoms = self.region.atoms
        molecule = self.whole(x.index_select(0, atoms), boxvectors.detach().to(torch.float64))
        return self.region(x.index_copy(0, atoms, molecule))
