"""A model as bytes that another process can read: what a pickled PythonForce carries."""

from __future__ import annotations

import hashlib
import io
import re
import tempfile
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model, save_model
from egnn_md.errors import InputError, ModelFileError
from egnn_md.export.seal import check_seal
from egnn_md.export.torchscript import quiet_torchscript, script
from egnn_md.models import Potential


class ScriptedPotential(Potential):
    """A potential that exists as TorchScript only: out of an artefact, or of a class without a file format.

    Args:
        module: scripted, with the ``forward`` of the contract.
        cutoff, elements, long_range, needs_cell: attributes of the contract (scripting loses an empty list).
    """

    def __init__(
        self,
        module: torch.jit.ScriptModule,
        cutoff: float,
        elements: list[int],
        *,
        long_range: bool,
        needs_cell: bool = False,
    ) -> None:
        super().__init__(cutoff, elements, long_range=long_range, needs_cell=needs_cell)
        self.module = module

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
        cell: Tensor | None = None,
    ) -> Tensor:
        """(N,) energies in eV; arguments as in the base class."""
        more = () if cell is None else (cell,)
        return self.module(positions, species, edge_index, shifts, batch, periodic, *more)


def payload_digest(stored: dict[str, Any]) -> str:
    """SHA-256 (hex) over everything in ``stored`` but the digest itself."""
    found = hashlib.sha256()
    for name in sorted(stored):
        if name != "digest":
            value = stored[name]
            content = value if isinstance(value, bytes) else repr(value).encode()
            found.update(f"{name} {len(content)} ".encode() + content)
    return found.hexdigest()


def model_to_bytes(model: Any) -> dict[str, Any]:
    """A potential as a dictionary of plain values and bytes, with a digest of them.

    A model file where the class has one (a format that later versions read), else TorchScript.

    Raises:
        ExportError: a class without a file format that cannot be scripted.
    """
    if not isinstance(model, ScriptedPotential):
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = save_model(model, Path(folder) / "model.safetensors")
                return _sealed({"form": "model-file", "content": path.read_bytes()})
            except InputError:
                module = script(model)  # a class that model files do not know
    else:
        module = model.module
    buffer = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(module, buffer)
    stored = {
        "form": "torchscript",
        "content": buffer.getvalue(),
        "cutoff": float(model.cutoff),
        "elements": [int(z) for z in model.elements],
        "long_range": bool(model.long_range),
        "needs_cell": bool(model.needs_cell),
    }
    return _sealed(stored)


def _sealed(stored: dict[str, Any]) -> dict[str, Any]:
    return {**stored, "digest": payload_digest(stored)}


def model_from_bytes(stored: dict[str, Any], dtype: torch.dtype) -> Potential:
    """The inverse of :func:`model_to_bytes`, in evaluation mode with frozen parameters.

    Raises:
        ModelFileError: something in it changed after it was written.
    """
    model: Potential
    if "digest" in stored and stored["digest"] != payload_digest(stored):  # files of egnn-md 0.1 have none
        raise ModelFileError(
            "the model inside this PythonForce was changed after it was written (its digest differs); "
            "serialise the system again"
        )
    if stored["form"] == "torchscript":
        import egnn_md.kernels.ops  # noqa: F401 - registers operators that the module may call

        with quiet_torchscript():
            module = torch.jit.load(io.BytesIO(stored["content"]), map_location="cpu")
        model = ScriptedPotential(
            module,
            stored["cutoff"],
            stored["elements"],
            long_range=stored["long_range"],
            needs_cell=stored.get("needs_cell", False),
        )
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(stored["content"])
            model = load_model(path, dtype=dtype)
    return model.eval().requires_grad_(False)


def check_torch_forces(xml: str) -> None:
    """Compare every TorchForce in the XML of a system with the digest that its module carries.

    Raises:
        ModelFileError: a module is damaged, or was changed after it was exported.
    """
    import vesin_torch  # noqa: F401 - registers the neighbour list's class, without which reading fails

    import egnn_md.kernels.ops  # noqa: F401 - and the fused operators

    for match in re.finditer(r'encodedFileContents="([0-9a-fA-F]*)"', xml):
        with quiet_torchscript():
            try:
                content = io.BytesIO(bytes.fromhex(match[1]))
                with zipfile.ZipFile(content) as archive:
                    damaged = archive.testzip()
                if damaged is not None:
                    raise ModelFileError(f"a TorchForce of this system is damaged at {damaged}")
                content.seek(0)
                module = torch.jit.load(content, map_location="cpu")
            except (RuntimeError, ValueError, OSError, zlib.error, zipfile.BadZipFile) as error:
                raise ModelFileError(f"a TorchForce of this system cannot be read: {error}") from error
        check_seal(module, "a TorchForce of this system")
