"""A fused function of features that are projected first: the projections are made again in the backward pass.

An operator keeps its arguments for the backward pass, and a projection ``h Wᵀ + w`` (N, F) of the features is as large
as they are. The features are kept anyway; here the projections are worked out a second time, which costs two products a
particle where each of its edges costs six, and saves three tensors of the size of the features a layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import linear

from egnn_md.kernels import ops

_BY_NAME = {fused.name: fused for fused in ops.ALL}


class _Projected(torch.autograd.Function):
    """Arguments: operator, places of the projections, features, their weights, their biases, other arguments."""

    @staticmethod
    def forward(ctx: Any, name: str, places: Sequence[int], features: Tensor, *rest: Any) -> Any:
        count = len(places)
        args = _filled(places, features, rest[:count], rest[count : 2 * count], rest[2 * count :])
        ctx.name, ctx.places = name, places
        given = (features, *rest)
        ctx.save_for_backward(*(value for value in given if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in given]
        return getattr(torch.ops.egnn_md, name)(*args)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        saved = iter(ctx.saved_tensors)
        features, *rest = [next(saved) if other is None else other[0] for other in ctx.others]
        count = len(ctx.places)
        weights, biases, others = rest[:count], rest[count : 2 * count], rest[2 * count :]
        args = _filled(ctx.places, features, weights, biases, others)
        variables = len(_BY_NAME[ctx.name].variables)
        first = 3 + 2 * count  # of ``others`` among the arguments of forward
        asked = ctx.needs_input_grad[first : first + variables]
        needs = [
            place in ctx.places or (need and value is not None)
            for place, (need, value) in enumerate(zip(asked, args[:variables], strict=True))
        ]
        found = ops.spread(getattr(torch.ops.egnn_md, f"{ctx.name}_backward")(*gradients, *args, needs), needs)
        projected = [found[place] for place in ctx.places]
        by_features = sum(g @ w for g, w in zip(projected, weights, strict=True))
        by_weights = [g.t() @ features for g in projected]
        by_biases = [None if b is None else g.sum(0) for g, b in zip(projected, biases, strict=True)]
        for place in ctx.places:
            found[place] = None
        rest_count = len(others) - variables
        return (None, None, by_features, *by_weights, *by_biases, *found, *(None for _ in range(rest_count)))


def _filled(
    places: Sequence[int],
    features: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    others: Sequence[Any],
) -> list[Any]:
    args = list(others)
    for place, weight, bias in zip(places, weights, biases, strict=True):
        args[place] = linear(features, weight, bias)
    return args


def projected(
    name: str,
    features: Tensor,
    projections: Sequence[tuple[int, Tensor, Tensor | None]],
    arguments: Sequence[Any],
) -> Any:
    """Call an operator with projections of the features in some of its places.

    Args:
        name: of the operator.
        features: (N, F).
        projections: place among the arguments, weight (F, F), bias (F,) or None.
        arguments: of the operator; None in the places of the projections.
    """
    places, weights, biases = zip(*projections, strict=True)
    return _Projected.apply(name, places, features, *weights, *biases, *arguments)
