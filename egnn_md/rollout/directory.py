"""The directory of a rollout: growing files, and checkpoints that hold the exact state."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.rollout.guards import Failure
from egnn_md.rollout.request import RolloutRequest
from egnn_md.rollout.state import State
from egnn_md.rollout.units import NONE, EngineUnits, are_elements, particle_masses
from egnn_md.simulation.files import AppendFile, write_atomic
from egnn_md.simulation.mechanics import kinetic_energy
from egnn_md.simulation.rundir import FORMAT, RunDirectory
from egnn_md.simulation.trajectory import DCDFormat, Format, Frame, Trajectory, XTCFormat

FORMATS = ("dcd", "xtc", "extxyz")
LOG_COLUMNS = (
    "step",
    "time",
    "kinetic_energy",
    "momentum_x",
    "momentum_y",
    "momentum_z",
    "max_displacement",
    "rebuilds",
)


def log_units(units: EngineUnits, config_units: dict[str, str]) -> dict[str, str]:
    """What the columns of the log are in. Without molecular units every mass is 1."""
    length, time = units.names
    speed = NONE if length == NONE else f"{length}/{time}"
    return {
        "time": config_units["time"],
        "kinetic_energy": "eV" if units.physical else NONE if speed == NONE else f"({speed})^2",
        "momentum": "amu angstrom/femtosecond" if units.physical else speed,
        "max_displacement": config_units["length"],
    }


class ExactExtxyz:
    """Extended XYZ that a rollout can start from: every number as it is, particle types and given inputs too.

    Lengths in Å, velocities in Å/fs; numbers without molecular units are multiplied by ``unit_length``, which is told.
    """

    suffix = "extxyz"

    def __init__(self, start: State, units: EngineUnits, system: str) -> None:
        from ase.data import chemical_symbols

        elements = are_elements(start.species, units)
        self.symbols = [chemical_symbols[kind] if elements else "X" for kind in start.species.tolist()]
        self.types = None if elements else start.species.tolist()
        self.features = None if start.features is None else start.features.tolist()
        self.pbc = " ".join("T" if flag else "F" for flag in start.pbc)
        self.periodic = any(start.pbc)
        self.info = (f'system="{system}" ' if system else "") + (
            "" if units.physical else f'unit_length={units.length!r} units="{" ".join(units.names)}" '
        )

    def header(self) -> bytes:
        """Extended XYZ has none."""
        return b""

    def encode(self, frame: Frame) -> bytes:
        """One structure as text; ``repr`` of a double gives the same double back."""
        properties = "Properties=species:S:1:pos:R:3:velocities:R:3"
        if self.types is not None:
            properties += ":particle_type:I:1"
        if self.features is not None:
            properties += f":node_features:R:{len(self.features[0])}"
        lattice = ""
        if self.periodic:
            lattice = 'Lattice="' + " ".join(repr(x) for x in frame.cell.ravel().tolist()) + '" '
        lines = [
            str(len(self.symbols)),
            f'{lattice}{properties} {self.info}step={frame.step} time_fs={frame.time!r} pbc="{self.pbc}"',
        ]
        rows = zip(frame.positions.tolist(), frame.velocities.tolist(), strict=True)
        for index, (position, velocity) in enumerate(rows):
            values = [*position, *velocity]
            if self.types is not None:
                values.append(self.types[index])
            if self.features is not None:
                values += self.features[index]
            lines.append(f"{self.symbols[index]:<2} " + " ".join(repr(x) for x in values))
        return ("\n".join(lines) + "\n").encode()

    def counters(self, frames: int) -> list[tuple[int, bytes]]:
        """Nothing to count."""
        return []


@dataclass(frozen=True)
class Writing:
    """What all files of a rollout share."""

    request: RolloutRequest
    units: EngineUnits
    stride: float
    system: str


class StartFiles:
    """Log and trajectories of one start, growing in step with the checkpoints."""

    def __init__(self, folder: Path, start: State, shared: Writing, kept: dict[str, Any] | None = None) -> None:
        """New files in ``folder``, or those of a checkpoint cut back to the lengths ``kept``."""
        self.folder = folder
        self.shared = shared
        self.masses = particle_masses(start.species, shared.units)
        self.last_frame: int | None = None if kept is None else kept["last_frame"]
        log = folder / "log.csv"
        if kept is None:
            self.log = AppendFile(log)
            self.log.append((",".join(LOG_COLUMNS) + "\n").encode())
        else:
            self.log = AppendFile(log, keep=kept["log"])
        self.trajectories: list[Trajectory] = []
        for suffix in shared.request.formats:
            form, path = self._format(suffix, start), folder / f"trajectory.{suffix}"
            if kept is None:
                self.trajectories.append(Trajectory(path, form))
            else:
                self.trajectories.append(Trajectory(path, form, keep=kept[suffix], frames=kept["frames"]))

    def _format(self, suffix: str, start: State) -> Format:
        periodic = all(start.pbc)
        if suffix == "dcd":
            stride = self.shared.stride * self.shared.units.time
            return DCDFormat(len(start), periodic, stride, self.shared.request.every)
        if suffix == "xtc":
            return XTCFormat(periodic)
        return ExactExtxyz(start, self.shared.units, self.shared.system)

    @property
    def frames(self) -> int:
        """Frames written."""
        return self.trajectories[0].frames

    def _frame(self, state: State) -> Frame:
        units = self.shared.units
        return Frame(
            step=state.step,
            time=state.time(self.shared.stride) * units.time,
            positions=state.positions * units.length,
            velocities=state.velocities * units.velocity,
            forces=None,
            energy=None,
            cell=np.zeros((3, 3)) if state.cell is None else state.cell * units.length,
        )

    def write_frame(self, state: State) -> None:
        """Append to every trajectory."""
        frame = self._frame(state)
        for trajectory in self.trajectories:
            trajectory.write(frame)
        self.last_frame = state.step

    def write_row(self, state: State, displacement: float, rebuilds: int) -> None:
        """Append to the log."""
        units = self.shared.units
        if units.physical:
            velocities = state.velocities * units.velocity
            kinetic = kinetic_energy(self.masses, velocities)
        else:
            velocities = state.velocities
            kinetic = float(0.5 * np.sum(self.masses[:, None] * velocities**2))
        values = [state.time(self.shared.stride), kinetic, *(self.masses @ velocities).tolist(), displacement]
        cells = [str(state.step), *(f"{value:.12g}" for value in values), str(rebuilds)]
        self.log.append((",".join(cells) + "\n").encode())

    def write_final(self, state: State) -> None:
        """The last good state, exactly."""
        form = ExactExtxyz(state, self.shared.units, self.shared.system)
        write_atomic(self.folder / "final.extxyz", form.encode(self._frame(state)))

    def sync(self) -> dict[str, Any]:
        """Force everything to the disk; the lengths, for a checkpoint."""
        self.log.sync()
        sizes: dict[str, Any] = {"log": self.log.size, "frames": self.frames, "last_frame": self.last_frame}
        for trajectory in self.trajectories:
            trajectory.file.sync()
            sizes[trajectory.form.suffix] = trajectory.file.size
        return sizes

    def close(self) -> None:
        """Close all files."""
        self.log.close()
        for trajectory in self.trajectories:
            trajectory.file.close()


@dataclass(frozen=True)
class RolloutCheckpoint:
    """Everything that a rollout needs to go on as if it had never stopped.

    Attributes:
        states: the last good state of each start, in the model's units and double precision.
        failures: None or why a start stopped.
        files: lengths of the files of each start.
        memories: of the neighbour lists, see :meth:`egnn_md.rollout.stepper.Stepper.memory`.
        step: strides done.
        seconds: wall time that they took.
    """

    states: list[State]
    failures: list[Failure | None]
    files: list[dict[str, Any]]
    memories: list[dict[str, Any]]
    step: int
    seconds: float

    def to_bytes(self) -> bytes:
        """An ``.npz`` without pickles: arrays as bytes, the rest as JSON."""
        arrays: dict[str, NDArray[Any]] = {}
        plain: list[dict[str, Any]] = []
        for index, (state, memory) in enumerate(zip(self.states, self.memories, strict=True)):
            rest: dict[str, Any] = {}
            for group, values in (("state", vars(state)), ("memory", memory)):
                rest[group] = {k: v for k, v in values.items() if not isinstance(v, np.ndarray)}
                arrays |= {f"{index}.{group}.{k}": v for k, v in values.items() if isinstance(v, np.ndarray)}
            plain.append(rest)
        header = {
            "format": FORMAT,
            "starts": plain,
            "failures": [None if failure is None else asdict(failure) for failure in self.failures],
            "files": self.files,
            "step": self.step,
            "seconds": self.seconds,
        }
        buffer = io.BytesIO()
        np.savez(buffer, header=np.frombuffer(json.dumps(header).encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a checkpoint. Raises InputError if it is damaged or of a newer format."""
        try:
            with np.load(path, allow_pickle=False) as archive:
                header = json.loads(archive["header"].tobytes())
                if int(header["format"]) > FORMAT:
                    raise InputError(f"{path} was written by a newer egnn-md; update with pip install -U egnn-md")
                groups: list[dict[str, dict[str, Any]]] = header["starts"]
                for key in archive.files:
                    if key != "header":
                        index, group, name = key.split(".")
                        groups[int(index)][group][name] = archive[key]
            states = [State(**{**g["state"], "pbc": tuple(g["state"]["pbc"])}) for g in groups]
            failures = [None if values is None else Failure(**values) for values in header["failures"]]
            memories = [g["memory"] for g in groups]
            return cls(states, failures, header["files"], memories, int(header["step"]), float(header["seconds"]))
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(f"{path} cannot be read as the checkpoint of a rollout: {error}") from error


class RolloutDirectory(RunDirectory):
    """Paths of one rollout: those of a run, with a folder a start where there are several."""

    def folders(self, names: list[str]) -> list[Path]:
        """Where each start is written: here if there is one, else in a folder of its name."""
        return [self.path] if len(names) == 1 else [self.path / name for name in names]

    def _own_files(self) -> list[Path]:
        own = [self.record, self.checkpoint]
        for folder in [self.path, *self.path.glob("start-*")]:
            own += [folder / name for name in ("log.csv", "topology.pdb", "final.extxyz")]
            own += [folder / f"trajectory.{suffix}" for suffix in FORMATS]
        return own

    def rollout_request(self) -> RolloutRequest:
        """The request of the rollout that is stored here, with this directory as its output.

        Raises:
            InputError: not the directory of a rollout.
        """
        record = self.read()
        if record.get("kind") != "rollout":
            raise InputError(f"{self.path} holds a run of egnn-md md, not a rollout; use egnn-md md --resume")
        return RolloutRequest.parse({**record["request"], "output": self.path})
