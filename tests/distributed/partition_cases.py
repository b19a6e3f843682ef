"""Particles and graphs that the tests of partitions share."""

from __future__ import annotations

import numpy as np
import torch

from egnn_md.neighbors import neighbor_list

CUTOFF = 2.6  # Å; about 7 neighbours at the density below
DENSITY = 0.1  # particles per Å³
FULL = torch.ones(3, dtype=torch.bool)


def blob(count: int, seed: int = 0, stretch: tuple[float, float, float] = (1.0, 1.0, 1.0)) -> torch.Tensor:
    """A box of random particles at ``DENSITY``."""
    generator = torch.Generator().manual_seed(seed)
    side = (count / DENSITY / float(np.prod(stretch))) ** (1 / 3)
    return torch.rand(count, 3, generator=generator, dtype=torch.float64) * side * torch.tensor(stretch).double()


def graph_of(positions: torch.Tensor, cutoff: float = CUTOFF) -> torch.Tensor:
    return neighbor_list(positions, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool), cutoff)[0]


BLOB = blob(4000, stretch=(1.0, 1.3, 0.8))
EDGES = graph_of(BLOB)
