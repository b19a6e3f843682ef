"""Every command that the README shows is run, with smaller numbers, or stands in a list with the reason why not."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from page_commands import FENCE, ROOT, blocks, chapters, command_lines, run_block, shorter

README = (ROOT / "README.md").read_text(encoding="utf-8")
CHAPTERS = {title: text for title, text in chapters(README).items() if blocks("bash", text)}

#: Commands that no test can run, and why.
NOT_RUN = {
    "git clone <this repository> egnn_md": "the clone is what the tests run in",
    "cd egnn_md": "the same",
    "python3 -m venv .venv": "the tests run in the environment that it makes",
    ".venv/bin/pip install -e '.[all]'": "it fetches 5.5 GB; tests/unit/test_packaging.py looks at what it installs",
    "egnn-md bench peers --peer mace": "mace is not among our packages; tests/unit/test_bench_commands.py runs a peer",
}
#: The same for targets of make, which stand in sentences.
MAKE_NOT_RUN = {
    "environment": "makes .venv, 5.5 GB; .ci/run calls it",
    "demo": "runs 7,000 steps of 64 waters, minutes; 'Two commands' is the same with fewer",
    "cluster": "compiles torch-cluster for 5 to 10 minutes; .ci/run calls it",
    "docs": "tests/pages/test_api.py builds the same pages",
}


def structures_and_configuration(folder: Path) -> None:
    """Ten shaken ethanol molecules, one to run, and the configuration that the page shows, for a tiny network."""
    import ase.io
    from ase.build import molecule

    frames = [molecule("CH3CH2OH") for _ in range(10)]
    for seed, atoms in enumerate(frames):
        atoms.rattle(0.05, seed=seed)
    ase.io.write(folder / "structures.xyz", frames)
    ase.io.write(folder / "structure.pdb", molecule("CH3CH2OH"))
    (text,) = blocks("yaml", CHAPTERS["From labels to a report"])
    small = "max_steps: 5\nmodel: {hidden: 8, layers: 2}\nthreads: 1"
    (folder / "train.yaml").write_text(shorter(text, {"max_steps: 20000": small}, "README"), encoding="utf-8")


def members_and_droplets(folder: Path) -> None:
    """Two small members of a committee, a molecule for them, and labelled droplets of two and three waters."""
    import ase.io
    from ase.build import molecule

    from egnn_md import save_model
    from egnn_md.data.labelling import label
    from egnn_md.testing import random_potential

    for seed in (0, 1):
        save_model(random_potential([1, 6, 8], seed=seed, hidden=8, scale=0.05), folder / f"seed-{seed}.safetensors")
    ase.io.write(folder / "molecule.pdb", molecule("CH3CH2OH"))
    droplets = []
    for count in (2, 2, 3):
        droplets.append(molecule("H2O"))
        for number in range(1, count):
            other = molecule("H2O")
            other.positions += (0.0, 0.0, 2.9 * number)
            droplets[-1] += other
        droplets[-1].rattle(0.03, seed=len(droplets))
    ase.io.write(folder / "droplet.xyz", droplets[-1])
    label(droplets, folder / "droplets.extxyz", method="gfn2-xtb", processes=0)


def another_liquid_network(folder: Path) -> None:
    """A network without virtual nodes and with the stride of ``liquid``, untrained."""
    from egnn_md import FastEGNNPropagator, load_model, save_model

    config = load_model("liquid").config.model_copy(update={"virtual_nodes": 0, "hidden": 8, "layers": 2})
    save_model(FastEGNNPropagator(config), folder / "egnn.safetensors")


@dataclass(frozen=True)
class Chapter:
    """What is smaller when a chapter is run, what must be there before, and what must be there after."""

    shorter: dict[str, str]
    leaves: tuple[str, ...] = ()
    prepare: Callable[[Path], None] | None = None
    needs: tuple[str, ...] = ()
    marks: tuple[pytest.MarkDecorator, ...] = field(default=())


RUNS = {
    "Install": Chapter({".venv/bin/egnn-md doctor": "egnn-md doctor --quick"}),
    "Two commands": Chapter(
        {"--steps 1000": "--steps 6 --frame-interval 2 --log-interval 2 --minimize-steps 2"},
        leaves=("runs/water/report.html",),
        needs=("openmmtorch",),
    ),
    "From labels to a report": Chapter(
        {"--processes 2": "--processes 1", "--steps 20000": "--steps 20 --frame-interval 5"},
        leaves=("runs/mine/report.html",),
        prepare=structures_and_configuration,
        needs=("tblite", "openmmtorch"),
    ),
    "Can it be trusted?": Chapter(
        {
            "--structure systems/water/water64.pdb": "--structure droplet.xyz --budget short --frames 2 --length 0.01 "
            "--equilibration 0.005 --nve 0.005 --stability-steps 10 --seeds 1 --parts errors,nve,stability",
            "systems/water/data/test.extxyz.xz": "droplets.extxyz",
            "--max-uncertainty 1.0 --steps 20000": "--max-uncertainty 1.0 --on-uncertainty record --steps 10",
            "ethanol.yaml": "ethanol.yaml --rounds 1 --set committee.members=2 --set start.sample.frames=6 "
            "--set start.sample.interval=2 --set test.sample.frames=2 --set test.sample.interval=2 "
            "--set run.temperatures=300 --set run.steps=20 --set select.count=2 --set select.spacing=5 "
            "--set train.max_steps=3 --set train.model.hidden=8",
        },
        leaves=("runs/validate-water/index.html", "runs/watched/log.csv", "runs/learn-ethanol/report.html"),
        prepare=members_and_droplets,
        needs=("tblite", "openmmtorch"),
    ),
    "Methods": Chapter(
        {"runs/ml_mm": "runs/ml_mm --edge 19 --equilibrate 0 --cutoff 8 --steps 4 --frame-interval 2"},
        leaves=("runs/ml_mm/observed.json",),
        needs=("openmmtorch", "openmmml"),
    ),
    "Propagators and rollouts": Chapter(
        {
            "--preset small": "--preset tiny",
            "reduced.yaml": "reduced.yaml --set max_steps=4 --set validate_every=2 --set model.hidden=8 "
            "--set schedule.warmup_steps=1",
            "model.safetensors runs/nbody\n": "model.safetensors runs/nbody --starts 2 --horizons 1,2\n",
            "--steps 20 ": "--steps 2 ",
            "--steps 40": "--steps 3",
            "--starts 8": "--starts 1 --horizons 1 --windows 2",
        },
        leaves=("runs/nbody-reduced/model.safetensors", "runs/ahead/trajectory.xtc", "results/index.html"),
        prepare=another_liquid_network,
        needs=("openmm", "numba"),
    ),
    "Several devices": Chapter(
        {"--steps 100": "--steps 2 --no-minimize", "--steps 20": "--steps 2"},
        leaves=("runs/two/log.csv", "runs/two-liquid/log.csv"),
        marks=(pytest.mark.slow,),  # the tutorial large-system.md does the first in every run of the tests
    ),
    "Speed": Chapter(
        {
            "--sizes nbody,protein,water-648": "--sizes nbody,water-24 --repeats 1 --warmup 0 --no-memory --threads 1",
            "--sizes water-648 --steps 200": "--sizes water-24 --steps 2 --warmup 0 --threads 1 --paths fused",
            "--sizes water-192 --engines ase --steps 20000": "--sizes water-24 --engines ase --steps 4 --threads 1",
            "--sizes 1000,10000,100000": "--sizes 100,200,400 --repeats 1 --warmup 0 --no-memory --threads 1",
            "bench neighbors": "bench neighbors --sizes nbody --repeats 1 --warmup 0 --threads 1",
            "bench count": "bench count --sizes nbody --threads 1",
        },
        leaves=tuple(f"runs/bench/{name}/index.html" for name in ("model", "md", "growth", "neighbors", "count")),
        needs=("openmmtorch",),
        marks=(pytest.mark.slow,),  # tests/unit/test_bench_commands.py calls each of them within one process
    ),
}


@pytest.mark.parametrize("title", [pytest.param(title, marks=RUNS[title].marks) for title in RUNS])
def test_commands_run(title: str, tmp_path: Path, short_environment: Callable[[], dict[str, str]]) -> None:
    chapter = RUNS[title]
    for module in chapter.needs:
        pytest.importorskip(module)
    for name in ("systems", "examples"):  # the page's commands start in the repository's root
        (tmp_path / name).symlink_to(ROOT / name)
    if chapter.prepare is not None:
        chapter.prepare(tmp_path)
    kept = [line for block in blocks("bash", CHAPTERS[title]) for line in command_lines(block) if line not in NOT_RUN]
    # each replacement is looked for in the commands that are run, so that none of the page's numbers is missed
    script = shorter("\n".join([*kept, ""]), chapter.shorter, f"README, {title}")
    run_block("bash", script, tmp_path, short_environment())
    for name in chapter.leaves:
        assert (tmp_path / name).stat().st_size > 0


def test_make_help_lists_the_targets(short_environment: Callable[[], dict[str, str]]) -> None:
    listed = run_block("bash", "make --no-print-directory help", ROOT, short_environment())
    assert all(f"make {name} " in listed for name in MAKE_NOT_RUN)


def test_every_command_is_run_or_listed_with_a_reason() -> None:
    """What is shown in another way than in a shell block of a chapter would be run by nobody."""
    assert set(RUNS) == set(CHAPTERS), "a chapter of the README has commands that no test runs, or has none any more"
    assert {language for language, _ in FENCE.findall(README)} <= {"bash", "python", "yaml"}
    assert re.findall(r"^(?: {4}|\t)(?:egnn-md|python|make|pip) .*", FENCE.sub("", README), flags=re.MULTILINE) == []
    shown = {line for text in CHAPTERS.values() for block in blocks("bash", text) for line in command_lines(block)}
    assert set(NOT_RUN) <= shown, "the README does not show it any more"
    assert set(re.findall(r"`make ([a-z]+)`", README)) == {"help", *MAKE_NOT_RUN}
    assert all([*NOT_RUN.values(), *MAKE_NOT_RUN.values()])
