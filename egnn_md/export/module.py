"""The module that is scripted: a potential with its species, neighbour list and units baked in.

No ``from __future__ import annotations`` here: TorchScript reads the annotations themselves.
"""

from typing import List, Optional  # noqa: UP035

import torch
from torch import Tensor

from egnn_md.export.pairs import SkinPairs


def whole_cells(x: Tensor, cell: Tensor) -> Tensor:
    """(N, 3) whole numbers: the lattice vectors to take off positions (N, 3) that have left the cell (3, 3).

    The energy does not change, and float32 keeps its digits however far an atom diffuses. An atom up to half
    a cell outside stays, so that ordinary input keeps its exact coordinates.
    """
    return torch.trunc(x.detach() @ torch.linalg.inv(cell) - 0.5)


def far_origin(x: Tensor) -> Tensor:
    """(3,) what to take off an open system's positions (N, 3): zero unless its centre is far from the origin.

    A multiple of a power of two in Å, so that float32 coordinates lose nothing to the move.
    """
    return torch.round(x.detach().mean(dim=0) / 64.0) * 64.0


class _Exported(torch.nn.Module):
    """What the open and the periodic form share. Everything inside is Å and eV; the edge converts.

    Args:
        potential: follows the contract of :class:`egnn_md.models.Potential`, already in ``dtype``.
        species: (M,) int64, atomic numbers of the particles that the potential acts on.
        atoms: (M,) int64, their indices among all particles, or None if they are all particles.
        particles: number of particles that ``forward`` will be given.
        periodic: which of the two forms this is.
        length: Å in one length unit of the engine.
        energy: energy units of the engine in one eV.
        dtype: floating type that the potential computes in.
        skin: Å, of the neighbour list; negative for one that is found by itself.
    """

    atoms: Tensor
    batch: Tensor
    periodic: Tensor
    species: Tensor
    needs_cell: torch.jit.Final[bool]
    seal: str
    sealed: List[str]  # noqa: UP006

    def __init__(
        self,
        potential: torch.nn.Module,
        species: Tensor,
        atoms: Optional[Tensor],  # noqa: UP045 - the spelling TorchScript knows in every version
        particles: int,
        periodic: bool,
        length: float,
        energy: float,
        dtype: torch.dtype,
        skin: float,
    ) -> None:
        super().__init__()
        self.potential = potential
        self.needs_cell = bool(potential.needs_cell)
        self.neighbors = SkinPairs(float(potential.cutoff), skin, dtype)  # type: ignore[arg-type]
        self.seal = ""  # see egnn_md.export.seal
        self.sealed = [""]
        self.dtype = dtype
        self.length = length
        self.energy = energy
        self.particles = particles
        self.subset = atoms is not None
        self.register_buffer("species", species)
        self.register_buffer("atoms", torch.arange(len(species)) if atoms is None else atoms)
        self.register_buffer("batch", torch.zeros_like(species))
        self.register_buffer("periodic", torch.tensor([periodic]))

    def problem(self, positions: Tensor, cell: Tensor) -> str:
        """What is wrong with the input, or an empty string.

        ``forward`` itself has to raise it: an exception out of an inlined call, such as the neighbour list's,
        ends the process inside OpenMM's plugin (a stale pointer in PyTorch's call stack).
        """
        if positions.dim() != 2 or positions.size(0) != self.particles or positions.size(1) != 3:
            return (
                f"egnn_md: this artefact was exported for {self.particles} particles, positions must be "
                f"({self.particles}, 3) and not {positions.shape}"
            )
        # one number tells that all are finite; a sum that is not says nothing yet
        if not bool(torch.isfinite(positions.detach().sum())):
            finite = torch.isfinite(positions.detach().index_select(0, self.atoms)).all(dim=1)
            if not bool(finite.all()):
                particle = int(self.atoms[int((~finite).nonzero()[0, 0])])
                point = positions[particle]
                x, y, z = float(point[0]), float(point[1]), float(point[2])
                return f"egnn_md: the position of atom {particle} is not finite: [{x}, {y}, {z}]"
        if not bool(torch.linalg.det(cell.to(torch.float64)).abs() > 0.0):
            return "egnn_md: the box spans no volume or is not finite"
        return ""

    def select(self, positions: Tensor) -> Tensor:
        """(M, 3) float64, Å: the particles that the potential acts on; others get exactly zero force."""
        # double precision until the origin is near: a float32 coordinate far from it has lost its digits
        x = positions.to(torch.float64) * self.length
        if self.subset:
            x = x.index_select(0, self.atoms)
        return x

    def total(self, x: Tensor, near: Tensor, cell: Tensor, home: Tensor, repeat: bool) -> Tensor:
        """Scalar float64, engine's energy unit.

        Args:
            x: (M, 3) continuous positions, Å, float64.
            near: (M, 3) the same near the origin: ``x - home @ cell``, up to one translation of all.
            cell: (3, 3), Å, float64.
            home: (M, 3) whole numbers.
            repeat: whether there are periodic images.
        """
        edge_index, shifts = self.neighbors(x.detach(), cell, home, repeat)
        positions = near.to(self.dtype)
        if self.needs_cell:
            whole = cell.to(self.dtype).unsqueeze(0)
            energies = self.potential(
                positions, self.species, edge_index, shifts, self.batch, self.periodic, whole
            )
        else:
            energies = self.potential(positions, self.species, edge_index, shifts, self.batch, self.periodic)
        return energies.to(torch.float64).sum() * self.energy


class ExportedOpen(_Exported):
    """``forward(positions) -> energy`` for a system without periodic images."""

    def forward(self, positions: Tensor) -> Tensor:
        """Energy (scalar float64) of positions (particles, 3), both in the engine's units."""
        problem = self.problem(positions, torch.eye(3, device=positions.device))
        if len(problem) > 0:
            raise RuntimeError(problem)
        x = self.select(positions)
        cell = torch.zeros([3, 3], dtype=torch.float64, device=x.device)
        return self.total(x, x - far_origin(x), cell, torch.zeros_like(x.detach()), False)


class ExportedPeriodic(_Exported):
    """``forward(positions, boxvectors) -> energy``; the box is read at every call, so a barostat works."""

    def forward(self, positions: Tensor, boxvectors: Tensor) -> Tensor:
        """Energy (scalar float64) of positions (particles, 3) in the box (3, 3), rows, engine's units."""
        problem = self.problem(positions, boxvectors)
        if len(problem) > 0:
            raise RuntimeError(problem)
        x = self.select(positions)
        cell = boxvectors.detach().to(torch.float64) * self.length
        home = whole_cells(x, cell)
        return self.total(x, x - home @ cell, cell, home, True)
