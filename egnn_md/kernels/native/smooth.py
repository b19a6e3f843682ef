"""Messages of the smooth network on the CPU; see :func:`egnn_md.kernels.plain.smooth_messages`."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from egnn_md.kernels.native.arrays import address, call, check_alike, check_senders, padded, rows, structure
from egnn_md.kernels.native.build import library
from egnn_md.kernels.native.maps import MESSAGE_FIELDS, WeightGradients, addresses, message_maps
from egnn_md.kernels.optional import there

_Input = structure(
    "SmoothInput",
    ("nodes", "edges", "width", "basis", "vectors", "first", "inputs", "radials", "weights"),
    ("row_start", "senders", "unit", "radial", "a", "b", "node_vectors", "input_map", "input_map_t",
     *MESSAGE_FIELDS, "filter", "filter_t", "vector_map", "vector_map_t"),
)  # fmt: skip
_Gradient = structure("SmoothGradient", (), ("unit", "radial", "a", "b", "node_vectors", "weights"))
_Tangent = structure("SmoothTangent", (), ("unit", "radial", "a", "b", "node_vectors"))
_Second = structure("SmoothSecond", (), ("step", "pooled", "unit", "radial", "a", "b", "node_vectors", "weights"))
NAMES = (
    "unit", "radial", "a", "b", "vectors", "radial_map", "geometry_map", "w2", "b2", "filter_map", "vector_map",
)  # fmt: skip
TENSORS = 11  # arguments before the edges themselves


class _Smooth:
    """The arguments, padded, and kept alive while a kernel reads them."""

    def __init__(self, tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor) -> None:
        unit, radial, a, b, vectors, radial_map, geometry_map, *rest = tensors
        w2, b2, filter_map, vector_map = (there(t) for t in rest)
        self.unit, self.radial = there(unit).contiguous(), there(radial).contiguous()
        a, b, radial_map = there(a), there(b), there(radial_map)
        self.hidden, self.basis, self.dtype = a.shape[1], radial_map.shape[0], a.dtype
        self.width = padded(self.hidden)
        self.first = vectors is None
        self.channels = vector_map.shape[0] if vectors is None else vectors.shape[2]
        self.depth = self.basis + (0 if geometry_map is None else geometry_map.shape[0])
        self.inputs, self.weights = padded(self.depth), padded(vector_map.shape[0])
        self.nodes = a.shape[0]
        self.vectors = None if vectors is None else vectors.contiguous()
        whole = radial_map if geometry_map is None else torch.cat([radial_map, geometry_map])
        input_map = pad(rows(whole, self.width), (0, 0, 0, self.inputs - self.depth)).contiguous()
        filters = rows(filter_map, self.width)
        directions = pad(rows(vector_map, self.width), (0, 0, 0, self.weights - vector_map.shape[0])).contiguous()
        self.kept: tuple[Tensor | None, ...] = (
            row_start.contiguous(),
            senders.to(torch.int64).contiguous(),
            self.unit,
            self.radial,
            rows(a, self.width),
            rows(b, self.width),
            self.vectors,
            input_map,
            input_map.t().contiguous(),
            *message_maps(w2, b2, None, None, self.width),
            filters,
            pad(filters.t(), (0, padded(self.basis) - self.basis)).contiguous(),
            directions,
            directions.t().contiguous(),
        )
        counts = (self.nodes, senders.shape[0], self.width, self.basis, self.channels, int(self.first))
        self.input = _Input(*counts, self.inputs, padded(self.basis), self.weights, *addresses(self.kept))


    def check(self, tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor) -> None:
        """Refuse what the kernel would misread. Raises InputError."""
        nodes, edges, hidden, channels = self.nodes, senders.shape[0], self.hidden, self.channels
        shapes = (
            (edges, 3), (edges, self.basis), (nodes, hidden), (nodes, hidden), (nodes, 3, channels),
            (self.basis, hidden), (3 * channels, hidden), (hidden, hidden), (hidden,), (self.basis, hidden),
            ((1 if self.first else 2) * channels, hidden),
        )  # fmt: skip
        check_alike("smooth_messages", *zip(NAMES, tensors, shapes, strict=True))
        check_alike("smooth_messages", ("row_start", row_start, (nodes + 1,)))
        check_alike("smooth_messages", ("senders", senders, (edges,)))
        check_senders(senders, nodes)

    def weight_gradients(self) -> WeightGradients:
        """Room for the gradients of all weights."""
        size = (self.inputs + self.basis + self.weights) * self.width + WeightGradients.message_size(self.width)
        return WeightGradients(size, self.hidden, self.width, self.dtype)

    def split(self, sums: WeightGradients) -> list[Tensor | None]:
        """Those of radial_map, geometry_map, w2, b2, filter_map, vector_map."""
        inputs = sums.take(self.inputs)
        w2, b2, _, _ = sums.take_message()
        geometry = None if self.first else inputs[self.basis : self.depth]
        filters, directions = sums.take(self.basis), sums.take(self.weights)
        count = self.channels if self.first else 2 * self.channels
        return [inputs[: self.basis], geometry, w2, b2, filters, directions[:count]]


def smooth_forward(tensors: Sequence[Tensor | None], row_start: Tensor, senders: Tensor) -> tuple[Tensor, Tensor]:
    """Vector steps (N, 3, K) and messages (N, F), sums; edges sorted by receiver."""
    given = _Smooth(tensors, row_start, senders)
    given.check(tensors, row_start, senders)
    step = torch.empty(given.nodes, 3, given.channels, dtype=given.dtype)
    pooled = torch.empty(given.nodes, given.width, dtype=given.dtype)
    call(library(), "egnn_smooth_forward", given.dtype, given.input, step, pooled)
    return step, pooled[:, : given.hidden].contiguous()


def smooth_backward(
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    row_start: Tensor,
    senders: Tensor,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """Gradients of the tensors, None where ``needs`` says so or the argument is None."""
    given = _Smooth(tensors, row_start, senders)
    width, cut = given.width, slice(0, given.hidden)
    g_step, g_pooled = gradients[0].contiguous(), rows(gradients[1], width)
    g_unit, g_radial = torch.empty_like(given.unit), torch.empty_like(given.radial)
    g_a = torch.zeros(given.nodes, width, dtype=given.dtype)
    g_b = torch.zeros_like(g_a)
    g_vectors = None if given.vectors is None else torch.zeros_like(given.vectors)
    sums = given.weight_gradients() if any(needs[5:]) else None
    target = _Gradient(
        *(address(t) for t in (g_unit, g_radial, g_a, g_b, g_vectors, sums.sums if sums else None))
    )
    call(library(), "egnn_smooth_backward", given.dtype, given.input, g_step, g_pooled, target)
    found: list[Tensor | None] = [g_unit, g_radial, g_a[:, cut].contiguous(), g_b[:, cut].contiguous(), g_vectors]
    found += [None] * (TENSORS - len(found)) if sums is None else given.split(sums)
    return [
        value if need and tensor is not None else None
        for value, need, tensor in zip(found, needs, tensors, strict=True)
    ]


def smooth_twice(
    cotangents: Sequence[Tensor | None],
    gradients: Sequence[Tensor],
    tensors: Sequence[Tensor | None],
    row_start: Tensor,
    senders: Tensor,
) -> list[Tensor | None]:
    """Gradient of Σ c · G, G of :func:`smooth_backward`: by both ``gradients``, then by every tensor.

    ``cotangents`` of the weights must be None.
    """
    given = _Smooth(tensors, row_start, senders)
    width, cut = given.width, slice(0, given.hidden)
    unit, radial, a, b, vectors = (
        torch.zeros_like(there(t)) if c is None and t is not None else c
        for c, t in zip(cotangents[:5], tensors[:5], strict=True)
    )
    kept = (
        there(unit).contiguous(),
        there(radial).contiguous(),
        rows(there(a), width),
        rows(there(b), width),
        None if vectors is None else vectors.contiguous(),
    )
    g_step, g_pooled = gradients[0].contiguous(), rows(gradients[1], width)
    by_step, by_pooled = torch.zeros_like(g_step), torch.zeros_like(g_pooled)
    by_unit, by_radial = torch.empty_like(given.unit), torch.empty_like(given.radial)
    by_a = torch.zeros(given.nodes, width, dtype=given.dtype)
    by_b = torch.zeros_like(by_a)
    by_vectors = None if given.vectors is None else torch.zeros_like(given.vectors)
    sums = given.weight_gradients()
    target = _Second(*addresses((by_step, by_pooled, by_unit, by_radial, by_a, by_b, by_vectors, sums.sums)))
    along = _Tangent(*addresses(kept))
    call(library(), "egnn_smooth_twice", given.dtype, given.input, along, g_step, g_pooled, target)
    by_x = [by_unit, by_radial, by_a[:, cut].contiguous(), by_b[:, cut].contiguous(), by_vectors]
    return [by_step, by_pooled[:, cut].contiguous(), *by_x, *given.split(sums)]


class _Radial(ctypes.Structure):
    _fields_ = (
        ("edges", ctypes.c_int64),
        ("basis", ctypes.c_int64),
        ("cutoff", ctypes.c_double),
        ("pair", ctypes.c_void_p),
    )


def radial_forward(pair: Tensor, basis: int, cutoff: float) -> tuple[Tensor, Tensor]:
    """Unit vectors (E, 3) and radial functions (E, basis)."""
    pair = pair.contiguous()
    unit, radial = torch.empty_like(pair), pair.new_empty(pair.shape[0], basis)
    call(library(), "egnn_radial_forward", pair.dtype, _Radial(len(pair), basis, cutoff, address(pair)), unit, radial)
    return unit, radial


def radial_backward(g_unit: Tensor, g_radial: Tensor, pair: Tensor, basis: int, cutoff: float) -> Tensor:
    """Gradient of the pairs (E, 3)."""
    pair, g_pair = pair.contiguous(), torch.empty_like(pair)
    given = _Radial(len(pair), basis, cutoff, address(pair))
    call(library(), "egnn_radial_backward", pair.dtype, given, g_unit.contiguous(), g_radial.contiguous(), g_pair)
    return g_pair
