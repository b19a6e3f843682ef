"""From the ``model`` section of a configuration to a potential."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import ValidationError

from egnn_md.checkpoint import load_model
from egnn_md.data.statistics import DatasetStatistics, fit_atomic_energies
from egnn_md.errors import ConfigError
from egnn_md.graph import ParticleGraph
from egnn_md.models import FastEGNNPotential, PotentialConfig, evaluate
from egnn_md.training.config_file import unknown_key, validate

START_FROM = "start_from"
REFIT = "refit_atomic_energies"


def check_model_section(section: dict[str, Any], source: str) -> None:
    """Refuse unknown keys and impossible values before any data are read.

    Raises:
        ConfigError: names the key.
    """
    fields = list(PotentialConfig.model_fields)
    for key in section:
        if key not in (*fields, START_FROM, REFIT):
            raise ConfigError(f"{source}: {unknown_key(key, [*fields, START_FROM, REFIT], 'model')}")
    if START_FROM in section:
        if not isinstance(section[START_FROM], str):
            raise ConfigError(f"{source}: model.{START_FROM} = {section[START_FROM]!r} must be a file name")
        if not isinstance(section.get(REFIT, False), bool):
            raise ConfigError(f"{source}: model.{REFIT} = {section[REFIT]!r} must be true or false")
        others = sorted(set(section) - {START_FROM, REFIT})
        if others:
            raise ConfigError(
                f"{source}: model.{others[0]} cannot be chosen beside model.{START_FROM}: "
                "a fine-tuned model keeps the shape of the one it starts from"
            )
        return
    if REFIT in section:
        raise ConfigError(f"{source}: model.{REFIT} goes with model.{START_FROM} only")
    _config(section, {"elements": (1,)} if "elements" not in section else {}, source)


def _config(section: dict[str, Any], filled: dict[str, Any], source: str) -> PotentialConfig:
    try:
        return validate(PotentialConfig, {**filled, **section}, source)
    except (ConfigError, ValidationError) as error:
        raise ConfigError(f"{error} (section 'model')") from None


def starting_model(section: dict[str, Any], dtype: torch.dtype) -> FastEGNNPotential | None:
    """The model to fine-tune, or None.

    Raises:
        ConfigError: the file holds another kind of model.
        ModelFileError: it cannot be loaded.
    """
    if START_FROM not in section:
        return None
    model = load_model(section[START_FROM], dtype=dtype)
    if not isinstance(model, FastEGNNPotential):
        raise ConfigError(
            f"model.{START_FROM} = {section[START_FROM]!r} is a {type(model).__name__}, which has no training"
        )
    return model.requires_grad_(True)  # loaded models are frozen


def cutoff_of(section: dict[str, Any], start: FastEGNNPotential | None) -> float:
    """Cutoff (Å) that the neighbour lists need."""
    if start is not None:
        return start.cutoff
    return float(section.get("cutoff", PotentialConfig.model_fields["cutoff"].default))


def build_potential(
    section: dict[str, Any],
    statistics: DatasetStatistics,
    start: FastEGNNPotential | None,
    train: list[ParticleGraph],
    *,
    seed: int,
    dtype: torch.dtype,
    source: str = "configuration",
) -> FastEGNNPotential:
    """A new potential with scales taken from the data, or the one to fine-tune.

    What the section leaves open is filled in: elements, atomic energies (least squares), the mean neighbour
    count, and the scale: the force RMS times 1 Å, so that outputs of order one give forces of the right size.

    The initial weights depend on ``seed`` only; the caller's random state is left as it was.
    """
    if start is not None:
        return _refitted(start, train) if section.get(REFIT, False) else start
    filled: dict[str, Any] = {
        "elements": tuple(statistics.elements),
        "mean_neighbors": max(statistics.mean_neighbors, 1.0),
        "scale": max(statistics.force_rms, 1e-3),
    }
    if tuple(section.get("elements", filled["elements"])) == filled["elements"]:
        filled["atomic_energies"] = tuple(statistics.atomic_energies)
    config = _config(section, filled, source)
    if not config.atomic_energies:
        raise ConfigError(
            f"{source}: model.elements = {list(config.elements)} differ from those of the data "
            f"({statistics.elements}), so model.atomic_energies must be given too"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return FastEGNNPotential(config).to(dtype)


def _refitted(start: FastEGNNPotential, train: list[ParticleGraph]) -> FastEGNNPotential:
    """``start`` with atomic energies shifted to another teacher's zero."""
    residuals = []
    for graph in train:
        predicted = evaluate(start, graph, forces=False)["energy"]
        labels = {**graph.labels, "energy": graph.labels["energy"] - predicted}
        residuals.append(ParticleGraph(**{**vars(graph), "labels": labels}))
    elements, shifts = fit_atomic_energies(residuals)
    by_element = dict(zip(elements, shifts, strict=True))
    energies = tuple(
        old + by_element.get(z, 0.0) for z, old in zip(start.config.elements, start.reference, strict=True)
    )
    model = FastEGNNPotential(start.config.model_copy(update={"atomic_energies": energies}))
    model.load_state_dict(start.state_dict())
    return model.to(start.dtype)
