"""Messages between particles on the CPU; arguments as in :func:`egnn_md.kernels.plain.edge_messages`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from egnn_md.kernels.native.arrays import address, call, check_alike, check_senders, padded, rows, structure
from egnn_md.kernels.native.build import library
from egnn_md.kernels.native.maps import HEAD_FIELDS, MESSAGE_FIELDS, WeightGradients, addresses, head_maps, message_maps
from egnn_md.kernels.optional import there

_Input = structure(
    "EdgeInput",
    ("nodes", "edges", "width", "features", "normalize", "tanh"),
    ("row_start", "senders", "positions", "shifts", "a", "b", "edge_features", "geometry_map",
     *MESSAGE_FIELDS, *HEAD_FIELDS),
)  # fmt: skip
_Gradient = structure("EdgeGradient", (), ("positions", "shifts", "a", "b", "edge_features", "weights"))
NAMES = (
    "positions", "shifts", "a", "b", "edge_features", "geometry_map", "w2", "b2", "gate_w", "gate_b", "w3", "b3", "w4",
)  # fmt: skip
TENSORS = 13  # arguments before the edges themselves


class _Edges:
    """The arguments, padded, and kept alive while a kernel reads them."""

    def __init__(
        self, tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor, flags: Sequence[bool]
    ) -> None:
        _, shifts, _, _, edge_features, _, w2, b2, gate_w, gate_b, w3, b3, w4 = tensors
        positions, a, b, geometry_map = (there(tensors[place]) for place in (0, 2, 3, 5))
        self.hidden = a.shape[1]
        self.width = padded(self.hidden)
        self.features = 0 if edge_features is None else edge_features.shape[1]
        self.nodes, self.edges = positions.shape[0], senders.shape[0]
        self.dtype = positions.dtype
        self.kept: tuple[Tensor | None, ...] = (
            row_start.contiguous(),
            senders.to(torch.int64).contiguous(),
            positions.contiguous(),
            None if shifts is None else shifts.contiguous(),
            rows(a, self.width),
            rows(b, self.width),
            None if edge_features is None else edge_features.contiguous(),
            rows(geometry_map, self.width),
            *message_maps(there(w2), there(b2), gate_w, gate_b, self.width),
            *head_maps(there(w3), there(b3), there(w4), self.width),
        )
        numbers = (self.nodes, self.edges, self.width, self.features, *(int(flag) for flag in flags))
        self.input = _Input(*numbers, *addresses(self.kept))


    def check(self, tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor) -> None:
        """Refuse what the kernel would misread. Raises InputError."""
        hidden, features = self.hidden, self.features
        shapes = (
            (self.nodes, 3), (self.edges, 3), (self.nodes, hidden), (self.nodes, hidden), (self.edges, features),
            (1 + features, hidden), (hidden, hidden), (hidden,), (hidden,), (1,),
            (hidden, hidden), (hidden,), (hidden,),
        )  # fmt: skip
        check_alike("edge_messages", *zip(NAMES, tensors, shapes, strict=True))
        check_alike("edge_messages", ("row_start", row_start, (self.nodes + 1,)))
        check_alike("edge_messages", ("senders", senders, (self.edges,)))
        check_senders(senders, self.nodes)


def edge_forward(
    tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor, normalize: bool, tanh: bool
) -> tuple[Tensor, Tensor]:
    """Step (N, 3) and mean message (N, F); edges sorted by receiver, ``row_start`` (N + 1,) where each one's begin."""
    edges = _Edges(tensors, row_start, senders, (normalize, tanh))
    edges.check(tensors, row_start, senders)
    step = torch.empty(edges.nodes, 3, dtype=edges.dtype)
    pooled = torch.empty(edges.nodes, edges.width, dtype=edges.dtype)
    call(library(), "egnn_edge_forward", edges.dtype, edges.input, step, pooled)
    return step, _cut(pooled, edges.hidden)


def edge_backward(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    row_start: Tensor,
    senders: Tensor,
    normalize: bool,
    tanh: bool,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the tensors, None where ``needs`` says so or the argument is None."""
    edges = _Edges(tensors, row_start, senders, (normalize, tanh))
    positions, shifts, _, _, edge_features, *weights = tensors
    g_step, g_pooled = gradients[0].contiguous(), rows(gradients[1], edges.width)
    g_positions = torch.zeros_like(there(positions), memory_format=torch.contiguous_format)
    g_a = torch.zeros(edges.nodes, edges.width, dtype=edges.dtype)
    g_b = torch.zeros_like(g_a)
    g_shifts = torch.empty_like(shifts).contiguous() if shifts is not None and needs[1] else None
    g_features = torch.empty_like(edge_features).contiguous() if edge_features is not None and needs[4] else None
    sums: WeightGradients | None = None
    if any(needs[5:TENSORS]):
        width = edges.width
        size = (1 + edges.features) * width + WeightGradients.message_size(width) + WeightGradients.head_size(width)
        sums = WeightGradients(size, edges.hidden, width, edges.dtype)
    target = _Gradient(
        *(address(t) for t in (g_positions, g_shifts, g_a, g_b, g_features)), address(sums.sums if sums else None)
    )
    call(library(), "egnn_edge_backward", edges.dtype, edges.input, g_step, g_pooled, target)
    found: list[Tensor | None] = [g_positions, g_shifts, _cut(g_a, edges.hidden), _cut(g_b, edges.hidden), g_features]
    if sums is None:
        found += [None] * len(weights)
    else:
        found += [sums.take(1 + edges.features), *sums.take_message(), *sums.take_head()]
    return [
        value if need and given is not None else None for value, need, given in zip(found, needs, tensors, strict=True)
    ]


def _cut(values: Tensor, hidden: int) -> Tensor:
    return values if values.shape[1] == hidden else values[:, :hidden].contiguous()


assert ctypes.sizeof(ctypes.c_void_p) == 8  # the structures hold int64 and addresses side by side
