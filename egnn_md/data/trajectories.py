"""Trajectories for propagators: HDF5 in LagrangeBench's layout, read lazily, written so that a kill loses nothing.

A data set is a directory with ``metadata.json`` and one HDF5 file a part (``train.h5``, ``valid.h5``,
``test.h5``). Each file holds one group a trajectory:

| data set | shape | meaning |
| --- | --- | --- |
| ``position`` | (T, N, dim) | in the length unit of the metadata |
| ``particle_type`` | (N,) | class of each particle (atomic number for molecules) |
| ``velocity`` | (T, N, dim), ours | length over time unit |
| ``node_features`` | (N, F), ours | invariant inputs that do not change (charges) |
| ``cell`` | (3, 3), ours | rows; else periodic sets take the box of the metadata's bounds |

LagrangeBench (Toshev et al., 2023) writes the first two, so its data sets load too; planar ones get z = 0.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from egnn_md.errors import InputError

PARTS = ("train", "valid", "test")
METADATA_NAME = "metadata.json"
FORMAT = "egnn_md-trajectories"
NO_UNITS = {"length": "none", "time": "none"}

Array = NDArray[Any]


class TrajectoryMetadata(BaseModel):
    """What holds for every trajectory of a data set; LagrangeBench's keys, and ours with defaults."""

    model_config = ConfigDict(extra="allow", frozen=True)

    system: str = ""
    units: dict[str, str] = Field(default_factory=lambda: dict(NO_UNITS), description="length, time")
    dt: float = Field(gt=0, description="time step of the simulation")
    write_every: int = Field(default=1, ge=1, description="steps between two frames")
    dim: int = Field(default=3, ge=2, le=3)
    bounds: list[list[float]] | None = Field(default=None, description="[[low, high], …] a dimension")
    periodic_boundary_conditions: list[bool] = Field(default=[False, False, False])
    default_connectivity_radius: float | None = Field(default=None, gt=0)
    gravity: list[float] | None = None
    type_names: dict[str, str] = Field(default_factory=dict, description="particle type (as text) to name")

    @property
    def frame_interval(self) -> float:
        """Time between two frames."""
        return self.dt * self.write_every

    @property
    def pbc(self) -> tuple[bool, bool, bool]:
        """Periodicity of the three directions."""
        flags = [bool(flag) for flag in self.periodic_boundary_conditions] + [False] * 3
        return flags[0], flags[1], flags[2] and self.dim == 3

    @property
    def walls(self) -> list[list[float]] | None:
        """Three ``[low, high]`` pairs of a closed box; None where it is open, planar or periodic anywhere."""
        if self.bounds is None or any(self.pbc) or len(self.bounds) != 3:
            return None
        return self.bounds


@dataclass
class Trajectory:
    """Frames of one system: ``T`` frames of ``N`` particles, three dimensions always.

    Attributes:
        positions: (T, N, 3); an array or a lazy data set: ``positions[t]`` is an array.
        species: (N,) int64.
        velocities: (T, N, 3) or None.
        features: (N, F) or None.
        cell: (3, 3) rows, or None in an open system.
        name: for messages.
    """

    positions: Any
    species: Array
    velocities: Any = None
    features: Array | None = None
    cell: Array | None = None
    name: str = ""

    def __len__(self) -> int:
        return int(self.positions.shape[0])

    @property
    def num_particles(self) -> int:
        """N."""
        return int(self.positions.shape[1])

    def check(self) -> Trajectory:
        """Return self if the shapes agree.

        Raises:
            InputError: names the field and the shapes.
        """
        shape = tuple(self.positions.shape)
        if len(shape) != 3 or shape[2] != 3:
            raise InputError(f"trajectory {self.name!r}: positions are {shape}, but (frames, particles, 3) is needed")
        if self.species.shape != (shape[1],):
            raise InputError(
                f"trajectory {self.name!r}: {self.species.shape[0]} particle types for {shape[1]} particles"
            )
        if self.velocities is not None and tuple(self.velocities.shape) != shape:
            raise InputError(
                f"trajectory {self.name!r}: velocities are {tuple(self.velocities.shape)}, positions {shape}"
            )
        if self.features is not None and (self.features.ndim != 2 or self.features.shape[0] != shape[1]):
            raise InputError(
                f"trajectory {self.name!r}: node_features are {self.features.shape}, but ({shape[1]}, F) is needed"
            )
        if self.cell is not None and self.cell.shape != (3, 3):
            raise InputError(f"trajectory {self.name!r}: the cell is {self.cell.shape}, but (3, 3) is needed")
        return self


@dataclass
class TrajectorySet:
    """One part of a data set."""

    metadata: TrajectoryMetadata
    trajectories: list[Trajectory] = field(default_factory=list)
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.trajectories)

    def __iter__(self) -> Iterator[Trajectory]:
        return iter(self.trajectories)

    def __getitem__(self, index: int) -> Trajectory:
        return self.trajectories[index]


class _Frames:
    """Frames of one HDF5 data set, read when asked for; planar ones are given a zero third coordinate.

    The file is opened again after a fork or a pickle: an HDF5 handle must not be shared by processes.
    """

    def __init__(self, path: Path, name: str, shape: tuple[int, ...]) -> None:
        self.path = path
        self.name = name
        self.shape = (shape[0], shape[1], 3)
        self.planar = shape[2] == 2
        self._data: Any = None
        self._owner = -1

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, key: Any) -> Array:
        if self._data is None or self._owner != os.getpid():
            self._data = h5py.File(self.path, "r")[self.name]
            self._owner = os.getpid()
        values = np.asarray(self._data[key])
        if self.planar:
            values = np.concatenate([values, np.zeros((*values.shape[:-1], 1), values.dtype)], axis=-1)
        return values

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Array:
        return self[:].astype(dtype or self[:0].dtype, copy=False)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_data": None, "_owner": -1}


def read_metadata(path: str | Path) -> TrajectoryMetadata:
    """Read ``metadata.json`` of a data set's directory.

    Raises:
        InputError: missing, not JSON, or values that cannot be.
    """
    path = Path(path)
    file = path / METADATA_NAME if path.is_dir() else path
    if not file.is_file():
        raise InputError(f"there is no {file}; a data set is a directory with {METADATA_NAME} and train.h5, …")
    try:
        return TrajectoryMetadata.model_validate(json.loads(file.read_text()))
    except (ValueError, ValidationError) as error:
        raise InputError(f"{file} does not describe a data set: {error}") from error


def open_trajectories(path: str | Path, part: str | None = None) -> TrajectorySet:
    """Open one part of a data set; frames are read when they are used.

    Args:
        path: directory of a data set (then ``part`` is needed unless it has one file only), or an HDF5 file
            with ``metadata.json`` beside it.
        part: ``train``, ``valid`` or ``test``.

    Raises:
        InputError: missing, broken or half-written files, shapes that do not agree.
    """
    path = Path(path)
    if path.is_dir():
        present = [name for name in PARTS if (path / f"{name}.h5").is_file()]
        if part is None:
            if len(present) != 1:
                raise InputError(
                    f"{path} holds {', '.join(f'{p}.h5' for p in present) or 'no train.h5, valid.h5 or test.h5'}; "
                    "name the part: train, valid or test"
                )
            part = present[0]
        if part not in present:
            raise InputError(f"{path} has no {part}.h5 (it has {', '.join(present) or 'none of train, valid, test'})")
        file, metadata = path / f"{part}.h5", read_metadata(path)
    else:
        if not path.is_file():
            raise InputError(f"there is no data set {path}")
        file, metadata = path, read_metadata(path.parent)
    try:
        with h5py.File(file, "r") as content:
            trajectories = [_open_group(file, name, content[name], metadata) for name in sorted(content)]
    except OSError as error:
        raise InputError(
            f"{file} is not a complete HDF5 file ({error}); it was cut off or is still being written: "
            "resume the command that makes it, or make it again"
        ) from error
    if not trajectories:
        raise InputError(f"{file} holds no trajectory")
    return TrajectorySet(metadata, trajectories, file)


def _open_group(file: Path, name: str, group: Any, metadata: TrajectoryMetadata) -> Trajectory:
    place = f"{file}, trajectory {name}"
    if not isinstance(group, h5py.Group) or "position" not in group or "particle_type" not in group:
        raise InputError(f"{place}: no 'position' and 'particle_type'; this is not LagrangeBench's layout")
    if group.file.attrs.get("format") == FORMAT and not group.attrs.get("complete", False):
        raise InputError(f"{place} is half-written; resume the command that makes it, or make it again")
    for data in ("position", "velocity"):
        if data in group and (group[data].ndim != 3 or group[data].shape[2] != metadata.dim):
            raise InputError(
                f"{place}: {data} is {group[data].shape}, but (frames, particles, {metadata.dim}) is needed"
            )
    cell = np.asarray(group["cell"], dtype=np.float64) if "cell" in group else None
    if cell is None and any(metadata.pbc):
        if metadata.bounds is None:
            raise InputError(f"{place}: a periodic data set needs a cell, or bounds in its {METADATA_NAME}")
        lengths = [high - low for low, high in metadata.bounds] + [1.0] * 3
        cell = np.diag(lengths[:3])
    return Trajectory(
        positions=_Frames(file, f"{name}/position", group["position"].shape),
        species=np.asarray(group["particle_type"], dtype=np.int64),
        velocities=_Frames(file, f"{name}/velocity", group["velocity"].shape) if "velocity" in group else None,
        features=np.asarray(group["node_features"], dtype=np.float64) if "node_features" in group else None,
        cell=cell,
        name=f"{file.stem}/{name}",
    ).check()


class TrajectoryWriter:
    """Write one part, a trajectory at a time; what is complete survives a kill and is kept on reopening.

    Args:
        path: HDF5 file; ``metadata.json`` is written beside it.
        metadata: of the whole data set.
        compression: HDF5 filter, None for none.

    Raises:
        InputError: the file is broken, or belongs to a data set with other metadata.
    """

    def __init__(self, path: str | Path, metadata: TrajectoryMetadata, *, compression: str | None = "gzip") -> None:
        self.path = Path(path)
        self.metadata = metadata
        self.compression = compression
        self.path.parent.mkdir(parents=True, exist_ok=True)
        described = self.path.parent / METADATA_NAME
        text = json.dumps(metadata.model_dump(mode="json"), indent=1) + "\n"
        if described.is_file() and read_metadata(described) != metadata:
            raise InputError(
                f"{described} describes another data set than the one to be written; "
                "give the same settings to go on, or another directory"
            )
        temporary = described.with_suffix(".tmp")
        temporary.write_text(text)
        temporary.replace(described)
        try:
            self._file = h5py.File(self.path, "a")
        except OSError as error:
            raise InputError(f"{self.path} is broken ({error}); remove it and start again") from error
        self._file.attrs["format"] = FORMAT
        for name in list(self._file):
            if not self._file[name].attrs.get("complete", False):
                del self._file[name]
        self._file.flush()

    @property
    def names(self) -> list[str]:
        """Complete trajectories in the file."""
        return sorted(self._file)

    def add(self, trajectory: Trajectory, name: str | None = None) -> str:
        """Append a trajectory and flush it to the disk.

        Args:
            trajectory: what to write; ``dim`` of the metadata decides how many coordinates are kept.
            name: of the group; the next free number if None.

        Returns:
            Its name.

        Raises:
            InputError: shapes that do not agree, or the name is taken.
        """
        trajectory.check()
        if name is None:
            taken = [int(entry) for entry in self._file if entry.isdigit()]
            name = f"{max(taken, default=-1) + 1:05d}"
        if name in self._file:
            raise InputError(f"{self.path} has a trajectory {name} already")
        group = self._file.create_group(name)
        dim = self.metadata.dim

        def frames(key: str, values: Any) -> None:
            array = np.asarray(values)[:, :, :dim]
            # a chunk is a frame (or a few small ones): training reads single frames
            rows = max(1, min(len(array), 4096 // max(1, array.shape[1])))
            group.create_dataset(
                key, data=array, chunks=(rows, *array.shape[1:]), compression=self.compression, shuffle=True
            )

        frames("position", trajectory.positions)
        if trajectory.velocities is not None:
            frames("velocity", trajectory.velocities)
        group.create_dataset("particle_type", data=np.asarray(trajectory.species, dtype=np.int64))
        if trajectory.features is not None:
            group.create_dataset("node_features", data=np.asarray(trajectory.features))
        if trajectory.cell is not None:
            group.create_dataset("cell", data=np.asarray(trajectory.cell, dtype=np.float64))
        self._file.flush()
        group.attrs["complete"] = True
        self._file.flush()
        return name

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def __enter__(self) -> TrajectoryWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def write_trajectories(
    directory: str | Path, metadata: TrajectoryMetadata, parts: dict[str, Sequence[Trajectory]]
) -> Path:
    """Write a whole data set at once.

    Returns:
        The directory.
    """
    for part, trajectories in parts.items():
        with TrajectoryWriter(Path(directory) / f"{part}.h5", metadata) as writer:
            for trajectory in trajectories:
                writer.add(trajectory)
    return Path(directory)
