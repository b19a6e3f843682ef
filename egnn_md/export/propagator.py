"""A propagator as a TorchScript file that describes itself and was compared with the eager model."""

from __future__ import annotations

import json
import zipfile
from copy import deepcopy
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from egnn_md.checkpoint import model_digest, package_versions
from egnn_md.data.windows import build_graph
from egnn_md.devices import find_dtype
from egnn_md.errors import ExportError, InputError, ModelFileError
from egnn_md.export.artefact import INFO_FILE, write_atomically
from egnn_md.export.propagator_module import ExportedPropagator
from egnn_md.export.torchscript import load_scripted, prepare, save_scripted, script
from egnn_md.export.verify import TOLERANCES
from egnn_md.kernels import accelerate, accelerated
from egnn_md.models.propagator import FastEGNNPropagator

PROPAGATOR_FORMAT = "egnn_md-propagator-torchscript"
FORMAT_VERSION = 1
VERIFIED_PARTICLES = 40
SIGNATURE = "forward(positions, velocities, species, features=None, cell=None) -> positions, velocities"


class PropagatorArtefact(BaseModel):
    """The self-description stored as ``egnn_md.json`` inside an exported propagator."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    format: str = PROPAGATOR_FORMAT
    format_version: int = FORMAT_VERSION
    name: str
    weights_digest: str
    licence: str
    config: dict[str, Any]
    units: dict[str, str]
    stride: float
    dtype: str
    kernels: str = "plain"
    signature: str = SIGNATURE
    largest_difference: float  # scripted minus eager, over the largest displacement
    versions: dict[str, str]
    created: str


def export_propagator(
    model: FastEGNNPropagator,
    path: str | Path,
    *,
    dtype: torch.dtype | str = torch.float32,
    name: str | None = None,
    kernels: str = "plain",
) -> PropagatorArtefact:
    """Write a propagator as TorchScript: ``forward(positions, velocities, species, features, cell)``.

    Neighbours and the dropping of the longest edges are inside; units are those of the model and stand in the
    description.

    Args:
        model: what to export.
        path: where to; an existing file is replaced only once the new one has passed its check.
        dtype: float32 or float64 of the network.
        name: recorded name; the model card's by default.
        kernels: as in :func:`egnn_md.export.export_torchscript`.

    Returns:
        What was written into ``egnn_md.json``.

    Raises:
        ExportError: randomly dropped edges, velocities that are not causal, or scripted and eager disagree.
        InputError: another class of model, unknown dtype.
        ModelFileError: the file cannot be written.
    """
    if not isinstance(model, FastEGNNPropagator):
        raise InputError(f"a {type(model).__name__} is not a propagator; potentials go through export_torchscript")
    config = model.config
    if config.drop == "random":
        raise ExportError("a propagator that drops random edges cannot be exported: its answer is not a function")
    if config.velocity == "forward":
        raise ExportError("this propagator's velocity looks one frame ahead; nobody can feed it outside its data")
    path, dtype = Path(path), find_dtype(dtype)
    eager: Any = accelerate(prepare(model, dtype), "plain")
    fast = accelerate(deepcopy(eager), kernels)
    scripted = script(ExportedPropagator(script(fast), config.cutoff or 0.0, config.drop_fraction, dtype).eval())
    card = getattr(model, "card", None)
    written: list[PropagatorArtefact] = []

    def write(temporary: Path) -> None:
        # the module that is checked has been through a file, as the one that users load
        save_scripted(scripted, temporary, "{}")
        difference = _difference(load_scripted(temporary), eager, dtype)
        if not difference <= TOLERANCES[dtype]:
            raise ExportError(
                f"scripted and eager propagator differ by {difference:.1e} of the largest displacement, "
                f"more than {TOLERANCES[dtype]:.0e}; nothing was written"
            )
        info = PropagatorArtefact(
            name=name or getattr(card, "name", None) or config.system or "propagator",
            weights_digest=model_digest(model),
            licence=str(getattr(card, "licence", None) or "not stated"),
            config=config.model_dump(mode="json"),
            units=dict(config.units),
            stride=config.stride,
            dtype=str(dtype).removeprefix("torch."),
            kernels="fused" if accelerated(fast) else "plain",
            largest_difference=difference,
            versions=package_versions("egnn-md", "torch", "vesin-torch"),
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        save_scripted(scripted, temporary, info.model_dump_json())
        written.append(info)

    write_atomically(path, write)
    return written[0]


def read_propagator_artefact(path: str | Path) -> PropagatorArtefact:
    """The self-description of an exported propagator; no code of the file runs.

    Raises:
        ModelFileError: missing, damaged, or not an exported propagator.
    """
    path = Path(path)
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if entry.endswith(f"/extra/{INFO_FILE}")]
            damaged = archive.testzip()
            content = json.loads(archive.read(names[0])) if names and damaged is None else {}
    except (OSError, zipfile.BadZipFile, ValueError) as error:
        raise ModelFileError(f"{path} is not an exported propagator: {error}") from error
    if content.get("format") != PROPAGATOR_FORMAT:
        raise ModelFileError(f"{path} is not an exported propagator; egnn_md.export.export_propagator writes one")
    try:
        return PropagatorArtefact.model_validate(content)
    except ValidationError as error:
        raise ModelFileError(f"the {INFO_FILE} inside {path} is wrong: {error}") from error


def is_propagator_artefact(path: str | Path) -> bool:
    """True for a file of :func:`export_propagator`, whole or damaged inside."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [entry for entry in archive.namelist() if entry.endswith(f"/extra/{INFO_FILE}")]
            return bool(names) and json.loads(archive.read(names[0])).get("format") == PROPAGATOR_FORMAT
    except (OSError, zipfile.BadZipFile, ValueError, AttributeError):
        return False


def load_propagator(
    path: str | Path, device: str | torch.device = "cpu"
) -> tuple[torch.jit.ScriptModule, PropagatorArtefact]:
    """The scripted propagator and its description. A TorchScript file is a program: load only trusted ones.

    Raises:
        ModelFileError: missing, damaged, or not an exported propagator.
    """
    info = read_propagator_artefact(path)
    return load_scripted(Path(path), device), info


def _difference(scripted: torch.jit.ScriptModule, eager: FastEGNNPropagator, dtype: torch.dtype) -> float:
    """Largest difference of positions and velocities on random systems, over the largest displacement."""
    config = eager.config
    draw = torch.Generator().manual_seed(0)
    side = 3.0 * (config.cutoff or config.length_scale)
    # an open system, and where that makes sense a periodic one
    cells = [None] if config.cutoff is None or config.walls else [None, side * torch.eye(3, dtype=dtype)]
    worst = 0.0
    for cell in cells:
        positions = side * torch.rand(VERIFIED_PARTICLES, 3, dtype=dtype, generator=draw)
        velocities = torch.randn(VERIFIED_PARTICLES, 3, dtype=dtype, generator=draw) * (0.1 * side / config.stride)
        kinds = torch.tensor(config.species)
        species = kinds[torch.randint(len(kinds), (VERIFIED_PARTICLES,), generator=draw)]
        features = None
        if config.node_features:
            features = torch.randn(VERIFIED_PARTICLES, config.node_features, dtype=dtype, generator=draw)
        graph = build_graph(
            config, positions, velocities, species, features=features, cell=cell, pbc=(cell is not None,) * 3
        )
        expected = eager.predict(graph)
        moved, after = scripted(positions, velocities, species, features, cell)
        scale = float((expected.positions - positions).abs().max())
        for ours, theirs, unit in ((moved, expected.positions, 1.0), (after, expected.velocities, config.stride)):
            worst = max(worst, unit * float((ours - theirs).abs().max()) / max(scale, torch.finfo(dtype).tiny))
    return worst
