"""One training run from configuration to model file, resumable at any moment."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from rich.console import Console

from egnn_md.checkpoint import ModelCard, load_model, save_model
from egnn_md.data.statistics import DatasetStatistics, dataset_statistics
from egnn_md.errors import ConfigError
from egnn_md.models import FastEGNNPotential
from egnn_md.models.evaluate import check_elements
from egnn_md.training.build import build_potential, check_model_section, cutoff_of, starting_model
from egnn_md.training.callbacks import CHECKPOINT_NAME, Bookkeeper, ProgressReport, StopOnSignals
from egnn_md.training.config import RUNTIME_KEYS, TrainConfig
from egnn_md.training.config_file import apply_overrides, read_yaml, validate
from egnn_md.training.data import TrainingData, load_data
from egnn_md.training.metrics import measure_errors
from egnn_md.training.module import STATE_KEY, STATE_VERSION, PotentialModule
from egnn_md.training.schedule import CosineSchedule
from egnn_md.training.stream import BatchStream

BEST_NAME = "best.safetensors"
MODEL_NAME = "model.safetensors"
DTYPES = {"float32": torch.float32, "float64": torch.float64}


@dataclass
class TrainResult:
    """What a run left behind."""

    directory: Path
    steps: int
    finished: bool  #: False if it was interrupted; ``resume`` continues it
    model: Path | None = None
    errors: dict[str, dict[str, float]] = field(default_factory=dict)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a YAML configuration.

    Raises:
        ConfigError: names the file and every offending key.
    """
    config = validate(TrainConfig, apply_overrides(read_yaml(path), overrides), str(path))
    check_model_section(config.model, str(path))
    return config


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Train a potential.

    The run's directory gets ``config.yaml``, ``train.csv`` and ``valid.csv``, TensorBoard files,
    ``last.ckpt`` (everything that a resumed run needs), ``best.safetensors`` and at the end
    ``model.safetensors`` with the measured errors in its card. With ``max_steps`` or ``max_epochs`` a resumed
    run repeats the uninterrupted one bit by bit on the same machine; with ``max_time_minutes`` it cannot.

    SIGINT and SIGTERM finish the step, save and return; a second SIGINT interrupts at once.

    Args:
        config: the run.
        resume: continue from ``last.ckpt``; without one, start.
        console: where progress goes; None is silent.

    Raises:
        ConfigError: the directory holds another run, or the checkpoint belongs to other data or settings.
        InputError, ModelFileError: unusable data or starting model.
        TrainingError: the loss is not finite any more.
    """
    check_model_section(config.model, "configuration")
    console = console or Console(quiet=True)
    directory = Path(config.output)
    checkpoint = directory / CHECKPOINT_NAME
    if checkpoint.exists() and not resume:
        raise ConfigError(
            f"output = {config.output!r} holds a run already; continue it with --resume, or choose another directory"
        )
    state = _read_checkpoint(checkpoint) if checkpoint.exists() else None
    dtype = DTYPES[config.precision]
    with _threads(config.threads):
        start = starting_model(config.model, dtype)
        data = load_data(config.data, cutoff_of(config.model, start), dtype)
        statistics = dataset_statistics(data.train.graphs)
        _describe(data, statistics, console)
        potential = build_potential(config.model, statistics, start, data.train.graphs, seed=config.seed, dtype=dtype)
        for part in (data.train, data.valid, data.test):
            for graph in part.graphs:
                check_elements(potential, graph.species)
        if state is not None:
            _check_same_run(state, config, data.train.digest(), checkpoint)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "config.yaml").write_text(
            yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        )
        return _fit(config, potential, data, statistics, state, console)


def _fit(
    config: TrainConfig,
    potential: FastEGNNPotential,
    data: TrainingData,
    statistics: DatasetStatistics,
    state: dict[str, Any] | None,
    console: Console,
) -> TrainResult:
    directory = Path(config.output)
    schedule = _schedule(config, len(data.train))
    module = PotentialModule(potential, config, schedule, data.train.digest())

    def card(errors: dict[str, dict[str, float]], steps: int) -> ModelCard:
        return make_card(config, data, statistics, errors, steps)

    def save_best(current: PotentialModule, errors: dict[str, float]) -> None:
        save_model(current.validated, directory / BEST_NAME, card({"valid": errors}, current.global_step))

    resume_at = None if state is None else int(state["global_step"])
    bookkeeper = Bookkeeper(directory, data.valid.graphs, len(data.train), save_best, resume_at)
    over = False
    if state is not None:
        module.on_load_checkpoint(state)
        over = module.stopped_early or schedule.finished(int(state["global_step"]), module.elapsed_before)
    steps = resume_at or 0
    if over and state is not None:
        module.load_state_dict(state["state_dict"])
    else:
        trainer = _make_trainer(config, bookkeeper, console, resume_at)
        stream = BatchStream(
            data.train.graphs,
            config.batch_size,
            config.seed,
            (config.checkpoint_every, config.validate_every),
            lambda: trainer.global_step,
        )
        with _quiet():
            trainer.fit(
                module,
                train_dataloaders=stream,
                ckpt_path=None if state is None else str(directory / CHECKPOINT_NAME),
                weights_only=True,
            )
        steps = trainer.global_step
        if not module.finished():
            console.print(f"interrupted after step {steps}; continue with --resume", highlight=False)
            return TrainResult(directory, steps, finished=False)
    if config.keep == "best" and (directory / BEST_NAME).exists():
        final: Any = load_model(directory / BEST_NAME, dtype=DTYPES[config.precision])
    else:
        final = module.validated
    final.eval()
    errors = {"valid": measure_errors(final, data.valid.graphs)}
    if len(data.test):
        errors["test"] = measure_errors(final, data.test.graphs)
    save_model(final, directory / MODEL_NAME, card(errors, steps))
    (directory / "errors.json").write_text(json.dumps(errors, indent=1) + "\n")
    return TrainResult(directory, steps, True, directory / MODEL_NAME, errors)


def make_card(
    config: TrainConfig,
    data: TrainingData,
    statistics: DatasetStatistics,
    errors: dict[str, dict[str, float]],
    steps: int,
) -> ModelCard:
    """What the model file says about itself (errors in meV/atom, meV/Å, GPa)."""
    measured: dict[str, Any] = {
        f"{part}_{name}": round(value, 6) for part, values in errors.items() for name, value in values.items()
    }
    return ModelCard(
        name=config.name,
        description=config.description,
        teacher=", ".join(data.train.teachers()) or "unknown",
        licence=config.licence,
        training_data={
            "digest": data.train.digest(),
            "structures": len(data.train),
            "valid_digest": data.valid.digest(),
            "valid_structures": len(data.valid),
            "statistics": statistics.as_dict(),
        },
        measured={**measured, "steps": steps, "config": config.model_dump(mode="json")},
    )


def _schedule(config: TrainConfig, structures: int) -> CosineSchedule:
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.max_epochs is not None:
        limits.append(-(-config.max_epochs * structures // config.batch_size))
    return CosineSchedule(
        warmup_steps=config.schedule.warmup_steps,
        floor=config.schedule.floor,
        max_steps=min(limits) if limits else None,
        budget_seconds=None if config.max_time_minutes is None else 60.0 * config.max_time_minutes,
    )


def _make_trainer(config: TrainConfig, bookkeeper: Bookkeeper, console: Console, resume_at: int | None) -> Trainer:
    loggers: list[Logger] = []
    if config.tensorboard:
        loggers.append(
            TensorBoardLogger(
                config.output,
                name="tensorboard",
                version="",
                # a resumed run writes these steps again: the reader must forget the first ones
                purge_step=None if resume_at is None else resume_at + 1,
            )
        )
    kind, _, index = config.device.partition(":")
    with _quiet():
        return Trainer(
            accelerator={"cpu": "cpu", "cuda": "gpu", "mps": "mps"}[kind],
            devices=[int(index)] if index else 1,
            # "as it is": model and graphs are made in the wanted precision, and no default dtype is touched
            precision="32-true",
            max_epochs=-1,
            min_epochs=0,
            logger=loggers,
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


def _check_same_run(state: dict[str, Any], config: TrainConfig, digest: str, path: Path) -> None:
    own = state[STATE_KEY]
    before = json.loads(own["config"])
    now = config.model_dump(mode="json")
    for key in now:
        if key not in RUNTIME_KEYS and before.get(key) != now[key]:
            raise ConfigError(
                f"{path} was trained with {key} = {before.get(key)!r}, not {now[key]!r}; resume with the "
                "same value, or start in another directory "
                f"(free to change: {', '.join(sorted(RUNTIME_KEYS))})"
            )
    if own["data_digest"] != digest:
        raise ConfigError(
            f"the training data changed since {path} was written (digest {own['data_digest'][:12]}…, now "
            f"{digest[:12]}…); restore the files, or start in another directory"
        )


def _describe(data: TrainingData, statistics: DatasetStatistics, console: Console) -> None:
    train = data.train
    notes = [f"{train.dropped} left out by max_force"] if train.dropped else []
    notes += [f"{train.duplicates} duplicates left out"] if train.duplicates else []
    console.print(
        f"{len(train)} structures to learn from ({statistics.atoms} atoms"
        f"{'; ' + ', '.join(notes) if notes else ''}), {len(data.valid)} to validate, "
        f"{len(data.test)} to test; "
        f"force RMS {statistics.force_rms:.3f} eV/Å, {statistics.mean_neighbors:.1f} neighbours an atom",
        highlight=False,
        soft_wrap=True,
    )


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
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
def _quiet() -> Iterator[None]:
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
