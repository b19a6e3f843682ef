"""Messages between particles and virtual nodes on the CPU; see :func:`egnn_md.kernels.plain.virtual_messages`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from egnn_md.kernels.native.arrays import address, call, check_alike, padded, rows, structure
from egnn_md.kernels.native.build import library
from egnn_md.kernels.native.maps import HEAD_FIELDS, MESSAGE_FIELDS, WeightGradients, addresses, head_maps, message_maps
from egnn_md.kernels.optional import there

_Input = structure(
    "VirtualInput",
    ("nodes", "graphs", "channels", "width", "tanh"),
    ("batch", "positions", "places", "is_open", "a", "of_virtual", "distance_map", *MESSAGE_FIELDS,
     *(f"step_{name}" for name in HEAD_FIELDS), *(f"place_{name}" for name in HEAD_FIELDS)),
)  # fmt: skip
NAMES = (
    "positions", "places", "is_open", "a", "of_virtual", "distance_map", "w2", "b2", "gate_w", "gate_b", "w3", "b3",
    "w4", "w5", "b5", "w6",
)  # fmt: skip
_Gradient = structure("VirtualGradient", (), ("positions", "a", "places", "of_virtual", "weights"))


class _Virtual:
    """The arguments, padded, and kept alive while a kernel reads them."""

    def __init__(self, tensors: Sequence[Tensor | None], batch: Tensor, tanh: bool) -> None:
        positions, places, is_open, a, of_virtual, distance_map = (there(t) for t in tensors[:6])
        w2, b2, gate_w, gate_b, w3, b3, w4, w5, b5, w6 = tensors[6:]
        self.hidden = a.shape[1]
        self.width = padded(self.hidden)
        self.nodes, self.dtype = positions.shape[0], positions.dtype
        self.graphs, self.channels = places.shape[0], places.shape[1]
        self.kept: tuple[Tensor | None, ...] = (
            batch.to(torch.int64).contiguous(),
            positions.contiguous(),
            places.contiguous(),
            is_open.contiguous(),
            rows(a, self.width),
            rows(of_virtual, self.width),
            rows(distance_map, self.width),
            *message_maps(there(w2), there(b2), gate_w, gate_b, self.width),
            *head_maps(there(w3), there(b3), there(w4), self.width),
            *head_maps(there(w5), there(b5), there(w6), self.width),
        )
        numbers = (self.nodes, self.graphs, self.channels, self.width, int(tanh))
        self.input = _Input(*numbers, *addresses(self.kept))

    def check(self, tensors: Sequence[Tensor | None], batch: Tensor) -> None:
        """Refuse what the kernel would misread; ``batch`` has been an index already. Raises InputError."""
        graphs, channels, hidden = self.graphs, self.channels, self.hidden
        head = ((hidden, hidden), (hidden,), (hidden,))
        shapes = (
            (self.nodes, 3), (graphs, channels, 3), (graphs,), (self.nodes, hidden), (graphs, channels, hidden),
            (hidden,), (hidden, hidden), (hidden,), (hidden,), (1,), *head, *head,
        )  # fmt: skip
        check_alike("virtual_messages", *zip(NAMES, tensors, shapes, strict=True))
        check_alike("virtual_messages", ("batch", batch, (self.nodes,)))

    def per_node(self, size: int) -> Tensor:
        """(G, C, size) float64 zeros that the threads' sums are added to."""
        return torch.zeros(self.graphs, self.channels, size, dtype=torch.float64)


def virtual_forward(
    tensors: Sequence[Tensor | None], batch: Tensor, tanh: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Steps (N, 3), mean messages (N, F), sums of the virtual nodes' steps (G, C, 3) and of the messages (G, C, F)."""
    given = _Virtual(tensors, batch, tanh)
    given.check(tensors, batch)
    step = torch.empty(given.nodes, 3, dtype=given.dtype)
    pooled = torch.empty(given.nodes, given.width, dtype=given.dtype)
    places, sums = given.per_node(3), given.per_node(given.width)
    call(library(), "egnn_virtual_forward", given.dtype, given.input, step, pooled, places, sums)
    cut = slice(0, given.hidden)
    return step, pooled[:, cut].contiguous(), places.to(given.dtype), sums[:, :, cut].to(given.dtype)


def virtual_backward(
    gradients: Sequence[Tensor], tensors: Sequence[Tensor | None], batch: Tensor, tanh: bool, needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of the tensors, None where ``needs`` says so or the argument is None."""
    given = _Virtual(tensors, batch, tanh)
    width, cut = given.width, slice(0, given.hidden)
    upstream = [
        gradients[0].contiguous(), rows(gradients[1], width), gradients[2].contiguous(), rows(gradients[3], width),
    ]  # fmt: skip
    g_positions = torch.zeros(given.nodes, 3, dtype=given.dtype)
    g_a = torch.zeros(given.nodes, width, dtype=given.dtype)
    g_places, g_of_virtual = given.per_node(3), given.per_node(width)
    sums: WeightGradients | None = None
    if any(needs[5:]):
        size = width + WeightGradients.message_size(width) + 2 * WeightGradients.head_size(width)
        sums = WeightGradients(size, given.hidden, width, given.dtype)
    target = _Gradient(
        *(address(t) for t in (g_positions, g_a, g_places, g_of_virtual, sums.sums if sums else None))
    )
    call(library(), "egnn_virtual_backward", given.dtype, given.input, *upstream, target)
    found: list[Tensor | None] = [
        g_positions,
        g_places.to(given.dtype),
        None,  # is_open is no variable
        g_a[:, cut].contiguous(),
        g_of_virtual[:, :, cut].to(given.dtype),
    ]
    if sums is None:
        found += [None] * (len(tensors) - len(found))
    else:
        found += [sums.take(1)[0], *sums.take_message(), *sums.take_head(), *sums.take_head()]
    return [
        value if need and tensor is not None else None
        for value, need, tensor in zip(found, needs, tensors, strict=True)
    ]
