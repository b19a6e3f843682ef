"""The two kinds of training behind one command: ``task: potential`` (the default) and ``task: propagator``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from egnn_md.distributed.session import launched
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
    config: TrainConfig | PropagatorTrainConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    max_restarts: int = 0,
) -> TrainResult:
    """Train what ``config`` says: :func:`train` or :func:`train_propagator`.

    With ``devices`` above 1 it starts that many processes on this machine, or, under ``torchrun``, is one of them.

    Args:
        config: of either task.
        resume: continue from ``last.ckpt``; without one, start.
        console: where progress goes (of several processes, to the standard output); None is silent.
        max_restarts: how often the processes that it started begin again when one of them is lost.
    """
    if config.devices > 1 and not launched():
        from egnn_md.training.launch import launch

        return launch(config, resume=resume, speak=console is not None, max_restarts=max_restarts)
    if isinstance(config, PropagatorTrainConfig):
        return train_propagator(config, resume=resume, console=console)
    return train(config, resume=resume, console=console)
