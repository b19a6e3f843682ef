"""The fused functions as torch operators ``egnn_md::*``: eager, scripted and compiled models call the same ones.

Each is two operators, the function and its gradient, with a kernel a device (CPU: :mod:`egnn_md.kernels.native`; CUDA:
Triton). The gradient of the gradient, which force training needs, differentiates the plain function block by block
(:mod:`egnn_md.kernels.second`), so that nothing of the size of all edges is kept; there is no third derivative.
Edges come sorted by receiver, with ``row_start`` (N + 1,) telling where each receiver's begin.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.kernels import native_calls, second
from egnn_md.nn.gradients import weights_wanted

NAMESPACE = "egnn_md"
_library = torch.library.Library(NAMESPACE, "DEF")
WEIGHTS = 5  # variables from this place on are weights, in every function


@dataclass(frozen=True)
class Fused:
    """What one function is made of.

    Args:
        name: of the operator.
        variables: arguments with a gradient; a trailing ``?`` marks those that may be None.
        constants: the rest of the arguments, with their types as torch's schemas write them.
        outputs: how many.
        shapes: outputs like those the function would give, without computing them.
        second: gradient of the gradient; see :mod:`egnn_md.kernels.second`. A device's own ``*_twice``, which knows
            cotangents of everything but weights, goes before it.
    """

    name: str
    variables: tuple[str, ...]
    constants: tuple[tuple[str, str], ...]
    outputs: int
    shapes: Callable[..., tuple[Tensor, ...]]
    second: Callable[..., list[Tensor | None]]

    def arguments(self) -> str:
        """The schema's arguments."""
        variables = [f"Tensor{'?' if v.endswith('?') else ''} {v.rstrip('?')}" for v in self.variables]
        return ", ".join(variables + [f"{kind} {name}" for name, kind in self.constants])

    def gradients(self) -> str:
        """One gradient an output, as the schema has it."""
        return ", ".join(f"Tensor g{k}" for k in range(self.outputs))


def _kernels(device: torch.device) -> Any:
    if device.type == "cpu":
        return native_calls
    if device.type == "cuda":
        from egnn_md.kernels import triton_calls

        return triton_calls
    raise InputError(f"the fused kernels run on cpu and cuda, not on {device}; use the plain path there")


def _device(values: Sequence[Any]) -> torch.device:
    return next(value.device for value in values if isinstance(value, Tensor))


def _given(found: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """The wanted ones: an operator cannot give None back."""
    return [value for value, need in zip(found, needs, strict=True) if need and value is not None]


def spread(found: Sequence[Tensor | None], wanted: Sequence[bool]) -> list[Tensor | None]:
    """Each in its place again."""
    values = iter(found)
    return [next(values) if want else None for want in wanted]


def _register(fused: Fused) -> None:
    count, many = len(fused.variables), fused.outputs

    def forward(*args: Any) -> tuple[Tensor, ...]:
        kernels = _kernels(_device(args))
        found: tuple[Tensor, ...] = getattr(kernels, f"{fused.name}_forward")(args[:count], *args[count:])
        return found

    def backward(*args: Any) -> list[Tensor]:
        gradients, rest, needs = args[:many], args[many:-1], args[-1]
        kernels = _kernels(_device(args))
        found = getattr(kernels, f"{fused.name}_backward")(gradients, rest[:count], *rest[count:], needs)
        return _given(found, needs)

    first = _define(fused.name, f"({fused.arguments()}) -> (" + ", ".join(["Tensor"] * many) + ")", forward)
    schema = f"({fused.gradients()}, {fused.arguments()}, bool[] needs) -> Tensor[]"
    derived = _define(f"{fused.name}_backward", schema, backward)

    @torch.library.register_fake(f"{NAMESPACE}::{fused.name}")
    def _(*args: Any) -> tuple[Tensor, ...]:
        return fused.shapes(*args)

    @torch.library.register_fake(f"{NAMESPACE}::{fused.name}_backward")
    def _(*args: Any) -> list[Tensor]:
        variables, needs = args[many : many + count], args[-1]
        return [torch.empty_like(v) for v, need in zip(variables, needs, strict=True) if need and v is not None]

    def keep(ctx: Any, inputs: tuple[Any, ...]) -> None:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*(value for value in inputs if isinstance(value, Tensor)))
        ctx.others = [None if isinstance(value, Tensor) else (value,) for value in inputs]

    def kept(ctx: Any) -> list[Any]:
        saved = iter(ctx.saved_tensors)
        return [next(saved) if other is None else other[0] for other in ctx.others]

    def first_backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        args = kept(ctx)
        if all(g is None for g in gradients):
            return (None,) * len(args)
        asked = list(ctx.needs_input_grad[:count])
        if not weights_wanted():
            asked[WEIGHTS:] = [False] * (count - WEIGHTS)
        wanted = [need and v is not None for need, v in zip(asked, args[:count], strict=True)]
        filled = list(gradients)
        if any(g is None for g in gradients):
            like = fused.shapes(*args)
            filled = [torch.zeros_like(o) if g is None else g for g, o in zip(gradients, like, strict=True)]
        found = derived(*filled, *args, wanted)
        return (*spread(found, wanted), *(None for _ in fused.constants))

    def derived_backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if torch.is_grad_enabled():
            raise NotImplementedError(f"{fused.name} has derivatives up to the second; a third needs the plain path")
        args = kept(ctx)
        if all(c is None for c in cotangents):
            return (None,) * len(args)
        gradients, rest, needs = args[:many], args[many:-1], args[-1]
        every = spread(cotangents, needs)
        second_of = fused.second
        if all(c is None for c in every[WEIGHTS:]):
            second_of = getattr(_kernels(_device(args)), f"{fused.name}_twice", second_of)
        found = second_of(every, gradients, rest[:count], *rest[count:])
        wanted = ctx.needs_input_grad[: many + count]
        given = [value if want else None for value, want in zip(found, wanted, strict=True)]
        return (*given, *(None for _ in fused.constants), None)

    _differentiate(fused.name, first, keep, first_backward)
    _differentiate(f"{fused.name}_backward", derived, keep, derived_backward)


def _define(name: str, schema: str, kernel: Callable[..., Any]) -> Any:
    """An operator with one implementation for every device, which finds the device's kernel itself."""
    _library.define(name + schema)
    for key in ("CPU", "CUDA"):
        _library.impl(name, kernel, key)
    return getattr(getattr(torch.ops, NAMESPACE), name).default


def _differentiate(
    name: str, operator: Any, keep: Callable[..., None], backward: Callable[..., tuple[Any, ...]]
) -> None:
    """Give an operator a gradient, without the wrappers of ``torch.library.custom_op`` round every call."""

    def forward(ctx: Any, *args: Any) -> tuple[Tensor, ...]:
        keep(ctx, args)
        return tuple(operator(*args))  # gradients are off here: see below

    function: Any = type(
        name, (torch.autograd.Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )

    def differentiable(*args: Any) -> Any:
        if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in args):
            found = function.apply(*args)
            return list(found) if name.endswith("_backward") else found
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*args)

    _library.impl(name, differentiable, "Autograd")


def _edge_shapes(positions: Tensor, shifts: Tensor | None, a: Tensor, *_: Any) -> tuple[Tensor, ...]:
    return torch.empty_like(positions), torch.empty_like(a)


def _virtual_shapes(
    positions: Tensor, places: Tensor, is_open: Tensor, a: Tensor, of_virtual: Tensor, *_: Any
) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(value) for value in (positions, a, places, of_virtual))


def _smooth_shapes(
    unit: Tensor, radial: Tensor, a: Tensor, b: Tensor, vectors: Tensor | None, *rest: Any
) -> tuple[Tensor, ...]:
    channels = rest[5].shape[0] if vectors is None else vectors.shape[2]
    return a.new_empty(a.shape[0], 3, channels), torch.empty_like(a)


def _radial_shapes(pair: Tensor, basis: int, cutoff: float) -> tuple[Tensor, ...]:
    return torch.empty_like(pair), pair.new_empty(pair.shape[0], basis)


EDGES = Fused(
    "edge_messages",
    ("positions", "shifts?", "a", "b", "edge_features?", "geometry_map", "w2", "b2", "gate_w?", "gate_b?", "w3", "b3",
     "w4"),
    (("row_start", "Tensor"), ("senders", "Tensor"), ("normalize", "bool"), ("tanh", "bool")),
    2,
    _edge_shapes,
    second.edge_messages,
)  # fmt: skip
VIRTUAL = Fused(
    "virtual_messages",
    ("positions", "places", "is_open", "a", "of_virtual", "distance_map", "w2", "b2", "gate_w?", "gate_b?", "w3", "b3",
     "w4", "w5", "b5", "w6"),
    (("batch", "Tensor"), ("tanh", "bool")),
    4,
    _virtual_shapes,
    second.virtual_messages,
)  # fmt: skip
SMOOTH = Fused(
    "smooth_messages",
    ("unit", "radial", "a", "b", "vectors?", "radial_map", "geometry_map?", "w2", "b2", "filter_map", "vector_map"),
    (("row_start", "Tensor"), ("senders", "Tensor")),
    2,
    _smooth_shapes,
    second.smooth_messages,
)  # fmt: skip
RADIAL = Fused(
    "radial_functions",
    ("pair",),
    (("basis", "int"), ("cutoff", "float")),
    2,
    _radial_shapes,
    second.radial_functions,
)
ALL = (EDGES, VIRTUAL, SMOOTH, RADIAL)
for _fused in ALL:
    _register(_fused)
