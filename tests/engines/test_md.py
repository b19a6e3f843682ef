"""Molecular dynamics by both engines: files, grids, ensembles, agreement, continuation."""

from __future__ import annotations

import json
from pathlib import Path

import ase.io
import mdtraj
import numpy as np
import pytest
from md_cases import argon, lennard_jones, request, run

from egnn_md.errors import InputError, UnknownElementError
from egnn_md.models import LennardJones
from egnn_md.simulation import RunDirectory
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.rundir import Checkpoint
from egnn_md.simulation.structure import Structure
from egnn_md.units import BAR_PER_EV_PER_CUBIC_ANGSTROM, BOLTZMANN_EV_PER_K

ENGINES = ["ase", "openmm"]
FORMATS = {"nve": "dcd", "nvt": "xtc", "npt": "extxyz"}


@pytest.mark.parametrize("ensemble", ["nve", "nvt", "npt"])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_writes_everything_on_its_grid(tmp_path: Path, engine: str, ensemble: str) -> None:
    form = FORMATS[ensemble]
    result = run(request(tmp_path, "run", engine=engine, ensemble=ensemble, trajectory=form))
    assert (result.status, result.steps, result.exit_code) == ("finished", 40, 0)
    folder = tmp_path / "run"
    log = read_log(folder / "log.csv")
    assert log["step"].tolist() == list(range(0, 41, 5))
    np.testing.assert_allclose(log["time_ps"], log["step"] * 0.004, atol=1e-9)
    np.testing.assert_allclose(log["total_eV"], log["potential_eV"] + log["kinetic_eV"], atol=2e-9)
    assert np.all(log["density_g_cm3"] > 1.2)
    assert (np.ptp(log["volume_A3"]) > 0) == (ensemble == "npt")
    record = json.loads((folder / "run.json").read_text())
    assert record["status"] == "finished"
    assert record["request"]["ensemble"] == ensemble
    assert len(record["model"]["digest"]) == 64
    assert {"python", "torch"} <= record["versions"].keys()
    assert record["machine"]["cores"] >= 1
    if form == "extxyz":
        frames = ase.io.read(folder / "trajectory.extxyz", ":")
        assert [f.info["step"] for f in frames] == [0, 10, 20, 30, 40]
        positions, forces = frames[-1].positions, frames[-1].get_forces()
        assert np.abs(forces.sum(axis=0)).max() < 1e-8
        cell = frames[-1].cell.array
    else:
        loaded = mdtraj.load(str(folder / f"trajectory.{form}"), top=str(folder / "topology.pdb"))
        assert len(loaded) == 5
        positions, cell = loaded.xyz[-1] * 10, loaded.unitcell_vectors[-1] * 10
    final = ase.io.read(folder / "final.extxyz")
    np.testing.assert_allclose(positions, final.positions, atol=0.006 if form == "xtc" else 1e-5)
    np.testing.assert_allclose(cell, final.cell.array, atol=1e-4)
    assert len(ase.io.read(folder / "final.pdb")) == 32
    assert Checkpoint.load(folder / "checkpoint.npz").step == 40


def test_both_engines_move_the_same_atoms_the_same_way(tmp_path: Path) -> None:
    for engine in ENGINES:
        run(request(tmp_path, engine, engine=engine))
    logs = [read_log(tmp_path / engine / "log.csv") for engine in ENGINES]
    for column in ("potential_eV", "kinetic_eV", "temperature_K"):
        np.testing.assert_allclose(logs[0][column], logs[1][column], rtol=1e-6)
    ends = [ase.io.read(tmp_path / engine / "final.extxyz").positions for engine in ENGINES]
    np.testing.assert_allclose(*ends, atol=1e-6)


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_openmm_implementations_agree(tmp_path: Path, implementation: str) -> None:
    run(request(tmp_path, implementation, engine="openmm", implementation=implementation, steps=10))
    run(request(tmp_path, "ase", engine="ase", steps=10))
    logs = [read_log(tmp_path / name / "log.csv") for name in (implementation, "ase")]
    np.testing.assert_allclose(logs[0]["total_eV"], logs[1]["total_eV"], rtol=1e-9)


@pytest.mark.parametrize("engine", ENGINES)
def test_fluctuation_of_the_energy_shrinks_with_the_square_of_the_timestep(tmp_path: Path, engine: str) -> None:
    spreads = []
    for timestep, steps in ((8.0, 40), (4.0, 80)):
        name = f"dt{timestep:g}"
        run(request(tmp_path, name, engine=engine, timestep=timestep, steps=steps, log_interval=1))
        spreads.append(read_log(tmp_path / name / "log.csv")["total_eV"].std())
    assert 3.0 < spreads[0] / spreads[1] < 5.0


def test_velocities_are_seeded_and_without_drift(tmp_path: Path) -> None:
    runs = [run(request(tmp_path, f"run{i}", seed=seed, steps=1)) for i, seed in enumerate((7, 7, 8))]
    rows = [read_log(r.run.log) for r in runs]
    assert rows[0]["kinetic_eV"][0] == rows[1]["kinetic_eV"][0] != rows[2]["kinetic_eV"][0]
    state = Checkpoint.load(runs[0].run.checkpoint)
    masses = Structure.load(runs[0].run.structure).masses
    assert np.abs(masses @ state.velocities).max() < 1e-10


@pytest.mark.parametrize(("first", "second"), [("ase", "openmm"), ("openmm", "ase")])
def test_a_run_continues_from_another_by_any_engine(tmp_path: Path, first: str, second: str) -> None:
    run(request(tmp_path, "nvt", engine=first, ensemble="nvt"))
    run(request(tmp_path, "nve", engine=second, continue_from=tmp_path / "nvt", frame_interval=20))
    before, after = (Checkpoint.load(tmp_path / n / "checkpoint.npz") for n in ("nvt", "nve"))
    first_frame = mdtraj.load_frame(
        str(tmp_path / "nve" / "trajectory.dcd"), 0, top=str(tmp_path / "nve" / "topology.pdb")
    )
    np.testing.assert_allclose(first_frame.xyz[0] * 10, before.positions, atol=1e-5)
    masses = Structure.load(tmp_path / "nve" / "structure.npz").masses
    # a thermostat moves the whole system; conserved momentum should then be zero
    assert np.abs(masses @ before.velocities).max() > 1e-6
    assert np.abs(masses @ after.velocities).max() < 1e-8
    old, new = read_log(tmp_path / "nvt" / "log.csv"), read_log(tmp_path / "nve" / "log.csv")
    assert new["potential_eV"][0] == pytest.approx(old["potential_eV"][-1], abs=1e-8)


@pytest.mark.parametrize("engine", ENGINES)
def test_minimisation_relaxes_a_rattled_structure(tmp_path: Path, engine: str) -> None:
    atoms = ase.io.read(argon(tmp_path))
    atoms.rattle(0.2, seed=1)
    atoms.write(tmp_path / "rattled.extxyz")
    wanted = request(
        tmp_path, "run", engine=engine, structure=str(tmp_path / "rattled.extxyz"), minimize=True,
        minimize_force=0.01, temperature=0.0, steps=5,
    )  # fmt: skip
    run(wanted)
    relaxed = RunDirectory(tmp_path / "run").read()["minimisation"]
    assert relaxed["energy_after"] < relaxed["energy_before"] - 0.1
    assert relaxed["largest_force"] < 0.012
    assert read_log(tmp_path / "run" / "log.csv")["kinetic_eV"][0] == 0


@pytest.mark.parametrize("engine", ENGINES)
def test_minimisation_takes_small_steps(tmp_path: Path, engine: str) -> None:
    """A learned energy may have deep hollows where no structure belongs; a long step of a line search finds them."""
    given = ase.io.read(argon(tmp_path))
    given.rattle(0.3, seed=1)
    structure = _write(tmp_path / "rattled.extxyz", given)
    wanted = request(tmp_path, "run", engine=engine, structure=structure, minimize=True, minimize_steps=3, steps=1)
    run(wanted)
    frames = mdtraj.load(str(tmp_path / "run" / "trajectory.dcd"), top=str(tmp_path / "run" / "topology.pdb"))
    moved = np.linalg.norm(frames.xyz[0] * 10 - given.positions, axis=1)
    assert 0.0 < moved.max() < 3 * 0.2 + 1e-3  # FIRE2 moves all together by at most 0.2 Å an iteration


@pytest.mark.parametrize("engine", ENGINES)
def test_an_open_cluster(tmp_path: Path, engine: str) -> None:
    atoms = ase.io.read(argon(tmp_path))
    atoms.pbc, atoms.cell = False, None
    atoms.write(tmp_path / "cluster.xyz")
    run(request(tmp_path, "run", engine=engine, structure=str(tmp_path / "cluster.xyz"), steps=10))
    log = read_log(tmp_path / "run" / "log.csv")
    assert np.isnan(log["volume_A3"]).all()
    loaded = mdtraj.load(str(tmp_path / "run" / "trajectory.dcd"), top=str(tmp_path / "run" / "topology.pdb"))
    assert loaded.unitcell_vectors is None
    with pytest.raises(InputError, match="--ensemble npt needs a structure with a periodic cell"):
        run(request(tmp_path, "npt", engine=engine, ensemble="npt", structure=str(tmp_path / "cluster.xyz")))
    assert not (tmp_path / "npt").exists()


@pytest.mark.parametrize("engine", ENGINES)
def test_a_turned_triclinic_left_handed_cell_gives_the_same_energy(tmp_path: Path, engine: str) -> None:
    atoms = ase.io.read(argon(tmp_path))
    atoms.rattle(0.1, seed=2)
    run(request(tmp_path, "plain", engine=engine, steps=1, structure=_write(tmp_path / "a.extxyz", atoms)))
    atoms.set_cell(atoms.cell.array @ np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1]]) + 0)
    skewed = np.array([[1, 0, 0], [3, 1, 0], [-2, 5, 1]]) @ atoms.cell.array
    atoms.set_cell(skewed[[1, 0, 2]])
    atoms.rotate(40, (1, 2, 3), rotate_cell=True)
    run(request(tmp_path, "skewed", engine=engine, steps=1, structure=_write(tmp_path / "b.extxyz", atoms)))
    first, second = (read_log(tmp_path / n / "log.csv")["potential_eV"][0] for n in ("plain", "skewed"))
    assert first == pytest.approx(second, abs=2e-6)  # extended XYZ holds 8 digits


def _write(path: Path, atoms: ase.Atoms) -> str:
    atoms.write(path)
    return str(path)


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 7.5 min beside three other jobs
def test_barostats_agree_on_an_almost_ideal_gas(tmp_path: Path) -> None:
    """<V> = (N + 1) k T / p for ideal particles: sqrt(<V²> - <V>²) = <V> / sqrt(N + 1)."""
    rng = np.random.default_rng(3)
    atoms = ase.Atoms("He64", rng.random((64, 3)) * 30, cell=[30, 30, 30], pbc=True)
    structure = _write(tmp_path / "gas.extxyz", atoms)
    model = LennardJones(1e-12, 0.1, 1.0)
    expected = 65 * BOLTZMANN_EV_PER_K * 300 * BAR_PER_EV_PER_CUBIC_ANGSTROM / 100.0
    for engine in ENGINES:
        wanted = request(
            tmp_path, engine, engine=engine, ensemble="npt", structure=structure,
            temperature=300.0, pressure=100.0, timestep=10.0, steps=20000,
            checkpoint_interval=20000, log_interval=25, frame_interval=20000, check_interval=25, min_distance=0.0,
        )  # fmt: skip
        run(wanted, model)
        log = read_log(tmp_path / engine / "log.csv")
        settled = log["volume_A3"][80:]
        assert settled.mean() == pytest.approx(expected, rel=0.06)
        assert settled.std() == pytest.approx(expected / np.sqrt(65), rel=0.25)
        assert log["temperature_K"][80:].mean() == pytest.approx(300, rel=0.02)


def test_refusals_before_anything_is_written(tmp_path: Path) -> None:
    class OnlyWater(LennardJones):
        def __init__(self) -> None:
            super().__init__(0.01, 3.4, 5.0)
            self.elements = [1, 8]

    with pytest.raises(UnknownElementError, match="atom 0 is Ar"):
        run(request(tmp_path, "run"), OnlyWater())
    assert not (tmp_path / "run").exists()
    run(request(tmp_path, "run", steps=1))
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        run(request(tmp_path, "run", steps=1))
    run(request(tmp_path, "run", steps=2), overwrite=True)
    assert read_log(tmp_path / "run" / "log.csv")["step"].tolist() == [0]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="is not empty and holds no run"):
            run(request(tmp_path, "mine"), overwrite=overwrite)
    assert (tmp_path / "mine" / "thesis.tex").exists()


def test_partly_periodic_systems_are_for_ase(tmp_path: Path) -> None:
    atoms = ase.io.read(argon(tmp_path))
    atoms.pbc = [True, True, False]
    structure = _write(tmp_path / "slab.extxyz", atoms)
    run(request(tmp_path, "slab", structure=structure, steps=5), lennard_jones())
    with pytest.raises(InputError, match="use --engine ase"):
        run(request(tmp_path, "no", engine="openmm", structure=structure), lennard_jones())
