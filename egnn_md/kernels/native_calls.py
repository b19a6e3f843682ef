"""The CPU kernels under the names and with the arguments of the operators (:mod:`egnn_md.kernels.ops`)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from egnn_md.kernels.native import smooth
from egnn_md.kernels.native.edges import edge_backward as edge_messages_backward
from egnn_md.kernels.native.edges import edge_forward as edge_messages_forward
from egnn_md.kernels.native.smooth import smooth_backward as smooth_messages_backward
from egnn_md.kernels.native.smooth import smooth_forward as smooth_messages_forward
from egnn_md.kernels.native.smooth import smooth_twice as smooth_messages_twice
from egnn_md.kernels.native.virtual import virtual_backward as virtual_messages_backward
from egnn_md.kernels.native.virtual import virtual_forward as virtual_messages_forward

__all__ = [
    "edge_messages_backward",
    "edge_messages_forward",
    "radial_functions_backward",
    "radial_functions_forward",
    "smooth_messages_backward",
    "smooth_messages_forward",
    "smooth_messages_twice",
    "virtual_messages_backward",
    "virtual_messages_forward",
]


def radial_functions_forward(tensors: Sequence[Tensor], basis: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """See :func:`egnn_md.kernels.plain.radial_functions`."""
    return smooth.radial_forward(tensors[0], basis, cutoff)


def radial_functions_backward(
    gradients: Sequence[Tensor], tensors: Sequence[Tensor], basis: int, cutoff: float, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Its gradient."""
    return [smooth.radial_backward(gradients[0], gradients[1], tensors[0], basis, cutoff) if needs[0] else None]
