"""What the training of a propagator can be told. Unknown keys are errors."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from egnn_md.training.config import OptimizerSection, RunConfig, Section


class PropagatorDataSection(Section):
    """Which samples of a data set are used. A sample is a frame with the frames one or more strides later."""

    directory: str = Field(min_length=1, description="data set: metadata.json with train.h5, valid.h5, test.h5")
    starts: list[int] | None = Field(default=None, min_length=1, description="start frames; all that fit if unset")
    every: int = Field(default=1, ge=1, description="take each so-manieth start frame")
    limit: int | None = Field(default=None, gt=0, description="a seeded random part of the training samples")
    valid_limit: int | None = Field(default=None, gt=0)
    test_limit: int | None = Field(default=None, gt=0)
    limit_seed: int = Field(default=0, ge=0, description="of the limits; apart from the run's seed")

    @model_validator(mode="after")
    def _one_choice_of_frames(self) -> PropagatorDataSection:
        if self.starts is not None and self.every != 1:
            raise ValueError("give either data.starts or data.every, one of the two")
        return self


class PropagatorLossSection(Section):
    """``[MSE(x', y) + velocity · MSE(v' s, w s)] / scale² + mmd · MMD(Z, y)``, averaged over the strides.

    ``x', v', Z`` are predicted, ``y, w`` are stored, ``s`` is the stride. The first term with ``mmd`` is the paper's
    loss (arXiv 2506.19482). All lengths are in the data's unit.
    """

    mmd: float = Field(default=0.0, ge=0, description="λ of the paper; 0 leaves the term out")
    sigma: float | None = Field(default=None, gt=0, description="σ of the kernel, in the data's length unit")
    kernel: Literal["published", "gaussian"] = Field(
        default="published", description="exp(-d/2σ²) as the authors' code, or exp(-d²/2σ²) as the paper prints it"
    )
    samples: int | None = Field(default=None, gt=0, description="random target positions a graph; all if unset")
    velocity: float = Field(default=0.0, ge=0, description="weight of the velocity error, times the stride a length")
    scale: float = Field(default=1.0, gt=0, description="length by which squared errors are measured")

    @model_validator(mode="after")
    def _width(self) -> PropagatorLossSection:
        if self.mmd > 0 and self.sigma is None:
            raise ValueError(f"loss.mmd = {self.mmd} needs loss.sigma, the width of its kernel")
        return self


class NoiseSection(Section):
    """Normal noise added to the input of each training step, standard deviations in the data's units."""

    positions: float = Field(default=0.0, ge=0)
    velocities: float = Field(default=0.0, ge=0)


class UnrollSection(Section):
    """Predict from the own prediction, several strides in a row, with gradients through all of them."""

    strides: int = Field(default=1, ge=1)
    ramp: int = Field(default=0, ge=0, description="steps over which the strides grow from one to all, evenly")

    def at(self, step: int) -> int:
        """Strides of training step ``step``."""
        if self.ramp == 0:
            return self.strides
        return min(self.strides, 1 + step * self.strides // self.ramp)


class PropagatorOptimizerSection(OptimizerSection):
    """AdamW, or Adam as published; decay acts on weight matrices only, not on biases or embeddings."""

    kind: Literal["adamw", "adam"] = "adamw"
    lr: float = Field(default=5e-4, gt=0)


class PropagatorTrainConfig(RunConfig):
    """Training of a propagator.

    ``model`` holds the fields of :class:`egnn_md.models.propagator.PropagatorConfig`. System, units, frame interval,
    particle types, node features, cutoff, walls and gravity come from the data set unless given; or ``start_from``:
    a model file to go on from.
    """

    task: Literal["propagator"] = "propagator"
    data: PropagatorDataSection
    model: dict[str, Any] = Field(default_factory=dict)
    stride_frames: int = Field(default=1, ge=1, description="frames of the data that one step of the model covers")
    loss: PropagatorLossSection = PropagatorLossSection()
    noise: NoiseSection = NoiseSection()
    unroll: UnrollSection = UnrollSection()
    optimizer: PropagatorOptimizerSection = PropagatorOptimizerSection()
    batch_size: int = Field(default=10, gt=0)
    monitor: Literal["mse", "velocity_mse", "loss"] = Field(default="mse", description="validation error to be best in")
    cache_gb: float = Field(default=2.0, ge=0, description="memory for samples that are kept; others are read again")
    name: str = Field(default="propagator", min_length=1)
