"""Padding that changes nothing, and falling back where there is no CUDA; the captured graph itself needs a GPU."""

from __future__ import annotations

import warnings

import pytest
import torch

from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate
from egnn_md.models import FastEGNNPotential, LennardJones, PotentialConfig, evaluate
from egnn_md.models.cuda_graphs import CudaGraphEvaluator, CudaGraphWarning, pad_edges
from egnn_md.neighbors import neighbor_list

CELL = torch.tensor([[8.0, 0, 0], [1.0, 8.5, 0], [-1.0, 0.5, 9.0]], dtype=torch.float64)


def network(dtype: torch.dtype) -> FastEGNNPotential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FastEGNNPotential(PotentialConfig(elements=(1, 8), hidden=16, layers=2, vector_channels=2, cutoff=4.0))
    return model.to(dtype).eval().requires_grad_(False)


def structure(dtype: torch.dtype, seed: int = 0, device: str = "cpu") -> ParticleGraph:
    generator = torch.Generator().manual_seed(seed)
    positions = torch.rand(30, 3, generator=generator, dtype=torch.float64) @ CELL
    pbc = torch.ones(3, dtype=torch.bool)
    edge_index, cell_shifts = neighbor_list(positions, CELL, pbc, 4.0)
    species = torch.tensor([8, 1, 1] * 10)
    graph = ParticleGraph(
        positions=positions,
        species=species,
        edge_index=edge_index,
        cell_shifts=cell_shifts,
        cell=CELL[None],
        pbc=pbc[None],
        batch=torch.zeros_like(species),
    )
    return graph.to(device, dtype)


@pytest.mark.parametrize("path", ["plain", "auto"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_padded_edges_contribute_exactly_nothing(dtype: torch.dtype, path: str) -> None:
    model, graph = accelerate(network(dtype), path), structure(dtype)
    padded = CudaGraphEvaluator(model).padded(graph)
    assert padded.num_edges > 1.09 * graph.num_edges
    assert bool((padded.edge_index[0].diff() >= 0).all())
    found, expected = evaluate(model, padded), evaluate(model, graph)
    # sums of the same terms; blocks of another length may round them in another order
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found["energies"], expected["energies"], rtol=0, atol=tolerance)
    largest = float(expected["forces"].abs().max())
    assert largest > 0
    torch.testing.assert_close(found["forces"], expected["forces"], rtol=0, atol=tolerance * largest)


def test_padding_is_felt_if_it_is_too_near() -> None:
    """The check of the check: pairs within the cutoff at the padding's place change the energy."""
    model, graph = network(torch.float64), structure(torch.float64)
    shifts = graph.cell_shifts @ graph.cell[0]
    edges, near = pad_edges(graph.edge_index, shifts, graph.num_edges + 5, 30, 2.0)
    arguments = (graph.positions, graph.species)
    felt = model(*arguments, edges, near, graph.batch, graph.periodic).sum()
    assert abs(float(felt - evaluate(model, graph)["energy"])) > 1e-6


def test_nothing_to_pad() -> None:
    graph = structure(torch.float64)
    edges, shifts = pad_edges(graph.edge_index, graph.cell_shifts, graph.num_edges, 30, 400.0)
    assert torch.equal(edges, graph.edge_index)
    assert torch.equal(shifts, graph.cell_shifts)


def test_without_cuda_it_says_so_once_and_goes_on() -> None:
    model, graph = LennardJones(epsilon=0.01, sigma=2.0, cutoff=4.0), structure(torch.float64)
    evaluator = CudaGraphEvaluator(model)
    with pytest.warns(CudaGraphWarning, match="on cpu"):
        found = evaluator(graph)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = evaluator(graph)
    expected = evaluate(model, graph)
    for result in (found, again):
        assert torch.equal(result["energy"], expected["energy"])
        assert torch.equal(result["forces"], expected["forces"])
    assert not evaluator.captured
    assert "cpu" in evaluator.reason


@pytest.mark.gpu
@pytest.mark.parametrize("path", ["plain", "auto"])
def test_replay_equals_evaluation_while_edges_come_and_go(path: str) -> None:
    model = accelerate(network(torch.float32).to("cuda"), path)
    evaluator = CudaGraphEvaluator(model)
    for seed in range(6):
        graph = structure(torch.float32, seed, "cuda")
        found, expected = evaluator(graph), evaluate(model, graph)
        torch.testing.assert_close(found["energy"], expected["energy"], rtol=0, atol=1e-4)
        torch.testing.assert_close(found["forces"], expected["forces"], rtol=1e-4, atol=1e-5)
    assert evaluator.captured or evaluator.reason
    assert evaluator.captures <= 3
