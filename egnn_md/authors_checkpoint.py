"""Checkpoints of the paper's training script, read without running anything out of them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections import OrderedDict
from pathlib import Path

import torch
from torch import Tensor

from egnn_md.errors import ModelFileError, UnsafeFileError
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig

#: From the authors' parameter names to ours.
_RENAMES = (
    ("gcl_", "layers."),
    (".edge_mlp_virtual.", ".virtual.edge_mlp."),
    (".edge_mlp.0.", ".edge_mlp.first."),
    (".edge_mlp.2.", ".edge_mlp.second."),
    (".att_mlp_virtual.0.", ".virtual.gate.linear."),
    (".att_mlp.0.", ".edge_gate.linear."),
    (".coord_mlp_r_virtual.", ".virtual.coord_mlp."),
    (".coord_mlp_v_virtual.", ".virtual.position_mlp."),
    (".coord_mlp_r.", ".coord_mlp."),
    (".coord_mlp_vel.", ".velocity_mlp."),
    (".node_mlp_virtual.", ".virtual.node_mlp."),
    ("embedding_in.", "embedding."),
    ("virtual_node_feat", "virtual_features"),
)


def rename_authors_parameter(name: str) -> str:
    """Our name of a parameter in the authors' state dict (a ``module.`` prefix is dropped)."""
    name = name.removeprefix("module.")
    for theirs, ours in _RENAMES:
        name = name.replace(theirs, ours)
    return name


def config_from_weights(
    weights: dict[str, Tensor],
    *,
    residual: bool = True,
    normalize: bool = False,
    tanh: bool = False,
    gravity: tuple[float, float, float] | None = None,
) -> FastEGNNConfig:
    """Read every size off the shapes of renamed weights; options that leave no trace are arguments.

    Raises:
        ModelFileError: a tensor that FastEGNN must have is missing.
    """
    try:
        hidden, node_features = weights["embedding.weight"].shape
        channels = weights["virtual_features"].shape[2]
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        edge_features = weights["layers.0.edge_mlp.first.weight"].shape[1] - 2 * hidden - 1
        aggregates = 3 if channels else 2
        attributes = weights["layers.0.node_mlp.0.weight"].shape[1] - aggregates * hidden
    except (KeyError, ValueError) as error:
        raise ModelFileError(f"these weights are not a FastEGNN's: {error}") from error
    has_gravity = "layers.0.gravity_mlp.0.weight" in weights
    if has_gravity and gravity is None:
        raise ModelFileError("the weights have a gravity term; pass gravity=(gx, gy, gz) as in their training")
    return FastEGNNConfig(
        node_features=node_features,
        edge_features=edge_features,
        node_attributes=attributes,
        hidden=hidden,
        layers=layers,
        virtual_nodes=channels,
        residual=residual,
        attention="layers.0.edge_gate.linear.weight" in weights,
        normalize=normalize,
        tanh=tanh,
        gravity=gravity if has_gravity else None,
    )


def import_authors_checkpoint(
    path: str | Path,
    *,
    residual: bool | None = None,
    normalize: bool | None = None,
    tanh: bool | None = None,
    gravity: tuple[float, float, float] | None = None,
) -> FastEGNN:
    """Read a checkpoint of the paper's training script, running nothing out of it.

    Tensors, plain containers and ``easydict.EasyDict`` (read as a dict) are allowed; any other global is
    refused by name. Sizes are read off the weights; the options below leave no trace there and come from the
    file's own configuration (kept at ``.authors_config``), else from the published defaults, unless given.

    Args:
        path: ``.pth`` file.
        residual: feature updates are added.
        normalize: coordinate differences are normalised.
        tanh: coordinate maps end in a Tanh.
        gravity: the vector g, if the network was trained with one.

    Returns:
        The network in float32, evaluation mode.

    Raises:
        ModelFileError: missing or not such a checkpoint.
        UnsafeFileError: it names a global that is not allowed.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelFileError(f"there is no checkpoint {path}")
    try:
        # an OrderedDict stands in for EasyDict: the same items, none of its code
        with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's text goes on to recommend an unsafe load: take only what the file asked for
        reason = str(error)
        asked = re.search(r"GLOBAL (\S+)", reason) or re.search(r"WeightsUnpickler error:\s*([^\n]+)", reason)
        raise UnsafeFileError(
            f"{path} asks for {asked.group(1) if asked else 'something'!r}, which a checkpoint has no need of; "
            "nothing of it was run"
        ) from None
    except (RuntimeError, EOFError, zipfile.BadZipFile) as error:
        raise ModelFileError(f"{path} is not a complete torch checkpoint: {error}") from error
    state = content.get("model_state_dict") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(isinstance(t, Tensor) for t in state.values()):
        raise ModelFileError(f"{path} has no 'model_state_dict' of tensors")
    weights = {rename_authors_parameter(name): tensor for name, tensor in state.items()}
    authors_config = content.get("config")
    stated = authors_config.get("model") if isinstance(authors_config, dict) else None
    stated = stated if isinstance(stated, dict) else {}

    def option(given: bool | None, name: str, default: bool) -> bool:
        return bool(stated.get(name, default)) if given is None else given

    config = config_from_weights(
        weights,
        residual=option(residual, "residual", True),
        normalize=option(normalize, "normalize", False),
        tanh=option(tanh, "tanh", False),
        gravity=gravity,
    )
    with torch.random.fork_rng(devices=[]):
        model = FastEGNN(config)
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: the weights do not fit FastEGNN: {error}") from error
    model.authors_config = authors_config
    return model.eval()
