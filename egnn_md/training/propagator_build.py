"""From the configuration of a propagator's training and its data set to samples and a fresh model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from egnn_md.checkpoint import load_model
from egnn_md.data.trajectories import TrajectoryMetadata, TrajectorySet, open_trajectories
from egnn_md.data.windows import WindowSet, check_same_world
from egnn_md.errors import ConfigError, InputError
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.training.config_file import unknown_key, validate
from egnn_md.training.propagator_config import PropagatorTrainConfig

START_FROM = "start_from"


@dataclass(frozen=True)
class PropagatorData:
    """Samples of the three parts; ``test`` is None where the data set has none."""

    metadata: TrajectoryMetadata
    train: WindowSet
    valid: WindowSet
    test: WindowSet | None


def check_propagator_section(section: dict[str, Any], source: str) -> None:
    """Refuse unknown keys of the ``model`` section before any data are read.

    Raises:
        ConfigError: names the key.
    """
    fields = [*PropagatorConfig.model_fields, START_FROM]
    for key in section:
        if key not in fields:
            raise ConfigError(f"{source}: {unknown_key(key, fields, 'model')}")
    if START_FROM in section:
        if not isinstance(section[START_FROM], str):
            raise ConfigError(f"{source}: model.{START_FROM} = {section[START_FROM]!r} must be a file name")
        others = sorted(set(section) - {START_FROM})
        if others:
            raise ConfigError(
                f"{source}: model.{others[0]} cannot be chosen beside model.{START_FROM}: "
                "the model that the training goes on from keeps its shape, stride and inputs"
            )


def propagator_config(
    config: PropagatorTrainConfig, data: TrajectorySet, source: str = "configuration"
) -> PropagatorConfig:
    """The model's configuration: what the section gives, the rest from the data.

    Args:
        config: of the training.
        data: its training part.
        source: what messages call the configuration.

    Raises:
        ConfigError: values that cannot be, or that contradict the data set.
    """
    section, metadata = dict(config.model), data.metadata
    if section.get("velocity") is True:  # YAML's reading of `velocity: true`
        section["velocity"] = "true"
    features = {0 if t.features is None else int(t.features.shape[1]) for t in data}
    if len(features) > 1:
        raise ConfigError(f"{data.path}: trajectories have {sorted(features)} node features; all need the same number")
    species = tuple(sorted({int(kind) for t in data for kind in set(t.species.tolist())}))
    extra = metadata.model_extra or {}
    static = tuple(sorted(int(kind) for kind in extra.get("static_types", ())))
    fixed: dict[str, Any] = {
        "system": metadata.system,
        "units": dict(metadata.units),
        "frame_interval": metadata.frame_interval,
        "stride": config.stride_frames * metadata.frame_interval,
        "node_features": features.pop(),
    }
    for key, value in fixed.items():
        if key in section and not _same(section[key], value):
            what = f"stride_frames = {config.stride_frames} of the data" if key == "stride" else "the data"
            raise ConfigError(
                f"{source}: model.{key} = {section[key]!r} contradicts {what} in {config.data.directory!r}, "
                f"where it is {value!r}; leave it out, or give the other data set"
            )
    filled = {
        "species": species,
        "static_species": tuple(kind for kind in static if kind in species),
        "cutoff": metadata.default_connectivity_radius,
        "gravity": metadata.gravity,
        # a boundary made of particles is seen as particles
        "walls": None if static else metadata.walls,
    }
    try:
        model = validate(PropagatorConfig, {**filled, **section, **fixed}, source)
    except ConfigError as error:
        raise ConfigError(f"{error} (section 'model')") from None
    strangers = sorted(set(species) - set(model.species))
    if strangers:
        raise ConfigError(
            f"{source}: model.species = {list(model.species)} lacks the particle types {strangers} of the data"
        )
    return model


def _same(given: Any, value: Any) -> bool:
    if isinstance(value, float) and isinstance(given, (int, float)):
        return abs(given - value) <= 1e-6 * abs(value)
    return given == value


def check_against(config: PropagatorTrainConfig, model: PropagatorConfig, metadata: TrajectoryMetadata) -> None:
    """Refuse losses and rollouts that this model or these data cannot have.

    Raises:
        ConfigError: names the key, and the one to change.
    """
    if config.loss.mmd > 0 and any(metadata.pbc):
        raise ConfigError(
            f"loss.mmd = {config.loss.mmd}: in a periodic system virtual nodes have no place (they carry features "
            "only), so there is no MMD; set loss.mmd: 0"
        )
    if config.loss.mmd > 0 and model.virtual_nodes == 0:
        raise ConfigError(
            f"loss.mmd = {config.loss.mmd}: the model has no virtual nodes (model.virtual_nodes = 0), so there is no "
            "MMD; set loss.mmd: 0"
        )
    if config.unroll.strides > 1 and model.velocity == "forward":
        raise ConfigError(
            f"unroll.strides = {config.unroll.strides}: a forward difference contains the next frame, so a model that "
            "takes it cannot go on from its own prediction; use model.velocity: backward or true"
        )


def load_propagator_data(
    config: PropagatorTrainConfig, model: PropagatorConfig, train: TrajectorySet, dtype: torch.dtype
) -> PropagatorData:
    """Samples of every part.

    Raises:
        InputError: a part that is missing or cannot be used.
    """
    section = config.data

    def windows(part: TrajectorySet, limit: int | None, model: PropagatorConfig, unroll: int = 1) -> WindowSet:
        for trajectory in part:
            strangers = sorted(set(trajectory.species.tolist()) - set(model.species))
            if strangers:
                raise InputError(
                    f"trajectory {trajectory.name!r} has particle types {strangers}, but the propagator knows "
                    f"{list(model.species)}"
                )
        return WindowSet(
            part,
            model,
            unroll=unroll,
            starts=section.starts,
            every=section.every,
            limit=limit,
            seed=section.limit_seed,
            dtype=dtype,
        )

    # random edges of a training batch are drawn step by step, out of all
    whole = model.model_copy(update={"drop": "none", "drop_fraction": 0.0}) if model.drop == "random" else model
    directory = Path(section.directory)
    return PropagatorData(
        train.metadata,
        windows(train, section.limit, whole, config.unroll.strides),
        windows(open_trajectories(directory, "valid"), section.valid_limit, model),
        windows(open_trajectories(directory, "test"), section.test_limit, model)
        if (directory / "test.h5").is_file()
        else None,
    )


def build_propagator(
    config: PropagatorTrainConfig, train: TrajectorySet, dtype: torch.dtype, source: str = "configuration"
) -> FastEGNNPropagator:
    """A fresh propagator, or the one to go on from. Initial weights depend on the seed only.

    Raises:
        ConfigError: the configuration contradicts the data, or the file holds another kind of model.
        ModelFileError: the file cannot be loaded.
    """
    section = config.model
    if START_FROM in section:
        loaded = load_model(section[START_FROM], dtype=dtype)
        if not isinstance(loaded, FastEGNNPropagator):
            raise ConfigError(f"{source}: model.{START_FROM} = {section[START_FROM]!r} is a {type(loaded).__name__}")
        try:
            check_same_world(loaded.config, train.metadata, config.data.directory)
        except InputError as error:
            raise ConfigError(f"{source}: model.{START_FROM} = {section[START_FROM]!r}: {error}") from error
        frames = round(loaded.config.stride / train.metadata.frame_interval)
        if "stride_frames" in config.model_fields_set and config.stride_frames != frames:
            raise ConfigError(
                f"{source}: stride_frames = {config.stride_frames}, but the stride of model.{START_FROM} = "
                f"{section[START_FROM]!r} is {frames} frames of the data"
            )
        return loaded.requires_grad_(True)  # loaded models are frozen
    model_config = propagator_config(config, train, source)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return FastEGNNPropagator(model_config).to(dtype)
