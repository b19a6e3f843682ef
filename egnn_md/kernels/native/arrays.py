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
