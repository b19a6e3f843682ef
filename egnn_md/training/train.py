"""Training of a potential, from configuration to model file, resumable at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from egnn_md.checkpoint import ModelCard
from egnn_md.data.statistics import DatasetStatistics, dataset_statistics
from egnn_md.devices import find_dtype
from egnn_md.models import Potential
from egnn_md.models.evaluate import check_elements
from egnn_md.training.build import build_potential, check_model_section, cutoff_of, starting_model
from egnn_md.training.callbacks import CHECKPOINT_NAME, Measurements
from egnn_md.training.config import LossSection, TrainConfig
from egnn_md.training.config_file import apply_overrides, read_yaml, validate
from egnn_md.training.data import TrainingData, load_data
from egnn_md.training.fit import (
    Errors,
    TrainingTask,
    TrainResult,
    find_checkpoint,
    fit,
    make_schedule,
    prepare_directory,
    threads,
)
from egnn_md.training.metrics import measure_errors
from egnn_md.training.module import PotentialModule
from egnn_md.training.ranks import Ranks, join, resumes
from egnn_md.training.stream import BatchStream

__all__ = ["CHECKPOINT_NAME", "TrainResult", "load_config", "train"]

PARTS = ("energy", "forces", "stress")
ERRORS = (
    "energy_mae", "energy_rmse", "energy_offset", "energy_mae_centred",
    "energy_rmse_centred", "force_mae", "force_rmse", "force_max", "stress_mae", "stress_rmse",
)  # fmt: skip


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read and check a YAML configuration of a potential's training.

    Raises:
        ConfigError: names the file and every offending key.
    """
    config = validate(TrainConfig, apply_overrides(read_yaml(path), overrides), str(path))
    check_model_section(config.model, str(path))
    return config


def validation_loss(errors: dict[str, float], settings: LossSection) -> float:
    """The squared training loss, from measured errors (meV/atom, meV/Å; the stress is left out)."""
    return settings.energy * (errors["energy_rmse"] / 1e3) ** 2 + settings.forces * (errors["force_rmse"] / 1e3) ** 2


def train(
    config: TrainConfig, *, resume: bool = False, console: Console | None = None, ranks: Ranks | None = None
) -> TrainResult:
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
        ranks: this process and the others of the training; None takes those that a launcher started
            (:func:`egnn_md.training.ranks.join`). All ranks call this function together, and rank 0 writes.

    Raises:
        ConfigError: the directory holds another run, or the checkpoint belongs to other data or settings; more
            devices than there are processes.
        InputError, ModelFileError: unusable data or starting model.
        TrainingError: the loss is not finite any more.
    """
    check_model_section(config.model, "configuration")
    ranks = ranks or join(config)
    if console is None or not ranks.writes:
        console = Console(quiet=True)
    dtype = find_dtype(config.precision)
    with ranks.watched(), threads(config.threads or ranks.threads):
        state = find_checkpoint(config, resumes(resume))
        start = starting_model(config.model, dtype)
        data = load_data(config.data, cutoff_of(config.model, start), dtype)
        statistics = dataset_statistics(data.train.graphs)
        _describe(data, statistics, console)
        potential = build_potential(config.model, statistics, start, data.train.graphs, seed=config.seed, dtype=dtype)
        for part in (data.train, data.valid, data.test):
            for graph in part.graphs:
                check_elements(potential, graph.species)
        digest = data.train.digest()
        samples = "\n".join(name for part in (data.train, data.valid, data.test) for name in (*part.digests, ""))
        prepare_directory(config, state, digest, samples, potential, ranks)
        module = PotentialModule(potential, config, make_schedule(config, len(data.train)), digest, ranks)
        return fit(_task(config, module, data, statistics), state, console)


def _task(
    config: TrainConfig, module: PotentialModule, data: TrainingData, statistics: DatasetStatistics
) -> TrainingTask:
    def validate_model(model: nn.Module) -> dict[str, float]:
        assert isinstance(model, Potential)
        errors = measure_errors(
            model, data.valid.graphs, batch_size=max(4, config.batch_size), evaluator=module.ranks.evaluate
        )
        return {**errors, "loss": validation_loss(errors, config.loss)}

    def final(model: nn.Module) -> Errors:
        assert isinstance(model, Potential)
        evaluator = module.ranks.evaluate
        errors = {"valid": measure_errors(model, data.valid.graphs, evaluator=evaluator)}
        if len(data.test):
            errors["test"] = measure_errors(model, data.test.graphs, evaluator=evaluator)
        return errors

    return TrainingTask(
        module=module,
        stream=lambda current_step: BatchStream(
            data.train.graphs,
            config.batch_size,
            config.seed,
            (config.checkpoint_every, config.validate_every),
            current_step,
        ),
        samples=len(data.train),
        measurements=Measurements(
            parts=PARTS,
            errors=ERRORS,
            validate=validate_model,
            describe=lambda errors: (
                f"force RMSE {errors['force_rmse']:.1f} meV/Å, energy RMSE {errors['energy_rmse']:.2f} "
                f"({errors['energy_rmse_centred']:.2f} centred) meV/atom, loss {errors['loss']:.4g}"
            ),
            note=lambda errors: (
                f"{errors['force_rmse']:.1f} meV/Å {errors['energy_rmse_centred']:.2f} meV/atom"
            ),
        ),
        final=final,
        summarise=lambda errors: (
            f"force RMSE {errors['force_rmse']:.1f} meV/Å, energy RMSE {errors['energy_rmse']:.2f} "
            f"({errors['energy_rmse_centred']:.2f} without the mean offset) meV/atom"
        ),
        card=lambda errors, steps: make_card(config, data, statistics, errors, steps),
    )


def make_card(
    config: TrainConfig,
    data: TrainingData,
    statistics: DatasetStatistics,
    errors: Errors,
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
            "charges": data.train.charges(),
            "statistics": statistics.as_dict(),
        },
        measured={**measured, "steps": steps, "config": config.model_dump(mode="json")},
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
