"""What a rollout is asked to do: every option of ``egnn-md rollout``, checked in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from egnn_md.simulation.options import OptionsModel

TrajectoryFormat = Literal["dcd", "xtc", "extxyz"]


class RolloutRequest(OptionsModel):
    """One rollout, or one a start. Field ``log_interval`` is the option ``--log-interval``."""

    noun = "rollout"
    positional = "system"
    changeable = frozenset({"steps", "output", "checkpoint_seconds", "device", "devices"})

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
    devices: int = Field(1, ge=1, le=1024, description="the model is split over so many")
    partition: Literal["bisection", "random", "k-means", "metis", "spectral"] = "bisection"
    mode: Literal["exact", "paper"] = Field("exact", description="paper drops edges between devices")
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
                raise ValueError(f"{self.option(name)} {list(getattr(self, name))} names one of them twice")
        return self

    @classmethod
    def option(cls, name: str) -> str:
        """Two options may be given several times or hold several values; their fields are plural."""
        return {"formats": "--format", "starts": "--start"}.get(name) or super().option(name)
