"""Commands and scripts of the pages under docs/ and systems/ run too, where that takes minutes and not hours.

Slow, except the listing: the README and the tutorials show the same commands and are run by default. What a page
under systems/ shows besides is how weights and tables were made; tests/pages/test_page_commands.py sees to it that
those commands would still be understood.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from page_commands import PAGES, ROOT, blocks, blocks_in_order, command_lines, run_block, shorter
from test_readme_commands import RUNS, members_and_droplets

NOT_RUN = {
    "torchrun": "two machines; tests/faults/test_torchrun.py starts its ranks on one",
    "egnn-md train systems/water/train.yaml --devices": "hours; tests/distributed/test_training.py is small",
}
#: The same words stand in the README.
TRUST = RUNS["Can it be trusted?"].shorter
SIMULATION = """
import openmm
from openmm import app
pdb = app.PDBFile("molecule.pdb")
topology = pdb.topology
from egnn_md_openmm import create_system
system = create_system(topology, "committee.safetensors", implementation="python")
simulation = app.Simulation(topology, system, openmm.VerletIntegrator(0.0001))
simulation.context.setPositions(pdb.positions)
"""


def labels_and_configuration(folder: Path) -> None:
    """What the page on uncertainty takes as there: a configuration and its labels, a molecule."""
    import ase.io
    from ase.build import molecule

    from egnn_md.data.labelling import label

    frames = [molecule("CH3CH2OH") for _ in range(10)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    label(frames, folder / "labels.extxyz", method="gfn2-xtb", processes=0)
    ase.io.write(folder / "molecule.pdb", molecule("CH3CH2OH"))
    content = "data: {train: labels.extxyz, valid_fraction: 0.2}\nmodel: {hidden: 8, layers: 2}\nmax_steps: 5\n"
    (folder / "train.yaml").write_text(content + "output: seed\n", encoding="utf-8")


@dataclass(frozen=True)
class Page:
    """What is smaller, what must be there before, and whether later scripts go on from earlier ones."""

    shorter: dict[str, str]
    prepare: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = ()
    one_script: bool = False


DOCS = {
    "docs/devices.md": Page({"--steps 100 ": "--steps 2 --no-minimize ", "--steps 20 ": "--steps 2 "}),
    "docs/uncertainty.md": Page(
        {
            "--steps 20000 --max-uncertainty 1.0": "--steps 10 --max-uncertainty 100",
            "--steps 20000 --max-uncertainty 0.5": "--steps 10 --max-uncertainty 0.5",
            "ethanol.yaml --rounds 5": TRUST["ethanol.yaml"].replace("--rounds 1", "--rounds 2"),
            "ethanol.yaml\n": TRUST["ethanol.yaml"] + "\n",
            "import CommitteeSpread, UncertaintyReporter\n": "import CommitteeSpread, UncertaintyReporter" + SIMULATION,
        },
        prepare=labels_and_configuration,
        needs=("tblite", "openmmtorch"),
    ),
    "docs/validation.md": Page(
        {
            "--structure systems/water/water64.pdb": TRUST["--structure systems/water/water64.pdb"],
            "systems/water/data/test.extxyz.xz": "droplets.extxyz",
            "300,400": "300",
        },
        prepare=members_and_droplets,
        needs=("tblite",),
    ),
    "docs/ml_mm.md": Page(
        {
            "run --output runs/ml_mm": "run --output runs/ml_mm --edge 19 --equilibrate 0 --cutoff 8 --steps 4",
            "--resume --output runs/ml_mm": "--resume --output runs/ml_mm --steps 6",
            "0.9 * unit.nanometer": "0.8 * unit.nanometer",
        },
        needs=("openmmtorch", "openmmml"),
        one_script=True,
    ),
    "systems/nbody/README.md": Page({}, needs=("numba",)),
    "systems/peptide/README.md": Page({}, needs=("PeptideBuilder",)),
    "systems/protein_cg/README.md": Page({"steps=4000": "steps=100"}, needs=("openmmtorch",)),
}
#: Pages whose shell blocks are all about making data and weights: their scripts alone are run.
SCRIPTS_ONLY = ("systems/nbody/README.md", "systems/peptide/README.md", "systems/protein_cg/README.md")


@pytest.mark.slow
@pytest.mark.parametrize("name", DOCS)
def test_page(name: str, tmp_path: Path, short_environment: Callable[[], dict[str, str]]) -> None:
    page = DOCS[name]
    for module in page.needs:
        pytest.importorskip(module)
    for folder in ("systems", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    if page.prepare is not None:
        page.prepare(tmp_path)
    text = shorter((ROOT / name).read_text(encoding="utf-8"), page.shorter, name)
    before = ""
    for language, block in blocks_in_order(text):
        code = block
        if language == "bash":
            if name in SCRIPTS_ONLY:
                continue
            code = "\n".join(line for line in command_lines(block) if not line.startswith(tuple(NOT_RUN)))
        elif page.one_script:
            before = code = before + block
        run_block(language, code, tmp_path, short_environment())


def test_every_page_with_scripts_is_run_or_listed() -> None:
    run = {*DOCS, "README.md", *(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "tutorials").glob("*.md"))}
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        if blocks("python", text) or (blocks("bash", text) and name.startswith("docs/")):
            assert name in run, f"{name} has commands or scripts that no test runs"
    for words in NOT_RUN:
        assert any(
            line.startswith(words)
            for name in DOCS
            for block in blocks("bash", (ROOT / name).read_text(encoding="utf-8"))
            for line in command_lines(block)
        ), f"no page shows {words!r} any more"
