"""Protein trajectories as a data set of propagators: aligned or not, split in time, written in the common layout."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from egnn_md.data.trajectories import METADATA_NAME, PARTS, Trajectory, TrajectoryMetadata, TrajectoryWriter
from egnn_md.errors import InputError
from egnn_md.simulation.files import writing
from egnn_md_systems.adk.alignment import align
from egnn_md_systems.adk.benchmark import NAMED, named_files
from egnn_md_systems.adk.features import feature_names, node_features
from egnn_md_systems.adk.selection import repair_elements, select_atoms
from egnn_md_systems.adk.splits import Stretch, published_split, split_in_time
from egnn_md_systems.adk.trajectory import ProteinTrajectory, read_run, read_trajectory

UNITS = {"length": "angstrom", "time": "femtosecond"}
RADIUS = 10.0  # Å, the benchmark's
GAP_FRAMES = 10  # if no gap is given and the stride is not longer
WHOLE = 1e-6  # relative: a time is a whole number of frames to this


@dataclass(frozen=True)
class DatasetOptions:
    """What ``egnn-md generate trajectory`` is asked for. Times in fs; None: see the command's help."""

    topology: Path | None = None
    select: str = "backbone"
    align: str = "none"  # none, first, a frame's number, or a structure file
    frame_interval: float | None = None
    skip: int = 0
    frames: int | None = None  # per source
    every: int = 1
    split: str = "70,15,15"  # or published
    gap: float | None = None
    stride: float | None = None
    repeats: int = 1
    features: str = "auto"
    periodic: bool = False
    system: str | None = None
    data_home: Path | None = None


@dataclass
class DatasetSummary:
    """What was written."""

    output: Path
    frames: dict[str, list[int]]  # part: length of each of its trajectories
    atoms: int
    frame_interval: float
    velocities: bool
    features: tuple[str, ...]


def convert(
    sources: list[str], output: Path | str, options: DatasetOptions, *, overwrite: bool = False
) -> DatasetSummary:
    """Make a data set in ``output`` from runs, trajectory files and named trajectories.

    Raises:
        InputError: a source cannot be read, sources do not belong together, too few frames, a stride that does not fit.
        MissingDependencyError: the package behind a named trajectory is not installed.
    """
    output = Path(output)
    if not sources:
        raise InputError(f"name a run, a trajectory file, or one of {', '.join(NAMED)}")
    _check_free(output, overwrite)
    proteins = [_prepared(source, options) for source in sources]
    first = proteins[0]
    for protein in proteins[1:]:
        _check_same(first, protein)
    names = feature_names(options.features, first)
    parts: dict[str, list[Trajectory]] = {}
    for protein in proteins:
        for part, stretches in split_of(protein, options).items():
            parts.setdefault(part, []).extend(_cut(protein, stretch, names) for stretch in stretches)
    metadata = _metadata(proteins, options, names)
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        for name in (*(f"{part}.h5" for part in PARTS), METADATA_NAME, "topology.pdb"):
            (output / name).unlink(missing_ok=True)
        for part, trajectories in parts.items():
            with TrajectoryWriter(output / f"{part}.h5", metadata) as writer:
                for trajectory in trajectories:
                    writer.add(trajectory)
        write_topology(first, output / "topology.pdb")
    return DatasetSummary(
        output,
        {part: [len(t) for t in trajectories] for part, trajectories in parts.items()},
        first.topology.n_atoms,
        first.frame_interval,
        all(protein.velocities is not None for protein in proteins),
        names,
    )


def read_source(source: str, options: DatasetOptions) -> ProteinTrajectory:
    """A run's directory, a named trajectory, or a file with ``options.topology``."""
    if source in NAMED:
        topology, trajectory, interval = named_files(source, options.data_home)
        read = read_trajectory(
            topology, trajectory, selection=options.select, frame_interval=options.frame_interval or interval
        )
        read.system = "adk"
        return read
    if Path(source).is_dir():
        return read_run(source, options.select)
    if options.topology is None:
        if not Path(source).is_file():
            raise InputError(f"{source} is neither a file, nor a run's directory, nor one of {', '.join(NAMED)}")
        raise InputError(f"{source} needs --topology: a PSF, PDB or GRO file with all its atoms")
    return read_trajectory(
        options.topology,
        source,
        selection=options.select,
        frame_interval=options.frame_interval,
        periodic=options.periodic,
    )


def split_of(protein: ProteinTrajectory, options: DatasetOptions) -> dict[str, list[Stretch]]:
    """Stretches of the three parts. Raises InputError for a stride or gap that does not fit, or too few frames."""
    if options.split == "published":
        return published_split(len(protein), protein.source)
    try:
        shares = tuple(float(word) for word in options.split.split(","))
    except ValueError:
        shares = ()
    if len(shares) != 3:
        raise InputError(f"--split {options.split}: give three shares with commas, as 70,15,15, or published")
    interval = protein.frame_interval
    stride = 1 if options.stride is None else whole_frames(options.stride, interval, "--stride", protein.source)
    gap = (
        max(GAP_FRAMES, stride) if options.gap is None else whole_frames(options.gap, interval, "--gap", protein.source)
    )
    return split_in_time(len(protein), shares, gap=gap, stride=stride, repeats=options.repeats, source=protein.source)


def whole_frames(time: float, interval: float, option: str, source: str) -> int:
    """``time`` in frames. Raises InputError if it is no whole number of them."""
    frames = time / interval
    if frames < 1 - WHOLE or abs(frames - round(frames)) > WHOLE * max(frames, 1):
        raise InputError(
            f"{option} {time:g} fs is {frames:g} frames of {source}, which has one every {interval:g} fs; "
            f"give a multiple, as {max(1, round(frames)) * interval:g}"
        )
    return round(frames)


def write_topology(protein: ProteinTrajectory, path: Path) -> None:
    """The first frame as PDB, for mdtraj, viewers and metrics."""
    import mdtraj

    mdtraj.Trajectory(0.1 * protein.positions[:1], protein.topology).save_pdb(str(path))


def _prepared(source: str, options: DatasetOptions) -> ProteinTrajectory:
    if options.skip < 0 or options.every < 1 or (options.frames is not None and options.frames < 1):
        raise InputError(
            f"--skip {options.skip}, --every {options.every}, --frames {options.frames}: --skip must be at least "
            "0, the others at least 1"
        )
    protein = read_source(source, options).thinned(skip=options.skip, frames=options.frames, every=options.every)
    if options.align == "none":
        return protein
    if protein.cell is not None:
        raise InputError(
            f"--align {options.align} turns the frames, but --periodic keeps the cell; leave one of them out"
        )
    positions, velocities = align(protein.positions, protein.velocities, _reference(protein, options))
    return replace(protein, positions=positions, velocities=velocities)


def _reference(protein: ProteinTrajectory, options: DatasetOptions) -> np.ndarray:
    import mdtraj

    text = options.align
    if text == "first" or text.isdigit():
        number = 0 if text == "first" else int(text)
        if number >= len(protein):
            raise InputError(f"--align {number}: {protein.source} has the frames 0 to {len(protein) - 1}")
        return protein.positions[number]
    if not Path(text).is_file():
        raise InputError(f"--align {text}: give none, first, a frame's number, or a structure file")
    try:
        structure = mdtraj.load(text)
    except Exception as error:
        raise InputError(f"--align {text} cannot be read as a structure by mdtraj ({error})") from error
    repair_elements(structure.topology)
    kept = select_atoms(structure.topology, options.select)
    return 10.0 * structure.xyz[0, kept].astype(np.float64)


def _cut(protein: ProteinTrajectory, stretch: Stretch, names: tuple[str, ...]) -> Trajectory:
    first, end = stretch
    return Trajectory(
        positions=protein.positions[first:end],
        species=protein.species,
        velocities=None if protein.velocities is None else protein.velocities[first:end],
        features=node_features(names, protein),
        cell=protein.cell,
        name=f"{protein.source}[{first}:{end}]",
    )


def _metadata(proteins: list[ProteinTrajectory], options: DatasetOptions, names: tuple[str, ...]) -> TrajectoryMetadata:
    first = proteins[0]
    steps = first.frame_interval / first.timestep
    whole = abs(steps - round(steps)) < WHOLE * steps
    elements = {str(a.element.atomic_number): a.element.symbol for a in first.topology.atoms}
    return TrajectoryMetadata.model_validate(
        {
            "system": first.system if options.system is None else options.system,
            "units": UNITS,
            "dt": first.timestep if whole else first.frame_interval,
            "write_every": round(steps) if whole else 1,
            "periodic_boundary_conditions": [first.cell is not None] * 3,
            "default_connectivity_radius": RADIUS,
            "type_names": elements,
            "topology": "topology.pdb",
            "sources": [Path(protein.source).name for protein in proteins],
            "selection": options.select,
            "aligned": options.align,
            "node_features": list(names),
            "split": options.split,
        }
    )


def _check_same(first: ProteinTrajectory, other: ProteinTrajectory) -> None:
    """Sources of one data set have the same atoms and frame interval."""
    if first.topology.n_atoms != other.topology.n_atoms or (first.species != other.species).any():
        raise InputError(
            f"{other.source} has {other.topology.n_atoms} atoms, {first.source} {first.topology.n_atoms}, or their "
            "elements differ; all sources of a data set need the same atoms: choose another --select"
        )
    if abs(first.frame_interval - other.frame_interval) > WHOLE * first.frame_interval:
        raise InputError(
            f"{other.source} has a frame every {other.frame_interval:g} fs, {first.source} every "
            f"{first.frame_interval:g} fs; convert them to data sets of their own"
        )
    if (first.velocities is None) != (other.velocities is None):
        without = first.source if first.velocities is None else other.source
        raise InputError(f"{without} has no velocities, but another source has; convert them to data sets of their own")
    if (first.cell is None) != (other.cell is None):
        raise InputError(f"{first.source} and {other.source}: one is periodic, the other is not")


def _check_free(output: Path, overwrite: bool) -> None:
    if output.exists() and not output.is_dir():
        raise InputError(f"--output {output} is a file; give a directory")
    if (output / METADATA_NAME).exists() and not overwrite:
        raise InputError(f"--output {output} already holds a data set; replace it by --overwrite, or give another one")
    if (output / "run.json").exists():
        raise InputError(f"--output {output} holds a simulation; give another directory for the data set")
