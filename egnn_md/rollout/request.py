"""What a rollout is asked to do: every option of ``egnn-md rollout``, checked in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from egnn_md.errors import ConfigError

#: Options that a resumed rollout may change; the rest belongs to the one that was started.
CHANGEABLE = frozenset({"steps", "output", "checkpoint_seconds", "device"})
TrajectoryFormat = Literal["dcd", "xtc", "extxyz"]


class RolloutRequest(BaseModel):
    """One rollout, or one a start. Field ``log_interval`` is the option ``--log-interval``."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    system: str = Field(description="registered system, data directory, .h5 file, or a file with one structure")
    model: str = Field(description="registered name, or path of a model file")
    steps: int = Field(gt=0, description="strides in all")
    engine: str = "none"
    starts: tuple[int, ...] = Field((0,), min_length=1, description="frames")
    part: Literal["train", "valid", "test"] | None = None
    trajectory_index: tuple[int, ...] = Field((0,), min_length=1)
    topology: str | None = Field(None, description="names, residues and bonds for topology.pdb")
    temperature: float | None = Field(None, gt=0, description="K of velocities to draw for a file without any")
    output: Path
    formats: tuple[TrajectoryFormat, ...] = Field(("dcd",), min_length=1)
    every: int = Field(1, gt=0, description="strides between frames")
    log_interval: int = Field(1, gt=0, description="strides between rows of the log")
    checkpoint_interval: int | None = Field(None, gt=0, description="strides between checkpoints")
    checkpoint_seconds: float = Field(20.0, gt=0, description="and at least one each so many seconds")
    device: str = "cpu"
    dtype: Literal["float32", "float64"] | None = Field(None, description="the model file's if None")
    skin: float | None = Field(None, ge=0)
    max_displacement: float | None = Field(None, gt=0)
    min_distance: float | None = Field(None, gt=0)
    wall_tolerance: float | None = Field(None, gt=0)
    max_crowding: float | None = Field(None, gt=0, description="neighbours a particle, in those of the start")
    unit_length: float | None = Field(None, gt=0, description="Å of one length of a model without units")
    seed: int = Field(0, ge=0, lt=2**31, description="of random edge dropping and of drawn velocities")

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.engine != "none" and len(self.starts) * len(self.trajectory_index) > 1:
            raise ValueError(
                f"--engine {self.engine} runs one start; several at once need --engine none, or a run for each"
            )
        for name in ("starts", "trajectory_index", "formats"):
            if len(set(getattr(self, name))) != len(getattr(self, name)):
                raise ValueError(f"{option(name)} {list(getattr(self, name))} names one of them twice")
        return self

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Validate ``values``. Raises ConfigError with a line for every option that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError("\n".join(_explain(item) for item in error.errors())) from error

    def changed(self, values: dict[str, Any]) -> Self:
        """Copy for a resumed rollout with explicitly given ``values``.

        Raises:
            ConfigError: one of them differs from this rollout and cannot change in the middle of it.
        """
        merged = self.parse({**self.model_dump(), **values})
        for name in values:
            old, new = getattr(self, name), getattr(merged, name)
            if name not in CHANGEABLE and old != new:
                raise ConfigError(
                    f"{option(name)} {new} differs from this rollout's {old}; a resumed rollout keeps its settings: "
                    "leave it out, or start a new one in another directory"
                )
        return merged


def option(name: str) -> str:
    """``log_interval`` as the user writes it: ``--log-interval``."""
    if name == "system":
        return "SYSTEM"
    return {"formats": "--format", "starts": "--start"}.get(name, "--" + name.replace("_", "-"))


def _explain(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if not item["loc"]:
        return message
    name = option(str(item["loc"][0]))
    if item["type"] == "missing":
        return f"{name} is missing"
    return f"{name} {item['input']}: {message[0].lower()}{message[1:]}"
