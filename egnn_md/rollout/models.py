"""The model of a rollout, on its device or over several, and what its record says about it."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from egnn_md.errors import InputError
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.stepper import config_of


def open_propagator(request: RolloutRequest, model: nn.Module | None = None) -> tuple[nn.Module, dict[str, Any]]:
    """The model of a request on its device and in its dtype, and what the record says about it.

    Raises:
        ModelFileError: no such model, or a file that is not one.
        InputError: a file that holds no propagator, a model that cannot roll out.
    """
    from egnn_md.checkpoint import load_model, model_digest
    from egnn_md.distributed import ParallelPropagator
    from egnn_md.distributed.session import launched

    given = model
    dtype = None if request.dtype is None else getattr(torch, request.dtype)
    if model is None:
        model = load_model(request.model, device=request.device, dtype=dtype)
    assert model is not None
    config = config_of(model)
    card = getattr(model, "card", None)
    try:
        # one over several devices has no weights here, but knows whose they are
        digest = getattr(model, "digest", None) or model_digest(model)
    except InputError:  # references and the user's own classes have no file format
        content = hashlib.sha256(f"{type(model).__name__} {config.model_dump_json()}".encode())
        for name, tensor in sorted(model.state_dict().items()):
            content.update(name.encode() + tensor.detach().cpu().double().numpy().tobytes())
        digest = content.hexdigest()
    floating = next((str(p.dtype) for p in model.parameters() if p.is_floating_point()), "torch.float64")
    description = {
        "source": request.model,
        "kind": type(model).__name__,
        "digest": digest,
        "precision": floating.removeprefix("torch."),
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": config.model_dump(mode="json"),
        "card": card.model_dump(mode="json") if card is not None else {},
    }
    if given is not None or not (request.devices > 1 or launched()):
        return model, description
    parallel: Any = ParallelPropagator(
        model,
        None if launched() and request.devices == 1 else request.devices,
        device=request.device,
        dtype=description["precision"],
        mode=request.mode,
        partition=request.partition,
        skin="auto" if request.skin is None else request.skin,
    )
    return parallel, {**description, "devices": parallel.devices, "partition": request.partition, "mode": request.mode}
