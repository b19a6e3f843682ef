"""Sizes and resolutions of the liquid data sets; lengths in m, times in s, speeds in m/s."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from egnn_md.errors import ConfigError

GRAVITY = (0.0, -9.81, 0.0)
REST_DENSITY = 1000.0  # kg/m³
VISCOSITY = 0.01  # m²/s, the simulator's standard (explicit) viscosity; that of its own dam breaks


class LiquidPreset(BaseModel):
    """What a family of scenes has in common.

    A particle stands for a cube of ``spacing = 2 · particle_radius`` of liquid at rest.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    particle_radius: float = Field(gt=0)
    tank: tuple[float, float, float] = Field(description="edges of the closed box, one corner in the origin; y is up")
    particles: tuple[int, int] = Field(description="fewest and most particles of a scene")
    bodies: tuple[int, int] = Field(default=(1, 3), description="fewest and most bodies of a scene")
    max_horizontal_speed: float = Field(default=1.0, ge=0)
    max_vertical_speed: float = Field(default=0.5, ge=0)
    frame_interval: float = Field(default=0.02, gt=0)
    frames: int = Field(default=150, ge=2, description="frames of a scene, its start included")
    cutoff: float = Field(gt=0, description="radius of the graph that the metadata recommends")

    @model_validator(mode="after")
    def _possible(self) -> LiquidPreset:
        room = self.tank[0] * self.tank[1] * self.tank[2] / self.spacing**3
        if not 1 <= self.particles[0] <= self.particles[1]:
            raise ValueError(f"particles = {self.particles}: a rising pair of positive numbers is needed")
        if self.particles[1] > 0.6 * room:
            raise ValueError(f"{self.particles[1]} particles do not splash in a tank with room for {room:.0f}")
        if not 1 <= self.bodies[0] <= self.bodies[1]:
            raise ValueError(f"bodies = {self.bodies}: a rising pair of positive numbers is needed")
        return self

    @property
    def spacing(self) -> float:
        """Distance of neighbouring particles in the start lattice, the lattice of the rest density."""
        return 2 * self.particle_radius

    @property
    def bounds(self) -> list[list[float]]:
        """Walls as particle centres see them: they keep one particle radius from the tank."""
        return [[self.particle_radius, edge - self.particle_radius] for edge in self.tank]

    @property
    def max_timestep(self) -> float:
        """Longest step of the simulator: 2.5 ms at radius 0.025, half of what its own scenes allow."""
        return min(0.1 * self.particle_radius, self.frame_interval)


PRESETS = {
    preset.name: preset
    for preset in (
        LiquidPreset(name="tiny", particle_radius=0.05, tank=(1, 1, 1), particles=(150, 250), frames=50, cutoff=0.15),
        LiquidPreset(
            name="small", particle_radius=0.025, tank=(1, 1, 1), particles=(1500, 2000), frames=150, cutoff=0.075
        ),
        # 5 ms between frames as in Water-3D: 15 frames are 75 ms
        LiquidPreset(
            name="water3d",
            particle_radius=0.0117,
            tank=(1, 1, 1),
            particles=(6500, 9200),
            frame_interval=0.005,
            frames=300,
            cutoff=0.035,
        ),
        LiquidPreset(
            name="fluid113k",
            particle_radius=0.025,
            tank=(4, 4, 4),
            particles=(103_000, 123_000),
            max_horizontal_speed=2.0,
            frames=150,
            cutoff=0.075,
        ),
    )
}


def get_preset(name: str, **changes: Any) -> LiquidPreset:
    """The preset of this name, with some fields changed (those that are None are left alone).

    Raises:
        ConfigError: unknown name, or a change that is impossible.
    """
    if name not in PRESETS:
        raise ConfigError(f"there is no liquid preset {name!r}; known: {', '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return LiquidPreset.model_validate({**PRESETS[name].model_dump(), **given})
    except ValidationError as error:
        raise ConfigError(f"liquid preset {name!r} with {given}: {error}") from error
