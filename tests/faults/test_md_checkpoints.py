"""Checkpoints: every ensemble goes on bit by bit, damage is seen, and files of another run are refused."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
from ase import Atoms
from fault_cases import lennard_jones, request, run
from test_md_resume import StopAfter, same_files

from egnn_md.cli.md import run as run_command
from egnn_md.errors import ConfigError, InputError
from egnn_md.models import FastEGNNPotential, HarmonicTether, LennardJones, PotentialConfig
from egnn_md.models.base import Potential
from egnn_md.simulation import OutputError, RunDirectory
from egnn_md.simulation.recorder import read_log
from egnn_md.simulation.rundir import Checkpoint

COMBINATIONS: list[dict[str, Any]] = [
    {"ensemble": "nve"},
    {"ensemble": "nvt", "thermostat": "langevin"},
    {"ensemble": "nvt", "thermostat": "nose-hoover"},
    {"ensemble": "npt", "thermostat": "langevin"},
    {"ensemble": "npt", "thermostat": "nose-hoover"},
]


def goes_on(folder: Path, model: Potential | None = None, **changes: Any) -> None:
    """60 steps, then in a new engine 20 more, against 80 at once: the same bytes."""
    if changes.get("engine") == "openmm":
        changes.setdefault("implementation", "python")  # no export each time; test_md_resume has the TorchForce
    first, _ = run(request(folder, "run", **changes), model)
    run(first.run.request().changed({"steps": 80}), model, resume=True)
    run(request(folder, "whole", steps=80, **changes), model)
    same_files(folder / "run", folder / "whole", "dcd")


@pytest.mark.parametrize("combination", COMBINATIONS, ids=lambda c: "-".join(c.values()))
@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_every_ensemble_goes_on_as_if_it_had_never_stopped(
    tmp_path: Path, engine: str, combination: dict[str, Any]
) -> None:
    goes_on(tmp_path, engine=engine, **combination)


@pytest.mark.parametrize(
    ("engine", "combination"),
    [("ase", c) for c in COMBINATIONS] + [("openmm", c) for c in COMBINATIONS[:3]],
    ids=lambda value: value if isinstance(value, str) else "-".join(value.values()),
)
def test_a_checkpoint_disturbs_nothing(tmp_path: Path, engine: str, combination: dict[str, Any]) -> None:
    """Chains, pistons and random numbers go through a checkpoint; a run with many is one with none, but for rounding.

    (OpenMM's barostat counts its moves from the last checkpoint on, so with it the moves fall on other steps.)
    """
    implementation = "python" if engine == "openmm" else "torch"
    logs = []
    for interval in (10, 1000):
        wanted = request(
            tmp_path, f"every{interval}", engine=engine, implementation=implementation, checkpoint_interval=interval,
            **combination,
        )  # fmt: skip
        logs.append(read_log(run(wanted)[0].run.log))
    for column in ("kinetic_eV", "potential_eV", "volume_A3"):
        np.testing.assert_allclose(logs[0][column], logs[1][column], rtol=1e-7)


def dimers(folder: Path, count: int = 4) -> str:
    """HCl molecules too far apart to feel each other, with bonds somewhat off their rest length."""
    rng = np.random.default_rng(2)
    atoms = Atoms()
    for index in range(count):
        axis = rng.normal(size=3)
        length = rng.uniform(1.25, 1.29)
        chlorine = np.array([8.0 * index, 0.0, 0.0])
        atoms += Atoms("ClH", [chlorine, chlorine + length * axis / np.linalg.norm(axis)])
    atoms.cell, atoms.pbc = [8.0 * count, 8, 8], True
    atoms.write(folder / "dimers.extxyz")
    return str(folder / "dimers.extxyz")


@pytest.mark.parametrize(
    ("engine", "combination"),
    [
        ("ase", {"ensemble": "nve"}),
        ("ase", {"ensemble": "nvt"}),
        ("openmm", {"ensemble": "nve"}),
        ("openmm", {"ensemble": "nvt", "thermostat": "nose-hoover"}),
        ("openmm", {"ensemble": "npt"}),
    ],
)
def test_constraints_and_heavy_hydrogens_go_on_too(tmp_path: Path, engine: str, combination: dict[str, Any]) -> None:
    more = {"structure": dimers(tmp_path), "constraints": "h-bonds", "hydrogen_mass": 3.0, "timestep": 1.0}
    goes_on(tmp_path, HarmonicTether(2.0, 1.27, 3.0), engine=engine, **more, **combination)


@pytest.mark.parametrize("implementation", ["torch", "python"])
def test_a_network_in_single_precision_goes_on(tmp_path: Path, implementation: str) -> None:
    """Sums in float32 depend on the order of neighbours, and so on what a list remembers."""
    model = FastEGNNPotential(PotentialConfig(elements=(18,), hidden=8, layers=1, virtual_nodes=0, scale=0.05)).eval()
    goes_on(tmp_path, model, engine="openmm", dtype="float32", implementation=implementation, temperature=200.0)


def finished(folder: Path) -> RunDirectory:
    """A run of 60 steps with checkpoints at 20, 40 and 60."""
    return run(request(folder, "run"))[0].run


def test_a_damaged_checkpoint_is_seen_and_the_one_before_it_used(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    assert Checkpoint.load(folder.previous_checkpoint).step == 40
    whole = folder.checkpoint.read_bytes()
    changed = bytearray(whole)
    for place in range(0, len(whole), max(len(whole) // 50, 1)):
        changed[place] ^= 0x10
        folder.checkpoint.write_bytes(bytes(changed))
        with pytest.raises(InputError, match=r"checkpoint.npz cannot be read as a checkpoint"):
            Checkpoint.load(folder.checkpoint)
        changed[place] ^= 0x10
    for length in (0, 10, len(whole) // 2, len(whole) - 1):
        folder.checkpoint.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"checkpoint.npz cannot be read as a checkpoint"):
            Checkpoint.load(folder.checkpoint)
    _, said = run(folder.request().changed({"steps": 80}), resume=True)
    assert "checkpoint.npz cannot be read" in said
    assert "going on from the checkpoint before it (step 40)" in said
    run(request(tmp_path, "whole", steps=80))
    same_files(folder.path, tmp_path / "whole", "dcd")
    for path in (folder.checkpoint, folder.previous_checkpoint):
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(InputError, match=r"checkpoint.npz cannot be read.*and so is the one before it"):
        run(folder.request().changed({"steps": 100}), resume=True)


def test_files_of_another_run_are_refused(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    longer = folder.request().changed({"steps": 80})
    with pytest.raises(InputError, match="the model water changed since the run"):
        run(longer, LennardJones(0.0105, 3.4, 5.0), resume=True)
    with pytest.raises(ConfigError, match=r"--timestep 2.0 differs from this run's 4.0; a resumed run keeps"):
        longer.changed({"timestep": 2.0})
    record = folder.read()
    folder.write({**record, "request": {**record["request"], "timestep": 2.0}})
    with pytest.raises(InputError, match=r"another timestep \(4.0\) than run.json .* say \(2.0\)"):
        run(folder.request().changed({"steps": 80}), resume=True)
    folder.write(record)
    # the same number of atoms, one of them another element
    atoms = ase.io.read(tmp_path / "argon.extxyz")
    atoms.numbers[3] = 36
    atoms.write(tmp_path / "krypton.extxyz")
    other, _ = run(request(tmp_path, "other", structure=str(tmp_path / "krypton.extxyz")))
    own = folder.structure.read_bytes()
    shutil.copy(other.run.structure, folder.structure)
    with pytest.raises(InputError, match="was written with another system"):
        run(longer, resume=True)
    folder.structure.write_bytes(own)
    shutil.copy(other.run.checkpoint, folder.checkpoint)
    with pytest.raises(InputError, match="was written with another system"):
        run(longer, resume=True)


def test_a_structure_that_changed_is_not_resumed_with(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    structure = str(tmp_path / "argon.extxyz")
    atoms = ase.io.read(structure)
    atoms.rattle(0.1, seed=1)
    atoms.write(structure)
    given = {"output": folder.path, "structure": structure, "steps": 80}
    with pytest.raises(InputError, match=r"STRUCTURE .* changed since the run .* began; leave it out"):
        run_command(given, resume=True, overwrite=False)
    assert run(folder.request().changed({"steps": 80}), resume=True)[0].steps == 80  # its own copy is the same


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_sigterm_during_minimisation_leaves_a_run_to_start_again(tmp_path: Path, engine: str) -> None:
    atoms = ase.io.read(request(tmp_path, "unused").structure)
    atoms.rattle(0.1, seed=4)
    atoms.write(tmp_path / "rattled.extxyz")
    wanted = request(
        tmp_path, "run", engine=engine, implementation="python" if engine == "openmm" else "torch", minimize=True,
        minimize_force=1e-9, structure=str(tmp_path / "rattled.extxyz"),
    )  # fmt: skip
    model = StopAfter(4, signal.SIGTERM)
    result, said = run(wanted, model)
    assert (result.status, result.exit_code, result.steps) == ("interrupted", 143, 0)
    assert f"egnn-md md --resume --output {tmp_path / 'run'}" in said
    assert not list(result.run.path.glob("*.tmp"))
    model._left = 10**9
    assert run(result.run.request(), model, resume=True)[0].status == "finished"


def test_a_limit_of_the_operating_system_on_files_is_survived(tmp_path: Path) -> None:
    """No mock: the kernel refuses to let the trajectory grow (as a quota does, EFBIG)."""
    whole, _ = run(request(tmp_path, "whole"))
    size = (whole.run.path / "trajectory.dcd").stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    largest = max(p.stat().st_size for p in whole.run.path.glob("*.npz"))
    assert largest < size * 3  # or the checkpoint would be the first to hit the limit
    wanted = request(tmp_path, "run", trajectory="extxyz", checkpoint_interval=10)
    resource.setrlimit(resource.RLIMIT_FSIZE, (largest + 2000, old[1]))
    try:
        with pytest.raises(OutputError, match=r"cannot write .*trajectory.extxyz: .* free some space") as caught:
            run(wanted)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "egnn-md md --resume" in str(caught.value)
    folder = RunDirectory(tmp_path / "run")
    assert folder.read()["status"] == "stopped"
    kept = ase.io.read(folder.path / "trajectory.extxyz", ":")
    assert len(kept) >= 1
    run(folder.request(), resume=True)
    run(request(tmp_path, "again", trajectory="extxyz", checkpoint_interval=10))
    same_files(folder.path, tmp_path / "again", "extxyz")
    frames = ase.io.read(folder.path / "trajectory.extxyz", ":")
    for old_frame, new_frame in zip(kept, frames, strict=False):
        np.testing.assert_array_equal(old_frame.positions, new_frame.positions)


def test_a_file_system_without_hard_links_keeps_two_checkpoints_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    folder = finished(tmp_path)
    assert [Checkpoint.load(p).step for p in (folder.checkpoint, folder.previous_checkpoint)] == [60, 40]
    assert not list(folder.path.glob("*.tmp"))


def test_a_checkpoint_of_the_first_format_still_goes_on(tmp_path: Path) -> None:
    """Runs that were begun before checkpoints had a digest."""
    folder = finished(tmp_path)
    with np.load(folder.checkpoint) as archive:
        arrays = {name: archive[name] for name in archive.files if name != "identity"}
    np.savez(folder.checkpoint, **{**arrays, "format": 1})
    assert run(folder.request().changed({"steps": 80}), lennard_jones(), resume=True)[0].steps == 80
    assert json.loads((folder.path / "run.json").read_text())["status"] == "finished"
