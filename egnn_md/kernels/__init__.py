"""Fused fast paths: several times faster and many times leaner than the plain layers, and equal to them.

:func:`accelerate` is all that most code needs. What computes: on the CPU a small library in C++ that this machine's
compiler makes on the first use (:mod:`egnn_md.kernels.native`), on CUDA Triton kernels. The plain functions that each
is tested against are in :mod:`egnn_md.kernels.plain`. Why: docs/decisions/0009.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TypeVar

import torch
from torch import nn

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.kernels.native.build import FallbackWarning, KernelUnavailableError
from egnn_md.kernels.precision import gpu_precision
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNLayer
from egnn_md.nn.smooth import SmoothFastEGNN, SmoothLayer
from egnn_md.nn.virtual_nodes import VirtualNodes

__all__ = [
    "PATHS",
    "VARIABLE",
    "FallbackWarning",
    "KernelUnavailableError",
    "accelerate",
    "accelerated",
    "available",
    "gpu_precision",
]

PATHS = ("auto", "fused", "plain")
VARIABLE = "EGNN_MD_KERNELS"
Module = TypeVar("Module", bound=nn.Module)


def available(device: str | torch.device = "cpu") -> bool:
    """Whether ``device`` has fused kernels here. On the CPU a missing compiler is told once, by a FallbackWarning."""
    kind = torch.device(device).type
    if kind == "cpu":
        from egnn_md.kernels.native.build import available as compiled

        return compiled()
    return kind == "cuda" and importlib.util.find_spec("triton") is not None


def accelerate(module: Module, path: str = "auto", device: str | torch.device | None = None) -> Module:
    """Let every layer of ``module`` that has a fused twin use it, or the plain one again.

    Weights, their names and the results stay; the module is changed in place.

    Args:
        module: a network, potential or propagator, or anything that holds one.
        path: ``auto`` (fused where ``device`` has kernels; the environment variable EGNN_MD_KERNELS can say otherwise),
            ``fused`` or ``plain``.
        device: where it will compute; that of its first parameter if None.

    Returns:
        ``module``.

    Raises:
        InputError: an unknown path, here or in the environment variable.
        MissingDependencyError: ``fused`` was asked for and cannot be had; tells why.
    """
    chosen = os.environ.get(VARIABLE, path) if path == "auto" else path
    if chosen not in PATHS:
        where = f"the environment variable {VARIABLE}" if chosen != path else "path"
        raise InputError(f"{where} must be one of {', '.join(PATHS)}, not {chosen!r}")
    if device is None:
        device = next((p.device for p in module.parameters()), torch.device("cpu"))
    if chosen == "fused":
        _insist(torch.device(device))
    elif chosen == "auto":
        chosen = "fused" if available(device) else "plain"
    for part in module.modules():
        _switch(part, chosen == "fused")
    for part in module.modules():
        if isinstance(part, (FastEGNN, SmoothFastEGNN)):
            part.needs_sorted_edges = accelerated(part)
    return module


def accelerated(module: nn.Module) -> bool:
    """Whether any layer of ``module`` uses a fused twin."""
    return any(type(part) in _twins().values() for part in module.modules())


def _insist(device: torch.device) -> None:
    if device.type == "cpu":
        from egnn_md.kernels.native.build import library

        try:
            library()
        except KernelUnavailableError as error:
            raise MissingDependencyError(f"there are no fused kernels for the CPU here: {error}") from error
    elif not available(device):
        raise MissingDependencyError(
            f"there are no fused kernels for {device}: they need CUDA and the package triton; use the plain path"
        )


def _twins() -> dict[type[nn.Module], type[nn.Module]]:
    from egnn_md.kernels import fused  # registers the operators, and needs none of them yet

    return {
        FastEGNNLayer: fused.FusedFastEGNNLayer,
        VirtualNodes: fused.FusedVirtualNodes,
        SmoothLayer: fused.FusedSmoothLayer,
        SmoothFastEGNN: fused.FusedSmoothFastEGNN,
    }


def _switch(part: nn.Module, fused: bool) -> None:
    """Change the class of one layer; its weights are untouched."""
    twins = _twins()
    back = {twin: plain for plain, twin in twins.items()}
    found = (twins if fused else back).get(type(part))
    if found is not None:
        part.__class__ = found
        if isinstance(part, (FastEGNNLayer, VirtualNodes)) and fused:
            gate = part.edge_gate if isinstance(part, FastEGNNLayer) else part.gate
            part.has_gate = not isinstance(gate, nn.Identity)  # type: ignore[assignment]
            part.has_tanh = len(part.coord_mlp) > 3  # type: ignore[assignment]
