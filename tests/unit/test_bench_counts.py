"""Benchmarks: the published way gives the network's numbers, and the counted operations are those that torch does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from egnn_md.errors import InputError
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
from egnn_md_benchmarks.clouds import PAPER, Cloud, CloudSize, cloud_size, make_cloud
from egnn_md_benchmarks.counts import (
    STATED,
    Shape,
    bytes_moved,
    count,
    floors,
    linear_maps,
    matmul_flops,
    published_maps,
)
from egnn_md_benchmarks.published import PublishedFastEGNN
from egnn_md_benchmarks.workloads import Case, make_work

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "attention, tanh": {"attention": True, "tanh": True, "normalize": True},
    "gravity, attributes": {"gravity": (0.0, -1.0, 0.5), "node_attributes": 2, "residual": False},
    "one virtual node": {"virtual_nodes": 1},
    "none": {"virtual_nodes": 0},
}


def network_and_inputs(options: dict[str, Any], dtype: torch.dtype) -> tuple[FastEGNN, Cloud, dict[str, Any]]:
    torch.manual_seed(0)
    config = FastEGNNConfig(node_features=2, edge_features=2, hidden=16, layers=3, **options)
    network = FastEGNN(config).to(dtype)
    cloud = make_cloud(CloudSize("two", 40, 300, graphs=2), 1, dtype)
    inputs = cloud.inputs()
    if config.node_attributes:
        inputs["node_attributes"] = torch.rand(80, config.node_attributes, dtype=dtype)
    return network, cloud, inputs


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_published_way_gives_the_same_numbers(name: str, dtype: torch.dtype, tolerance: float) -> None:
    network, _, inputs = network_and_inputs(OPTIONS[name], dtype)
    expected = network(**inputs)
    for ours, theirs in zip(expected, PublishedFastEGNN(network)(**inputs), strict=True):
        assert float((ours - theirs).detach().abs().max() if ours.numel() else 0) <= tolerance * float(
            ours.detach().abs().max() if ours.numel() else 1
        )


def test_the_published_way_gives_the_same_gradients() -> None:
    network, cloud, inputs = network_and_inputs({}, torch.float64)

    def gradients(call: Callable[..., Any]) -> list[torch.Tensor | None]:
        network.zero_grad()
        positions, places, _ = call(**inputs)
        ((positions - cloud.target).pow(2).mean() + places.pow(2).sum()).backward()
        return [None if item.grad is None else item.grad.clone() for item in network.parameters()]

    ours, theirs = gradients(network), gradients(PublishedFastEGNN(network))
    assert sum(item is not None for item in ours) > 40
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def test_what_was_never_published_is_refused() -> None:
    with pytest.raises(InputError, match="radial-field"):
        PublishedFastEGNN(FastEGNN(FastEGNNConfig(node_features=1, messages="radial-field")))
    with pytest.raises(InputError, match="2 fields"):
        PublishedFastEGNN(FastEGNN(FastEGNNConfig(node_features=1, fields=2)))


class _Counter(TorchDispatchMode):
    """torch's own counts, where FlopCounterMode cannot be used: its hooks on modules forbid ``autograd.grad``."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in flop_registry:
            self.total += flop_registry[func._overloadpacket](*args, **(kwargs or {}), out_val=out)
        return out


def counted_by_torch(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("channels", [3, 1])
def test_operations_of_the_published_network_are_those_that_torch_counts(channels: int) -> None:
    work = make_work(Case("cloud-40:2", hidden=16, layers=3, virtual_nodes=channels))
    joined = published_maps(work.shape, joined=True)
    for quantity in ("forward", "step"):
        assert counted_by_torch(work.call("published", quantity)) == matmul_flops(joined, quantity)


def test_the_split_first_map_saves_what_the_formula_says() -> None:
    shape = Shape(nodes=855, edges=55_107, virtual=0)
    joined, split = (matmul_flops(published_maps(shape, joined=value)) for value in (True, False))
    assert joined - split == shape.layers * 4 * (shape.edges - shape.nodes) * shape.hidden**2
    with_virtual = Shape(nodes=855, edges=55_107)
    more = matmul_flops(published_maps(with_virtual, joined=True)) - matmul_flops(
        published_maps(with_virtual, joined=False)
    )
    n, c, f = 855, 3, 64
    # of (2F + 1 + C) F a message, F² once a particle, and F² + C F once a virtual node
    saved = 2 * n * c * (2 * f + 1 + c) * f - 2 * (n * f * f + c * f * f + c * c * f + n * c * f)
    assert more == joined - split + 4 * saved


def test_operations_of_the_potential_are_those_that_torch_counts() -> None:
    work = make_work(Case("water-24"))
    graph = work.graph  # type: ignore[union-attr]
    shifts = graph.shifts()

    def energy(positions: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = work.module(
            positions, graph.species, graph.edge_index, shifts, graph.batch, graph.periodic
        )
        return found.sum()

    maps = linear_maps(work.shape)
    assert counted_by_torch(lambda: energy(graph.positions)) == matmul_flops(maps)
    needed = [item for item in maps if item.needed]
    for quantity in ("forward", "forces", "step"):
        call = work.call("plain", quantity)
        with _Counter() as counter:
            call()
        # torch also multiplies shifts by the cell, and goes through what a periodic cell multiplies by zero
        assert 0.95 * counter.total < matmul_flops(needed, quantity) <= counter.total


@pytest.mark.parametrize("name", PAPER)
def test_counts_and_floors_of_the_paper_sizes_are_ordered(name: str) -> None:
    size = cloud_size(name)
    shape = Shape(nodes=size.nodes, edges=size.edges, weights=100_000)
    one, three = count(shape, "forward"), count(shape, "step")
    assert one["flops"] < one["joined"]
    assert 2.5 * one["flops"] < three["flops"] <= 3 * one["flops"]
    assert one["recompute"] == 0 < three["recompute"] < one["flops"]
    assert one["bytes"] <= one["gather"]
    found = floors(three, STATED)
    for peak in STATED:
        assert found[peak.name]["floor"] == max(three["flops"] / peak.flops, three["bytes"] / peak.bandwidth)


def test_bytes_of_a_tiny_case_by_hand() -> None:
    shape = Shape(nodes=2, edges=2, hidden=4, layers=1, virtual=0, edge_features=1, weights=10)
    pairs = 2 * (16 + 4)
    rows = 2 * (2 * (4 + 6) + 2 * 4) * 4
    assert bytes_moved(shape)["forward"] == {"once": pairs + rows + 40, "gather": pairs + rows + 40}
