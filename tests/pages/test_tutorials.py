"""The tutorials run from top to bottom, block after block in one folder, with smaller numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from page_commands import ROOT, blocks_in_order, run_block, shorter

TUTORIALS = ROOT / "docs" / "tutorials"

#: What is written in a page, and what its test runs instead. Everything else is run as it stands.
SHORTER = {
    "own-molecule": {
        "[300, 500, 700, 900]": "[300]",
        "irun(2000)": "irun(64)",
        "hidden: 48, layers: 3": "hidden: 8, layers: 2",
        "batch_size: 16": "batch_size: 2",
        "max_steps: 4000": "max_steps: 5",
        "--steps 20000": "--steps 20",
        "simulation.step(1000)": "simulation.step(2)",
        "--processes 2": "--processes 1",
    },
    "large-system": {"(3, 3, 3)": "(2, 1, 1)", "--steps 20 ": "--steps 4 ", "--steps 30": "--steps 6"},
    "peptide-in-water": {
        "--edge 24 --equilibrate 10 --steps 10000": "--edge 19 --equilibrate 0 --cutoff 8 --steps 4 --frame-interval 2",
        "--steps 12000": "--steps 6",
        "0.9 * unit.nanometer": "0.8 * unit.nanometer",
        'DCDReporter("peptide.dcd", 100)': 'DCDReporter("peptide.dcd", 1)',
        "simulation.step(2000)": "simulation.step(2)",
    },
    "liquid-rollout": {"--steps 50": "--steps 2", "--starts 2": "--starts 1 --horizons 1"},
}
NEEDS = {
    "own-molecule": ("tblite", "openmm", "openmmtorch"),
    "peptide-in-water": ("openmm", "openmmtorch", "openmmml"),
    "liquid-rollout": ("openmm",),
}


def test_every_tutorial_is_here() -> None:
    assert {page.stem for page in TUTORIALS.glob("*.md")} == set(SHORTER)


@pytest.mark.parametrize("name", SHORTER)
def test_tutorial(name: str, tmp_path: Path, short_environment: Callable[[], dict[str, str]]) -> None:
    for module in NEEDS.get(name, ()):
        pytest.importorskip(module)
    text = shorter((TUTORIALS / f"{name}.md").read_text(encoding="utf-8"), SHORTER[name], name)
    environment = short_environment()
    for language, block in blocks_in_order(text):
        run_block(language, block, tmp_path, environment)
