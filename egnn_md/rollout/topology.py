"""Names for particles, so that viewers and mdtraj can read what a rollout wrote."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from egnn_md.errors import InputError
from egnn_md.rollout.state import State
from egnn_md.rollout.units import NONE, EngineUnits, are_elements

if TYPE_CHECKING:
    import mdtraj
    from ase import Atoms

    from egnn_md.models.propagator import PropagatorConfig

XTC_STEP = 0.01  # Å
ROUNDING = 1e-6  # relative: below it a cell counts as lower triangular


def to_atoms(state: State, units: EngineUnits) -> Atoms:
    """ASE Atoms in Å: elements where particle types are atomic numbers, else ``X``; types and features as arrays."""
    from ase import Atoms

    elements = are_elements(state.species, units)
    atoms = Atoms(
        numbers=state.species if elements else np.zeros(len(state), dtype=int),
        positions=state.positions * units.length,
        cell=None if state.cell is None else state.cell * units.length,
        pbc=state.pbc,
    )
    if not elements:
        atoms.set_array("particle_type", state.species.copy())
    if state.features is not None:
        atoms.set_array("node_features", state.features.copy())
    return atoms


def make_topology(state: State, units: EngineUnits, path: str | None = None) -> mdtraj.Topology:
    """Topology of a state.

    Args:
        state: particles.
        units: of the model.
        path: file that mdtraj reads a topology from; without one, molecules are told from distances, and
            particles that are no elements become virtual sites of a residue for each type.

    Raises:
        InputError: an unreadable file, or one of other particles.
    """
    import mdtraj

    if path is not None:
        try:
            topology = mdtraj.load_topology(path)
        except Exception as error:  # mdtraj raises whatever its parsers do
            raise InputError(f"topology {path} cannot be read: {type(error).__name__}: {error}") from error
        if topology.n_atoms != len(state):
            raise InputError(f"topology {path} has {topology.n_atoms} atoms, the start {len(state)} particles")
        return topology
    if are_elements(state.species, units):
        from egnn_md.simulation.readers import structure_from_atoms

        try:
            return structure_from_atoms(to_atoms(state, units)).to_mdtraj_topology()
        except InputError:  # coarse or broken geometries have no bonds that could be told from distances
            pass
    topology = mdtraj.Topology()
    chain = topology.add_chain()
    residues: dict[int, object] = {}
    elements = are_elements(state.species, units)
    for index, kind in enumerate(state.species.tolist()):
        if kind not in residues or (index and kind != state.species[index - 1]):
            residues[kind] = topology.add_residue("UNK" if elements else f"P{kind % 100}", chain)
        element = mdtraj.element.Element.getByAtomicNumber(kind) if elements else mdtraj.element.virtual
        topology.add_atom(element.symbol if elements else "P", element, residues[kind])
    return topology


def rounding_note(state: State, config: PropagatorConfig, units: EngineUnits) -> str | None:
    """What to say of an XTC file whose steps are wide for this system: more than a hundredth of the cutoff or size."""
    length = config.cutoff or float(np.ptp(state.positions, axis=0).max())
    if units.physical or not 0 < length * units.length < 100 * XTC_STEP:
        return None
    wanted = 10.0 ** np.ceil(np.log10(100 * XTC_STEP / length))
    unit = "" if units.names[0] == NONE else f" {units.names[0]}"
    return (
        f"note: trajectory.xtc keeps {XTC_STEP:g} Å, which is {XTC_STEP / units.length:g}{unit} here, of a "
        f"{'cutoff' if config.cutoff else 'system'} of {length:g}{unit}; --unit-length {wanted:g} keeps more, "
        "--format dcd or extxyz everything"
    )


def check_cell(state: State, what: str) -> None:
    """Refuse a cell that cannot be written as lengths and angles without turning the system.

    Raises:
        InputError: names ``what`` needs it.
    """
    if state.cell is None:
        return
    if not all(state.pbc):
        raise InputError(f"{what} knows systems that are periodic in all directions or none, not {list(state.pbc)}")
    scale = float(np.abs(state.cell).max())
    if np.abs(np.triu(state.cell, 1)).max() > ROUNDING * scale or (np.diag(state.cell) <= 0).any():
        raise InputError(
            f"{what} needs a cell with a along x and b in the xy plane, not {state.cell.tolist()}: turn the start "
            "that way, or write --format extxyz with --engine none or ase"
        )


def write_pdb(path: Path, topology: mdtraj.Topology, state: State, units: EngineUnits) -> None:
    """One frame as PDB, coordinates to 0.001 Å.

    Raises:
        InputError: coordinates that PDB has no room for.
    """
    import mdtraj

    xyz = (state.positions * (units.length / 10))[None].astype(np.float32)
    frame = mdtraj.Trajectory(xyz, topology)
    if state.cell is not None and all(state.pbc):
        frame.unitcell_vectors = (state.cell * (units.length / 10))[None].astype(np.float32)
    try:
        frame.save_pdb(str(path))
    except ValueError as error:
        raise InputError(f"{path.name}: PDB has no room for these coordinates ({error})") from error
