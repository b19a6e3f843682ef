"""Running a training: what potentials and propagators share from the first checkpoint to the model file."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import LightningEnvironment
from rich.console import Console
from torch import nn

from egnn_md.checkpoint import ModelCard, load_model, model_digest, save_model
from egnn_md.devices import find_dtype
from egnn_md.distributed.session import versions
from egnn_md.errors import ConfigError
from egnn_md.simulation.files import write_atomic
from egnn_md.training.callbacks import CHECKPOINT_NAME, Bookkeeper, Measurements, ProgressReport, StopOnSignals
from egnn_md.training.config import RUNTIME_KEYS, RunConfig
from egnn_md.training.module import STATE_KEY, STATE_VERSION, TrainingModule
from egnn_md.training.ranks import Ranks
from egnn_md.training.schedule import CosineSchedule
from egnn_md.training.stream import BatchStream

BEST_NAME = "best.safetensors"
MODEL_NAME = "model.safetensors"

Errors = dict[str, dict[str, float]]


@dataclass
class TrainResult:
    """What a run left behind."""

    directory: Path
    steps: int
    finished: bool  #: False if it was interrupted; ``resume`` continues it
    model: Path | None = None
    errors: Errors = field(default_factory=dict)
    summary: list[str] = field(default_factory=list)  #: a line for each measured part


@dataclass(frozen=True)
class TrainingTask:
    """What :func:`fit` must know about one kind of training.

    Attributes:
        module: the model being trained; it holds configuration, schedule and data digest.
        stream: makes the stream of batches from a function that gives the current step.
        samples: size of the training set.
        measurements: columns of the logs, validation.
        final: errors of the finished model on every held-out part.
        summarise: a line out of one part's errors.
        card: of the model file, from errors and steps.
    """

    module: TrainingModule
    stream: Callable[[Callable[[], int]], BatchStream]
    samples: int
    measurements: Measurements
    final: Callable[[nn.Module], Errors]
    summarise: Callable[[dict[str, float]], str]
    card: Callable[[Errors, int], ModelCard]


def prepare_directory(
    config: RunConfig, state: dict[str, Any] | None, digest: str, samples: str, model: nn.Module, ranks: Ranks
) -> None:
    """Make the run's directory and write ``config.yaml``, once it is sure that ``state`` belongs to this run.

    Args:
        config: of the run.
        state: checkpoint to continue from, or None.
        digest: of the training set, as checkpoints have it.
        samples: of what every rank must have alike, the order of the samples included.
        model: to start from.
        ranks: all of them call this together.

    Raises:
        ConfigError: the checkpoint is one of other settings or data.
        TrainingError: ranks with other versions, settings, data, starting models or checkpoints.
    """
    directory = Path(config.output)
    if state is not None:
        _check_same_run(state, config, digest, directory / CHECKPOINT_NAME)
    ranks.agree(
        versions=versions(),
        configuration=config.model_dump_json(),
        data=samples,
        starting_model=model_digest(model),
        checkpoint=str(None if state is None else state["global_step"]),
    )
    if not ranks.writes:
        return
    directory.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    write_atomic(directory / "config.yaml", text.encode())


def find_checkpoint(config: RunConfig, resume: bool) -> dict[str, Any] | None:
    """State of the run in the configured directory, None if there is none.

    Raises:
        ConfigError: there is one and it is not to be resumed, or it cannot be read.
    """
    checkpoint = Path(config.output) / CHECKPOINT_NAME
    if not checkpoint.exists():
        return None
    if not resume:
        raise ConfigError(
            f"output = {config.output!r} holds a run already; continue it with --resume, or choose another directory"
        )
    return _read_checkpoint(checkpoint)


def fit(task: TrainingTask, state: dict[str, Any] | None, console: Console) -> TrainResult:
    """Make the steps that are left, measure the result and write the model file.

    Args:
        task: what to train.
        state: checkpoint to continue from, or None.
        console: where progress goes.

    Raises:
        TrainingError: the loss is not finite any more.
    """
    module = task.module
    config, schedule, ranks = module.config, module.schedule, module.ranks
    directory = Path(config.output)

    def save_best(current: TrainingModule, errors: dict[str, float]) -> None:
        save_model(current.validated, directory / BEST_NAME, task.card({"valid": errors}, current.global_step))

    resume_at = None if state is None else int(state["global_step"])
    own = directory if ranks.writes else None
    bookkeeper = Bookkeeper(own, task.measurements, task.samples, save_best, resume_at)
    over = False
    if state is not None:
        module.on_load_checkpoint(state)
        over = module.stopped_early or schedule.finished(int(state["global_step"]), module.elapsed_before)
    steps = resume_at or 0
    if over and state is not None:
        module.load_state_dict(state["state_dict"])
    else:
        trainer = _make_trainer(config, bookkeeper, console, resume_at, ranks)
        with quiet():
            trainer.fit(
                module,
                train_dataloaders=task.stream(lambda: trainer.global_step),
                ckpt_path=None if state is None else str(directory / CHECKPOINT_NAME),
                weights_only=True,
            )
        steps = trainer.global_step
        if not module.finished():
            console.print(f"interrupted after step {steps}; continue with --resume", highlight=False)
            return TrainResult(directory, steps, finished=False)
    final = _chosen(module, directory / BEST_NAME)
    final.eval()
    errors = task.final(final)
    if not ranks.writes:
        return TrainResult(directory, steps, True, None, errors)
    save_model(final, directory / MODEL_NAME, task.card(errors, steps))
    write_atomic(directory / "errors.json", (json.dumps(errors, indent=1) + "\n").encode())
    summary = [f"{part}: {task.summarise(values)}" for part, values in errors.items()]
    return TrainResult(directory, steps, True, directory / MODEL_NAME, errors, summary)


def _chosen(module: TrainingModule, best: Path) -> nn.Module:
    """The model that the run ends with, on every rank."""
    config, ranks = module.config, module.ranks
    chosen = ranks.writes and config.keep == "best" and best.exists()
    if ranks.alone:
        dtype = find_dtype(config.precision)
        return load_model(best, dtype=dtype, device=module.device) if chosen else module.validated
    final = deepcopy(module.validated)
    if chosen:
        final.load_state_dict(load_model(best, dtype=find_dtype(config.precision)).state_dict())
    # rank 0 has the file, and perhaps no other rank can see it
    ranks.same_weights(final, chosen=chosen)
    return final


def make_schedule(config: RunConfig, samples: int) -> CosineSchedule:
    """The schedule with every limit of the run in it; epochs are counted in steps."""
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.max_epochs is not None:
        limits.append(-(-config.max_epochs * samples // config.batch_size))
    return CosineSchedule(
        warmup_steps=config.schedule.warmup_steps,
        floor=config.schedule.floor,
        max_steps=min(limits) if limits else None,
        budget_seconds=None if config.max_time_minutes is None else 60.0 * config.max_time_minutes,
    )


def _make_trainer(
    config: RunConfig, bookkeeper: Bookkeeper, console: Console, resume_at: int | None, ranks: Ranks
) -> Trainer:
    """A trainer of one device: of several ranks each has its own, and our module does what they say to each other."""
    loggers: list[Logger] = []
    if config.tensorboard and ranks.writes:
        loggers.append(
            TensorBoardLogger(
                config.output,
                name="tensorboard",
                version="",
                # a resumed run writes these steps again: the reader must forget the first ones
                purge_step=None if resume_at is None else resume_at + 1,
            )
        )
    kind, _, index = ranks.device.partition(":")
    with quiet():
        return Trainer(
            accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[kind],
            devices=[int(index)] if index else 1,
            # "as it is": model and graphs are made in the wanted precision, and no default dtype is touched
            precision="32-true",
            max_epochs=-1,
            min_epochs=0,
            logger=loggers,
            plugins=[LightningEnvironment()],  # not what it finds of torchrun: there is one process for this trainer
            callbacks=[ProgressReport(bookkeeper, console), StopOnSignals(), bookkeeper],
            limit_val_batches=0,
            num_sanity_val_steps=0,
            gradient_clip_val=config.clip_norm,
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=True,
            default_root_dir=config.output,
            barebones=False,
            use_distributed_sampler=False,
            inference_mode=False,
        )


def _read_checkpoint(path: Path) -> dict[str, Any]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises several kinds for a file that is cut, foreign or unsafe
        raise ConfigError(f"{path} is not a checkpoint that can be resumed: {error}") from error
    own = state.get(STATE_KEY) if isinstance(state, dict) else None
    if not isinstance(own, dict) or own.get("version") != STATE_VERSION:
        raise ConfigError(f"{path} was not written by this version of egnn-md train; it cannot be resumed")
    return state


def _check_same_run(state: dict[str, Any], config: RunConfig, digest: str, path: Path) -> None:
    own = state[STATE_KEY]
    before = json.loads(own["config"])
    now = config.model_dump(mode="json")
    free = RUNTIME_KEYS
    if config.mode == "paper":  # what it learns depends on where the graphs are cut
        free = RUNTIME_KEYS - {"devices", "graph_devices", "partition"}
    for key in now:
        # a key that did not exist when the checkpoint was written had the value that is now the default
        if key not in before and getattr(config, key) == type(config).model_fields[key].get_default():
            continue
        if key not in free and before.get(key) != now[key]:
            raise ConfigError(
                f"{path} was trained with {key} = {before.get(key)!r}, not {now[key]!r}; resume with the "
                "same value, or start in another directory "
                f"(free to change: {', '.join(sorted(free))})"
            )
    if own["data_digest"] != digest:
        raise ConfigError(
            f"the training data changed since {path} was written (digest {own['data_digest'][:12]}…, now "
            f"{digest[:12]}…); restore the files, or start in another directory"
        )


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """torch's thread count is the caller's: set it only if asked, and give it back."""
    before = torch.get_num_threads()
    if number is not None:
        torch.set_num_threads(number)
    try:
        yield
    finally:
        if number is not None:
            torch.set_num_threads(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's greetings and advice, which do not apply to this trainer."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"lightning\..*")
            yield
    finally:
        logger.setLevel(level)
