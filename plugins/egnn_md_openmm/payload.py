"""A model as bytes that another process can read: what a pickled PythonForce carries."""

from __future__ import annotations

import io
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model, save_model
from egnn_md.errors import InputError
from egnn_md.export.torchscript import quiet_torchscript, script
from egnn_md.models import Potential


class ScriptedPotential(Potential):
    """A potential that exists as TorchScript only: out of an artefact, or of a class without a file format.

    Args:
        module: scripted, with the ``forward`` of the contract.
        cutoff, elements, long_range: attributes of the contract (scripting loses an empty list).
    """

    def __init__(self, module: torch.jit.ScriptModule, cutoff: float, elements: list[int], *, long_range: bool) -> None:
        super().__init__(cutoff, elements, long_range=long_range)
        self.module = module

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """(N,) energies in eV; arguments as in the base class."""
        return self.module(positions, species, edge_index, shifts, batch, periodic)


def model_to_bytes(model: Any) -> dict[str, Any]:
    """A potential as a dictionary of plain values and bytes.

    A model file where the class has one (a format that later versions read), else TorchScript.

    Raises:
        ExportError: a class without a file format that cannot be scripted.
    """
    if not isinstance(model, ScriptedPotential):
        with tempfile.TemporaryDirectory() as folder:
            try:
                path = save_model(model, Path(folder) / "model.safetensors")
                return {"form": "model-file", "content": path.read_bytes()}
            except InputError:
                module = script(model)  # a class that model files do not know
    else:
        module = model.module
    buffer = io.BytesIO()
    with quiet_torchscript():
        torch.jit.save(module, buffer)
    return {
        "form": "torchscript",
        "content": buffer.getvalue(),
        "cutoff": float(model.cutoff),
        "elements": [int(z) for z in model.elements],
        "long_range": bool(model.long_range),
    }


def model_from_bytes(stored: dict[str, Any], dtype: torch.dtype) -> Potential:
    """The inverse of :func:`model_to_bytes`, in evaluation mode with frozen parameters."""
    model: Potential
    if stored["form"] == "torchscript":
        import egnn_md.kernels.ops  # noqa: F401 - registers operators that the module may call

        with quiet_torchscript():
            module = torch.jit.load(io.BytesIO(stored["content"]), map_location="cpu")
        model = ScriptedPotential(module, stored["cutoff"], stored["elements"], long_range=stored["long_range"])
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.safetensors"
            path.write_bytes(stored["content"])
            model = load_model(path, dtype=dtype)
    return model.eval().requires_grad_(False)
