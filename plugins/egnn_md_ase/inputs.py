"""What a calculator is given, checked, and what it gives, as plain arrays."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols

from egnn_md.checkpoint import load_model
from egnn_md.errors import InputError, SimulationError
from egnn_md.models.base import Potential


def plain(tensor: torch.Tensor) -> np.ndarray:
    """As float64 in main memory."""
    return tensor.double().cpu().numpy()


def refuse_nan(values: np.ndarray, what: str, unit: str, atoms: Atoms) -> None:
    """Raise SimulationError for the first atom whose ``values`` (N,) or (N, 3) are not finite."""
    if np.isfinite(values).all():
        return
    finite = np.isfinite(values).reshape(len(atoms), -1).all(axis=1)
    bad = int(np.flatnonzero(~finite)[0])
    symbol, place = chemical_symbols[atoms.numbers[bad]], np.round(atoms.positions[bad], 3).tolist()
    raise SimulationError(
        f"the model gave atom {bad} ({symbol}) at {place} Å the {what} {values[bad].tolist()} {unit}, "
        "which is not finite; go back to the last good frame and take a shorter timestep, or relax first"
    )


def own_potential(model: str | Path | Potential, device: torch.device, dtype: torch.dtype) -> Potential:
    """An own copy of the model that is ready to be evaluated. Raises InputError for what gives no energies."""
    if isinstance(model, (str, Path)):
        found = load_model(model)
    elif isinstance(model, torch.nn.Module):
        found = copy.deepcopy(model)
    else:
        raise InputError(f"model must be a name, a path or a Potential, not {type(model).__name__}")
    if not isinstance(found, Potential):
        raise InputError(
            f"the model {str(model)[:80]!r} is a {type(found).__name__}, which gives no energies; "
            "a potential is needed (see `egnn-md info`)"
        )
    return found.to(device=device, dtype=dtype).eval().requires_grad_(False)
