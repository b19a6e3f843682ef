"""Every example runs in its short form, in an empty folder, and says something."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).resolve().parents[2] / "examples").glob("*.py"))
NEEDS = {
    "openmm_npt": ("openmm", "openmmtorch"),
    "openmm_ml": ("openmm", "openmmml"),
    "rollout_openmm": ("openmm",),
    "peptide_in_water": ("openmm", "openmmtorch", "openmmml"),
    "multiple_time_steps": ("openmm",),
    "metadynamics": ("openmm",),
}
LEAVES = {
    "rollout_ase": ["strides.traj"],
    "rollout_openmm": ["strides.dcd", "strides.csv", "strides.chk"],
    "ase_water_md": ["water.traj"],
    "openmm_npt": ["npt.csv"],
    "relax_cluster": ["droplet.xyz"],
    "export_torchscript": ["water.pt"],
}
TRAINS = "label_and_train"


def run(path: Path, folder: Path, environment: dict[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, str(path)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", [p for p in EXAMPLES if p.stem != TRAINS], ids=lambda path: path.stem)
def test_example(path: Path, tmp_path: Path, short_environment):
    for module in NEEDS.get(path.stem, ()):
        pytest.importorskip(module)
    printed = run(path, tmp_path, short_environment())
    assert printed.strip()
    assert "nan" not in printed.lower().split()
    assert "from the checkpoint" not in printed or "from the checkpoint: 0.0 nm away" in printed
    for name in LEAVES.get(path.stem, []):
        assert (tmp_path / name).stat().st_size > 0


def test_label_and_train_continues(tmp_path: Path, short_environment):
    """Run again, the example labels nothing twice and goes on from its checkpoint."""
    path = next(path for path in EXAMPLES if path.stem == TRAINS)
    first = run(path, tmp_path, short_environment())
    labels = (tmp_path / "argon.extxyz").read_bytes()
    assert (tmp_path / "argon" / "model.safetensors").stat().st_size > 0
    second = run(path, tmp_path, short_environment())
    assert first.startswith("8 labelled, 0 there already")
    assert second.startswith("0 labelled, 8 there already")
    assert (tmp_path / "argon.extxyz").read_bytes() == labels
    assert first.splitlines()[1:] == second.splitlines()[1:]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_is(path: Path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith('"""')
    assert "EGNN_MD_SHORT" in text or path.stem == "export_torchscript"
    assert len(text.splitlines()) <= 80
