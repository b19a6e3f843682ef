"""Protein trajectories: selections, alignment, velocities, whole molecules, and what is refused."""

from __future__ import annotations

from pathlib import Path

import mdtraj
import numpy as np
import pytest
from adk_cases import peptide, shipped, wandering, write_files

from egnn_md.errors import InputError
from egnn_md_systems.adk.alignment import align, rotations_onto
from egnn_md_systems.adk.dataset import DatasetOptions, convert
from egnn_md_systems.adk.features import feature_names, node_features
from egnn_md_systems.adk.selection import select_atoms
from egnn_md_systems.adk.trajectory import ProteinTrajectory, psf_charges, read_trajectory

ROUNDING = 1e-3  # Å: DCD and PDB single precision and the third decimal of PDB
KT = 8.31446e-7 * 300.0  # amu Å²/fs², at the 300 K of the TRR trajectory


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return write_files(tmp_path)


def protein(positions: np.ndarray, velocities: np.ndarray | None = None) -> ProteinTrajectory:
    topology = peptide()
    return ProteinTrajectory(topology.subset(select_atoms(topology, "ca")), positions, velocities, 20.0, "made up")


# --- selections and features


@pytest.mark.parametrize("name", ["adk.psf", "adk_closed.pdb", "adk_open.pdb"])
def test_the_backbone_of_adenylate_kinase_has_855_atoms(name: str) -> None:
    topology = mdtraj.load_topology(str(shipped(name)))
    chosen = select_atoms(topology, "backbone")
    assert len(chosen) == 855  # the benchmark's number: 4 times 214, less the one O of the carboxylate
    assert {topology.atom(i).name for i in chosen} == {"N", "CA", "C", "O"}
    assert len(select_atoms(topology, "ca")) == 214
    assert len(select_atoms(topology, "all")) == 3341


def test_selections_that_select_nothing_or_mean_nothing() -> None:
    topology = peptide()
    assert select_atoms(topology, "name CB and resid 1 to 2").tolist() == [9, 14]
    with pytest.raises(InputError, match=r"'resname GLY' selects none of the 21 atoms.*ALA1"):
        select_atoms(topology, "resname GLY")
    with pytest.raises(InputError, match=r"not understood by mdtraj.*backbone, ca, all"):
        select_atoms(topology, "name is CA,,")


def test_charges_of_a_psf_file(tmp_path: Path) -> None:
    charges = psf_charges(shipped("adk.psf"))
    assert charges.shape == (3341,)
    assert charges.sum() == pytest.approx(-4.0, abs=1e-4)  # whole residues and an integer net charge
    broken = tmp_path / "broken.psf"
    broken.write_text("PSF\n\n 10 !NATOM\n 1 A 1 ALA N NH1 -0.3 14.0 0\n")
    with pytest.raises(InputError, match=r"!NATOM.*whole PSF file"):
        psf_charges(broken)


def test_features() -> None:
    topology = peptide()
    whole = ProteinTrajectory(topology, np.zeros((2, 21, 3), np.float32), None, 20.0, "made up")
    features = node_features(("alpha", "residue"), whole)
    assert features is not None
    assert features.shape == (21, 3)
    assert features[:, 0].sum() == 4
    np.testing.assert_allclose(features[:, 2], 1.8 / 4.5)
    assert feature_names("auto", whole) == ("alpha",)
    assert feature_names("none", whole) == ()
    with pytest.raises(InputError, match="no partial charges"):
        feature_names("charge", whole)
    with pytest.raises(InputError, match="--features colour: known are charge, alpha, residue"):
        feature_names("colour", whole)


# --- alignment


def test_alignment_undoes_turns_and_is_never_a_mirror() -> None:
    random = np.random.default_rng(1)
    reference = random.normal(size=(9, 3))
    turns = np.linalg.qr(random.normal(size=(6, 3, 3)))[0]
    turns *= np.sign(np.linalg.det(turns))[:, None, None]
    frames = reference @ turns.transpose(0, 2, 1) + random.normal(size=(6, 1, 3))
    aligned, _ = align(frames, None, reference)
    np.testing.assert_allclose(aligned, np.broadcast_to(reference, aligned.shape), atol=1e-12)
    mirrored = rotations_onto(reference[None] * [1, 1, -1], reference)
    assert np.linalg.det(mirrored[0]) == pytest.approx(1.0, abs=1e-12)


def test_velocities_are_the_derivative_of_the_aligned_positions() -> None:
    random = np.random.default_rng(2)
    reference, start, speed = (random.normal(size=(12, 3)) for _ in range(3))
    step = 1e-4
    frames = start + 0.1 * speed * (step * np.arange(-1, 2))[:, None, None]
    velocities = np.broadcast_to(0.1 * speed, frames.shape)
    positions, turned = align(frames, velocities, reference)
    assert turned is not None
    central = (positions[2] - positions[0]) / (2 * step)
    np.testing.assert_allclose(turned[1], central, atol=1e-8)  # second order in the step
    assert np.abs(central - 0.1 * speed).max() > 0.01


def test_a_reference_of_another_size_is_refused(files: tuple[Path, Path], tmp_path: Path) -> None:
    wandering(residues=6)[0].save_pdb(str(tmp_path / "other.pdb"))
    options = DatasetOptions(topology=files[0], select="ca", align=str(tmp_path / "other.pdb"))
    with pytest.raises(InputError, match="reference has 6 atoms, but the trajectory 4"):
        convert([str(files[1])], tmp_path / "out", options)
    with pytest.raises(InputError, match="frames 0 to 39"):
        convert([str(files[1])], tmp_path / "out", DatasetOptions(topology=files[0], align="40"))
    with pytest.raises(InputError, match="give none, first, a frame's number, or a structure file"):
        convert([str(files[1])], tmp_path / "out", DatasetOptions(topology=files[0], align="best"))


# --- reading


def test_units_and_atoms(files: tuple[Path, Path]) -> None:
    read = read_trajectory(*files, selection="ca")
    expected = wandering()
    np.testing.assert_allclose(read.positions, 10 * expected.xyz[:, [1, 6, 11, 16]], atol=0.006)  # XTC keeps 0.01 Å
    assert read.frame_interval == 500.0
    assert read.velocities is None
    assert read.species.tolist() == [6] * 4


def test_velocities_of_a_trr_file_obey_equipartition() -> None:
    waters = "water and resid 300 to 799"
    read = read_trajectory(shipped("adk_oplsaa.gro"), shipped("adk_oplsaa.trr"), selection=waters)
    assert read.velocities is not None
    assert read.frame_interval == 100_000.0
    masses = np.tile([15.9994, 1.008, 1.008, 0.0], 500)  # TIP4P
    momenta = (masses[:, None] * read.velocities).reshape(10, 500, 4, 3).sum(axis=2)
    kelvin = 300.0 * (momenta**2).mean() / 18.0154 / KT  # of whole molecules, which constraints do not touch
    assert kelvin == pytest.approx(300.0, rel=0.05)  # four standard errors of 15,000 numbers
    oxygen, hydrogen = read.positions[:, 0::4], read.positions[:, 1::4]
    np.testing.assert_allclose(np.linalg.norm(oxygen - hydrogen, axis=2), 0.9572, atol=0.01)  # whole


def test_dcd_needs_an_interval_and_psf_brings_charges() -> None:
    psf, dcd = shipped("adk.psf"), shipped("adk_dims.dcd")
    with pytest.raises(InputError, match="keeps no times; give --frame-interval"):
        read_trajectory(psf, dcd)
    with pytest.raises(InputError, match="--frame-interval -1"):
        read_trajectory(psf, dcd, frame_interval=-1.0)
    read = read_trajectory(psf, dcd, frame_interval=1000.0)
    assert read.positions.shape == (98, 855, 3)
    assert read.charges is not None
    assert set(np.round(read.charges[8:12], 2)) <= {-0.47, 0.07, 0.51, -0.51}  # CHARMM's N, CA, C, O
    reference = mdtraj.load(str(dcd), top=str(psf))
    kept = select_atoms(reference.topology, "backbone")
    np.testing.assert_allclose(read.positions[50], 10 * reference.xyz[50, kept], atol=ROUNDING)


def test_a_molecule_cut_by_the_cell_is_put_together_and_does_not_jump(tmp_path: Path) -> None:
    straight = wandering(60)
    cell = 3.0  # nm; the chain is 2.7 nm long and drifts by 5 nm
    wrapped = mdtraj.Trajectory(straight.xyz % cell, straight.topology, time=straight.time)
    wrapped.unitcell_vectors = np.broadcast_to(cell * np.eye(3), (60, 3, 3)).copy()
    wrapped.save_xtc(str(tmp_path / "wrapped.xtc"))
    straight[0].save_pdb(str(tmp_path / "top.pdb"))
    read = read_trajectory(tmp_path / "top.pdb", tmp_path / "wrapped.xtc", selection="all")
    offset = read.positions[0].mean(0) - 10 * straight.xyz[0].mean(0)  # a whole number of cells
    np.testing.assert_allclose(read.positions - offset, 10 * straight.xyz, atol=0.02)
    assert read.cell is None
    kept = read_trajectory(tmp_path / "top.pdb", tmp_path / "wrapped.xtc", selection="all", periodic=True)
    np.testing.assert_allclose(kept.cell, 30.0 * np.eye(3), atol=1e-4)
    bare = mdtraj.Topology()
    residue = bare.add_residue("XXX", bare.add_chain())
    for _ in range(21):
        bare.add_atom("C", mdtraj.element.carbon, residue)
    mdtraj.Trajectory(straight.xyz[:1], bare).save_gro(str(tmp_path / "bare.gro"))
    with pytest.raises(InputError, match="no bonds to put molecules together"):
        read_trajectory(tmp_path / "bare.gro", tmp_path / "wrapped.xtc", selection="all")


def test_a_cell_that_changes_is_refused_where_it_is_kept(tmp_path: Path) -> None:
    trajectory = wandering(5)
    trajectory.unitcell_vectors = (3.0 + 0.01 * np.arange(5))[:, None, None] * np.eye(3)
    trajectory.save_xtc(str(tmp_path / "npt.xtc"))
    trajectory[0].save_pdb(str(tmp_path / "top.pdb"))
    with pytest.raises(InputError, match=r"cell of frame 4 differs from that of frame 0 by 0.4 Å.*--periodic"):
        read_trajectory(tmp_path / "top.pdb", tmp_path / "npt.xtc", periodic=True)


def test_files_that_do_not_belong_together(files: tuple[Path, Path], tmp_path: Path) -> None:
    wandering(residues=6)[0].save_pdb(str(tmp_path / "other.pdb"))
    with pytest.raises(InputError, match=r"run.xtc does not fit .*other.pdb \(31 atoms\)|has 21 atoms, but"):
        read_trajectory(tmp_path / "other.pdb", files[1])
    with pytest.raises(InputError, match=r"has 31 atoms, but .*top.pdb 21"):
        read_trajectory(files[0], tmp_path / "other.pdb", frame_interval=1.0)
    with pytest.raises(InputError, match="there is no file"):
        read_trajectory(files[0], tmp_path / "none.xtc")
    (tmp_path / "cut.xtc").write_bytes(files[1].read_bytes()[:100])
    with pytest.raises(InputError, match=r"cut.xtc"):
        read_trajectory(files[0], tmp_path / "cut.xtc")


def test_uneven_times_and_broken_numbers_are_named(tmp_path: Path) -> None:
    trajectory = wandering(6)
    trajectory.time[4:] += 0.25
    trajectory.save_xtc(str(tmp_path / "uneven.xtc"))
    trajectory[0].save_pdb(str(tmp_path / "top.pdb"))
    with pytest.raises(InputError, match=r"not evenly spaced"):
        read_trajectory(tmp_path / "top.pdb", tmp_path / "uneven.xtc")
    positions = np.zeros((5, 4, 3), np.float32)
    positions[3, 1] = np.nan
    with pytest.raises(InputError, match="positions of frame 3 are not finite"):
        protein(positions)
    with pytest.raises(InputError, match="velocities have the shape"):
        protein(np.zeros((5, 4, 3), np.float32), np.zeros((5, 3, 3), np.float32))


def test_elements_of_a_pdb_file_without_them(tmp_path: Path) -> None:
    path = tmp_path / "bare.pdb"
    line = "ATOM      {0}  {1:<3} LEU A   1      {2:6.3f}   0.000   0.000\n"
    names = ("N", "CA", "C", "O", "CB", "CG", "CD1", "HG")
    path.write_text("".join(line.format(i + 1, n, 1.5 * i) for i, n in enumerate(names)) + "END\n")
    read = read_trajectory(path, path, selection="all", frame_interval=20.0)
    assert read.species.tolist() == [7, 6, 6, 8, 6, 6, 6, 1]
