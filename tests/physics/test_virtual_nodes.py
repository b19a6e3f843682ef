"""Virtual nodes in open systems: what flies away must not drag the rest with it."""

from __future__ import annotations

import pytest
import torch

from egnn_md.graph import ParticleGraph
from egnn_md.models import evaluate
from egnn_md.testing import random_potential

NEAR = 5.0  # Å
#: Saturated inputs leave less force the further atoms are apart; unbounded ones gave 1e2 to 1e5 eV/Å at 100 Å.
LARGEST = 1e-2  # eV/Å


def largest_force(scale: float, seed: int) -> float:
    """Of 20 atoms without any edge, spread normally with standard deviation ``scale`` (Å)."""
    generator = torch.Generator().manual_seed(seed)
    graph = ParticleGraph(
        positions=scale * torch.randn(20, 3, generator=generator, dtype=torch.float64),
        species=torch.tensor([1, 8]).repeat(10),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        cell_shifts=torch.zeros(0, 3, dtype=torch.float64),
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        batch=torch.zeros(20, dtype=torch.long),
    )
    return float(evaluate(random_potential(virtual_nodes=3, seed=seed), graph)["forces"].abs().max())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_forces_fade_when_atoms_fly_apart(seed: int) -> None:
    assert largest_force(NEAR, seed) > 0, "virtual nodes do act on atoms without neighbours"
    for scale in (100.0, 1000.0):
        assert largest_force(scale, seed) < LARGEST
