"""The model of a run, and what its record says about it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md.simulation.hydrogens import HYDROGEN, check_hydrogens
from egnn_md.simulation.protonation import residue_charge
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.structure import Structure

if TYPE_CHECKING:
    from egnn_md.models.base import Potential


def _describe(model: Potential, source: str) -> dict[str, Any]:
    from egnn_md.checkpoint import model_digest

    card = getattr(model, "card", None)
    try:
        # one over several devices has no weights here, but knows whose they are
        digest = getattr(model, "digest", None) or model_digest(model)
    except InputError:  # analytic references have no file format; their repr and class tell them apart
        public = {k: v for k, v in sorted(vars(model).items()) if not k.startswith("_") and k != "training"}
        digest = hashlib.sha256(f"{type(model).__name__} {public!r}".encode()).hexdigest()
    return {
        "source": source,
        "kind": type(model).__name__,
        "digest": digest,
        "parameters": sum(p.numel() for p in model.parameters()),
        "cutoff": float(model.cutoff),
        "elements": list(model.elements),
        "card": card.model_dump(mode="json") if card is not None else {},
    }


def open_model(request: MDRequest, model: Potential | None = None) -> tuple[Potential, dict[str, Any]]:
    """Load the model of ``request`` in its dtype (on the CPU, or over its devices), or take ``model``; describe it.

    Raises:
        ModelFileError: no such model, or a file that is not one.
        InputError: a file that holds no potential, or one that is to be added to energy terms that a run has not.
    """
    import torch

    from egnn_md.checkpoint import load_model
    from egnn_md.distributed import ParallelPotential
    from egnn_md.distributed.session import launched
    from egnn_md.models.base import Potential

    if model is not None:
        check_whole(model, request)
        return model, _describe(model, "Python object")
    split = request.devices > 1 or launched()
    loaded = load_model(request.model, dtype=getattr(torch, request.dtype))
    if not isinstance(loaded, Potential):
        raise InputError(
            f"--model {request.model} is a {type(loaded).__name__}, not a potential; "
            "molecular dynamics needs one that gives energies"
        )
    check_whole(loaded, request)
    source = request.model
    if Path(source).is_file():
        source = Path(source).name
    description = _describe(loaded, source)
    if not split:
        return loaded, description
    parallel = ParallelPotential(
        loaded,
        None if launched() and request.devices == 1 else request.devices,
        device=request.device,
        dtype=request.dtype,
        mode=request.mode,
        partition=request.partition,
    )
    return parallel, {**description, "devices": parallel.devices, "partition": request.partition, "mode": request.mode}


@contextmanager
def closing_models() -> Iterator[Callable[[Any], Any]]:
    """Gives a function that notes what was opened; its ranks are ended when the block is left."""
    opened: list[Any] = []

    def note(model: Any) -> Any:
        opened.append(model)
        return model

    try:
        yield note
    finally:
        for model in opened:
            if hasattr(model, "close"):
                model.close()


def check_whole(model: Potential, request: MDRequest) -> None:
    """Refuse a model that is a part of the energy only, unless ``request.without_prior`` says that this is meant.

    Raises:
        InputError: says what is missing, and how to run the model with it.
    """
    card = getattr(model, "card", None)
    if card is None or not card.needs or request.without_prior:
        return
    name = card.name or request.model
    raise InputError(
        f"the model {name!r} is only a part of the energy and must not run alone; it needs {card.needs}. To run it "
        "alone all the same, give --without-prior"
    )


def check_model(model: Potential, structure: Structure) -> None:
    """Refuse what the model was not made for.

    Raises:
        UnknownElementError: the structure holds an element that the model does not know.
        InputError: the model knows hydrogen, and residues of the structure have lost theirs; a total charge that the
            model does not know.
    """
    import torch

    from egnn_md.models.charges import check_charge, check_electrons
    from egnn_md.models.evaluate import check_elements

    check_elements(model, torch.as_tensor(structure.numbers))
    charge, where = structure.charge, "the structure"
    if HYDROGEN in model.elements:  # one of real atoms, all of them
        residues = _residues(structure)
        check_hydrogens(residues, structure.bonds.tolist())
        if charge is None:
            charge = residue_charge(residues, structure.bonds.tolist())
            where = "the structure, by the hydrogens of its residues,"
        if charge is None:
            check_electrons(model, structure.numbers)
    if charge is not None:
        check_charge(model, charge, where)


def _residues(structure: Structure) -> list[tuple[str, list[int]]]:
    """Label and atomic numbers of each residue."""
    ends = np.searchsorted(structure.residues, np.arange(len(structure.residue_names)), side="right")
    starts = np.concatenate([[0], ends[:-1]])
    return [
        (f"{name} {index + 1}", structure.numbers[start:end].tolist())
        for index, (name, start, end) in enumerate(zip(structure.residue_names, starts, ends, strict=True))
    ]
