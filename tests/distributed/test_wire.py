"""Collectives: their values, first and second gradients, what they count, and slow networks that are pretended."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist
from cases import owners, physics, potential, split, system
from ranks import on_ranks
from torch import Tensor, nn

from egnn_md.distributed.wire import Network, Wire, exchange, open_group, total
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph

SENT = torch.tensor([[1, 3, 0], [2, 0, 4], [0, 1, 0]])  # rows from rank (row) to rank (column)
SIZE = len(SENT)


def _rows(rank: int) -> Tensor:
    random = torch.Generator().manual_seed(rank)
    return torch.randn(int(SENT[rank].sum()), 2, generator=random, dtype=torch.float64)


def _loss(rank: int, received: Tensor, sums: Tensor) -> Tensor:
    """Another one on every rank, with third derivatives."""
    weights = torch.arange(1.0, 1.0 + received.numel()).double().reshape(received.shape)
    return (weights * received**3).sum() * (rank + 1) + (sums**3).sum() * (rank + 2) + (received * sums).sin().sum()


def _slopes(loss: Tensor, of: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """First gradient; gradients of functions of the first and of the second."""
    first = torch.autograd.grad(loss, of, create_graph=True)
    length = torch.stack([value.square().sum() for value in first]).sum()
    second = torch.autograd.grad(length, of, create_graph=True)
    third = torch.autograd.grad(torch.stack([value.square().sum() for value in second]).sum(), of)
    return list(first), list(second), list(third)


def test_gradients_of_exchange_and_total_are_those_of_one_process() -> None:
    def work(wire: Wire) -> tuple[Any, ...]:
        rows = _rows(wire.rank).requires_grad_(True)
        received = exchange(wire, rows, SENT[wire.rank].tolist(), SENT[:, wire.rank].tolist())
        sums = total(wire, rows.square().sum(0))
        slopes = _slopes(_loss(wire.rank, received, sums), [rows])
        return received, sums, *(slope[0] for slope in slopes)

    found = on_ranks(SIZE, work, limit=20.0)

    rows = [_rows(rank).requires_grad_(True) for rank in range(SIZE)]
    blocks = [value.split(SENT[rank].tolist()) for rank, value in enumerate(rows)]
    received = [torch.cat([blocks[sender][rank] for sender in range(SIZE)]) for rank in range(SIZE)]
    sums = torch.stack([value.square().sum(0) for value in rows]).sum(0)
    losses = [_loss(rank, received[rank], sums) for rank in range(SIZE)]
    slopes = _slopes(torch.stack(losses).sum(), rows)
    for rank in range(SIZE):
        assert torch.equal(found[rank][0], received[rank])
        assert torch.equal(found[rank][1], found[0][1]), "every rank gets the same bits"
        expected = [sums, *(slope[rank] for slope in slopes)]
        for ours, theirs in zip(found[rank][1:], (value.detach() for value in expected), strict=True):
            assert float(theirs.abs().max()) > 0.1
            torch.testing.assert_close(ours.detach(), theirs, rtol=1e-12, atol=1e-12 * float(theirs.abs().max()))


def test_a_group_of_one_passes_gradcheck() -> None:
    rows = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)

    def both(rows: Tensor) -> tuple[Tensor, Tensor]:
        return exchange(Wire(), rows**3, [4], [4]), total(Wire(), rows**3)

    assert torch.autograd.gradcheck(both, (rows,))
    assert torch.autograd.gradgradcheck(both, (rows,))
    before = rows.detach().clone()
    total(Wire(), rows)
    assert torch.equal(rows, before)


def test_inputs_stay_as_they_are() -> None:
    def work(wire: Wire) -> tuple[Tensor, Tensor]:
        values = torch.full((3,), float(wire.rank + 1))
        return wire.total(values), values

    for rank, (sums, values) in enumerate(on_ranks(3, work)):
        assert sums.tolist() == [6.0] * 3
        assert values.tolist() == [rank + 1.0] * 3


def test_words_without_gradient() -> None:
    def work(wire: Wire) -> tuple[Any, ...]:
        value = torch.tensor([wire.rank, 7])
        return (
            wire.broadcast(value.clone(), 1).tolist(),
            [v.tolist() for v in wire.gather(value, 2)],
            [v.tolist() for v in wire.everywhere(value)],
        )

    every = [[0, 7], [1, 7], [2, 7]]
    for rank, found in enumerate(on_ranks(3, work)):
        assert found == ([1, 7], every if rank == 2 else [], every)
    assert work(Wire()) == ([0, 7], [[0, 7]], [[0, 7]])


def test_traffic_counts_what_one_rank_sends() -> None:
    def work(wire: Wire) -> list[tuple[int, ...]]:
        counts = [tuple(vars(wire.traffic.copy()).values())]
        wire.exchange(_rows(wire.rank), SENT[wire.rank].tolist(), SENT[:, wire.rank].tolist())
        counts.append(tuple(vars(wire.traffic.copy()).values()))
        wire.total(torch.ones(6, dtype=torch.float64))
        counts.append(tuple(vars(wire.traffic.copy()).values()))
        return counts

    found = on_ranks(SIZE, work)
    # exchanges, reductions, messages, bytes; a ring of three passes each number 2 · 2/3 times
    assert found[1] == [(0, 0, 0, 0), (1, 0, 2, 6 * 16), (1, 1, 2 + 4, 6 * 16 + 64)]
    assert found[2] == [(0, 0, 0, 0), (1, 0, 1, 16), (1, 1, 1 + 4, 16 + 64)]


@pytest.mark.parametrize(
    ("network", "least"),
    [
        (Network(latency=0.02), 3 * (0.02 + 0.02 * (1 + 2))),  # a message of the exchange, two of the sum
        (Network(bandwidth=1e4), 3 * (0.02 + (800 + 800) / 1e4)),
        (Network(slowdown=3.0), 3 * 3.0 * 0.02),
        (Network(latency=0.01, bandwidth=2e4, slowdown=2.0), 3 * (0.03 + 0.08 + 2.0 * 0.02)),
    ],
)
def test_a_pretended_network_takes_its_time(network: Network, least: float) -> None:
    """Three times: 0.02 s of own work, 800 bytes to the other of two ranks, a sum of 100 doubles."""

    def work(wire: Wire) -> tuple[float, Tensor, Tensor]:
        wire.network = network
        rows = torch.arange(100).double() + wire.rank
        nobody = [0, 100] if wire.rank == 0 else [100, 0]
        begin = time.perf_counter()
        wire.start()
        for _ in range(3):
            time.sleep(0.02)
            received = wire.exchange(rows, nobody, nobody)
            sums = wire.total(rows)
        return time.perf_counter() - begin, received, sums

    for rank, (seconds, received, sums) in enumerate(on_ranks(2, work)):
        assert seconds >= least
        assert seconds < least + 1.0
        assert torch.equal(received, torch.arange(100).double() + 1 - rank)
        assert torch.equal(sums, 2 * torch.arange(100).double() + 1)


def test_work_after_the_last_collective_is_slowed_down_too() -> None:
    wire = Wire(network=Network(slowdown=3.0))
    begin = time.perf_counter()
    wire.start()
    time.sleep(0.02)
    wire.rest()
    assert time.perf_counter() - begin >= 0.06
    begin = time.perf_counter()
    time.sleep(0.02)  # no work of its own
    wire.total(torch.ones(1))
    assert time.perf_counter() - begin < 0.06


def test_a_pretended_network_changes_no_value() -> None:
    graph, owner = system("open"), owners(24, 2)

    def slow(model: nn.Module, piece: ParticleGraph, wire: Wire, own: Tensor) -> dict[str, Tensor]:
        wire.network = Network(latency=1e-3, bandwidth=1e8, slowdown=1.5)
        return physics(model, piece, wire, own)  # type: ignore[arg-type]

    found, expected = split(potential(), graph, owner, 2, slow), split(potential(), graph, owner, 2, physics)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "values",
    [
        {"latency": -1e-6},
        {"latency": math.nan},
        {"latency": math.inf},
        {"bandwidth": -1.0},
        {"bandwidth": math.nan},
        {"slowdown": 0.5},
        {"slowdown": math.nan},
        {"slowdown": math.inf},
    ],
)
def test_networks_that_cannot_be_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(InputError, match="latency >= 0, bandwidth >= 0 and slowdown >= 1"):
        Network(**values)


def test_groups_that_cannot_be_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    store = dist.HashStore()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match=r"NCCL needs CUDA devices.*use backend='gloo'"):
        open_group(store, 0, 1, backend="nccl")
    with pytest.raises(InputError, match="backend must be one of gloo, nccl, not 'mpi'"):
        open_group(store, 0, 1, backend="mpi")
    assert not dist.is_initialized()
