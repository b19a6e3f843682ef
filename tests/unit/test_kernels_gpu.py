"""The fused operators on a GPU against the plain functions in float64 on the CPU."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels import accelerate, gpu_precision
from egnn_md.kernels.precision import current
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
from tests.unit.kernel_cases import Case, derivatives, edge_case, radial_case, smooth_case, virtual_case

#: of the largest value: exact products, but an approximate exponential and sums in no fixed order
TOLERANCE = 1e-5
CASES = {
    "edges": lambda: edge_case(torch.float32),
    "edges-everything": lambda: edge_case(
        torch.float32, hidden=50, gate=True, tanh=True, normalize=True, shifts=True
    ),
    "virtual": lambda: virtual_case(torch.float32, nodes=3000),
    "virtual-graphs": lambda: virtual_case(torch.float32, nodes=3000, graphs=5, gate=True, periodic=(1,)),
    "smooth": lambda: smooth_case(torch.float32),
    "smooth-first": lambda: smooth_case(torch.float32, first=True),
    "radial": lambda: radial_case(torch.float32),
}


def _on_gpu(case: Case) -> list[list[Tensor]]:
    closed = case.fused.__closure__ or ()
    for cell in closed:  # the index tensors that the call was made with
        if isinstance(cell.cell_contents, Tensor):
            cell.cell_contents = cell.cell_contents.cuda()
    given = [None if t is None else t.cuda() for t in case.tensors]
    found = derivatives(lambda *t: case.fused(*t), given, torch.float32)
    return [[value.cpu() for value in group] for group in found]


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_operators_on_a_gpu(name: str) -> None:
    case = CASES[name]()
    expected = derivatives(case.plain, case.tensors, torch.float64)
    for ours, theirs in zip(_on_gpu(case), expected, strict=True):
        for value, reference in zip(ours, theirs, strict=True):
            if value.numel():
                assert float((value.double() - reference).abs().max()) <= TOLERANCE * float(reference.abs().max())


@pytest.mark.gpu
def test_network_on_a_gpu() -> None:
    torch.manual_seed(0)
    network = FastEGNN(FastEGNNConfig(node_features=2, edge_features=1))
    nodes, edges = 500, 4000
    receivers = torch.randint(0, nodes, (edges,)).sort().values
    inputs = (
        torch.randn(nodes, 2), torch.randn(nodes, 3), torch.randn(nodes, 3),
        torch.stack([receivers, (receivers + torch.randint(1, nodes, (edges,))) % nodes]),
        torch.zeros(nodes, dtype=torch.long), 1, torch.randn(edges, 1),
    )  # fmt: skip
    exact = (v.double() if isinstance(v, Tensor) and v.is_floating_point() else v for v in inputs)
    expected = copy.deepcopy(network).double()(*exact)
    fused = accelerate(copy.deepcopy(network).cuda(), "fused")
    found = fused(*(v.cuda() if isinstance(v, Tensor) else v for v in inputs))
    for value, reference in zip(found, expected, strict=True):
        assert float((value.cpu().double() - reference).abs().max()) <= TOLERANCE * float(reference.abs().max())


def test_precision_is_exact_unless_asked_for_and_comes_back() -> None:
    assert current() == "ieee"
    with gpu_precision("tf32"):
        assert current() == "tf32"
    assert current() == "ieee"
    with pytest.raises(InputError, match="ieee, tf32x3, tf32, bf16, not 'half'"), gpu_precision("half"):
        pass
