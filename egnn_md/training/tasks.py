"""The two kinds of training behind one command: ``task: potential`` (the default) and ``task: propagator``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from egnn_md.errors import ConfigError
from egnn_md.training.config import TrainConfig
from egnn_md.training.config_file import apply_overrides, read_yaml
from egnn_md.training.fit import TrainResult
from egnn_md.training.propagator_config import PropagatorTrainConfig
from egnn_md.training.train import load_config, train
from egnn_md.training.train_propagator import load_propagator_config, train_propagator

TASKS = ("potential", "propagator")


def load_any_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig | PropagatorTrainConfig:
    """Read and check a configuration of either task.

    Raises:
        ConfigError: names the file and every offending key.
    """
    task = apply_overrides(read_yaml(path), overrides).get("task", "potential")
    if task not in TASKS:
        raise ConfigError(f"{path}: task = {task!r}; known: {', '.join(TASKS)}")
    return load_config(path, overrides) if task == "potential" else load_propagator_config(path, overrides)


def run_training(
    config: TrainConfig | PropagatorTrainConfig, *, resume: bool = False, console: Console | None = None
) -> TrainResult:
    """Train what ``config`` says: :func:`train` or :func:`train_propagator`."""
    if isinstance(config, PropagatorTrainConfig):
        return train_propagator(config, resume=resume, console=console)
    return train(config, resume=resume, console=console)
