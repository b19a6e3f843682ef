"""The parts of a list with a skin: order, lengths, home cells, and a skin that is found while the system moves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from egnn_md.errors import InputError
from egnn_md.export.torchscript import script
from egnn_md.neighbors import VerletList, neighbor_list
from egnn_md.neighbors.skin import FRACTIONS, REBUILD_COST, SkinTuner, sort_order

CELL = torch.tensor([[9.0, 0, 0], [2.5, 8.5, 0], [-1.7, 1.8, 10.0]], dtype=torch.float64)
FULL = torch.ones(3, dtype=torch.bool)
SLAB = torch.tensor([True, True, False])
OPEN = torch.zeros(3, dtype=torch.bool)
CUTOFF = 4.0


def walk(steps: int, pbc: torch.Tensor, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Positions and cells: diffusion, an atom that runs through the boundary, cell changes, jumps there and back."""
    generator = torch.Generator().manual_seed(seed)
    positions, cell = torch.rand(40, 3, generator=generator, dtype=torch.float64) @ CELL, CELL
    positions[3] = 0.9 * CELL[0]
    frames = []
    for step in range(steps):
        positions = positions + 0.01 * torch.randn(40, 3, generator=generator, dtype=torch.float64)
        positions[3] += torch.tensor([0.06, 0.0, 0.0])
        if step % 7 == 6:
            strain = torch.eye(3, dtype=torch.float64)
            strain = strain + 0.004 * torch.randn(3, 3, generator=generator).double()
            cell, positions = cell @ strain, positions @ strain
        frames.append((positions.clone(), cell))
        if step % 10 == 9:  # a refused move of a barostat, or a line search
            frames += [(positions * 1.03, cell * 1.03), (positions.clone(), cell)]
    return frames


@pytest.mark.parametrize("skin", [0.0, 0.4, 1.6, "auto"])
@pytest.mark.parametrize("pbc", [FULL, SLAB, OPEN], ids=["full", "slab", "open"])
def test_the_same_pairs_as_a_fresh_list_at_every_step(pbc: torch.Tensor, skin: float | str) -> None:
    verlet = VerletList(CUTOFF, skin)
    frames = walk(60, pbc)
    for positions, cell in frames:
        edges, shifts = verlet.update(positions, cell, pbc)
        expected = neighbor_list(positions, cell, pbc, CUTOFF)
        assert torch.equal(edges, expected[0])
        assert torch.equal(shifts, expected[1])
    # without a skin a cell that grows keeps its list, since no pair comes closer
    least, most = (0.9, 1.0) if skin == 0.0 else (0.02, 0.8)
    assert least * len(frames) <= verlet.statistics.rebuilds <= most * len(frames)


def test_shifts_for_atoms_that_were_taken_home() -> None:
    """The same pair vectors, whatever cell an atom is put into, before and after it moves on."""
    verlet = VerletList(CUTOFF, 0.8)
    generator = torch.Generator().manual_seed(1)
    home = torch.zeros(40, 3, dtype=torch.float64)
    for index, (positions, cell) in enumerate(walk(30, FULL)):
        if index % 4 == 0:
            home = torch.randint(-3, 4, (40, 3), generator=generator).double()
        edges, shifts = verlet.update(positions, cell, FULL, home)
        near = positions - home @ cell
        pair = near[edges[0]] - near[edges[1]] + shifts @ cell
        fresh_edges, fresh_shifts = neighbor_list(positions, cell, FULL, CUTOFF)
        expected = positions[fresh_edges[0]] - positions[fresh_edges[1]] + fresh_shifts @ cell
        assert torch.equal(edges, fresh_edges)
        torch.testing.assert_close(pair, expected, rtol=0, atol=1e-11)
        assert verlet.nearest() == pytest.approx(float(expected.norm(dim=1).min()), abs=1e-11)
    assert verlet.statistics.rebuilds < 30


def test_another_number_of_atoms_and_a_bad_position_make_a_new_list() -> None:
    verlet = VerletList(CUTOFF, 1.0)
    positions = walk(1, FULL)[0][0]
    verlet.update(positions, CELL, FULL)
    assert verlet.update(positions[:20], CELL, FULL)[0].max() < 20
    broken = positions[:20].clone()
    broken[7, 1] = torch.nan
    for _ in range(2):
        with pytest.raises(InputError, match="atom 7"):
            verlet.update(broken, CELL, FULL)
    assert torch.equal(
        verlet.update(positions[:20], CELL, FULL)[0], neighbor_list(positions[:20], CELL, FULL, CUTOFF)[0]
    )


def test_shifts_come_in_the_type_that_was_asked_for() -> None:
    positions = walk(1, FULL)[0][0]
    edges, shifts = VerletList(CUTOFF, 0.5, dtype=torch.float32).update(positions, CELL, FULL)
    assert shifts.dtype == torch.float32
    assert torch.equal(shifts.double(), neighbor_list(positions, CELL, FULL, CUTOFF)[1])
    assert len(shifts) == edges.shape[1]


@pytest.mark.parametrize("largest", [50, 2**31], ids=["one key", "a sort a column"])
def test_order(largest: int) -> None:
    generator = torch.Generator().manual_seed(0)
    receivers, senders = torch.randint(0, 8, (2, 500), generator=generator)
    steps = torch.randint(-2, 3, (500, 3), generator=generator)
    receivers[0] = largest
    order = sort_order(receivers, senders, steps)
    keys = [steps[:, 2], steps[:, 1], steps[:, 0], senders, receivers]
    table = torch.stack([receivers, senders, *steps.unbind(1)], 1)
    assert torch.equal(table[order], table[torch.from_numpy(np.lexsort(keys))])
    assert sort_order(*torch.zeros(2, 0, dtype=torch.long), torch.zeros(0, 3)).shape == (0,)


@pytest.mark.parametrize("skin", [-0.1, float("nan"), float("inf"), "automatic"])
def test_impossible_skins(skin: float | str) -> None:
    with pytest.raises(InputError, match="skin"):
        VerletList(4.0, skin)


def uses_of(skin: float, pace: float) -> int:
    return max(1, int(pace * skin**1.5))


def cost_of(skin: float, pace: float) -> float:
    return (5 + skin) ** 3 * (1 + REBUILD_COST / uses_of(skin, pace))


@pytest.mark.parametrize("pace", [1, 10, 30, 100, 1000])
@pytest.mark.parametrize("scripted", [False, True])
def test_tuning_finds_the_cheapest_skin(pace: int, scripted: bool) -> None:
    tuner = SkinTuner(5.0)
    tuner = script(tuner) if scripted else tuner
    tried = []
    for _ in range(60):
        skin = tuner.skin
        tried.append(skin)
        pairs = int(280 * (5 + skin) ** 3)
        for _ in range(uses_of(skin, pace)):
            tuner.used(pairs)
        tuner.used_up(pairs)
    assert tuner.settled
    assert cost_of(tuner.skin, pace) == pytest.approx(min(cost_of(5 * f, pace) for f in FRACTIONS))
    assert len(set(tried)) > 1


def test_a_given_skin_is_never_changed_and_copies_are_independent() -> None:
    tuner = SkinTuner(5.0, 0.5)
    for _ in range(300):
        tuner.used(100)
        tuner.used_up(100)
    assert tuner.skin == 0.5
    verlet = VerletList(CUTOFF, "auto")
    for positions, cell in walk(20, FULL):
        verlet.update(positions, cell, FULL)
    twin = copy.deepcopy(verlet)
    positions = walk(1, FULL, seed=5)[0][0]
    before = verlet.statistics.rebuilds
    twin.update(positions, CELL, FULL)
    assert verlet.statistics.rebuilds == before
    assert verlet.tuned
    assert verlet.statistics.skin == verlet.skin > 0
