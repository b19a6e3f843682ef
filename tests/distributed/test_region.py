"""Which particles a rank looks at for its neighbour lists: nobody who sends to an own one may be missing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from egnn_md.distributed.region import near
from egnn_md.neighbors import neighbor_list

CELL = torch.tensor([[14.0, 0.0, 0.0], [5.0, 12.0, 0.0], [-4.0, 3.0, 11.0]], dtype=torch.float64)
FLAGS = [(True, True, True), (True, True, False), (False, True, False), (False, False, False)]


def system(flags: tuple[bool, ...], seed: int, wander: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    pbc = torch.tensor(flags)
    places = rng.random((300, 3)) + rng.integers(-wander, wander + 1, (300, 3)) * np.array(flags)
    return torch.tensor(places) @ CELL, torch.where(pbc[:, None], CELL, torch.zeros_like(CELL)), pbc


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("wander", [0, 3])
def test_nobody_is_missing(flags: tuple[bool, ...], wander: int) -> None:
    reach = 2.0
    for seed in range(6):
        positions, cell, pbc = system(flags, seed, wander)
        places = positions @ torch.linalg.inv(CELL)
        # a corner that lies across the boundary, and one that does not
        corner = (places - 0.1 * seed) - torch.floor(places - 0.1 * seed) if any(flags) else places
        members = (corner < 0.45).all(1).nonzero().reshape(-1)
        found = near(positions, cell, pbc, members, reach)
        pairs, _ = neighbor_list(positions, cell, pbc, reach)
        needed = torch.unique(torch.cat([members, pairs[1][torch.isin(pairs[0], members)]]))
        assert bool(torch.isin(needed, found).all())
        assert bool((found[1:] > found[:-1]).all())
        assert len(found) < 250, "nobody was left out"


@pytest.mark.parametrize("flags", [(True, True, True), (False, False, False)])
def test_reach_is_exact(flags: tuple[bool, ...]) -> None:
    """A particle at the reach is in, one a little further out is not, on both sides and across the boundary."""
    pbc, cell = torch.tensor(flags), 20.0 * torch.eye(3, dtype=torch.float64) * torch.tensor(flags)[:, None]
    for place in (10.0, 1.0, 19.5):
        offsets = torch.tensor([0.0, -3.0, 3.0, -3.001, 3.001], dtype=torch.float64)
        positions = torch.zeros(5, 3, dtype=torch.float64)
        positions[:, 1] = place + offsets
        assert near(positions, cell, pbc, torch.tensor([0]), 3.0).tolist() == [0, 1, 2]


def test_single_precision_far_from_home() -> None:
    """Pairs are found in double; so must be those who are asked."""
    cell, pbc = 11.3 * torch.eye(3), torch.ones(3, dtype=torch.bool)
    for start in range(100):
        # multiples of 1/128 that float32 holds: the pair is 2 apart, exactly
        first = torch.tensor([20000.0 + 37 * start, 1.0, 1.0])
        for second in (first - torch.tensor([2.0, 0.0, 0.0]), first + torch.tensor([2.0, 0.0, 0.0])):
            positions = torch.stack([first, second])
            reach = 2.0 * (1 + 1e-9)  # the list itself rounds in double
            assert neighbor_list(positions, cell, pbc, reach)[0].shape[1] == 2
            assert near(positions, cell, pbc, torch.tensor([0]), reach).tolist() == [0, 1]


def test_no_members() -> None:
    positions, cell, pbc = system((True, True, True), 0)
    assert len(near(positions, cell, pbc, torch.zeros(0, dtype=torch.int64), 2.0)) == 0
