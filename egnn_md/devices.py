"""Where and how precisely to compute: devices and floating-point types by the words that users write."""

from __future__ import annotations

import torch

from egnn_md.errors import InputError

DTYPES = {"float32": torch.float32, "float64": torch.float64}


def find_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """``float32`` or ``float64``, by name or as torch's object. Raises InputError for anything else."""
    found = DTYPES.get(str(dtype).removeprefix("torch."))
    if found is None:
        raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
    return found


def find_device(device: str | torch.device) -> torch.device:
    """The device, if this computer has it.

    Raises:
        InputError: an unknown word, a kind that is not supported, or a device that is not there.
    """
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InputError(f"unknown device {device!r}; use cpu, cuda or cuda:1") from error
    if found.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (found.index or 0) >= count:
            raise InputError(
                f"the device {device!s} is not there (CUDA devices found: {count}); use cpu, or see `egnn-md doctor`"
            )
    elif found.type != "cpu":
        raise InputError(f"the device {device!s} is not supported; use cpu or cuda")
    return found
