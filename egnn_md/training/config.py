"""Everything that a training run can be told, section by section. Unknown keys are errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _one_or_many(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Files = Annotated[list[str], BeforeValidator(_one_or_many)]


class Section(BaseModel):
    """A strict part of a configuration."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class DataSection(Section):
    """Where the labels come from. Paths and glob patterns are relative to the working directory."""

    train: Files = Field(min_length=1, description="label files to learn from")
    valid: Files = Field(default=[], description="label files to validate on; or give valid_fraction")
    test: Files = Field(default=[], description="label files measured once, at the end")
    valid_fraction: float | None = Field(default=None, gt=0, lt=1, description="part of train to validate on")
    test_fraction: float | None = Field(default=None, gt=0, lt=1, description="part of train to test on")
    group_by: str | None = Field(default=None, description="info key whose equal values stay in one part")
    split_seed: int = Field(default=0, ge=0)
    max_force: float | None = Field(default=None, gt=0, description="leave out harder structures, eV/Å")
    max_train: int | None = Field(default=None, gt=0, description="use a seeded random part only")

    @model_validator(mode="after")
    def _one_kind_of_split(self) -> DataSection:
        if bool(self.valid) == (self.valid_fraction is not None):
            raise ValueError("give either data.valid (files) or data.valid_fraction, one of the two")
        if self.test and self.test_fraction is not None:
            raise ValueError("give data.test (files) or data.test_fraction, not both")
        if (self.valid_fraction or 0.0) + (self.test_fraction or 0.0) >= 1.0:
            raise ValueError("data.valid_fraction and data.test_fraction leave nothing to train on")
        return self


class LossSection(Section):
    """``energy · ⟨(ΔE/N)²⟩ + forces · ⟨ΔF²⟩ + stress · ⟨Δσ²⟩``, or the Huber function instead of the square.

    Units before weighting: eV an atom, eV/Å (per component), eV/Å³ (per component).
    """

    energy: float = Field(default=50.0, ge=0, description="weight of the squared energy error an atom")
    forces: float = Field(default=1.0, ge=0)
    stress: float = Field(default=0.0, ge=0)
    kind: Literal["mse", "huber"] = "mse"
    huber_delta: float = Field(default=0.1, gt=0, description="error above which the loss is linear")

    @model_validator(mode="after")
    def _something_to_learn(self) -> LossSection:
        if self.energy == self.forces == self.stress == 0:
            raise ValueError("all weights are zero, so there is nothing to learn")
        return self


class OptimizerSection(Section):
    """AdamW; decay acts on weight matrices only, not on biases, embeddings or scales."""

    lr: float = Field(default=3e-3, gt=0)
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)

    @model_validator(mode="after")
    def _betas(self) -> OptimizerSection:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas {self.betas} must be at least 0 and below 1")
        return self


class ScheduleSection(Section):
    """Linear warm-up, then half a cosine down to ``floor`` times the learning rate."""

    warmup_steps: int = Field(default=100, ge=0)
    floor: float = Field(default=0.01, ge=0, le=1)


class EarlyStoppingSection(Section):
    """Stop when the monitored validation error has not improved for ``patience`` validations."""

    patience: int | None = Field(default=None, gt=0)
    min_delta: float = Field(default=0.0, ge=0, description="improvement, in the monitored error's unit, that counts")


class RunConfig(Section):
    """What every training run can be told, whatever it trains."""

    optimizer: OptimizerSection = OptimizerSection()
    schedule: ScheduleSection = ScheduleSection()
    early_stopping: EarlyStoppingSection = EarlyStoppingSection()

    batch_size: int = Field(default=4, gt=0)
    max_steps: int | None = Field(default=None, gt=0)
    max_epochs: int | None = Field(default=None, gt=0)
    max_time_minutes: float | None = Field(default=None, gt=0, description="resumed parts included")
    ema_decay: float = Field(default=0.995, ge=0, lt=1, description="0 switches the averaging off")
    clip_norm: float | None = Field(default=5.0, gt=0)
    precision: Literal["float32", "float64"] = "float32"
    seed: int = Field(default=0, ge=0)
    threads: int | None = Field(default=None, gt=0, description="torch threads; unset leaves torch's choice")
    device: str = Field(default="cpu", pattern=r"^(cpu|mps|cuda(:\d+)?)$")
    devices: int = Field(default=1, gt=0, description="processes, each with a device of its own")
    graph_devices: int | None = Field(default=None, gt=0, description="of them, those that share a graph; all if unset")
    partition: Literal["bisection", "random", "k-means", "metis", "spectral"] = Field(
        default="bisection", description="how a graph is divided over them"
    )
    mode: Literal["exact", "paper"] = Field(
        default="exact", description="exact: as on one device; paper: without edges between devices (arXiv 2506.19482)"
    )

    validate_every: int = Field(default=500, gt=0, description="steps")
    checkpoint_every: int = Field(default=100, gt=0, description="steps; what a kill can cost")
    log_every: int = Field(default=20, gt=0, description="steps")
    keep: Literal["best", "last"] = "best"
    monitor: str = "loss"
    tensorboard: bool = True
    name: str = Field(default="potential", min_length=1)
    description: str = ""
    licence: str = "MIT"
    output: str = Field(min_length=1, description="directory; it is made")

    @model_validator(mode="after")
    def _an_end(self) -> Self:
        if self.max_steps is None and self.max_epochs is None and self.max_time_minutes is None:
            raise ValueError("give max_steps, max_epochs or max_time_minutes: the run needs an end")
        return self

    @property
    def graph_size(self) -> int:
        """Ranks that share a graph."""
        return self.graph_devices or self.devices

    @model_validator(mode="after")
    def _devices(self) -> Self:
        if self.devices % self.graph_size:
            raise ValueError(
                f"graph_devices = {self.graph_devices} does not divide devices = {self.devices}; every group of ranks "
                "needs the same number"
            )
        groups = self.devices // self.graph_size
        if self.batch_size % groups:
            raise ValueError(
                f"batch_size = {self.batch_size} cannot be shared by {groups} groups of ranks (devices / "
                f"graph_devices); make it a multiple of {groups}"
            )
        if self.devices > 1 and self.device not in ("cpu", "cuda"):
            raise ValueError(
                f"device = {self.device!r} is one device, but devices = {self.devices}; give cpu, or cuda for the "
                "first ones of the machine"
            )
        return self


class TrainConfig(RunConfig):
    """Training of a potential.

    ``model`` holds the fields of :class:`egnn_md.models.PotentialConfig`, all optional (elements, atomic
    energies, mean neighbour count and scale come from the training data unless given), and ``start_from``:
    a model file to fine-tune.
    """

    task: Literal["potential"] = "potential"
    data: DataSection
    model: dict[str, Any] = {}
    loss: LossSection = LossSection()
    monitor: Literal["force_rmse", "loss"] = "loss"


#: Keys that a resumed run may change: they do not touch what was learned so far.
RUNTIME_KEYS = frozenset(
    {
        "max_steps", "max_epochs", "max_time_minutes", "early_stopping", "threads", "device",
        "validate_every", "checkpoint_every", "log_every", "keep", "monitor", "tensorboard", "name",
        "description", "licence", "output", "cache_gb", "devices", "graph_devices", "partition",
    }
)  # fmt: skip
