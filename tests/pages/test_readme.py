"""The scripts of the README run, and its configuration and packages are those that there are."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from page_commands import ROOT, blocks, run_block

README = (ROOT / "README.md").read_text(encoding="utf-8")


PYTHON = [
    *blocks("python", README),
    # the part that ends other ranks of torchrun does nothing here
    *blocks("python", (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")),
]


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_script_runs(
    index: int, tmp_path: Path, water: str, water_8fs: str, short_environment: Callable[[], dict[str, str]]
) -> None:
    script = PYTHON[index]
    if "egnn_md_openmm" in script:
        pytest.importorskip("openmmtorch")
    assert '"water"' in script or '"water-8fs"' in script or "serve()" in script
    script = script.replace('"water"', repr(water)).replace('"water-8fs"', repr(water_8fs))
    run_block("python", script, tmp_path, short_environment())


def test_scripts_are_short_and_there_is_one_for_each_engine():
    for name in ("egnn_md_ase", "egnn_md_openmm", "export_torchscript"):
        assert any(name in script for script in PYTHON)
    for script in PYTHON:
        assert len([line for line in script.splitlines() if line.strip()]) <= 15


def test_configuration_is_complete():
    from egnn_md.training.config import TrainConfig

    for block in blocks("yaml", README):
        assert TrainConfig.model_validate(yaml.safe_load(block)).max_steps


def test_the_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    assert set(re.findall(r"make ([a-z]+)[`\s,]", README)) - {"sure"} <= targets
    for name in ("demo", "test", "lint", "cluster", "clean", "help"):
        assert name in targets


def test_conda_file_and_setup_name_the_same_packages():
    """A dependency added to setup.cfg and forgotten in environment.yml (names differ for some)."""
    import configparser

    conda_names = {
        "torch": "pytorch",
        "matplotlib": "matplotlib-base",
        "openmmml": "openmm-ml",
        "acellera-openmmtorch-cpu": "openmm-torch",
        "tblite": "tblite-python",
        "torch-cluster": "pytorch_cluster",
        "types-pyyaml": "types-pyyaml",
    }
    content = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    listed = set()
    for item in content["dependencies"]:
        for line in item["pip"] if isinstance(item, dict) else [item]:
            listed.add(re.split(r"[ =<>]", line)[0].lower())
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    lines = config["options"]["install_requires"].splitlines()
    for extra in ("openmm", "label", "systems", "cluster", "docs", "test"):
        lines += config["options.extras_require"][extra].splitlines()
    for line in filter(None, lines):
        name = re.split(r"[<>=\[ ]", line)[0].lower()
        assert conda_names.get(name, name) in listed, f"{name} is missing in environment.yml"
