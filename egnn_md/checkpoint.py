"""Model files: safetensors with a JSON header. Nothing in them can run code.

The header (safetensors' ``__metadata__``, key ``egnn_md``) holds the format version, the kind of model, its
configuration, and a card: units, teacher, training data, licence, versions, measured errors.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from importlib.metadata import PackageNotFoundError, entry_points, version
from pathlib import Path
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from egnn_md.authors_checkpoint import config_from_weights, import_authors_checkpoint, rename_authors_parameter
from egnn_md.errors import InputError, ModelFileError, UnsafeFileError
from egnn_md.kernels import accelerate
from egnn_md.models.committee import CommitteeConfig, CommitteePotential
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig

__all__ = [
    "FORMAT_VERSION",
    "HEADER_KEY",
    "MODEL_GROUP",
    "ModelCard",
    "config_from_weights",
    "import_authors_checkpoint",
    "load_model",
    "model_digest",
    "package_versions",
    "read_header",
    "rename_authors_parameter",
    "resolve_model",
    "save_model",
]

FORMAT_VERSION = 1
HEADER_KEY = "egnn_md"
MODEL_GROUP = "egnn_md.models"
PICKLE_STARTS = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")

_KINDS: dict[str, tuple[type[BaseModel], type[nn.Module]]] = {
    "fastegnn-potential": (PotentialConfig, FastEGNNPotential),
    "committee-potential": (CommitteeConfig, CommitteePotential),
    "propagator": (PropagatorConfig, FastEGNNPropagator),
    "fastegnn": (FastEGNNConfig, FastEGNN),
}


class ModelCard(BaseModel):
    """What a user must know before trusting a model."""

    model_config = ConfigDict(extra="forbid")

    name: str = ""
    description: str = ""
    units: dict[str, str] = Field(
        default_factory=lambda: {"length": "angstrom", "energy": "eV", "time": "femtosecond"}
    )
    teacher: str = ""
    licence: str = ""
    training_data: dict[str, Any] = Field(default_factory=dict, description="digest, counts, source")
    measured: dict[str, Any] = Field(default_factory=dict, description="errors, with how they were measured")
    intended_use: str = ""
    limits: str = ""
    needs: str = Field(default="", description="energy terms that must be added, and how; empty for a whole potential")
    versions: dict[str, str] = Field(default_factory=dict)
    created: str = ""

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A field younger than model files in use is left out where it is empty: older versions refuse what is new."""
        found: dict[str, Any] = handler(self)
        if not self.needs:
            found.pop("needs", None)
        return found

    @property
    def charges(self) -> list[int]:
        """Total charges (e) of the systems it was trained on; [0] where the card is older than this field.

        Of a committee, those that every member knows.
        """
        parts = self.training_data.get("members") or [self.training_data]
        known = [{int(charge) for charge in part.get("charges", [0])} for part in parts]
        return sorted(set.intersection(*known))


def package_versions(*names: str) -> dict[str, str]:
    """Installed versions of ``names``; absent packages are left out."""
    found = {}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _kind_of(model: nn.Module) -> str:
    for kind, (_, cls) in _KINDS.items():
        if type(model) is cls:
            return kind
    raise InputError(
        f"a {type(model).__name__} has no file format; only {', '.join(c.__name__ for _, c in _KINDS.values())} have"
    )


def _config_of(model: nn.Module) -> dict[str, Any]:
    config = model.config
    if not isinstance(config, BaseModel):  # a committee of analytic potentials
        raise InputError(f"this {type(model).__name__} has no file format: its parts have none")
    return config.model_dump(mode="json")


def model_digest(model: nn.Module) -> str:
    """sha256 (hex) over the kind, the configuration and every weight: the same model, the same digest."""
    digest = hashlib.sha256()
    digest.update(json.dumps([_kind_of(model), _config_of(model)], sort_keys=True).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_model(model: nn.Module, path: str | Path, card: ModelCard | None = None) -> Path:
    """Write ``model`` atomically: an interrupted save leaves an older file as it was.

    Args:
        model: a :class:`FastEGNNPotential`, :class:`CommitteePotential`, :class:`FastEGNNPropagator` or
            :class:`FastEGNN`.
        path: file to write, ``.safetensors`` by custom.
        card: what to tell its users; the model's own card if it was loaded with one.

    Returns:
        The path.

    Raises:
        InputError: a model of another class.
    """
    path = Path(path)
    kind = _kind_of(model)
    card = card or getattr(model, "card", None) or ModelCard()
    if not card.versions:
        card = card.model_copy(update={"versions": package_versions("egnn-md", "torch", "numpy", "ase")})
    header = {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "config": _config_of(model),
        "digest": model_digest(model),
        "parameters": sum(p.numel() for p in model.parameters()),
        "card": card.model_dump(mode="json"),
    }
    tensors = {name: t.detach().cpu().contiguous().clone() for name, t in model.state_dict().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata={HEADER_KEY: json.dumps(header)})
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def resolve_model(name_or_path: str | Path) -> Path:
    """Path of a model given by path, or by a name registered in the entry-point group ``egnn_md.models``.

    Raises:
        ModelFileError: neither a file nor a known name; the message lists the names.
    """
    path = Path(name_or_path)
    if path.is_file():
        return path
    registered = {entry.name: entry for entry in entry_points(group=MODEL_GROUP)}
    if str(name_or_path) in registered:
        found = Path(registered[str(name_or_path)].load()())
        if not found.is_file():
            raise ModelFileError(
                f"the model {str(name_or_path)!r} is registered, but its file {found.name} is missing from the "
                "installation; reinstall the package"
            )
        return found
    names = ", ".join(sorted(registered)) or "none"
    raise ModelFileError(f"there is no model file {path} and no registered model of that name (known: {names})")


def read_header(name_or_path: str | Path) -> dict[str, Any]:
    """Header of a model file, checked, without loading a weight.

    Raises:
        ModelFileError: missing, truncated, foreign, or of a newer format.
        UnsafeFileError: a pickle.
    """
    path = resolve_model(name_or_path)
    with path.open("rb") as file:
        start = file.read(9)
    # safetensors begins with an 8-byte length, whose low bytes can be anything, and then a brace
    if start.startswith(PICKLE_STARTS) and start[8:] != b"{":
        raise UnsafeFileError(f"{path} is a pickle, which can run code when it is read; it was not opened")
    if start.startswith(b"PK"):
        raise UnsafeFileError(
            f"{path} is a torch zip file (a pickled checkpoint or a TorchScript artefact), not a model file; "
            "authors' checkpoints are read by import_authors_checkpoint"
        )
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ModelFileError(f"{path} is not a complete safetensors file: {error}") from error
    if HEADER_KEY not in metadata:
        raise ModelFileError(f"{path} is a safetensors file, but not one of egnn_md (no {HEADER_KEY!r} header)")
    try:
        header = json.loads(metadata[HEADER_KEY])
        found = int(header["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise ModelFileError(f"{path}: the {HEADER_KEY!r} header cannot be read: {error!r}") from error
    if found > FORMAT_VERSION:
        raise ModelFileError(
            f"{path} has format {found}, this egnn_md reads up to {FORMAT_VERSION}; upgrade egnn-md"
        )
    if header.get("kind") not in _KINDS:
        raise ModelFileError(f"{path} holds a {header.get('kind')!r}; known kinds: {', '.join(_KINDS)}")
    missing = {"config", "digest", "card"} - set(header)
    if missing:
        raise ModelFileError(f"{path}: the {HEADER_KEY!r} header lacks {', '.join(sorted(missing))}")
    return header


def load_model(
    name_or_path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    kernels: str = "auto",
) -> Any:
    """Load a model by path or registered name; its card is at ``.card``.

    Args:
        name_or_path: file, or a name such as ``water``.
        device: where to put the weights.
        dtype: cast the weights; None keeps those of the file.
        kernels: ``auto`` (fused where ``device`` has them), ``fused`` or ``plain``; see
            :func:`egnn_md.kernels.accelerate`.

    Returns:
        The model in evaluation mode, gradients of its weights off.

    Raises:
        ModelFileError: missing, truncated, foreign, newer, or weights that do not match the header.
        UnsafeFileError: a pickle.
    """
    path = resolve_model(name_or_path)
    header = read_header(path)
    config_class, model_class = _KINDS[header["kind"]]
    try:
        config = config_class.model_validate(header["config"])
        card = ModelCard.model_validate(header["card"])
    except ValidationError as error:
        raise ModelFileError(f"{path}: the header does not describe a {header['kind']}: {error}") from error
    # the weights drawn here are replaced at once: the caller's random state must not notice
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    with safe_open(path, framework="pt") as file:
        tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for tensor in tensors.values():
        model = model.to(tensor.dtype)
        break
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ModelFileError(f"{path}: the weights do not fit the configuration: {error}") from error
    if model_digest(model) != header["digest"]:
        raise ModelFileError(f"{path}: the weights differ from the digest in the header; the file was changed")
    model.card = card  # type: ignore[assignment]
    model.requires_grad_(False)
    return accelerate(model.to(device=device, dtype=dtype).eval(), kernels)
