"""Where a cell's particles are at home: near the origin, where single precision knows them best."""

from __future__ import annotations

import numpy as np
import torch

from egnn_md.graph import check_cell


class Frame:
    """A cell with what follows from it, worked out again only where it changes.

    float32 holds 7 digits: an atom at 1,000 Å, where unwrapped diffusion takes it, would be known to 1e-4 Å. So the
    model gets positions near the origin; lattice translations of single atoms and one translation of all of them
    change no energy.
    """

    def __init__(self) -> None:
        self._given: tuple[bytes, bytes] = (b"", b"")
        self.cell = torch.zeros(3, 3, dtype=torch.float64)
        self.pbc = torch.zeros(3, dtype=torch.bool)
        self._inverse = self.cell

    def take(self, cell: np.ndarray, pbc: np.ndarray) -> None:
        """Cell (3, 3), Å, and flags (3,) of now. Raises InputError for a cell that is flat or not finite."""
        given = (cell.tobytes(), pbc.tobytes())
        if given == self._given:
            return
        flags = torch.from_numpy(np.array(pbc, dtype=bool))
        box = torch.from_numpy(np.array(cell, dtype=np.float64))
        box = torch.where(flags[:, None], box, torch.zeros_like(box))
        check_cell(box, flags)
        self.cell, self.pbc, self._given = box, flags, given
        # rows of open directions are zero; pinv then solves for the periodic components only
        self._inverse = torch.linalg.pinv(box)

    def home(self, positions: torch.Tensor) -> torch.Tensor | None:
        """(N, 3) whole numbers: the lattice vectors to take off atoms more than half a cell outside; None if open.

        An atom at the boundary stays where it is, so that its crossings change nothing.
        """
        if not bool(self.pbc.any()):
            return None
        # not a matrix product, whose rounding may depend on how many positions there are: the ranks of a split system
        # must agree where an atom at the boundary is at home
        inverse = self._inverse
        places = positions[:, :1] * inverse[0] + positions[:, 1:2] * inverse[1] + positions[:, 2:] * inverse[2]
        return torch.trunc(places - 0.5) * self.pbc
