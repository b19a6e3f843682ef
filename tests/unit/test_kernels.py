"""The fused operators against their plain twins: values, gradients, second gradients, every option."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch

from egnn_md.kernels import available
from tests.unit.kernel_cases import (
    DTYPES,
    TOLERANCE,
    Case,
    derivatives,
    edge_case,
    radial_case,
    smooth_case,
    starts,
    virtual_case,
    worst,
)

pytestmark = pytest.mark.skipif(not available(), reason="no C++ compiler: there are no fused kernels to test")

CASES = {
    "edges": edge_case,
    "edges-without-features": partial(edge_case, features=0),
    "edges-gate": partial(edge_case, gate=True),
    "edges-tanh": partial(edge_case, tanh=True),
    "edges-normalize": partial(edge_case, normalize=True),
    "edges-shifts": partial(edge_case, shifts=True),
    "edges-everything-odd-size": partial(
        edge_case, hidden=7, features=15, gate=True, tanh=True, normalize=True, shifts=True
    ),
    "edges-wide": partial(edge_case, hidden=90, gate=True),
    "edges-none": partial(edge_case, edges=0, shifts=True),
    "edges-one-particle": partial(edge_case, nodes=1, edges=3),
    "edges-one": partial(edge_case, nodes=2, edges=1),
    "virtual": virtual_case,
    "virtual-gate-tanh": partial(virtual_case, gate=True, tanh=True),
    "virtual-several-graphs": partial(virtual_case, graphs=5, channels=2),
    "virtual-periodic": partial(virtual_case, periodic=(0,)),
    "virtual-mixed": partial(virtual_case, graphs=3, periodic=(1,), hidden=20),
    "virtual-many-channels": partial(virtual_case, channels=60, hidden=10, graphs=2),
    "virtual-one-particle": partial(virtual_case, nodes=1, channels=1),
    "virtual-empty-graph": partial(virtual_case, nodes=3, graphs=9),
    "smooth": smooth_case,
    "smooth-first": partial(smooth_case, first=True),
    "smooth-odd-sizes": partial(smooth_case, hidden=7, basis=5, vectors=3),
    "smooth-published": partial(smooth_case, hidden=20, basis=12, vectors=1),
    "smooth-none": partial(smooth_case, edges=0),
    "smooth-first-none": partial(smooth_case, edges=0, first=True),
    "radial": radial_case,
    "radial-many": partial(radial_case, basis=20, cutoff=3.0),
    "radial-none": partial(radial_case, edges=0),
}


FORCE_CASES = [
    "smooth", "smooth-first", "smooth-odd-sizes", "smooth-published", "smooth-none", "edges-shifts", "virtual",
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FORCE_CASES)
def test_fused_equals_plain_when_trained_on_forces(name: str, dtype: torch.dtype) -> None:
    for order, difference in enumerate(worst(CASES[name](dtype), dtype, forces=True)):
        assert difference <= TOLERANCE[dtype] * (1 + 2 * order), f"derivatives of order {order}"


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_fused_equals_plain(name: str, dtype: torch.dtype) -> None:
    for order, difference in enumerate(worst(CASES[name](dtype), dtype)):
        # each order of differentiation multiplies the terms of a sum
        assert difference <= TOLERANCE[dtype] * (1 + 2 * order), f"derivatives of order {order}"


@pytest.mark.parametrize("make", [edge_case, smooth_case])
def test_rounding_does_not_grow_with_the_number_of_edges(make: Callable[..., Case]) -> None:
    values, gradients, _ = worst(make(torch.float32, nodes=300, edges=40000), torch.float32)
    # several panels and thousands of blocks: weights' gradients are sums of 40,000 terms
    assert values <= TOLERANCE[torch.float32]
    assert gradients <= 2 * TOLERANCE[torch.float32]


@pytest.mark.parametrize("name", ["edges-gate", "smooth", "virtual-mixed"])
def test_repeated_calls_give_the_same_bits(name: str) -> None:
    make = CASES[name]
    if name == "virtual-mixed":
        case = make(torch.float32, nodes=3000)
    else:
        case = make(torch.float32, nodes=200, edges=30000)
    once, again = (derivatives(case.fused, case.tensors, torch.float32)[:2] for _ in range(2))
    for first, second in zip(once, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("make", [edge_case, smooth_case])
def test_sums_over_edges_do_not_depend_on_the_number_of_threads(make: Callable[..., Case]) -> None:
    case = make(torch.float32, nodes=200, edges=30000)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            values, gradients, _ = derivatives(case.fused, case.tensors, torch.float32)
            found.append([*values, *gradients[:4]])  # weights' gradients are summed by thread
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("name", ["edges", "virtual", "smooth", "radial"])
def test_nothing_hides_a_value_that_is_not_a_number(name: str) -> None:
    case = CASES[name](torch.float32)
    given = [None if t is None else t.clone() for t in case.tensors]
    assert given[0] is not None
    given[0][0, 0] = torch.nan
    assert any(bool(torch.isnan(value).any()) for value in case.fused(*given))


def test_far_outside_the_range_of_the_exponential() -> None:
    case = edge_case(torch.float32, hidden=16)
    given = [None if t is None else t.clone() for t in case.tensors]
    assert given[2] is not None
    given[2] *= 1e4
    for ours, theirs in zip(case.fused(*given), case.plain(*given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_distance_of_zero_has_no_slope() -> None:
    case = virtual_case(torch.float64, nodes=4, channels=2)
    given = [None if t is None else t.clone() for t in case.tensors]
    assert given[0] is not None
    assert given[1] is not None
    given[0][1] = given[1][0, 0]  # a particle exactly at a virtual node
    for ours, theirs in zip(*(derivatives(f, given, torch.float64)[1] for f in (case.fused, case.plain)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)


def test_a_third_derivative_is_refused() -> None:
    case = radial_case(torch.float64)
    x = case.tensors[0]
    assert x is not None
    x = x.requires_grad_(True)
    (first,) = torch.autograd.grad(case.fused(x)[1].sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="second"):
        torch.autograd.grad(first.square().sum(), x, create_graph=True)


@pytest.mark.parametrize("name", ["edges-shifts", "virtual", "smooth", "radial"])
def test_operators_keep_the_rules_that_compiled_models_rely_on(name: str) -> None:
    recorded = []
    case = CASES[name](torch.float64)
    operator = getattr(torch.ops.egnn_md, {"edges-shifts": "edge_messages", "radial": "radial_functions"}.get(
        name, f"{name}_messages"
    )).default

    class Spy(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            if func is operator:
                recorded.append(args)
            return func(*args, **(kwargs or {}))

    with Spy():
        case.fused(*case.tensors)
    assert len(recorded) == 1
    torch.library.opcheck(operator, recorded[0], test_utils=("test_schema", "test_faketensor"))


def test_edges_out_of_order_would_be_wrong_and_row_starts_tell_where_each_receiver_begins() -> None:
    receivers = torch.tensor([0, 0, 2, 2, 2])
    assert starts(receivers, 4).tolist() == [0, 2, 2, 5, 5]


def test_other_dtypes_are_refused() -> None:
    from egnn_md.errors import InputError

    case = radial_case(torch.float64)
    with pytest.raises(InputError, match="float32 or float64"):
        case.fused(torch.ones(3, 3, dtype=torch.float16))
