"""Ways of computing one network with the same parameters, by name."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from egnn_md.errors import EgnnMdError, InputError

#: name → what it is
PATHS = {
    "published": "every input of every pair joined, as the paper's code computes it",
    "plain": "egnn_md.nn as it stands",
    "fused": "egnn_md.kernels.accelerate(model, 'fused')",
    "compiled": "torch.compile of plain",
}
DEFAULT = ("published", "plain", "fused")


class Unavailable(Exception):  # noqa: N818 - a state of a path, not a failure of the program
    """Why a path does not exist here; it becomes a line of the table."""


def check_paths(names: Sequence[str]) -> list[str]:
    """The names, each once. Raises InputError for an unknown one."""
    for name in names:
        if name not in PATHS:
            raise InputError(f"unknown path {name!r}; known: {', '.join(PATHS)}")
    return list(dict.fromkeys(names))


def on_path(network: nn.Module, path: str) -> Any:
    """``network`` on ``path``, sharing its parameters; the object itself may be changed.

    Args:
        network: a ``FastEGNN`` or a potential, on its device, in its precision.
        path: of :data:`PATHS`.

    Raises:
        Unavailable: this network cannot take the path here.
    """
    from egnn_md.nn.fast_egnn import FastEGNN

    if path == "fused":
        return switched(network, "fused")
    network = switched(network, "plain")  # whoever made it may have accelerated it
    if path == "plain":
        return network
    if path == "published":
        from egnn_md_benchmarks.published import PublishedFastEGNN

        if not isinstance(network, FastEGNN):
            raise Unavailable("the smooth potential was never published in another form")
        return PublishedFastEGNN(network)
    return torch.compile(network, dynamic=False)


def switched(network: nn.Module, kind: str) -> nn.Module:
    """``network`` with fused or plain layers; never plain ones under the name of fused.

    Raises:
        Unavailable: fused layers were asked for and are not to be had.
    """
    try:
        kernels = importlib.import_module("egnn_md.kernels")
        found: nn.Module = kernels.accelerate(network, path=kind)
        if kind == "fused" and not kernels.accelerated(found):
            raise Unavailable("no layer of this network has a fused twin")
    except (ImportError, AttributeError, EgnnMdError) as error:
        if kind == "plain":
            return network
        raise Unavailable(str(error)) from error
    return found
