"""Tensors as the kernels want them: contiguous, rows padded with zeros to a multiple of 16, addresses in structures."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from egnn_md.errors import InputError

LANES = 16
NAMES = {torch.float32: "float32", torch.float64: "float64"}


def padded(size: int) -> int:
    """The next multiple of 16. A zero stays zero through every map, so that padding changes nothing."""
    return -(-size // LANES) * LANES


def rows(tensor: Tensor, width: int) -> Tensor:
    """(..., F) to contiguous (..., width)."""
    missing = width - tensor.shape[-1]
    return (pad(tensor, (0, missing)) if missing else tensor).contiguous()


def square(weight: Tensor, width: int) -> Tensor:
    """(F, F) to contiguous (width, width)."""
    missing = width - weight.shape[0]
    return (pad(weight, (0, missing, 0, missing)) if missing else weight).contiguous()


def address(tensor: Tensor | None) -> int:
    """Of the first number; 0 for None."""
    if tensor is None:
        return 0
    if not tensor.is_contiguous():
        raise InputError(f"a kernel needs contiguous memory, not strides {tensor.stride()} of {tuple(tensor.shape)}")
    return tensor.data_ptr()


def check_alike(what: str, *expected: tuple[str, Tensor | None, tuple[int, ...]]) -> None:
    """Refuse what a kernel would misread: it sees addresses, and neither shapes nor types.

    Args:
        what: the function, for the message.
        expected: name, tensor (None is skipped) and shape of each; all must be of the first one's dtype, on the CPU.

    Raises:
        InputError: names the tensor.
    """
    dtype = next(tensor.dtype for _, tensor, _ in expected if tensor is not None)
    for name, tensor, shape in expected:
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise InputError(f"{what}: {name} must be {shape}, not {tuple(tensor.shape)}")
        if tensor.dtype != dtype:
            raise InputError(f"{what}: {name} is {tensor.dtype} and {expected[0][0]} {dtype}; cast one of them")
        if tensor.device.type != "cpu":
            raise InputError(f"{what}: {name} is on {tensor.device}, not on the CPU")


def check_senders(senders: Tensor, nodes: int) -> None:
    """Refuse indices (E,) that point outside of (nodes, ...): a kernel would read foreign memory. Raises InputError."""
    if senders.numel() == 0:
        return
    low, high = (int(value) for value in torch.aminmax(senders))
    if low < 0 or high >= nodes:
        wrong = low if low < 0 else high
        edge = int((senders == wrong).nonzero()[0])
        raise InputError(f"edge {edge} has the sender {wrong}, but there are {nodes} particles, counted from 0")


def structure(name: str, whole_numbers: Sequence[str], tensors: Sequence[str]) -> type[ctypes.Structure]:
    """A C structure of int64 numbers, then of addresses."""
    fields = [(field, ctypes.c_int64) for field in whole_numbers] + [(field, ctypes.c_void_p) for field in tensors]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


def call(library: ctypes.CDLL, name: str, dtype: torch.dtype, *arguments: Any) -> None:
    """Call ``name`` for ``dtype``; tensors become addresses, structures references, numbers int64.

    Raises:
        InputError: a dtype without kernel.
    """
    if dtype not in NAMES:
        raise InputError(f"the kernels compute in float32 or float64, not {dtype}")
    converted: list[Any] = []
    for argument in (*arguments, torch.get_num_threads()):
        if isinstance(argument, ctypes.Structure):
            converted.append(ctypes.byref(argument))
        elif isinstance(argument, int):
            converted.append(ctypes.c_int64(argument))
        else:
            converted.append(ctypes.c_void_p(address(argument)))
    getattr(library, f"{name}_{NAMES[dtype]}")(*converted)
