"""Protein dynamics: velocities on step, kills and signals without a gap, and what cannot be run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from egnn_md.errors import ConfigError, InputError, SimulationError

pytest.importorskip("openmm", reason="OpenMM is not installed")

from egnn_md_systems.adk import generate as adk_generate
from egnn_md_systems.adk.blocks import block_files, read_blocks
from egnn_md_systems.adk.cli import run
from egnn_md_systems.adk.generate import ProteinRun, generate, stored_settings
from egnn_md_systems.adk.settings import MDSettings

DIALANINE = """\
ATOM      1  N   ALA A   1       0.000   0.000   0.000
ATOM      2  CA  ALA A   1       1.458   0.000   0.000
ATOM      3  C   ALA A   1       2.009   1.420   0.000
ATOM      4  O   ALA A   1       1.251   2.390   0.000
ATOM      5  CB  ALA A   1       1.988  -0.773  -1.199
ATOM      6  N   ALA A   2       3.332   1.536   0.000
ATOM      7  CA  ALA A   2       3.988   2.839   0.000
ATOM      8  C   ALA A   2       5.504   2.693   0.000
ATOM      9  O   ALA A   2       6.030   1.580   0.000
ATOM     10  CB  ALA A   2       3.551   3.664  -1.203
ATOM     11  OXT ALA A   2       6.190   3.740   0.000
TER
END
"""
FRAMES = 24
QUIET = Console(quiet=True)


@pytest.fixture(scope="module")
def peptide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two alanines; the C-terminal carboxylate keeps its oxygens out of the backbone: 7 atoms stay."""
    path = tmp_path_factory.mktemp("peptide") / "dialanine.pdb"
    path.write_text(DIALANINE)
    return path


def settings_of(peptide: Path, **changes: Any) -> MDSettings:
    values: dict[str, Any] = {
        "start": str(peptide), "duration": 0.02 * FRAMES, "equilibrate": 0.04, "cutoff": 0.0, "platform": "Reference",
        "block": 6, "seed": 3,
    }  # fmt: skip
    return MDSettings.parse({**values, **changes})


@pytest.fixture(scope="module")
def uninterrupted(peptide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "whole"
    assert generate(settings_of(peptide), output, console=QUIET).frames == FRAMES
    return output


def same_frames(one: Path, other: Path) -> None:
    first, second = read_blocks(one), read_blocks(other)
    np.testing.assert_array_equal(first.times, second.times)
    np.testing.assert_array_equal(first.positions, second.positions)
    np.testing.assert_array_equal(first.velocities, second.velocities)


def test_frames_are_complete_and_plausible(uninterrupted: Path) -> None:
    block = read_blocks(uninterrupted)
    assert block.positions.shape == block.velocities.shape == (FRAMES, 7, 3)
    np.testing.assert_allclose(block.times, 20.0 * np.arange(FRAMES))
    bonds = np.linalg.norm(block.positions[:, 1] - block.positions[:, 0], axis=1)  # N-CA, 1.47 Å
    assert 1.3 < bonds.min() < bonds.max() < 1.65
    assert 100 < block.temperatures.mean() < 500  # a loose bound: 23 atoms fluctuate by 60 K
    record = json.loads((uninterrupted / "run.json").read_text())
    assert record["status"] == "finished"
    assert len(record["charges"]) == 7
    assert len(list(uninterrupted.glob("checkpoint-*"))) == 2  # older ones are gone


def test_velocities_belong_to_the_time_of_their_positions(peptide: Path, tmp_path: Path) -> None:
    """Without friction the integrator is a leapfrog: (x(t+dt) - x(t-dt)) / 2dt is the velocity at t."""
    settings = settings_of(peptide, timestep=1.0, frame_interval=1.0, duration=0.03, friction=0.0, save="all")
    generate(settings, tmp_path / "run", console=QUIET)
    block = read_blocks(tmp_path / "run")
    central = (block.positions[2:].astype(np.float64) - block.positions[:-2]) / 2.0
    rounding = 4 * np.spacing(np.float32(10.0))  # of float32 positions up to 10 Å
    np.testing.assert_allclose(block.velocities[1:-1], central, atol=rounding)
    assert np.abs(central).max() > 100 * rounding


def test_a_killed_run_goes_on_without_a_gap(peptide: Path, uninterrupted: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from egnn_md_systems.adk.generate import ProteinRun, generate
from egnn_md_systems.adk.settings import MDSettings
take, taken = ProteinRun._take_frame, []
def dying(self):
    taken.append(1)
    if len(taken) == 15:
        os.kill(os.getpid(), signal.SIGKILL)
    return take(self)
ProteinRun._take_frame = dying
generate(MDSettings.model_validate_json({settings_of(peptide).model_dump_json()!r}), {str(tmp_path / "run")!r})
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    assert len(read_blocks(tmp_path / "run")) == 12  # readable as it was left
    generate(stored_settings(tmp_path / "run"), tmp_path / "run", resume=True, console=QUIET)
    same_frames(tmp_path / "run", uninterrupted)


def test_sigterm_saves_and_the_run_goes_on(
    peptide: Path, uninterrupted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    take, taken = ProteinRun._take_frame, []

    def signalled(self: ProteinRun) -> Any:
        taken.append(1)
        if len(taken) == 13:
            os.kill(os.getpid(), signal.SIGTERM)
        return take(self)

    monkeypatch.setattr(ProteinRun, "_take_frame", signalled)
    result = generate(settings_of(peptide), tmp_path / "run", console=QUIET)
    assert result.exit_code == 143
    assert result.frames == len(read_blocks(tmp_path / "run")) == 13
    result = generate(stored_settings(tmp_path / "run"), tmp_path / "run", resume=True, console=QUIET)
    assert (result.exit_code, result.frames) == (0, FRAMES)
    same_frames(tmp_path / "run", uninterrupted)


def test_a_finished_run_can_be_made_longer_from_the_portable_state(peptide: Path, tmp_path: Path) -> None:
    generate(settings_of(peptide, duration=0.2), tmp_path / "run", console=QUIET)
    (tmp_path / "run" / "checkpoint-00000.chk").write_bytes(b"of another platform")
    longer = stored_settings(tmp_path / "run").changed({"duration": 0.4})
    assert generate(longer, tmp_path / "run", resume=True, console=QUIET).frames == 20
    positions = read_blocks(tmp_path / "run").positions
    steps = np.linalg.norm(np.diff(positions, axis=0), axis=2).max(axis=1)
    assert steps[9] < 2 * np.median(steps)  # no jump where the two parts meet


def test_nan_keeps_the_frames_before_it(peptide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, states = ProteinRun._state, []

    def broken(self: ProteinRun) -> Any:
        state = real(self)
        states.append(1)
        if len(states) > 30:  # two a frame
            state.positions[4] = np.nan
        return state

    monkeypatch.setattr(ProteinRun, "_state", broken)
    with pytest.raises(SimulationError, match=r"NaN before frame 15 .*--timestep"):
        generate(settings_of(peptide), tmp_path / "run", console=QUIET)
    block = read_blocks(tmp_path / "run")
    assert len(block) == 15
    assert np.isfinite(block.positions).all()
    with pytest.raises(InputError, match="broke down"):
        stored_settings(tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_interval": 22.0}, r"--frame-interval 22 fs is no whole number.*--timestep 4 fs; 2[04] is"),
        ({"duration": 0.001}, r"--duration 0.001 ps is shorter"),
        ({"timestep": -1.0}, "--timestep -1"),
        ({"hydrogen_mass": 0.5}, "--hydrogen-mass"),
    ],
)
def test_impossible_settings_are_named(peptide: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings_of(peptide, **changes)


def test_starts_and_platforms_that_are_not_there(peptide: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither closed nor open, nor a file"):
        generate(settings_of(tmp_path / "no.pdb"), tmp_path / "a", console=QUIET)
    with pytest.raises(InputError, match=r"--platform Abacus: OpenMM has .*Reference"):
        generate(settings_of(peptide, platform="Abacus"), tmp_path / "b", console=QUIET)
    strange = tmp_path / "strange.pdb"
    strange.write_text(DIALANINE.replace("ALA", "XYZ"))
    with pytest.raises(InputError, match="does not fit amber14"):
        generate(settings_of(strange), tmp_path / "c", console=QUIET)
    with pytest.raises(InputError, match="selects none"):
        generate(settings_of(peptide, save="resname GLY"), tmp_path / "d", console=QUIET)


def test_a_directory_in_use_is_not_overwritten(peptide: Path, uninterrupted: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="already holds a run; continue it with --resume"):
        generate(settings_of(peptide), uninterrupted, console=QUIET)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(InputError, match="is not empty and holds no run"):
        generate(settings_of(peptide), tmp_path, console=QUIET)
    with pytest.raises(InputError, match=r"no run\.json"):
        run({}, tmp_path, resume=True, overwrite=False)
    with pytest.raises(ConfigError, match=r"--temperature 310.0 with --resume"):
        run({"temperature": 310.0}, uninterrupted, resume=True, overwrite=False)
    with pytest.raises(ConfigError, match="exclude each other"):
        run({}, uninterrupted, resume=True, overwrite=True)


def test_blocks_that_are_missing_or_broken_are_named(uninterrupted: Path, tmp_path: Path) -> None:
    for path in uninterrupted.glob("frames-*.h5"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    last = block_files(tmp_path)[-1]
    last.write_bytes(last.read_bytes()[:5000])
    with pytest.raises(InputError, match=f"{last.name} is not a whole block"):
        read_blocks(tmp_path)
    (tmp_path / "frames-00001.h5").unlink()
    with pytest.raises(InputError, match=r"frames-00001.h5 is missing"):
        read_blocks(tmp_path)


def test_missing_openmm_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    from egnn_md.errors import MissingDependencyError

    monkeypatch.setitem(sys.modules, "openmm", None)
    with pytest.raises(MissingDependencyError, match="pip install"):
        adk_generate.import_openmm()
