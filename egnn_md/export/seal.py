"""A digest inside a scripted module of everything that decides its answers.

It travels with the module, into an artefact and into the XML of an OpenMM system, and tells a model that was changed
there from the one that was exported and verified. It guards against damage and mix-ups, not against someone who
recomputes it.
"""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from egnn_md.errors import ModelFileError

SEAL = "seal"  # attribute of the exported module: hex SHA-256, empty before it is sealed
SEALED = "sealed"  # attribute: names of the numbers and texts that the seal covers beside all tensors
#: Numbers of the exported module itself: units, particles, and how far neighbours are looked for. In the list of names
#: they begin with a slash; modules that were sealed before have none of them.
OWN = ("length", "energy", "particles", "subset", "neighbors.cutoff")
PLAIN = (bool, int, float, str)


def plain_attributes(module: torch.nn.Module) -> list[str]:
    """Dotted names of numbers, texts and lists of them that ``module`` and its parts hold, sorted."""
    found = []
    for path, part in module.named_modules():
        # those of a scripted part are hidden from vars(); its tensors are sealed all the same
        for name, value in vars(part).items():
            listed = isinstance(value, list) and all(isinstance(item, PLAIN) for item in value)
            if not name.startswith("_") and name != "training" and (isinstance(value, PLAIN) or listed):
                found.append(f"{path}.{name}" if path else name)
    return sorted(found)


def seal(module: torch.jit.ScriptModule, names: list[str]) -> None:
    """Write the digest of an exported module into it, over its tensors and those of ``names`` that it kept."""
    kept = [name for name in names if _reach(module.potential, name) is not None]
    setattr(module, SEALED, [*kept, *(f"/{name}" for name in OWN)])
    setattr(module, SEAL, _digest(module))


def check_seal(module: torch.jit.ScriptModule, where: str) -> None:
    """Compare a module that was read with its digest; one without any (older, or not ours) passes.

    Raises:
        ModelFileError: the module differs from what was sealed; the message begins with ``where``.
    """
    module = getattr(module, "region", module)  # one that something was put in front of
    if not getattr(module, SEAL, ""):
        return
    if getattr(module, SEAL) != _digest(module):
        raise ModelFileError(
            f"{where}: the model inside was changed after it was exported (its digest differs); export it again"
        )


def _digest(module: Any) -> str:
    digest = hashlib.sha256()
    tensors = {f"potential.{name}": value for name, value in module.potential.state_dict().items()}
    tensors |= {"species": module.species, "atoms": module.atoms}
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    for name in getattr(module, SEALED):
        value = _reach(module, name[1:]) if name.startswith("/") else _reach(module.potential, name)
        digest.update(f"{name} {value!r}".encode())
    return digest.hexdigest()


def _reach(module: Any, name: str) -> Any:
    """The attribute of a dotted name, None where scripting has left it out (what no method uses)."""
    for part in name.split("."):
        module = getattr(module, part, None)
    return module
