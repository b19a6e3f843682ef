"""Random arguments of the fused functions, and the comparison of values, gradients and gradients of gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

import egnn_md.kernels.ops  # noqa: F401 - registers the operators
from egnn_md.kernels import plain
from egnn_md.nn.gradients import without_weights
from egnn_md.nn.segment import row_starts

#: Largest difference over largest value. float64: a few thousand sums of rounding 1e-16. float32: against the plain
#: function in float64, so that it is the fused one's own error; sums of a few hundred terms of rounding 6e-8.
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-6}
DTYPES = (torch.float64, torch.float32)
Outputs = Sequence[Tensor]


@dataclass(frozen=True)
class Case:
    """One call: tensors with a gradient (or None), the operator and its plain twin, which take the same tensors.

    The first ``inputs`` tensors are no weights.
    """

    tensors: list[Tensor | None]
    fused: Callable[..., Outputs]
    plain: Callable[..., Outputs]
    inputs: int = 5


class Draw:
    """Random tensors of one dtype from one seed."""

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        self.dtype, self.random = dtype, torch.Generator().manual_seed(seed)

    def __call__(self, *shape: int) -> Tensor:
        # drawn in float64: the same numbers, rounded, in both dtypes
        return torch.randn(*shape, generator=self.random, dtype=torch.float64).to(self.dtype)

    def square(self, size: int) -> Tensor:
        return self(size, size) / size**0.5

    def edges(self, nodes: int, edges: int) -> tuple[Tensor, Tensor]:
        """Sorted receivers, of which the last quarter of the particles has none, and senders."""
        receivers = torch.randint(0, max(3 * nodes // 4, 1), (edges,), generator=self.random).sort().values
        # nobody is its own neighbour, unless it is alone
        other = torch.randint(1, max(nodes, 2), (edges,), generator=self.random)
        return receivers, (receivers + other) % nodes


def starts(receivers: Tensor, nodes: int) -> Tensor:
    return row_starts(torch.bincount(receivers, minlength=nodes))


def edge_case(
    dtype: torch.dtype,
    nodes: int = 30,
    edges: int = 200,
    hidden: int = 64,
    features: int = 2,
    gate: bool = False,
    normalize: bool = False,
    tanh: bool = False,
    shifts: bool = False,
) -> Case:
    draw = Draw(dtype)
    receivers, senders = draw.edges(nodes, edges)
    tensors = [
        draw(nodes, 3), draw(edges, 3) if shifts else None, draw(nodes, hidden), draw(nodes, hidden),
        draw(edges, features) if features else None, 0.3 * draw(1 + features, hidden), draw.square(hidden),
        draw(hidden), draw(hidden) / hidden**0.5 if gate else None, draw(1) if gate else None,
        draw.square(hidden), draw(hidden), draw(hidden) / hidden**0.5,
    ]  # fmt: skip
    begin = starts(receivers, nodes)
    operator = torch.ops.egnn_md.edge_messages
    return Case(
        tensors,
        lambda *t: operator(*t, begin, senders, normalize, tanh),
        lambda *t: plain.edge_messages(*t, receivers, senders, normalize, tanh),
    )


def virtual_case(
    dtype: torch.dtype,
    nodes: int = 40,
    channels: int = 3,
    graphs: int = 1,
    hidden: int = 64,
    gate: bool = False,
    tanh: bool = False,
    periodic: tuple[int, ...] = (),
) -> Case:
    draw = Draw(dtype)
    batch = torch.randint(0, graphs, (nodes,), generator=draw.random)
    is_open = torch.ones(graphs, dtype=dtype)
    is_open[list(periodic)] = 0.0

    def head() -> list[Tensor]:
        return [draw.square(hidden), draw(hidden), draw(hidden) / hidden**0.5]

    tensors = [
        draw(nodes, 3), draw(graphs, channels, 3), draw(nodes, hidden), draw(graphs, channels, hidden), draw(hidden),
        draw.square(hidden), draw(hidden), draw(hidden) / hidden**0.5 if gate else None, draw(1) if gate else None,
        *head(), *head(),
    ]  # fmt: skip
    operator = torch.ops.egnn_md.virtual_messages

    def given(t: Sequence[Tensor]) -> list[Tensor]:
        return [t[0], t[1], is_open.to(t[0].dtype), *t[2:]]

    return Case(
        tensors,
        lambda *t: operator(*given(t), batch, tanh),
        lambda *t: plain.virtual_messages(*given(t), batch, tanh),
        inputs=4,
    )


def smooth_case(
    dtype: torch.dtype,
    nodes: int = 30,
    edges: int = 200,
    hidden: int = 64,
    basis: int = 8,
    vectors: int = 8,
    first: bool = False,
) -> Case:
    draw = Draw(dtype)
    receivers, senders = draw.edges(nodes, edges)
    tensors = [
        draw(edges, 3), draw(edges, basis), draw(nodes, hidden), draw(nodes, hidden),
        None if first else draw(nodes, 3, vectors), draw(basis, hidden), None if first else draw(3 * vectors, hidden),
        draw.square(hidden), draw(hidden), draw(basis, hidden), draw((1 if first else 2) * vectors, hidden),
    ]  # fmt: skip
    begin = starts(receivers, nodes)
    operator = torch.ops.egnn_md.smooth_messages
    return Case(
        tensors,
        lambda *t: operator(*t, begin, senders),
        lambda *t: plain.smooth_messages(*t, receivers, senders),
    )


def radial_case(dtype: torch.dtype, edges: int = 100, basis: int = 8, cutoff: float = 5.0) -> Case:
    draw = Draw(dtype)
    # all lengths from close contacts to beyond the cutoff
    direction = torch.nn.functional.normalize(draw(edges, 3), dim=1)
    pair = direction * torch.linspace(0.5, 1.1 * cutoff, edges, dtype=dtype).unsqueeze(1)
    operator = torch.ops.egnn_md.radial_functions
    return Case([pair], lambda x: operator(x, basis, cutoff), lambda x: plain.radial_functions(x, basis, cutoff))


def derivatives(
    function: Callable[..., Outputs], tensors: list[Tensor | None], dtype: torch.dtype, inputs: int | None = None
) -> list[Outputs]:
    """Values, gradients of a random scalar of them, gradients of a random scalar of those.

    With a number of ``inputs`` the first gradients are those of these, not of the weights, as when forces are trained.
    """
    xs = [None if t is None else t.detach().to(dtype).requires_grad_(True) for t in tensors]
    variables = [x for x in xs if x is not None]
    draw = Draw(torch.float64, seed=1)
    values = function(*xs)
    upstream = [draw(*value.shape).to(dtype).requires_grad_(True) for value in values]
    wanted = [x for x in xs[:inputs] if x is not None]
    with nullcontext() if inputs is None else without_weights():
        first = torch.autograd.grad(values, wanted, upstream, create_graph=True, materialize_grads=True)
    cotangents = [draw(*value.shape).to(dtype) for value in first]
    total = torch.stack([(c * g).sum() for c, g in zip(cotangents, first, strict=True)]).sum()
    second = torch.autograd.grad(total, [*upstream, *variables], materialize_grads=True)
    return [[value.detach() for value in group] for group in (values, first, second)]


def worst(case: Case, dtype: torch.dtype, forces: bool = False) -> list[float]:
    """Largest relative difference to the plain function in float64: of values, gradients, second gradients.

    What the plain function itself loses in ``dtype`` by rounding is taken off, twice: float32 has no more to give
    where a sum cancels.
    """
    rounded = [None if t is None else t.to(dtype) for t in case.tensors]
    found = derivatives(case.fused, rounded, dtype, case.inputs if forces else None)
    exact = derivatives(case.plain, rounded, torch.float64, case.inputs if forces else None)
    alike = derivatives(case.plain, rounded, dtype, case.inputs if forces else None)
    worst_of = []
    for ours, theirs, references in zip(found, alike, exact, strict=True):
        differences = [0.0]
        for value, twin, reference in zip(ours, theirs, references, strict=True):
            assert value.shape == reference.shape
            if value.numel():
                scale = float(reference.abs().max()) or 1.0
                lost = float((twin.double() - reference).abs().max())
                differences.append((float((value.double() - reference).abs().max()) - 2 * lost) / scale)
        worst_of.append(max(differences))
    return worst_of
