"""Where a rollout begins: frames of a data set, or a file with positions and velocities."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.rollout.state import State, check_causal, state_at
from egnn_md.rollout.units import EngineUnits, are_elements, engine_units

if TYPE_CHECKING:
    from ase import Atoms

    from egnn_md.models.propagator import PropagatorConfig
    from egnn_md.rollout.request import RolloutRequest

SYSTEM_GROUP = "egnn_md.systems"
TOPOLOGY_NAME = "topology.pdb"
NAMED_FORMATS = (".pdb", ".pdb.gz", ".gro", ".cif")
ANGSTROM_PER_NM, FS_PER_PS = 10.0, 1000.0

Array = NDArray[Any]


@dataclass(frozen=True)
class Starts:
    """States to start from, the units they are written in, and a file that names the particles (or None)."""

    states: list[State]
    units: EngineUnits
    topology: str | None


def resolve_system(name: str) -> Path:
    """Directory or file of a system given by path, or by a name in the entry-point group ``egnn_md.systems``.

    Raises:
        InputError: neither; the message lists the names.
    """
    path = Path(name)
    if path.exists():
        return path
    registered = {point.name: point for point in entry_points(group=SYSTEM_GROUP)}
    if name in registered:
        return Path(registered[name].load()())
    known = ", ".join(sorted(registered)) or "none"
    raise InputError(f"there is no file or directory {name} and no registered system of that name (known: {known})")


def read_starts(request: RolloutRequest, config: PropagatorConfig) -> Starts:
    """The states that a request starts from.

    Raises:
        InputError: missing or unreadable files, frames that do not exist, another system or unit than the
            model's, missing velocities, ``velocity: forward``.
    """
    check_causal(config)
    path = resolve_system(request.system)
    if request.temperature is not None and (path.is_dir() or path.suffix in (".h5", ".xml")):
        raise InputError(f"--temperature draws velocities, but {path} brings its own; leave it out")
    if path.is_dir() or path.suffix == ".h5":
        return _from_data(request, config, path)
    if request.part is not None or request.trajectory_index != (0,):
        raise InputError(f"--part and --trajectory-index choose from a data set, but {path} is a structure file")
    return _from_file(request, config, path)


def _from_data(request: RolloutRequest, config: PropagatorConfig, path: Path) -> Starts:
    from egnn_md.data.trajectories import PARTS, open_trajectories

    part: str | None = request.part
    if path.is_dir() and part is None:
        present = [name for name in PARTS if (path / f"{name}.h5").is_file()]
        part = present[0] if len(present) == 1 else "test"
    data = open_trajectories(path, part)
    states = [
        state_at(data, config, trajectory=index, frame=frame)
        for index in request.trajectory_index
        for frame in request.starts
    ]
    beside = (path if path.is_dir() else path.parent) / TOPOLOGY_NAME
    topology = request.topology or (str(beside) if beside.is_file() else None)
    return Starts(states, engine_units(config, request.unit_length), topology)


def _from_file(request: RolloutRequest, config: PropagatorConfig, path: Path) -> Starts:
    topology = request.topology
    if path.suffix == ".xml":
        units = engine_units(config, request.unit_length)
        return Starts([_from_openmm_state(path, topology, config, units)], units, topology)
    import ase.io

    try:
        frames = ase.io.read(path, index=":")
    except Exception as error:  # ASE raises whatever its many parsers do
        raise InputError(f"{path} cannot be read as a structure: {type(error).__name__}: {error}") from error
    frames = frames if isinstance(frames, list) else [frames]
    for frame in request.starts:
        if not -len(frames) <= frame < len(frames):
            raise InputError(f"{path} has frames 0 to {len(frames) - 1}, not {frame}")
    units = _units_of(frames[request.starts[0]], config, request.unit_length, path)
    states = []
    for frame in request.starts:
        before = frames[frame - 1] if frame % len(frames) > 0 else None
        if request.temperature is not None:
            _draw_velocities(frames[frame], request.temperature, request.seed, config, units, path)
        states.append(state_from_atoms(frames[frame], config, units, before=before, name=f"{path.name}, frame {frame}"))
    if topology is None and path.name.lower().endswith(NAMED_FORMATS):
        topology = str(path)
    return Starts(states, units, topology)


def _units_of(atoms: Atoms, config: PropagatorConfig, unit_length: float | None, path: Path) -> EngineUnits:
    """Units of a file; those that we wrote say what they hold."""
    said = atoms.info.get("unit_length")
    system = atoms.info.get("system")
    if system and config.system and str(system) != config.system:
        raise InputError(f"{path} holds a state of {system!r}, but the propagator is one of {config.system!r}")
    units = engine_units(config, unit_length)
    if said is None:
        return units
    names = str(atoms.info.get("units", " ".join(units.names)))
    if units.physical or names != " ".join(units.names):
        raise InputError(
            f"{path} holds numbers in {names!r} (unit_length={said}), but the propagator of {config.system!r} is "
            f"in {' '.join(units.names)!r}; start it from a state of its own units"
        )
    if unit_length is not None and float(said) != unit_length:
        raise InputError(f"{path} was written with --unit-length {float(said):g}, not {unit_length:g}")
    return engine_units(config, float(said))


def _draw_velocities(
    atoms: Atoms, kelvin: float, seed: int, config: PropagatorConfig, units: EngineUnits, path: Path
) -> None:
    """Give ``atoms`` Maxwell-Boltzmann velocities at ``kelvin`` without total momentum."""
    from egnn_md.simulation.mechanics import maxwell_boltzmann

    if velocities_of(atoms) is not None:
        raise InputError(f"--temperature draws velocities, but {path} brings its own; leave it out")
    if config.velocity != "true" or not are_elements(atoms.numbers, units):
        raise InputError(
            f"--temperature {kelvin:g}: thermal velocities are for atoms of a model that takes true ones, but the "
            f"propagator of {config.system!r} takes {config.velocity} ones in {' per '.join(units.names)}; start from "
            "its data set"
        )
    atoms.arrays["velocities"] = maxwell_boltzmann(atoms.get_masses(), kelvin, np.random.default_rng(seed))


def velocities_of(atoms: Atoms) -> Array | None:
    """(N, 3) velocities in Å/fs of ASE atoms: from momenta, else the array ``velocities`` of extended XYZ."""
    from ase import units

    if atoms.has("momenta"):
        return np.array(atoms.get_velocities() * units.fs, dtype=np.float64)
    if "velocities" in atoms.arrays:
        return np.array(atoms.arrays["velocities"], dtype=np.float64)
    return None


def state_from_atoms(
    atoms: Atoms,
    config: PropagatorConfig,
    units: EngineUnits,
    *,
    before: Atoms | None = None,
    name: str = "",
) -> State:
    """State of ASE atoms (Å, and fs in the array ``velocities``).

    Args:
        atoms: particle types are the array ``particle_type``, or the atomic numbers; inputs ``node_features``.
        config: of the model.
        units: of the model.
        before: the frame before, for velocities by difference where the atoms have none.
        name: for messages.

    Raises:
        InputError: missing velocities or features, unknown types, numbers that are not finite.
    """
    positions = np.array(atoms.positions, dtype=np.float64)
    velocities = velocities_of(atoms)
    if velocities is None and config.velocity == "backward" and before is not None:
        from egnn_md.data.windows import nearest_image

        if len(before) != len(atoms):
            raise InputError(f"{name}: {len(atoms)} particles, but {len(before)} in the frame before")
        moved = nearest_image(positions - before.positions, atoms.cell.array, atoms.pbc)
        velocities = moved / (config.frame_interval * units.time)
    if velocities is None:
        raise InputError(
            f"{name or 'the atoms'}: no velocities, but the propagator of {config.system!r} takes {config.velocity} "
            "ones; give a file with a column velocities (Å/fs) or momenta"
            + (
                ", or a later frame, whose difference to the one before is taken"
                if config.velocity != "true"
                else ", or (molecules) a --temperature to draw them at" if units.physical else ""
            )
        )
    features = atoms.arrays.get("node_features")
    if features is not None:
        features = np.asarray(features, dtype=np.float64).reshape(len(atoms), -1)
    flags = [bool(flag) for flag in atoms.pbc]
    return State(
        positions=positions / units.length,
        velocities=velocities / units.velocity,
        species=np.asarray(atoms.arrays.get("particle_type", atoms.numbers), dtype=np.int64),
        features=features if config.node_features else None,
        cell=atoms.cell.array / units.length if any(flags) else None,
        pbc=(flags[0], flags[1], flags[2]),
        name=name,
    ).checked(config)


def _from_openmm_state(path: Path, topology: str | None, config: PropagatorConfig, units: EngineUnits) -> State:
    """Positions and velocities of a state that OpenMM saved as XML (nm, nm/ps), types from the topology."""
    if topology is None:
        raise InputError(f"{path} holds no particle types; name the file that does with --topology")
    import mdtraj

    try:
        root = ElementTree.parse(path).getroot()
        names = mdtraj.load_topology(topology)
        types = [atom.element.atomic_number for atom in names.atoms]
    except Exception as error:  # the parsers of both libraries raise what they like
        raise InputError(f"{path} with topology {topology} cannot be read: {error}") from error

    def vectors(tag: str) -> Array | None:
        element = root.find(tag)
        if element is None:
            return None
        return np.array([[float(row.attrib[axis]) for axis in "xyz"] for row in element], dtype=np.float64)

    positions, velocities = vectors("Positions"), vectors("Velocities")
    if positions is None or velocities is None:
        raise InputError(f"{path} is not a state with positions and velocities; save it with Simulation.saveState")
    if len(types) != len(positions):
        raise InputError(f"{path} holds {len(positions)} particles, the topology {topology} {len(types)}")
    periodic = len(types) > 0 and config.cutoff is not None and _has_box(topology)
    cell = vectors("PeriodicBoxVectors") if periodic else None
    return State(
        positions=positions * (ANGSTROM_PER_NM / units.length),
        velocities=velocities * (ANGSTROM_PER_NM / FS_PER_PS / units.velocity),
        species=np.array(types, dtype=np.int64),
        cell=None if cell is None else cell * (ANGSTROM_PER_NM / units.length),
        pbc=(cell is not None,) * 3,
        name=path.name,
    ).checked(config)


def _has_box(topology: str) -> bool:
    """OpenMM saves a box with open systems too, so the topology must tell."""
    import mdtraj

    try:
        return mdtraj.load_frame(topology, 0).unitcell_lengths is not None
    except Exception as error:  # PSF, prmtop and others hold no coordinates and no box
        raise InputError(
            f"--topology {topology} does not tell whether the system is periodic; give a PDB or GRO file, with its "
            "box if it has one"
        ) from error
