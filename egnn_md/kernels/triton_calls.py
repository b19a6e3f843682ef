"""The Triton kernels under the names and with the arguments of the operators (:mod:`egnn_md.kernels.ops`).

Importing this imports triton. Products of float32 are exact ("ieee") unless :func:`egnn_md.kernels.gpu_precision` asked
for tensor cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from egnn_md.kernels import precision, triton_edges, triton_radial, triton_smooth, triton_virtual

Optionals = Sequence[Tensor | None]
# called with the arguments of the operators' schemas one after the other, which mypy cannot count
_edge_forward: Any = triton_edges.edge_forward
_edge_backward: Any = triton_edges.edge_backward
_virtual_forward: Any = triton_virtual.virtual_forward
_virtual_backward: Any = triton_virtual.virtual_backward
_smooth_forward: Any = triton_smooth.smooth_forward
_smooth_backward: Any = triton_smooth.smooth_backward
_radial_forward: Any = triton_radial.radial_forward
_radial_backward: Any = triton_radial.radial_backward


def edge_messages_forward(
    tensors: Optionals, row_start: Tensor, senders: Tensor, normalize: bool, tanh: bool
) -> tuple[Tensor, Tensor]:
    """See :func:`egnn_md.kernels.plain.edge_messages`."""
    step, pooled = _edge_forward(*tensors, row_start, senders, normalize, tanh, precision.current())
    return step, pooled


def edge_messages_backward(
    gradients: Sequence[Tensor],
    tensors: Optionals,
    row_start: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Its gradients."""
    wanted = (any(needs[5:]), needs[4], needs[1])
    return list(
        _edge_backward(*gradients, *tensors, row_start, senders, normalize, tanh, *wanted, precision.current())
    )


def virtual_messages_forward(tensors: Optionals, batch: Tensor, tanh: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See :func:`egnn_md.kernels.plain.virtual_messages`."""
    step, pooled, places, sums = _virtual_forward(*tensors, batch, tanh, precision.current())
    return step, pooled, places, sums


def virtual_messages_backward(
    gradients: Sequence[Tensor], tensors: Optionals, batch: Tensor, tanh: bool, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Its gradients."""
    found = list(_virtual_backward(*gradients, *tensors, batch, tanh, any(needs[5:]), precision.current()))
    return [*found[:2], None, *found[2:]]  # is_open is no variable


def smooth_messages_forward(tensors: Optionals, row_start: Tensor, senders: Tensor) -> tuple[Tensor, Tensor]:
    """See :func:`egnn_md.kernels.plain.smooth_messages`."""
    step, pooled = _smooth_forward(*tensors, row_start, senders, precision.current())
    return step, pooled


def smooth_messages_backward(
    gradients: Sequence[Tensor], tensors: Optionals, row_start: Tensor, senders: Tensor, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Its gradients."""
    return list(_smooth_backward(*gradients, *tensors, row_start, senders, any(needs[5:]), precision.current()))


def radial_functions_forward(tensors: Optionals, basis: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """See :func:`egnn_md.kernels.plain.radial_functions`."""
    unit, radial = _radial_forward(tensors[0], basis, cutoff)
    return unit, radial


def radial_functions_backward(
    gradients: Sequence[Tensor], tensors: Optionals, basis: int, cutoff: float, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Its gradient."""
    return [_radial_backward(*gradients, tensors[0], basis, cutoff) if needs[0] else None]
