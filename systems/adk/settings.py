"""What a molecular dynamics run of a protein is asked to do."""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from egnn_md.errors import ConfigError

CHANGEABLE = ("duration", "platform", "threads")  # by --resume


class MDSettings(BaseModel):
    """Options of ``egnn-md generate adk``; times in the units that the names of the options say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    start: str = "closed"
    duration: float = Field(100.0, gt=0)  # ps, after equilibration
    timestep: float = Field(4.0, gt=0)  # fs
    frame_interval: float = Field(20.0, gt=0)  # fs
    temperature: float = Field(300.0, gt=0)  # K
    friction: float = Field(0.1, ge=0)  # 1/ps
    equilibrate: float = Field(2.0, ge=0)  # ps
    equilibration_friction: float = Field(2.0, gt=0)  # 1/ps
    minimize: int = Field(30, ge=0)  # iterations
    cutoff: float = Field(1.0, ge=0)  # nm; 0 for none
    hydrogen_mass: float = Field(1.5, gt=1.0)  # amu
    save: str = "backbone"
    block: int = Field(50, gt=0)  # frames
    platform: str = "auto"
    threads: int | None = Field(None, gt=0)
    seed: int = Field(0, ge=0)

    @model_validator(mode="after")
    def _frames_are_whole(self) -> Self:
        if abs(self.frame_interval / self.timestep - self.steps_per_frame) > 1e-6 or self.steps_per_frame < 1:
            raise ValueError(
                f"--frame-interval {self.frame_interval:g} fs is no whole number of steps of --timestep "
                f"{self.timestep:g} fs; {max(1, self.steps_per_frame) * self.timestep:g} is"
            )
        if self.frames < 1:
            raise ValueError(f"--duration {self.duration:g} ps is shorter than one --frame-interval")
        return self

    @property
    def steps_per_frame(self) -> int:
        """Time steps from one frame to the next."""
        return round(self.frame_interval / self.timestep)

    @property
    def frames(self) -> int:
        """Frames of the whole run, the first at time 0."""
        return int(1000 * self.duration / self.frame_interval + 1e-6)

    @classmethod
    def parse(cls, values: dict[str, Any]) -> Self:
        """Settings from options. Raises ConfigError that names the option."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors()[0]
            if not first["loc"]:
                raise ConfigError(str(first["ctx"]["error"])) from None
            option = "--" + str(first["loc"][0]).replace("_", "-")
            raise ConfigError(f"{option} {first['input']}: {first['msg']}") from None

    def changed(self, given: dict[str, Any]) -> MDSettings:
        """These settings with the options of a resumed run. Raises ConfigError for those that are fixed by then."""
        for name, value in given.items():
            if name not in CHANGEABLE and value != getattr(self, name):
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} with --resume: the run was started with "
                    f"{getattr(self, name)}; only {', '.join(CHANGEABLE)} may change, a new --output may have anything"
                )
        return MDSettings.parse({**self.model_dump(), **given})
