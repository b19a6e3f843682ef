"""The built wheel, away from the sources: packages, plugins, entry points, weights, the command."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOTS = {
    "egnn_md": "egnn_md",
    "egnn_md_ase": "plugins/egnn_md_ase",
    "egnn_md_openmm": "plugins/egnn_md_openmm",
    "egnn_md_systems": "systems",
    "egnn_md_benchmarks": "benchmarks",
}
WEIGHTS = sorted((ROOT / "systems").glob("*/weights/*.safetensors"))


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def lines(section: str, key: str) -> list[str]:
    return [line for line in setup_cfg()[section][key].splitlines() if line and not line.startswith("#")]


def package_folders() -> dict[str, Path]:
    """Dotted name → folder of every package in the sources."""
    found = {}
    for name, place in ROOTS.items():
        for init in (ROOT / place).rglob("__init__.py"):
            inner = init.parent.relative_to(ROOT / place).parts
            found[".".join((name, *inner))] = init.parent
    return found


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy: building in place would leave, and pick up, old files in build/."""
    folder = tmp_path_factory.mktemp("wheel")
    ignored = shutil.ignore_patterns(
        ".venv", ".git", "runs", "build", "dist", "*.egg-info", "__pycache__", ".*_cache", "tests"
    )
    shutil.copytree(ROOT, folder / "source", ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-index", "--wheel-dir", str(folder), str(folder / "source")]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("egnn_md-*.whl")
    return built


@pytest.fixture(scope="module")
def clean_python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the wheel installed; the dependencies come from the tests' environment.

    They are reached by a path line, so that environment's own .pth files (the editable install) are not read.
    """
    folder = tmp_path_factory.mktemp("clean") / "env"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--quiet", "--python", str(python)]
    command += ["install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    (packages,) = folder.glob("lib/python3.*/site-packages")
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    return python


def run(python: Path, *arguments: str, program: str = "python") -> str:
    """Output of ``program`` of the clean environment, run in its own folder and without PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(
        [str(python.parent / program), *arguments],
        capture_output=True,
        text=True,
        cwd=python.parents[1],
        env=environment,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_package_folder_is_listed():
    assert sorted(lines("options", "packages")) == sorted(package_folders())


def test_every_module_lies_in_a_package():
    """A folder without __init__.py would work from the sources and be missing from the wheel."""
    folders = set(package_folders().values())
    stray = {
        str(path.relative_to(ROOT))
        for place in ROOTS.values()
        for path in (ROOT / place).rglob("*.py")
        if path.parent not in folders
    }
    assert stray == set()


def test_wheel_holds_every_module_and_data_file(wheel: Path):
    inside = set(zipfile.ZipFile(wheel).namelist())
    wanted = set()
    for name, folder in package_folders().items():
        place = name.replace(".", "/")
        wanted |= {f"{place}/{path.name}" for path in folder.glob("*.py")}
    wanted |= {f"{name}/py.typed" for name in ROOTS}
    wanted |= {f"egnn_md_systems/{path.relative_to(ROOT / 'systems')}" for path in WEIGHTS}
    data = [
        path for pattern in ("*.pdb", "*.yaml", "*.md") for path in (ROOT / "systems/water").glob(pattern)
    ]
    wanted |= {f"egnn_md_systems/water/{path.name}" for path in data}
    assert "egnn_md_systems/water/water64.pdb" in wanted
    assert wanted - inside == set()
    foreign = {name for name in inside if name.split("/")[0] not in ROOTS and ".dist-info/" not in name}
    assert foreign == set()
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in inside)


def test_shipped_weights_are_small():
    assert all(path.stat().st_size <= 2 * 2**20 for path in WEIGHTS)


def test_packages_are_found_away_from_the_sources(clean_python: Path):
    script = (
        f"import importlib, json; names = {sorted(ROOTS)}\n"
        "print(json.dumps([importlib.import_module(name).__file__ for name in names]))"
    )
    places = json.loads(run(clean_python, "-c", script))
    for place in places:
        assert Path(place).is_relative_to(clean_python.parents[1]), place


def test_entry_points_load_away_from_the_sources(clean_python: Path):
    groups = [name for name in setup_cfg()["options.entry_points"] if name != "console_scripts"]
    declared = set()
    for group in groups:
        declared |= {(group, line.split("=")[0].strip()) for line in lines("options.entry_points", group)}
    script = (
        "import json; from importlib.metadata import distribution\n"
        "points = [p for p in distribution('egnn-md').entry_points if p.group != 'console_scripts']\n"
        "print(json.dumps([[p.group, p.name, callable(p.load())] for p in points]))"
    )
    loaded = json.loads(run(clean_python, "-c", script).splitlines()[-1])
    assert {(group, name) for group, name, _ in loaded} == declared
    assert all(works for *_, works in loaded)
    assert {"openmmml.potentials", "egnn_md.models", "egnn_md.engines"} <= set(groups)


def test_command_runs_away_from_the_sources(clean_python: Path):
    shown = run(clean_python, "--help", program="egnn-md")
    for name in ("label", "train", "info", "check", "md", "report", "doctor"):
        assert name in shown


@pytest.mark.skipif(not WEIGHTS, reason="no weights are shipped yet")
def test_shipped_weights_load_by_name_away_from_the_sources(clean_python: Path):
    script = (
        "import egnn_md; from egnn_md_systems.water import weights_path\n"
        "print(sorted(egnn_md.load_model('water').elements), weights_path())"
    )
    elements, path = run(clean_python, "-c", script).strip().rsplit(" ", 1)
    assert elements == "[1, 8]"
    assert Path(path).is_relative_to(clean_python.parents[1])
    assert "angstrom" in run(clean_python, "info", "water", program="egnn-md").lower()
