"""Any topology and trajectory that mdtraj reads, or a run of ``egnn-md generate adk``, in Å and fs."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md_systems.adk.blocks import read_blocks
from egnn_md_systems.adk.imaging import Whole, constant_cell
from egnn_md_systems.adk.selection import repair_elements, select_atoms

if TYPE_CHECKING:
    import mdtraj

TIMED = (".xtc", ".trr", ".h5", ".nc", ".ncdf", ".netcdf")  # formats whose frames carry a time (ps)
CHUNK = 200  # frames read at once
INTERVAL_TOLERANCE = 1e-3  # of the interval; XTC and TRR keep times in single precision


@dataclass
class ProteinTrajectory:
    """Frames of the atoms that were selected.

    Attributes:
        topology: of these atoms.
        positions: (T, N, 3) float32, Å.
        velocities: (T, N, 3) float32, Å/fs, or None if the source has none.
        frame_interval: fs.
        cell: (3, 3) rows in Å of a periodic system, or None.
        charges: (N,) elementary charges, or None if the source has none.
        source: where it came from, for messages.
        system: name of what moves; empty if unknown.
        timestep: fs, of the simulation; the frame interval if unknown.
    """

    topology: mdtraj.Topology
    positions: np.ndarray
    velocities: np.ndarray | None
    frame_interval: float
    source: str
    cell: np.ndarray | None = None
    charges: np.ndarray | None = None
    system: str = ""
    timestep: float = field(default=0.0)

    def __len__(self) -> int:
        return len(self.positions)

    def __post_init__(self) -> None:
        self.timestep = self.timestep or self.frame_interval
        for name, values in (("positions", self.positions), ("velocities", self.velocities)):
            if values is None:
                continue
            if values.shape != (len(self.positions), self.topology.n_atoms, 3):
                raise InputError(
                    f"{self.source}: {name} have the shape {values.shape}, but there are {len(self.positions)} frames "
                    f"of {self.topology.n_atoms} atoms; the files do not belong together"
                )
            broken = ~np.isfinite(values).all(axis=(1, 2))
            if broken.any():
                raise InputError(
                    f"{self.source}: {name} of frame {int(broken.argmax())} are not finite; leave it out with --skip "
                    "or --frames"
                )

    @property
    def species(self) -> np.ndarray:
        """(N,) atomic numbers. Raises InputError for an atom without element."""
        for atom in self.topology.atoms:
            if atom.element is None or atom.element.atomic_number < 1:
                raise InputError(
                    f"{self.source}: atom {atom} has no element; give a --topology with elements (PDB columns 77-78)"
                )
        return np.array([atom.element.atomic_number for atom in self.topology.atoms], dtype=np.int64)

    def thinned(self, *, skip: int = 0, frames: int | None = None, every: int = 1) -> ProteinTrajectory:
        """Without the first ``skip`` frames, then at most ``frames`` of them, then each ``every``-th.

        Raises InputError if fewer than two frames stay.
        """
        part = slice(skip, None if frames is None else skip + frames, every)
        positions = self.positions[part]
        if len(positions) < 2:
            raise InputError(
                f"{self.source} has {len(self)} frames; --skip {skip}, --frames {frames} and --every {every} leave "
                f"{len(positions)}, but at least 2 are needed"
            )
        velocities = None if self.velocities is None else self.velocities[part]
        return replace(self, positions=positions, velocities=velocities, frame_interval=self.frame_interval * every)


def read_run(directory: Path | str, selection: str = "backbone") -> ProteinTrajectory:
    """Frames of a run of ``egnn-md generate adk``; it may still be going on.

    Raises:
        InputError: it is no such run, or has no frame yet.
    """
    import mdtraj

    directory = Path(directory)
    try:
        record = json.loads((directory / "run.json").read_text())
        settings, charges = record["settings"], np.asarray(record["charges"])
    except FileNotFoundError:
        raise InputError(f"{directory} holds no run.json: it is no run of `egnn-md generate adk`") from None
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{directory / 'run.json'} cannot be read ({error})") from error
    topology = mdtraj.load_topology(str(directory / "kept.pdb"))
    block = read_blocks(directory)
    kept = select_atoms(topology, selection)
    if block.positions.shape[1] != topology.n_atoms:
        raise InputError(
            f"{directory}: frames of {block.positions.shape[1]} atoms, but kept.pdb has {topology.n_atoms}; "
            "the files do not belong together"
        )
    return ProteinTrajectory(
        topology.subset(kept),
        block.positions[:, kept],
        block.velocities[:, kept],
        float(settings["frame_interval"]),
        str(directory),
        charges=charges[kept],
        system="adk" if settings["start"] in ("closed", "open") else "",
        timestep=float(settings["timestep"]),
    )


def read_trajectory(
    topology_file: Path | str,
    trajectory_file: Path | str,
    *,
    selection: str = "backbone",
    frame_interval: float | None = None,
    periodic: bool = False,
) -> ProteinTrajectory:
    """Read PSF, PDB, GRO, ... with DCD, XTC, TRR, ...

    Args:
        topology_file: with all atoms of the trajectory.
        trajectory_file: its velocities are read from TRR, and from no other format.
        selection: see :func:`egnn_md_systems.adk.selection.select_atoms`.
        frame_interval: fs; needed where the format keeps no times (DCD, PDB).
        periodic: keep the cell; otherwise molecules that the cell boundary cuts are put together and follow their
            own path, and the cell is forgotten.

    Raises:
        InputError: a file is missing or broken, the two do not fit, times are missing or uneven, the cell changes.
    """
    import mdtraj

    topology_file, trajectory_file = Path(topology_file), Path(trajectory_file)
    for path in (topology_file, trajectory_file):
        if not path.is_file():
            raise InputError(f"there is no file {path}")
    topology = _load_topology(topology_file)
    kept = select_atoms(topology, selection)
    positions, times, cells = [], [], []
    whole: Whole | None = None
    try:
        for chunk in mdtraj.iterload(str(trajectory_file), chunk=CHUNK, **_top(trajectory_file, topology)):
            if chunk.n_atoms != topology.n_atoms:
                raise InputError(
                    f"{trajectory_file} has {chunk.n_atoms} atoms, but {topology_file} {topology.n_atoms}; "
                    "give the topology that the trajectory was written with"
                )
            if chunk.unitcell_vectors is not None and not periodic:
                whole = whole or Whole(topology, kept, str(trajectory_file))
                positions.append(whole.positions(chunk))
            else:
                positions.append(chunk.xyz[:, kept])
            if chunk.unitcell_vectors is not None:
                cells.append(chunk.unitcell_vectors)
            times.append(np.asarray(chunk.time, dtype=np.float64))
    except InputError:
        raise
    except Exception as error:  # readers raise ValueError, OSError, RuntimeError and more
        raise InputError(
            f"{trajectory_file} does not fit {topology_file} ({topology.n_atoms} atoms), or is broken: "
            f"{' '.join(str(error).split())}"
        ) from error
    if not positions:
        raise InputError(f"{trajectory_file} holds no frame")
    cell = None
    if periodic:
        if not cells:
            raise InputError(f"--periodic: {trajectory_file} has no cell; leave it out")
        cell = 10.0 * constant_cell(np.concatenate(cells), str(trajectory_file))
    interval = _interval(np.concatenate(times), trajectory_file, frame_interval)
    charges = psf_charges(topology_file) if topology_file.suffix.lower() == ".psf" else None
    return ProteinTrajectory(
        topology.subset(kept),
        (10.0 * np.concatenate(positions)).astype(np.float32),
        _velocities(trajectory_file, kept),
        interval,
        str(trajectory_file),
        cell=cell,
        charges=None if charges is None else charges[kept],
    )


def psf_charges(path: Path | str) -> np.ndarray:
    """(atoms,) partial charges of a CHARMM or X-PLOR PSF file. Raises InputError if it has no such table."""
    path = Path(path)
    lines = iter(path.read_text(errors="replace").splitlines())
    try:
        count = next(int(line.split()[0]) for line in lines if "!NATOM" in line)
        return np.array([float(next(lines).split()[6]) for _ in range(count)])
    except (StopIteration, RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: the atom table (!NATOM) cannot be read; is it a whole PSF file?") from error


def _load_topology(path: Path) -> mdtraj.Topology:
    import mdtraj

    try:
        topology = mdtraj.load_topology(str(path))
    except Exception as error:
        raise InputError(f"{path} cannot be read as a topology by mdtraj ({error}); give PSF, PDB or GRO") from error
    repair_elements(topology)
    return topology


def _top(trajectory_file: Path, topology: mdtraj.Topology) -> dict[str, Any]:
    # files that carry a topology of their own refuse another one
    return {} if trajectory_file.suffix.lower() in (".pdb", ".h5") else {"top": topology}


def _interval(times: np.ndarray, path: Path, given: float | None) -> float:
    """fs from one frame to the next."""
    if given is not None:
        if given <= 0:
            raise InputError(f"--frame-interval {given:g}: give a positive time in fs")
        return given
    if path.suffix.lower() not in TIMED:
        raise InputError(f"{path}: this format keeps no times; give --frame-interval (fs)")
    if len(times) < 2:
        raise InputError(f"{path} holds {len(times)} frame; at least 2 are needed")
    interval = (times[-1] - times[0]) / (len(times) - 1)
    uneven = np.abs(np.diff(times) - interval) > INTERVAL_TOLERANCE * abs(interval)
    if interval <= 0 or uneven.any():
        frame = int(uneven.argmax())
        raise InputError(
            f"{path}: frames are not evenly spaced in time (frame {frame} at {times[frame]:g} ps, frame {frame + 1} at "
            f"{times[frame + 1]:g} ps); write it anew with one interval, or give --frame-interval (fs)"
        )
    return float(f"{1000 * interval:.6g}")


def _velocities(path: Path, kept: np.ndarray) -> np.ndarray | None:
    """(T, N, 3) Å/fs out of a TRR file; None for formats and files without velocities."""
    if path.suffix.lower() != ".trr":
        return None
    from mdtraj.formats import TRRTrajectoryFile

    parts: list[np.ndarray] = []
    with TRRTrajectoryFile(str(path)) as file:
        while True:
            try:
                # mdtraj's public read() drops the velocities that its reader has
                frames = file._read(CHUNK, np.ascontiguousarray(kept), get_velocities=True)
            except RuntimeError as error:
                if "none in file" in str(error):
                    return None
                raise InputError(f"{path}: its velocities cannot be read ({error})") from error
            if len(frames[0]) == 0:
                break
            parts.append(0.01 * frames[5])  # nm/ps
    return np.concatenate(parts).astype(np.float32)
