"""A potential as a TorchScript file that describes itself, checks itself, and speaks the engine's units."""

from __future__ import annotations

import copy
import hashlib
import json
import operator
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import torch
from ase.data import chemical_symbols

from egnn_md.checkpoint import model_digest, package_versions
from egnn_md.devices import find_dtype
from egnn_md.errors import ExportError, InputError, ModelFileError, UnknownElementError
from egnn_md.export.artefact import (
    INFO_FILE,
    ArtefactInfo,
    Verification,
    numbers_digest,
    read_artefact,
    write_atomically,
)
from egnn_md.export.module import ExportedOpen, ExportedPeriodic
from egnn_md.export.seal import check_seal, plain_attributes, seal
from egnn_md.export.verify import verify
from egnn_md.kernels import accelerate, accelerated
from egnn_md.models import Potential
from egnn_md.neighbors.verlet import check_skin
from egnn_md.units import energy_in_ev, length_in_angstrom


def check_known(model: torch.nn.Module, numbers: Sequence[int], indices: Sequence[int] | None = None) -> None:
    """Refuse elements that the model was not trained on.

    Args:
        model: its ``elements`` are the atomic numbers it knows (empty: any).
        numbers: atomic numbers of the particles that it would act on.
        indices: how the message calls them (default: their place in ``numbers``).

    Raises:
        UnknownElementError: names the first such atom.
    """
    known = {int(z) for z in model.elements}  # type: ignore[union-attr]
    for place, number in enumerate(numbers):
        plausible = 0 < number < len(chemical_symbols)
        if plausible and (not known or number in known):
            continue
        atom = place if indices is None else indices[place]
        symbol = chemical_symbols[number] if plausible else f"Z = {number}"
        names = ", ".join(chemical_symbols[z] for z in sorted(known)) or "real elements"
        raise UnknownElementError(
            f"atom {atom} is {symbol}, but the model knows only {names}; "
            "choose a model trained on this element or leave the atom out of `atoms`"
        )


def _selection(numbers: Sequence[int], atoms: Sequence[int] | None) -> tuple[list[int], list[int] | None]:
    """Atomic numbers that the potential acts on, and where they sit (None: everywhere)."""
    try:
        everyone = [operator.index(z) for z in numbers]
        chosen = None if atoms is None else [operator.index(i) for i in atoms]
    except TypeError as error:
        raise InputError(f"numbers and atoms must hold whole numbers: {error}") from error
    if not everyone:
        raise InputError("there are no particles: `numbers` is empty")
    if chosen is None:
        return everyone, None
    if not chosen:
        raise InputError("`atoms` is empty; leave it out to act on every particle")
    count = len(everyone)
    for index, times in Counter(chosen).items():
        if not 0 <= index < count:
            raise InputError(f"`atoms` names particle {index}, but there are {count} (counted from 0)")
        if times > 1:
            raise InputError(f"`atoms` names particle {index} {times} times")
    return [everyone[i] for i in chosen], chosen


def prepare(model: torch.nn.Module, dtype: torch.dtype) -> Potential:
    """An independent copy for inference: on the CPU, in ``dtype``, its parameters frozen."""
    ready = copy.deepcopy(model).to(device="cpu", dtype=dtype).eval()
    for parameter in ready.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None
    return ready  # type: ignore[return-value]


@contextmanager
def quiet_torchscript() -> Iterator[None]:
    """TorchScript is deprecated as a whole, but TorchForce takes nothing else: its users need not be told."""
    with warnings.catch_warnings():
        for category in (DeprecationWarning, FutureWarning):
            warnings.filterwarnings("ignore", message=".*torch.jit.*", category=category)
        yield


def _digest(model: torch.nn.Module) -> str:
    """:func:`egnn_md.checkpoint.model_digest`; for a class without a file format, over what defines it."""
    try:
        return model_digest(model)
    except InputError:
        plain = {
            name: value
            for name, value in vars(model).items()
            if isinstance(value, bool | int | float | str | list) and not name.startswith("_")
        }
        digest = hashlib.sha256(json.dumps([type(model).__name__, plain], sort_keys=True, default=str).encode())
        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def script(module: torch.nn.Module) -> torch.jit.ScriptModule:
    """``torch.jit.script`` without its deprecation warning.

    Raises:
        ExportError: the module cannot be scripted; the message is TorchScript's.
    """
    if isinstance(module, torch.jit.ScriptModule):
        return module
    with quiet_torchscript():
        try:
            return torch.jit.script(module)
        except (RuntimeError, TypeError) as error:
            raise ExportError(f"{type(module).__name__} cannot be scripted: {error}") from error


def load_module(path: str | Path, device: str | torch.device = "cpu") -> torch.jit.ScriptModule:
    """The TorchScript module of an artefact, after :func:`read_artefact` has accepted the file.

    Raises:
        ModelFileError, UnsafeFileError: as :func:`read_artefact`; or TorchScript cannot read the program.
    """
    read_artefact(path)
    return load_scripted(Path(path), device)


def load_scripted(path: Path, device: str | torch.device = "cpu") -> torch.jit.ScriptModule:
    """The module in a TorchScript file. Raises ModelFileError where torch cannot read it."""
    # register the neighbour list's class and the fused operators, without which loading fails
    import vesin_torch  # noqa: F401

    import egnn_md.kernels.ops  # noqa: F401

    with quiet_torchscript():
        try:
            module = torch.jit.load(str(path), map_location=device)
        except RuntimeError as error:
            raise ModelFileError(f"TorchScript cannot read {path}: {error}") from error
    check_seal(module, str(path))
    return module


def export_torchscript(
    model: torch.nn.Module,
    path: str | Path,
    numbers: Sequence[int],
    *,
    periodic: bool,
    length_unit: str = "nanometer",
    energy_unit: str = "kilojoule_per_mole",
    dtype: torch.dtype | str = torch.float32,
    atoms: Sequence[int] | None = None,
    name: str | None = None,
    kernels: str = "plain",
    skin: float | str = "auto",
) -> ArtefactInfo:
    """Write ``model`` as TorchScript for one system: species, neighbour list and units baked in.

    The file's ``forward(positions)`` (open) or ``forward(positions, boxvectors)`` (periodic) gives the
    potential energy as a float64 scalar. The box is read at every call, so a barostat works; forces are the
    negative gradient, and zero on particles outside ``atoms``. The extra file ``egnn_md.json`` inside
    describes it (:class:`ArtefactInfo`). The defaults are OpenMM's units.

    Args:
        model: any potential that follows the contract, e.g. from ``load_model``.
        path: where to write; an existing file is replaced only once the new one has passed its check.
        numbers: atomic numbers of all particles of the system, in order (anything, e.g. 0, where ``atoms``
            leaves a particle out).
        periodic: True for a system with three periodic directions.
        length_unit: a name of ``egnn_md.units.LENGTH_IN_ANGSTROM``.
        energy_unit: a name of ``egnn_md.units.ENERGY_IN_EV``.
        dtype: float32 or float64 of the network; energies are summed in float64 either way.
        atoms: indices of the particles that the potential acts on; None means all.
        name: recorded name; the model card's by default.
        kernels: ``plain`` gives a program of PyTorch's own operators (and the neighbour list's); ``fused`` calls the
            operators of :mod:`egnn_md.kernels`, several times faster, and runs only where egnn_md is imported
            first; ``auto`` is ``fused`` where this machine has them.
        skin: Å; the module keeps its neighbour list until motion has used this up. ``auto`` finds the cheapest while
            the system moves. Energies do not depend on it.

    Returns:
        What was written into ``egnn_md.json``.

    Raises:
        ExportError: the model cannot be scripted, or scripted and eager disagree on random structures.
        InputError: unknown unit or dtype, an impossible skin, empty or impossible ``numbers`` or ``atoms``.
        UnknownElementError: an element that the model was not trained on.
        ModelFileError: the file cannot be written.
    """
    path = Path(path)
    length, energy = length_in_angstrom(length_unit), 1.0 / energy_in_ev(energy_unit)
    dtype = find_dtype(dtype)
    acted, chosen = _selection(numbers, atoms)
    check_known(model, acted, chosen)
    particles = len(acted) if chosen is None else len(numbers)
    eager = accelerate(prepare(model, dtype), "plain")  # what the file is compared with
    fast = accelerate(copy.deepcopy(eager), kernels)
    form = ExportedPeriodic if periodic else ExportedOpen
    scripted = script(
        form(
            script(fast),
            torch.tensor(acted),
            None if chosen is None else torch.tensor(chosen),
            particles,
            periodic,
            length,
            energy,
            dtype,
            check_skin(skin),
        ).eval()
    )
    seal(scripted, plain_attributes(fast))
    card = getattr(model, "card", None)
    fields = {
        "name": name or getattr(card, "name", None) or type(model).__name__,
        "kind": str(getattr(model, "kind", type(model).__name__)),
        "weights_digest": _digest(model),
        "licence": str(getattr(card, "licence", None) or "not stated"),
        "elements": [chemical_symbols[z] for z in sorted(set(acted))],
        "numbers": acted,
        "kernels": "fused" if accelerated(fast) else "plain",
        "numbers_digest": numbers_digest(acted, chosen, particles),
        "atoms": chosen,
        "particles": particles,
        "cutoff": float(model.cutoff),  # type: ignore[arg-type]
        "periodic": periodic,
        "long_range": bool(model.long_range),
        "length_unit": length_unit,
        "energy_unit": energy_unit,
        "dtype": str(dtype).removeprefix("torch."),
        "signature": f"forward(positions{', boxvectors' if periodic else ''}) -> energy",
        "versions": package_versions("egnn-md", "torch", "vesin-torch"),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    infos: list[ArtefactInfo] = []

    def write(temporary: Path) -> None:
        # the module that is checked has been through a file, as the engine's will have been
        save_scripted(scripted, temporary, "{}")
        figures: Verification = verify(
            load_scripted(temporary), eager, acted, periodic=periodic, length=length, energy=energy, dtype=dtype
        )
        info = ArtefactInfo.model_validate({**fields, "verification": figures})
        save_scripted(scripted, temporary, info.model_dump_json())
        infos.append(info)

    write_atomically(path, write)
    return infos[0]


def save_scripted(module: torch.jit.ScriptModule, path: Path, description: str) -> None:
    """Write a module with its description as an extra file. Raises ModelFileError where that fails."""
    with quiet_torchscript():
        try:
            torch.jit.save(module, str(path), _extra_files={INFO_FILE: description})
        except RuntimeError as error:  # PyTorch reports a full disk as a RuntimeError
            raise ModelFileError(f"cannot write {path}: {error}") from error
