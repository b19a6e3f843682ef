"""The model's card takes its numbers from a validation. The card is no part of the digest: the model stays the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from egnn_md.checkpoint import ModelCard, load_model, read_header, resolve_model, save_model
from egnn_md.errors import ModelFileError
from egnn_md.simulation.files import writing

KEY = "validation"


def write_card(name_or_path: str, record: dict[str, Any]) -> Path:
    """Put the summary of ``record`` into ``measured["validation"]`` of the model file's card, atomically.

    Args:
        name_or_path: of the model that was validated.
        record: what :func:`egnn_md.validation.validate` wrote as validation.json.

    Returns:
        The model file.

    Raises:
        ModelFileError: the file is not the model that was validated, or cannot be read.
        OutputError: it cannot be written; it is as it was.
    """
    path = resolve_model(name_or_path)
    header = read_header(path)
    if header["digest"] != record["model"]["digest"]:
        raise ModelFileError(
            f"{path} has the digest {header['digest'][:12]}, but {record['model']['digest'][:12]} was validated: the "
            "file changed since; validate it again with --overwrite"
        )
    card = ModelCard.model_validate(header["card"])
    # its own precision, plain kernels: every weight goes back as it came
    model = load_model(path, kernels="plain")
    with writing(path):
        save_model(model, path, card.model_copy(update={"measured": {**card.measured, KEY: summary(record)}}))
    return path


def summary(record: dict[str, Any]) -> dict[str, Any]:
    """Plain numbers and words of all parts that were measured, and how."""
    found: dict[str, Any] = {
        "against": record["against"] or "labels",
        "date": record["date"],
        "budget": record["request"]["budget"],
        "system": record["system"] or "labels",
        "temperatures_K": ", ".join(f"{kelvin:g}" for kelvin in record["request"]["temperatures"]),
    }
    for part in record["parts"]:
        if part["status"] == "measured":
            found |= part["card"]
    unfinished = [f"{part['name']} ({part['status']})" for part in record["parts"] if part["status"] != "measured"]
    if unfinished:
        found["not_measured"] = ", ".join(unfinished)
    return {key: float(f"{value:.5g}") if isinstance(value, float) else value for key, value in found.items()}
