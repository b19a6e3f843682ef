"""A data set of charged-particle trajectories: presets, chunks that survive a kill, files that appear when whole.

While a part is made, its systems lie in ``.<part>.chunks/``, a few dozen a file; each file is written under another
name and renamed, so a kill costs at most one chunk. ``<part>.h5`` appears by a rename too, when it is complete: a
reader never sees half a part. The start of system ``i`` of a part depends on the seed, the part and ``i`` only.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from egnn_md.data.trajectories import (
    METADATA_NAME,
    PARTS,
    Trajectory,
    TrajectoryMetadata,
    TrajectoryWriter,
    read_metadata,
)
from egnn_md.errors import InputError, OutputError
from egnn_md_systems.nbody.physics import PUBLISHED, SPEED, position_spread, simulate, starting_states

CHUNK = 50  # systems; a few seconds of work on one core
WARM_UP = 1  # published: frame 0 is the state after one time step
FRAMES = 42  # as published; the benchmark predicts frame 40 from frame 30

Report = Callable[[str, int], None]


class NBodySettings(BaseModel):
    """What a data set is made from; the same settings give the same numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    particles: int = Field(default=100, ge=2)
    splits: tuple[int, int, int] = Field(default=(5000, 2000, 2000), description="systems in train, valid, test")
    frames: int = Field(default=FRAMES, ge=2)
    keep: tuple[int, ...] | None = Field(default=None, description="frames to store, evenly spaced; None: all")
    seed: int = Field(default=0, ge=0)
    double: bool = Field(default=False, description="store float64; it is computed in float64 always")

    @model_validator(mode="after")
    def _fits(self) -> NBodySettings:
        if min(self.splits) < 0 or max(self.splits) == 0:
            raise ValueError(f"splits are {self.splits}; give three counts of systems, at least one above 0")
        if self.keep is not None:
            steps = set(np.diff(self.keep).tolist())
            if len(self.keep) < 2 or len(steps) != 1 or min(steps) < 1 or self.keep[0] < 0:
                raise ValueError(f"keep is {self.keep}; give two or more ascending frames with equal gaps, as 30,40")
            if self.keep[-1] >= self.frames:
                raise ValueError(
                    f"keep asks for frame {self.keep[-1]}, but {self.frames} frames end with {self.frames - 1}; "
                    f"raise frames to {self.keep[-1] + 1}"
                )
        return self

    @property
    def stored(self) -> tuple[int, ...]:
        """Numbers of the frames that are stored."""
        return tuple(range(self.frames)) if self.keep is None else self.keep

    @property
    def bytes(self) -> int:
        """Size of the stored positions and velocities, before compression."""
        return sum(self.splits) * len(self.stored) * self.particles * 6 * (8 if self.double else 4)

    def metadata(self) -> TrajectoryMetadata:
        """What ``metadata.json`` says. Everything that decides the numbers is in it, so a resumed run is checked."""
        spacing = self.stored[1] - self.stored[0]
        return TrajectoryMetadata.model_validate({
            "system": "nbody",
            "units": {"length": "none", "time": "none"},
            "dt": PUBLISHED.timestep,
            "write_every": PUBLISHED.steps_per_frame * spacing,
            "dim": 3,
            "type_names": {"0": "charged particle"},
            "node_feature_names": ["charge / largest charge"],
            "particles": self.particles,
            "systems": dict(zip(PARTS, self.splits, strict=True)),
            "seed": self.seed,
            "frames": len(self.stored),
            "first_frame": self.stored[0],
            "steps_before_frame_0": WARM_UP,
            "precision": "float64" if self.double else "float32",
            "interaction_strength": PUBLISHED.strength,
            "max_force_component": PUBLISHED.max_force,
            "start_position_spread": position_spread(self.particles),
            "start_speed": SPEED,
        })  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "full": {},
    "small": {"splits": (500, 200, 200)},
    "tiny": {"splits": (8, 4, 4), "particles": 20},
}


def make_settings(preset: str, **changes: Any) -> NBodySettings:
    """Settings of a preset, with what is not None in ``changes`` put in its place.

    Raises:
        InputError: no such preset, or values that cannot be.
    """
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; choose one of {', '.join(PRESETS)}")
    given = {key: value for key, value in changes.items() if value is not None}
    try:
        return NBodySettings.model_validate({**PRESETS[preset], **given})
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, problem['loc']))} {problem['input']!r}: {problem['msg']}"
            if problem["loc"]
            else problem["msg"].removeprefix("Value error, ")
            for problem in error.errors()
        )
        raise InputError(f"these settings cannot be: {problems}") from error


def generate(output: str | Path, settings: NBodySettings, *, threads: int = 1, report: Report | None = None) -> Path:
    """Make a data set, or go on with one that was interrupted; complete parts are left alone.

    Args:
        output: directory.
        settings: of the whole set.
        threads: systems computed at the same time; the numbers do not depend on it.
        report: called with a part and the number of its systems that are done.

    Returns:
        The directory.

    Raises:
        InputError: the directory holds a data set with other settings, or ``threads`` is below 1.
        OutputError: a file cannot be written.
    """
    if threads < 1:
        raise InputError(f"threads is {threads}; at least 1 is needed")
    output = Path(output)
    say = report or (lambda part, done: None)
    try:
        output.mkdir(parents=True, exist_ok=True)
        with _locked(output):
            _claim(output, settings)
            for number, part in enumerate(PARTS):
                if settings.splits[number] and not (output / f"{part}.h5").exists():
                    _make_part(output, part, settings, threads, say)
                shutil.rmtree(_chunks(output, part), ignore_errors=True)
                say(part, settings.splits[number])
    except OSError as error:
        raise OutputError(
            f"writing to {output} failed: {error}; about {settings.bytes / 1e6:.0f} MB are needed. "
            "What is complete is kept: the same command goes on from there"
        ) from error
    return output


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    """Keep other processes out of the directory; the lock goes with the process, however it ends."""
    path = output / ".lock"
    with path.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is writing to {output}; wait for it or stop it first") from None
        except OSError:
            pass  # a file system without locks: better unlocked than not at all
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def _chunks(output: Path, part: str) -> Path:
    return output / f".{part}.chunks"


def _claim(output: Path, settings: NBodySettings) -> None:
    """Write ``metadata.json`` first: from then on the directory belongs to these settings."""
    if (output / METADATA_NAME).is_file():
        found, wanted = read_metadata(output).model_dump(), settings.metadata().model_dump()
        other = [key for key in sorted({*found, *wanted}) if found.get(key) != wanted.get(key)]
        if other:
            told = ", ".join(f"{key} {found.get(key)} (asked for: {wanted.get(key)})" for key in other)
            raise InputError(
                f"{output} holds a data set with {told}; give the settings it was begun with to go on, or another "
                "directory"
            )
    empty = output / ".claim"
    empty.unlink(missing_ok=True)
    TrajectoryWriter(empty, settings.metadata()).close()
    empty.unlink()


def _make_part(output: Path, part: str, settings: NBodySettings, threads: int, say: Report) -> None:
    total = settings.splits[PARTS.index(part)]
    chunks = _chunks(output, part)
    chunks.mkdir(exist_ok=True)
    paths = []
    for first in range(0, total, CHUNK):
        last = min(first + CHUNK, total)
        paths.append(chunks / f"{first:06d}.npz")
        if not paths[-1].exists():
            _make_chunk(paths[-1], part, range(first, last), settings, threads)
        say(part, last)
    partial = chunks / "whole.partial"
    partial.unlink(missing_ok=True)
    # lzf: little is gained by compressing random numbers, and training reads single frames all the time
    with TrajectoryWriter(partial, settings.metadata(), compression="lzf") as writer:
        for path in paths:
            for trajectory in _read_chunk(path, settings):
                writer.add(trajectory)
    partial.replace(output / f"{part}.h5")


def _make_chunk(path: Path, part: str, systems: range, settings: NBodySettings, threads: int) -> None:
    keys = [(PARTS.index(part), system) for system in systems]
    start, speed, charges = starting_states(settings.particles, keys, settings.seed)
    frames = settings.stored[-1] + 1
    positions, velocities = simulate(start, speed, charges, frames, warm_up=WARM_UP, threads=threads)
    dtype = np.float64 if settings.double else np.float32
    kept = list(settings.stored)
    stored = {"positions": positions[:, kept].astype(dtype), "velocities": velocities[:, kept].astype(dtype)}
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as stream:
        np.savez(stream, charges=charges, **stored)
    temporary.replace(path)


def _read_chunk(path: Path, settings: NBodySettings) -> list[Trajectory]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            positions, velocities, charges = (arrays[name] for name in ("positions", "velocities", "charges"))
    except (ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputError(f"{path} is damaged ({error}); remove it and give the same command again") from error
    species = np.zeros(settings.particles, dtype=np.int64)
    return [
        Trajectory(positions=x, velocities=v, species=species, features=(q / np.abs(q).max())[:, None])
        for x, v, q in zip(positions, velocities, charges, strict=True)
    ]
