"""What a committee says about the atoms of one system, at any positions and besides any engine."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate
from egnn_md.models.committee import Spread, evaluate_spread, require_committee
from egnn_md.models.evaluate import check_elements
from egnn_md.neighbors import neighbor_list
from egnn_md.neighbors.frame import Frame


class SpreadEvaluator:
    """Positions and cell to :class:`egnn_md.models.committee.Spread`.

    It keeps nothing from one structure to the next, so what it says depends on the structure alone: a resumed run sees
    what the uninterrupted one saw.

    Args:
        committee: a :class:`egnn_md.models.CommitteePotential`; copied.
        numbers: (N) atomic numbers.
        pbc: (3) flags.
        device: ``cpu``, ``cuda``, ``cuda:1``...
        dtype: ``float32`` or ``float64`` of the networks.
        kernels: see :func:`egnn_md.kernels.accelerate`.

    Raises:
        InputError: a model that is no committee.
        UnknownElementError: an element that the members do not know.
    """

    def __init__(
        self,
        committee: Any,
        numbers: Sequence[int] | np.ndarray,
        pbc: Sequence[bool] | np.ndarray,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        kernels: str = "auto",
    ) -> None:
        self.dtype: torch.dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.device = torch.device(device)
        own = copy.deepcopy(require_committee(committee)).to(device=self.device, dtype=self.dtype)
        self.committee = accelerate(own.eval().requires_grad_(False), kernels)
        species = torch.as_tensor(np.array(numbers, dtype=np.int64))
        check_elements(self.committee, species)
        self._species = species.to(self.device)
        self._batch = torch.zeros_like(self._species)
        self._pbc = np.array(pbc, dtype=bool)
        self._frame = Frame()

    @property
    def members(self) -> int:
        """M."""
        return self.committee.count

    def __call__(self, positions: np.ndarray, cell: np.ndarray | None = None) -> Spread:
        """The spread at positions (N, 3) in the cell (3, 3), rows; Å. Its tensors are in main memory.

        Raises:
            InputError: positions that are not finite, or a flat cell.
        """
        x = torch.from_numpy(np.array(positions, dtype=np.float64))
        self._frame.take(np.zeros((3, 3)) if cell is None else np.asarray(cell, dtype=np.float64), self._pbc)
        box, pbc = self._frame.cell, self._frame.pbc
        home = self._frame.home(x)
        if home is not None:
            x = x - home @ box
        x = x - x.mean(dim=0)  # single precision knows places near the origin best
        edge_index, shifts = neighbor_list(x, box, pbc, self.committee.cutoff)
        graph = ParticleGraph(
            positions=x.to(self.device, self.dtype),
            species=self._species,
            edge_index=edge_index.to(self.device),
            cell_shifts=shifts.to(self.device, self.dtype),
            cell=box[None].to(self.device, self.dtype),
            pbc=pbc[None].to(self.device),
            batch=self._batch,
        )
        return evaluate_spread(self.committee, graph).cpu()
