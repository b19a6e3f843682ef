"""The propagator's loss: by hand, by central differences through several strides, and its random parts."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from propagator_cases import model_config, small_model, toy_set
from torch import Tensor, nn

import egnn_md
from egnn_md.data.windows import WindowSet
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import Prediction, PropagatorConfig
from egnn_md.training.batches import WindowBatches, step_generator
from egnn_md.training.mmd import mmd_loss, sample_rows
from egnn_md.training.propagator_config import PropagatorLossSection, UnrollSection
from egnn_md.training.propagator_loss import stride_loss, unrolled_loss

EXACT = 1e-12  # float64, a handful of operations
DERIVATIVE = 1e-6  # relative; central differences of a smooth function at their best step


def batch(config: PropagatorConfig, unroll: int = 1, count: int = 3) -> ParticleGraph:
    windows = WindowSet(toy_set(2), config, unroll=unroll, dtype=torch.float64)
    return WindowBatches(windows, config).batch(range(count))


def test_loss_by_hand() -> None:
    config = model_config(species=(0, 1), static_species=(1,), cutoff=2.0, stride=2.0, frame_interval=1.0)
    zeros = torch.zeros(3, 3, dtype=torch.float64)
    graph = ParticleGraph(
        positions=zeros,
        species=torch.tensor([0, 1, 0]),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        cell_shifts=zeros[:0],
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        batch=torch.zeros(3, dtype=torch.long),
    )
    target = torch.tensor([[0.0, 0, 0], [9, 9, 9], [2, 0, 0]], dtype=torch.float64)
    speeds = torch.tensor([[0.0, 0, 0], [9, 9, 9], [0, 1, 0]], dtype=torch.float64)
    prediction = Prediction(
        torch.tensor([[3.0, 0, 0], [0, 0, 0], [2, 0, 1]], dtype=torch.float64),
        zeros,
        torch.tensor([[[0.0, 3.0], [0, 4], [0, 0]]], dtype=torch.float64),  # z_1 = 0, z_2 = (3, 4, 0)
    )
    settings = PropagatorLossSection(mmd=0.5, sigma=1.0, velocity=0.25, scale=2.0)
    parts = stride_loss(prediction, target, speeds, graph, config, settings)
    mse = (9 + 1) / 6  # two particles that can move, three components
    velocity = (1.0 * 2.0) ** 2 / 6

    def k(distance: float) -> float:
        return math.exp(-distance / 2)

    own = (2 * k(0) + 2 * k(5)) / 4
    across = [k(0), k(5), k(math.sqrt(243)), k(math.sqrt(36 + 25 + 81)), k(2), k(math.sqrt(1 + 16))]
    mmd = own - 2 * sum(across) / 6
    assert float(parts["mse"]) == pytest.approx(mse, rel=EXACT)
    assert float(parts["velocity_mse"]) == pytest.approx(velocity, rel=EXACT)
    assert float(parts["mmd"]) == pytest.approx(mmd, rel=EXACT)
    assert float(parts["loss"]) == pytest.approx((mse + 0.25 * velocity) / 4 + 0.5 * mmd, rel=EXACT)
    assert "mmd" not in stride_loss(prediction, target, speeds, graph, config, PropagatorLossSection())


@pytest.mark.parametrize(("kernel", "similarity"), [("published", math.exp(-3 / 8)), ("gaussian", math.exp(-9 / 8))])
def test_the_width_of_a_kernel_enters_as_twice_its_square(kernel: Any, similarity: float) -> None:
    """One virtual node 3 from one particle and on another, with sigma = 2: 1 - 2 (k(3) + 1) / 2 = -k(3)."""
    config = model_config()
    zeros = torch.zeros(2, 3, dtype=torch.float64)
    graph = ParticleGraph(
        positions=zeros,
        species=torch.zeros(2, dtype=torch.long),
        edge_index=torch.zeros(2, 0, dtype=torch.long),
        cell_shifts=zeros[:0],
        cell=torch.zeros(1, 3, 3, dtype=torch.float64),
        pbc=torch.zeros(1, 3, dtype=torch.bool),
        batch=torch.zeros(2, dtype=torch.long),
    )
    target = torch.tensor([[1.0, 2, 2], [0, 0, 0]], dtype=torch.float64)
    prediction = Prediction(target, zeros, torch.zeros(1, 3, 1, dtype=torch.float64))
    settings = PropagatorLossSection(mmd=1.0, sigma=2.0, kernel=kernel)
    found = stride_loss(prediction, target, zeros, graph, config, settings)
    assert float(found["loss"]) == pytest.approx(-similarity, rel=EXACT)


@pytest.mark.parametrize("cutoff", [None, 3.0])
def test_gradient_through_three_strides(cutoff: float | None) -> None:
    """Against central differences along random directions of all weights together, and of the positions."""
    model = small_model(cutoff=cutoff)
    settings = PropagatorLossSection(mmd=0.3, sigma=1.2, samples=2, velocity=0.5)
    graph = batch(model.config, unroll=3)
    generator = torch.Generator().manual_seed(1)
    weights = list(model.parameters())
    start = [w.detach().clone() for w in weights]
    positions = graph.positions.clone().requires_grad_(True)

    def loss(at: Tensor) -> Tensor:
        moved = ParticleGraph(**{**vars(graph), "positions": at})
        return unrolled_loss(model, moved, model.config, settings, 3, seed=4, step=7)["loss"]

    loss(positions).backward()
    step = 1e-5
    for _ in range(2):
        ways = [torch.randn(w.shape, generator=generator, dtype=torch.float64) for w in weights]
        shift = torch.randn(positions.shape, generator=generator, dtype=torch.float64)
        expected = sum(float((w.grad * d).sum()) for w, d in zip(weights, ways, strict=True) if w.grad is not None)
        expected += float((positions.grad * shift).sum())  # type: ignore[operator]
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, old, way in zip(weights, start, ways, strict=True):
                    weight.copy_(old + sign * step * way)
                values.append(float(loss(graph.positions + sign * step * shift)))
        assert (values[0] - values[1]) / (2 * step) == pytest.approx(expected, rel=DERIVATIVE)


def test_unrolled_is_the_mean_of_single_strides_fed_by_hand() -> None:
    model = small_model()
    settings = PropagatorLossSection(velocity=1.0)
    graph = batch(model.config, unroll=2)
    both = unrolled_loss(model, graph, model.config, settings, 2)
    first = model.predict(graph)
    again = ParticleGraph(**{**vars(graph), "positions": first.positions, "velocities": first.velocities})
    second = model.predict(again)
    expected = []
    for stride, prediction in enumerate((first, second)):
        error = prediction.positions - graph.labels["targets"][:, stride]
        expected.append(float((error.detach() ** 2).mean()))
    assert float(both["mse"]) == pytest.approx(sum(expected) / 2, rel=EXACT)
    assert float(unrolled_loss(model, graph, model.config, settings, 1)["mse"]) == pytest.approx(expected[0], rel=EXACT)


class _Straight(nn.Module):
    """Everything goes straight on; remembers how many edges it was given."""

    def __init__(self, config: PropagatorConfig) -> None:
        super().__init__()
        self.config = config
        self.edges: list[int] = []
        self.sums: list[int] = []

    def forward(self, positions: Tensor, velocities: Tensor, species: Tensor, edge_index: Tensor, *rest: Any) -> Any:
        self.edges.append(edge_index.shape[1])
        self.sums.append(int((edge_index[0] * 100 + edge_index[1]).sum()))
        return positions + self.config.stride * velocities, velocities, positions.new_zeros(1, 3, 1)


def test_every_stride_sees_the_edges_of_its_own_positions() -> None:
    config = model_config(cutoff=1.0, stride=0.1)
    windows = WindowSet(toy_set(1), config, unroll=3, dtype=torch.float64)
    graph = windows[0]
    count = graph.num_nodes
    line = torch.zeros(count, 3, dtype=torch.float64)
    line[:, 0] = 0.9 * torch.arange(count)
    apart = torch.zeros_like(line)
    apart[:, 0] = 2.0 * torch.arange(count)  # after one stride of 0.1 neighbours are 1.1 apart
    graph = ParticleGraph(**{**vars(graph), "positions": line, "velocities": apart})
    straight = _Straight(config)
    unrolled_loss(straight, graph, config, PropagatorLossSection(), 3)
    assert straight.edges[1:] == [0, 0]


def test_random_edges_are_drawn_anew_each_stride_and_repeat_with_the_step() -> None:
    config = model_config(drop="random", drop_fraction=0.5)
    graph = batch(config, unroll=3)
    runs = []
    for seed, step in ((0, 3), (0, 3), (0, 4), (1, 3)):
        straight = _Straight(config)
        unrolled_loss(straight, graph, config, PropagatorLossSection(), 3, seed=seed, step=step)
        assert straight.edges == [3 * 15] * 3  # half of 30 edges in each of three graphs
        runs.append(straight.sums[1:])
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert runs[0] != runs[3]
    assert runs[0][0] != runs[0][1]


def test_strides_grow_with_the_ramp() -> None:
    assert [UnrollSection(strides=3, ramp=6).at(step) for step in range(8)] == [1, 1, 2, 2, 3, 3, 3, 3]
    assert UnrollSection(strides=4).at(0) == 4


def test_samples_of_the_mmd() -> None:
    batch_of = torch.tensor([0] * 7 + [1] * 2 + [2] * 5)
    rows = sample_rows(batch_of, 3, 4, torch.Generator().manual_seed(0))
    assert torch.bincount(batch_of[rows]).tolist() == [4, 2, 4]
    assert len(set(rows.tolist())) == len(rows)
    again = sample_rows(batch_of, 3, 4, torch.Generator().manual_seed(0))
    assert torch.equal(rows, again)
    shuffled = torch.tensor([2, 0, 1, 0, 2, 1, 1])
    rows = sample_rows(shuffled, 3, 2, torch.Generator().manual_seed(1))
    assert torch.bincount(shuffled[rows]).tolist() == [2, 2, 2]


def test_every_row_is_drawn_as_often_as_the_others() -> None:
    batch_of = torch.tensor([0] * 5 + [1] * 10)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(15)
    draws = 600
    for _ in range(draws):
        counts[sample_rows(batch_of, 2, 2, generator)] += 1
    expected = torch.tensor([draws * 2 / 5] * 5 + [draws * 2 / 10] * 10)
    assert float(((counts - expected) / expected.sqrt()).abs().max()) < 4.5  # standard deviations


def test_sampled_mmd_is_the_whole_one_on_average() -> None:
    random = torch.Generator().manual_seed(0)
    virtual = torch.randn(2, 3, 3, generator=random, dtype=torch.float64)
    target = torch.randn(14, 3, generator=random, dtype=torch.float64)
    batch_of = torch.tensor([0] * 8 + [1] * 6)
    whole = float(egnn_md.mmd_loss(virtual, target, batch_of, sigma=1.5))
    assert egnn_md.mmd_loss is mmd_loss
    every = mmd_loss(virtual, target, batch_of, sigma=1.5, samples=8)
    assert float(every) == pytest.approx(whole, rel=EXACT)
    drawn = [
        float(mmd_loss(virtual, target, batch_of, sigma=1.5, samples=2, generator=step_generator(0, s, 3)))
        for s in range(300)
    ]
    assert np.std(drawn) > 0
    assert np.mean(drawn) == pytest.approx(whole, abs=5 * float(np.std(drawn)) / math.sqrt(300))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sigma": 0.0}, "sigma is 0"),
        ({"samples": 0}, "0 samples"),
        ({"kernel": "cubic"}, "unknown MMD kernel 'cubic'"),
    ],
)
def test_an_mmd_that_cannot_be(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        mmd_loss(torch.zeros(1, 3, 2), torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), **{"sigma": 1.0, **changes})


def test_no_mmd_without_virtual_nodes() -> None:
    with pytest.raises(InputError, match="no virtual nodes"):
        mmd_loss(torch.zeros(1, 3, 0), torch.zeros(4, 3), torch.zeros(4, dtype=torch.long), sigma=1.0)
