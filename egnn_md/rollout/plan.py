"""What an evaluation looks at: settings, the kind of system, starts, and the reference that follows each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.data.trajectories import TrajectorySet
from egnn_md.data.windows import model_velocities, nearest_image
from egnn_md.errors import InputError
from egnn_md.models.propagator import PropagatorConfig
from egnn_md.rollout.scores import Case, World
from egnn_md.rollout.units import are_elements, engine_units, particle_masses

HORIZONS = (1, 5, 10, 20, 50)
STARTS = 16
WINDOWS = 2000


@dataclass(frozen=True)
class EvaluationSettings:
    """What is measured.

    Attributes:
        part: of the data set.
        starts: how many rollouts, spread evenly over all frames that can be started from.
        frames: start only at these frames of every trajectory (the N-body benchmark: 30).
        horizons: strides at which errors are given.
        strides: length of the rollouts; the last horizon if None.
        windows: at most so many one-step windows, drawn with ``seed``; 0 for all.
        seed: see above, and of random edge dropping.
    """

    part: str = "test"
    starts: int = STARTS
    frames: tuple[int, ...] | None = None
    horizons: tuple[int, ...] = HORIZONS
    strides: int | None = None
    windows: int = WINDOWS
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.horizons or min(self.horizons) < 1 or list(self.horizons) != sorted(set(self.horizons)):
            raise InputError(f"horizons must ascend from 1 without repetition, not {list(self.horizons)}")
        for name, least in (("starts", 1), ("windows", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} must be at least {least}, not {getattr(self, name)}")
        if self.strides is not None and self.strides < 1:
            raise InputError(f"strides must be at least 1, not {self.strides}")
        if self.frames is not None and (not self.frames or min(self.frames) < 0):
            raise InputError(f"frames to start from must not be negative, not {list(self.frames)}")


def describe_world(config: PropagatorConfig, data: TrajectorySet) -> World:
    """What metrics the data call for: see :class:`egnn_md.rollout.scores.World`."""
    from egnn_md.rollout.metrics_protein import find_bonds, find_topology

    units, metadata, first = engine_units(config), data.metadata, data[0]
    elements = are_elements(first.species, units)
    folder = Path(data.path).parent if data.path is not None else None
    bonds = None
    if elements:
        kind = "molecular" if all(metadata.pbc) else "protein"
    elif metadata.bounds is not None or metadata.default_connectivity_radius is not None or config.walls is not None:
        kind = "liquid"
    else:
        kind = "particles"
    if kind == "protein":
        topology = None if folder is None else find_topology(folder, first.num_particles)
        bonds = find_bonds(np.asarray(first.positions[0]), first.species, topology, units.length)[0]
    gravity = np.abs(config.gravity or metadata.gravity or (0.0, 0.0, 0.0))
    walls = config.walls if config.walls is not None else metadata.walls
    return World(
        kind=kind,
        angstrom=units.length,
        femtosecond=units.time,
        stride=config.stride,
        walls=None if kind in ("protein", "molecular") else walls,
        radius=config.cutoff or metadata.default_connectivity_radius,
        bonds=bonds,
        elements=elements,
        up=int(np.argmax(gravity)) if gravity.any() else 1,
    )


def plan_starts(
    configs: Sequence[PropagatorConfig], data: TrajectorySet, settings: EvaluationSettings
) -> tuple[list[tuple[int, int]], int]:
    """(trajectory, frame) of every rollout, and how many strides all of them can be compared over.

    Raises:
        InputError: not a single stride fits.
    """
    every = round(configs[0].stride / data.metadata.frame_interval)
    first = 1 if any(config.velocity == "backward" for config in configs) else 0
    beyond = 1 if configs[0].velocity == "forward" else 0
    wanted = settings.frames or (first,)
    room = max((len(t) - 1 - beyond - frame) // every for t in data for frame in wanted)
    asked = settings.strides or max(settings.horizons)
    length = min(asked, room)
    if asked > room and settings.strides is None:
        # a little less than the longest leaves far more frames to start from
        fitting = max((horizon for horizon in settings.horizons if horizon <= room), default=0)
        length = fitting if 2 * fitting >= room else room
    if length < 1:
        raise InputError(
            f"{data.path}: no rollout fits; a stride is {every} frames, the longest trajectory has "
            f"{max(len(t) for t in data)}, and rollouts start at frame {min(wanted)}"
        )
    found = []
    for index, trajectory in enumerate(data):
        last = len(trajectory) - 1 - beyond - length * every
        frames: Sequence[int] = settings.frames if settings.frames is not None else range(first, last + 1)
        found += [(index, frame) for frame in frames if first <= frame <= last]
    if not found:
        raise InputError(f"no start of the frames {list(wanted)} fits: the models need frame {first} or a later one")
    places = np.unique(np.linspace(0, len(found) - 1, min(settings.starts, len(found))).round().astype(int))
    return [found[place] for place in places], length


def left_out(
    settings: EvaluationSettings, data: TrajectorySet, config: PropagatorConfig, length: int
) -> list[dict[str, Any]]:
    """Horizons beyond ``length`` strides, each with the reason."""
    every = round(config.stride / data.metadata.frame_interval)
    longest = max(len(trajectory) for trajectory in data)
    found = []
    for horizon in settings.horizons:
        if horizon > length:
            reason = f"needs {horizon * every} frames after the start; the longest trajectory has {longest} frames"
            if settings.strides is not None and settings.strides < horizon:
                reason = f"rollouts of {settings.strides} strides were asked for"
            found.append({"strides": horizon, "reason": reason})
    return found


def read_case(data: TrajectorySet, config: PropagatorConfig, number: int, start: tuple[int, int], length: int) -> Case:
    """A start and the reference of ``length`` strides after it, positions continued by nearest images."""
    index, frame = start
    trajectory = data[index]
    every = round(config.stride / data.metadata.frame_interval)
    positions = np.empty((length + 1, trajectory.num_particles, 3))
    for k in range(length + 1):
        stored = np.asarray(trajectory.positions[frame + k * every], dtype=np.float64)
        step = stored - positions[k - 1] if k else None
        images = None if step is None else nearest_image(step, trajectory.cell, data.metadata.pbc)
        positions[k] = stored if images is None else positions[k - 1] + images
    return Case(
        number=number,
        trajectory=index,
        frame=frame,
        positions=positions,
        velocities=read_velocities(data, config, start, length),
        species=trajectory.species,
        masses=particle_masses(trajectory.species, engine_units(config)),
        moving=~np.isin(trajectory.species, config.static_species),
        cell=trajectory.cell if all(data.metadata.pbc) else None,
    )


def read_velocities(
    data: TrajectorySet, config: PropagatorConfig, start: tuple[int, int], length: int
) -> NDArray[np.float64]:
    """(length + 1, N, 3) velocities of the reference, as ``config.velocity`` defines them."""
    index, frame = start
    every = round(config.stride / data.metadata.frame_interval)
    frames = [frame + k * every for k in range(length + 1)]
    return np.stack([model_velocities(data[index], k, config, data.metadata) for k in frames])


def spread(number: int, most: int) -> set[int]:
    """At most ``most`` of 0 … number - 1, evenly chosen."""
    return {int(place) for place in np.linspace(0, number - 1, min(most, number)).round()}
