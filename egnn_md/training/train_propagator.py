"""Training of a propagator, from configuration to model file, resumable at any moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from egnn_md.checkpoint import ModelCard
from egnn_md.data.trajectories import open_trajectories
from egnn_md.devices import find_dtype
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.simulation.machine import machine
from egnn_md.training.batches import WindowBatches, WindowStream
from egnn_md.training.callbacks import Measurements
from egnn_md.training.config_file import apply_overrides, read_yaml, validate
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
from egnn_md.training.module import TrainingModule
from egnn_md.training.propagator_build import (
    PropagatorData,
    build_propagator,
    check_against,
    check_propagator_section,
    load_propagator_data,
)
from egnn_md.training.propagator_config import PropagatorTrainConfig
from egnn_md.training.propagator_loss import PARTS, unrolled_loss
from egnn_md.training.propagator_metrics import one_step_errors, references
from egnn_md.training.ranks import Ranks, join, resumes
from egnn_md.training.share import Share

ERRORS = ("mse", "velocity_mse", "still", "linear", "still_velocity", "linear_velocity")


def load_propagator_config(path: str | Path, overrides: Sequence[str] = ()) -> PropagatorTrainConfig:
    """Read and check a YAML configuration of a propagator's training.

    Raises:
        ConfigError: names the file and every offending key.
    """
    config = validate(PropagatorTrainConfig, apply_overrides(read_yaml(path), overrides), str(path))
    check_propagator_section(config.model, str(path))
    return config


class PropagatorModule(TrainingModule):
    """Training of a propagator on one or several strides."""

    role = "propagator"
    config: PropagatorTrainConfig

    def loss_parts(self, share: Share) -> dict[str, Tensor]:
        """The paper's loss over as many strides as this step unrolls."""
        model = self.trained
        assert isinstance(model.config, PropagatorConfig)
        strides = self.config.unroll.at(self.global_step)
        return unrolled_loss(
            model,
            share.graph,
            model.config,
            self.config.loss,
            strides,
            seed=self.config.seed,
            step=self.global_step,
            share=share,
        )


class Validation:
    """One-step errors of a model on a part, with those of the reference propagators, which are measured once."""

    def __init__(self, batches: WindowBatches, config: PropagatorTrainConfig, ranks: Ranks) -> None:
        self.batches = batches
        self.config = config
        self.ranks = ranks
        self.known: dict[str, float] = {}

    def __call__(self, model: nn.Module) -> dict[str, float]:
        """``mse``, ``velocity_mse``; ``still``, ``linear`` and their velocities; ``loss`` out of the first two."""
        models = {"model": model}
        if not self.known:
            models |= {name: m.to(self.batches.device) for name, m in references(self.batches.config).items()}
        errors = one_step_errors(models, self.batches, self.config.batch_size, self.ranks.predict)
        for name in ("still", "linear"):
            if name in errors:
                self.known[name] = errors[name]["mse"]
                self.known[f"{name}_velocity"] = errors[name]["velocity_mse"]
        weights = self.config.loss
        own = errors["model"]
        loss = (own["mse"] + weights.velocity * own["velocity_mse"]) / weights.scale**2
        return {**own, **self.known, "loss": loss}


def train_propagator(
    config: PropagatorTrainConfig,
    *,
    resume: bool = False,
    console: Console | None = None,
    ranks: Ranks | None = None,
) -> TrainResult:
    """Train a propagator.

    The run's directory gets the same files as a potential's (:func:`egnn_md.training.train.train`), and resuming is
    as exact: order of the data, noise, random edges and MMD samples are functions of seed and step.

    Args:
        config: the run.
        resume: continue from ``last.ckpt``; without one, start.
        console: where progress goes; None is silent.
        ranks: as in :func:`egnn_md.training.train.train`.

    Raises:
        ConfigError: the directory holds another run, the checkpoint belongs to other data or settings, or the
            configuration contradicts the data set.
        InputError, ModelFileError: unusable data or starting model.
        TrainingError: the loss is not finite any more.
    """
    check_propagator_section(config.model, "configuration")
    ranks = ranks or join(config)
    if console is None or not ranks.writes:
        console = Console(quiet=True)
    dtype = find_dtype(config.precision)
    with ranks.watched(), threads(config.threads or ranks.threads):
        state = find_checkpoint(config, resumes(resume))
        train = open_trajectories(Path(config.data.directory), "train")
        model = build_propagator(config, train, dtype)
        check_against(config, model.config, train.metadata)
        data = load_propagator_data(config, model.config, train, dtype)
        _describe(data, model.config, config, console)
        digest = data.train.digest()
        samples = digest + data.valid.digest() + ("" if data.test is None else data.test.digest())
        prepare_directory(config, state, digest, samples, model, ranks)
        module = PropagatorModule(model, config, make_schedule(config, len(data.train)), digest, ranks)
        return fit(_task(config, module, model, data), state, console)


def _task(
    config: PropagatorTrainConfig, module: PropagatorModule, model: FastEGNNPropagator, data: PropagatorData
) -> TrainingTask:
    ranks = module.ranks
    device = torch.device({"cuda": "cuda:0"}.get(ranks.device, ranks.device))
    cache = config.cache_gb * 1e9

    def batches(windows: Any, share: float, **options: Any) -> WindowBatches:
        return WindowBatches(windows, model.config, cache_bytes=share * cache, device=device, **options)

    train = batches(data.train, 0.7, noise=config.noise, seed=config.seed)
    valid = Validation(batches(data.valid, 0.3), config, ranks)

    def final(trained: nn.Module) -> Errors:
        trained = trained.to(device)
        errors = {"valid": valid(trained)}
        if data.test is not None:
            errors["test"] = Validation(batches(data.test, 0.0), config, ranks)(trained)
        return errors

    return TrainingTask(
        module=module,
        stream=lambda current_step: WindowStream(
            train, config.batch_size, config.seed, (config.checkpoint_every, config.validate_every), current_step
        ),
        samples=len(data.train),
        measurements=Measurements(
            parts=PARTS,
            errors=ERRORS,
            validate=lambda trained: valid(trained.to(device)),
            describe=summarise,
            note=lambda errors: f"MSE {errors['mse']:.4g}",
        ),
        final=final,
        summarise=summarise,
        card=lambda errors, steps: make_card(config, model.config, data, errors, steps, module),
    )


def summarise(errors: dict[str, float]) -> str:
    """One-step MSE beside the reference propagators', in the data's length unit squared."""
    return (
        f"one-step MSE {errors['mse']:.4g} (linear {errors['linear']:.4g}, stay still {errors['still']:.4g}), "
        f"velocity·stride {errors['velocity_mse']:.4g} (linear {errors['linear_velocity']:.4g})"
    )


def make_card(
    config: PropagatorTrainConfig,
    model: PropagatorConfig,
    data: PropagatorData,
    errors: Errors,
    steps: int,
    module: TrainingModule,
) -> ModelCard:
    """What the model file says about itself; errors are squared lengths of the data's unit."""
    measured: dict[str, Any] = {
        f"{part}_{name}": float(f"{value:.6g}") for part, values in errors.items() for name, value in values.items()
    }
    place = machine(config.device)
    budget = {
        "steps": steps,
        "samples_seen": steps * config.batch_size,
        "epochs": round(steps * config.batch_size / len(data.train), 3),
        "seconds": round(module.elapsed(), 1),
        "machine": {key: place[key] for key in place if key != "host"},
    }
    counts = {"windows": len(data.train), "valid_windows": len(data.valid)}
    if data.test is not None:
        counts["test_windows"] = len(data.test)
    return ModelCard(
        name=config.name,
        description=config.description,
        units={**model.units, "velocity": f"{model.units['length']} per {model.units['time']}"},
        teacher=str((data.metadata.model_extra or {}).get("potential", "")),
        licence=config.licence,
        training_data={
            "system": model.system,
            "digest": data.train.digest(),
            "valid_digest": data.valid.digest(),
            **counts,
            "stride": model.stride,
            "stride_frames": round(model.stride / data.metadata.frame_interval),
            "frame_interval": data.metadata.frame_interval,
            "velocity": model.velocity,
        },
        measured={
            **measured,
            "definition": "mse: mean over particles that can move and three components, one stride, squared length; "
            "velocity_mse: the same of velocity times stride",
            "budget": budget,
            "config": config.model_dump(mode="json"),
        },
    )


def _describe(
    data: PropagatorData, model: PropagatorConfig, config: PropagatorTrainConfig, console: Console
) -> None:
    first = data.train[0]
    test = "no test part" if data.test is None else f"{len(data.test)} to test"
    unit = "" if model.units["time"] == "none" else f" {model.units['time']}"
    console.print(
        f"{len(data.train)} samples of {model.system or 'the data'} to learn from, {len(data.valid)} to validate, "
        f"{test}; the first has {first.num_nodes} particles and {first.num_edges} edges; stride {model.stride:g}{unit} "
        f"({data.train.frames} frames)",
        highlight=False,
        soft_wrap=True,
    )
