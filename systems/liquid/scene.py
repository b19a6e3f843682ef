"""Random scenes: which bodies of liquid start where, how they are turned and how fast they are.

Scene ``k`` of a part depends on the seed, the part and ``k`` only, so any scene can be made alone.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from egnn_md.data.trajectories import PARTS
from egnn_md.errors import ConfigError
from egnn_md_systems.liquid.presets import LiquidPreset

Array = NDArray[np.float64]
Vector = tuple[float, float, float]

SCENE_TRIES = 1000
PLACE_TRIES = 30
# In spacings. Nearer, two lattices can stand so that a particle of one is over a hollow of the other: up to 1.17 times
# the rest density, which the pressure solver turns into an explosion.
BODY_GAP = 1.25


class Body(BaseModel):
    """A box or a ball of liquid.

    Attributes:
        shape: ``box`` or ``sphere``.
        size: edges of the box, or three times the diameter (m).
        centre: in the tank (m).
        rotation: rotation vector, axis times angle (rad).
        velocity: of all its particles (m/s).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shape: Literal["box", "sphere"]
    size: Vector
    centre: Vector
    rotation: Vector
    velocity: Vector

    def lattice(self, spacing: float) -> Array:
        """Particles (n, 3) of the body, turned, around the origin: a cubic lattice of ``spacing``."""
        axes = []
        for edge in self.size:
            count = max(1, round(edge / spacing))
            axes.append((np.arange(count) - (count - 1) / 2) * spacing)
        points = np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
        if self.shape == "sphere":
            points = points[np.linalg.norm(points, axis=1) <= self.size[0] / 2]
        return points @ Rotation.from_rotvec(self.rotation).as_matrix().T


class Scene(BaseModel):
    """One scene, complete: the same record gives the same simulation."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    seed: int
    preset: LiquidPreset
    bodies: tuple[Body, ...]

    def particles(self) -> tuple[Array, Array]:
        """Start positions and velocities (N, 3), body after body."""
        positions, velocities = [], []
        for body in self.bodies:
            points = body.lattice(self.preset.spacing) + np.array(body.centre)
            positions.append(points)
            velocities.append(np.broadcast_to(np.array(body.velocity), points.shape))
        return np.concatenate(positions), np.concatenate(velocities)


def scene_name(part: str, index: int) -> str:
    """Name of scene ``index`` of a part, as in ``train_00003``."""
    return f"{part}_{index:05d}"


def random_scene(preset: LiquidPreset, seed: int, part: str, index: int) -> Scene:
    """Scene ``index`` of a part.

    Bodies keep a spacing from the walls and ``BODY_GAP`` spacings from each other; the number of particles is within
    the preset's.

    Raises:
        ConfigError: an unknown part, or no room for such bodies in the tank.
    """
    if part not in PARTS:
        raise ConfigError(f"there is no part {part!r} of a data set; known: {', '.join(PARTS)}")
    rng = np.random.default_rng([seed, PARTS.index(part), index])
    count = int(rng.integers(preset.bodies[0], preset.bodies[1] + 1))
    for _ in range(SCENE_TRIES):
        bodies = _place_bodies(preset, rng, count)
        if bodies is not None:
            return Scene(name=scene_name(part, index), seed=seed, preset=preset, bodies=tuple(bodies))
    raise ConfigError(
        f"liquid scene {scene_name(part, index)}: {SCENE_TRIES} tries did not fit {preset.particles} particles in "
        f"{count} bodies into the tank {preset.tank}; take a larger tank or fewer particles"
    )


def _place_bodies(preset: LiquidPreset, rng: np.random.Generator, count: int) -> list[Body] | None:
    """One try; None if the bodies do not fit or hold too few or too many particles."""
    total = rng.uniform(*preset.particles)
    shares = rng.dirichlet(np.full(count, 3.0))
    placed: list[Body] = []
    trees: list[Any] = []
    particles = 0
    for share in shares:
        body = _random_body(preset, rng, share * total * preset.spacing**3)
        points = body.lattice(preset.spacing)
        if len(points) < 8:
            return None
        centre = _find_place(preset, rng, points, trees)
        if centre is None:
            return None
        placed.append(body.model_copy(update={"centre": _vector(centre)}))
        trees.append(cKDTree(points + centre))
        particles += len(points)
    return placed if preset.particles[0] <= particles <= preset.particles[1] else None


def _random_body(preset: LiquidPreset, rng: np.random.Generator, volume: float) -> Body:
    """A body of this volume in the origin: ball or box, aspect ratios up to 2, half of the boxes turned."""
    shape: Literal["box", "sphere"] = "sphere" if rng.random() < 0.4 else "box"
    if shape == "sphere":
        edges = np.full(3, (6 * volume / np.pi) ** (1 / 3))
    else:
        ratios = np.exp(rng.uniform(-0.35, 0.35, 3))
        edges = ratios * (volume / ratios.prod()) ** (1 / 3)
    turned = rng.random() < 0.5
    rotation = Rotation.random(random_state=rng).as_rotvec() if turned else np.zeros(3)
    limits = np.array([preset.max_horizontal_speed, preset.max_vertical_speed, preset.max_horizontal_speed])
    velocity = rng.uniform(-limits, limits)
    return Body(
        shape=shape,
        size=_vector(edges),
        centre=(0.0, 0.0, 0.0),
        rotation=_vector(rotation),
        velocity=_vector(velocity),
    )


def _vector(values: Array) -> Vector:
    x, y, z = (float(value) for value in values)
    return x, y, z


def _find_place(preset: LiquidPreset, rng: np.random.Generator, points: Array, others: list[Any]) -> Array | None:
    """A centre for which ``points`` keep a spacing from the walls and the other bodies, or None."""
    low = preset.spacing - points.min(axis=0)
    high = np.array(preset.tank) - preset.spacing - points.max(axis=0)
    if np.any(high < low):
        return None
    gap = BODY_GAP * preset.spacing
    for _ in range(PLACE_TRIES):
        centre = rng.uniform(low, high)
        moved = points + centre
        if all(tree.query(moved, distance_upper_bound=gap)[0].min() > gap for tree in others):
            return centre
    return None
