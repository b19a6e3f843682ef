"""The README's scripts run, its commands exist with the options it shows, and its links lead somewhere."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer.main
import yaml

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str, text: str = README) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def blocks_in_order(text: str) -> list[tuple[str, str]]:
    """(language, code) of every shell and Python block."""
    return re.findall(r"^```(bash|python)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE)


def commands() -> list[tuple[str, list[str]]]:
    """(page, words) of every ``egnn-md`` line in the shell blocks of every page."""
    found = []
    for page in PAGES:
        for block in blocks("bash", page.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words and words[0].rsplit("/", 1)[-1] == "egnn-md":
                    found.append((page.name, words[1:]))
    return found


PYTHON = [
    *blocks("python"),
    # the part that ends other ranks of torchrun does nothing here
    *blocks("python", (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")),
]


@pytest.mark.parametrize("index", range(len(PYTHON)))
def test_script_runs(index: int, tmp_path: Path, water: str, water_8fs: str, short_environment):
    script = PYTHON[index]
    if "egnn_md_openmm" in script:
        pytest.importorskip("openmmtorch")
    assert '"water"' in script or '"water-8fs"' in script or "serve()" in script
    script = script.replace('"water"', repr(water)).replace('"water-8fs"', repr(water_8fs))
    (tmp_path / "script.py").write_text(script, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=short_environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "print(" not in script or done.stdout.strip()


def test_scripts_are_short_and_there_is_one_for_each_engine():
    for name in ("egnn_md_ase", "egnn_md_openmm", "export_torchscript"):
        assert any(name in script for script in PYTHON)
    for script in PYTHON:
        assert len([line for line in script.splitlines() if line.strip()]) <= 15


@pytest.mark.parametrize(("page", "words"), commands(), ids=lambda value: "")
def test_commands_exist_with_their_options(page: str, words: list[str]):
    from egnn_md.cli.main import app

    group = typer.main.get_command(app)
    assert hasattr(group, "commands")
    command = group.commands.get(words[0])
    assert command is not None, f"{page}: egnn-md {words[0]} does not exist"
    while hasattr(command, "list_commands"):  # egnn-md generate NAME
        name, *words = words[1:]
        command = command.get_command(None, name)
        assert command is not None, f"{page}: egnn-md generate {name} does not exist"
        words = [name, *words]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    used = {word.split("=")[0] for word in words[1:] if word.startswith("-")}
    assert used - known == set(), f"{page}: egnn-md {' '.join(words)}"


def test_every_subcommand_is_told():
    told = {words[0] for _, words in commands()}
    assert {"label", "train", "check", "info", "md", "report", "doctor"} <= told


def test_configuration_is_complete():
    from egnn_md.training.config import TrainConfig

    for block in blocks("yaml"):
        assert TrainConfig.model_validate(yaml.safe_load(block)).max_steps


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


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
