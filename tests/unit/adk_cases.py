"""Small proteins for the tests of systems/adk."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest

from egnn_md.errors import MissingDependencyError
from egnn_md_systems.adk.system import mdanalysis_tests_file


def shipped(name: str) -> Path:
    """A file of MDAnalysisTests, or a skip that says why."""
    try:
        return mdanalysis_tests_file(name)
    except MissingDependencyError as error:
        pytest.skip(str(error))


def peptide(residues: int = 4) -> mdtraj.Topology:
    """Alanines with N, CA, C, O, CB and bonds, the last one with OXT."""
    topology = mdtraj.Topology()
    chain, last = topology.add_chain(), None
    for number in range(residues):
        residue = topology.add_residue("ALA", chain, resSeq=number + 1)
        atoms = {
            n: topology.add_atom(n, mdtraj.element.get_by_symbol(n[0]), residue) for n in ("N", "CA", "C", "O", "CB")
        }
        if number == residues - 1:
            topology.add_bond(atoms["C"], topology.add_atom("OXT", mdtraj.element.oxygen, residue))
        for a, b in (("N", "CA"), ("CA", "C"), ("C", "O"), ("CA", "CB")):
            topology.add_bond(atoms[a], atoms[b])
        if last is not None:
            topology.add_bond(last, atoms["N"])
        last = atoms["C"]
    return topology


def wandering(frames: int = 40, residues: int = 4, seed: int = 0) -> mdtraj.Trajectory:
    """A chain whose atoms rattle while the whole drifts through space."""
    random = np.random.default_rng(seed)
    topology = peptide(residues)
    chain = 0.12 * np.arange(topology.n_atoms)[:, None] * np.array([1.0, 0.3, -0.2])
    chain = chain + random.normal(scale=0.05, size=chain.shape)
    drift = np.arange(frames)[:, None, None] * np.array([0.05, -0.03, 0.08])
    xyz = chain + drift + random.normal(scale=0.005, size=(frames, topology.n_atoms, 3))
    return mdtraj.Trajectory(xyz, topology, time=0.5 * np.arange(frames))


def write_files(directory: Path) -> tuple[Path, Path]:
    """Topology and XTC of 40 frames, 500 fs apart."""
    trajectory = wandering()
    trajectory[0].save_pdb(str(directory / "top.pdb"))
    trajectory.save_xtc(str(directory / "run.xtc"))
    return directory / "top.pdb", directory / "run.xtc"
