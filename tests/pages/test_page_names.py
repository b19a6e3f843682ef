"""What pages name is there: links and their anchors, files, options, Python names, settings of the environment."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import typer.main
from page_commands import FENCE, PAGES, ROOT

#: Options of other programs that pages name.
FOREIGN = {
    "--no-python", "--max-restarts", "--nnodes", "--nproc-per-node", "--rdzv-backend", "--rdzv-endpoint",  # torchrun
}  # fmt: skip
OURS = ("benchmarks/", "docs/", "egnn_md/", "examples/", "plugins/", "systems/", "tests/")


def spans(page: Path) -> list[str]:
    """Code in sentences."""
    return re.findall(r"`([^`\n]+)`", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> set[str]:
    """What the headings of a page are called in links."""
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(#[^)]+)?\)", page.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        there = page.parent / target if target else page
        assert there.exists(), target
        if anchor:
            assert anchor[1:] in anchors(there), target + anchor


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_it_names_are_there(page: Path) -> None:
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    named = [span for span in spans(page) if span.startswith(OURS) and re.fullmatch(r"[\w./*-]+", span)]
    for table in re.findall(r"^\| file \|.*\n(?:\|.*\n)+", text, flags=re.MULTILINE):
        for row in table.splitlines()[2:]:
            names = re.findall(r"`([\w./*-]+)`", row.split("|")[1])
            named += [str(page.parent.relative_to(ROOT) / name) for name in names]
    for name in named:
        pattern = re.sub(r"(^|/)[\w-]+/\.\./", r"\1", name).rstrip("/")
        assert list(ROOT.glob(pattern)), name


def options_of(command: Any) -> set[str]:
    if hasattr(command, "list_commands"):
        return set().union(*(options_of(command.get_command(None, name)) for name in command.list_commands(None)))
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


def test_options_that_pages_name_exist() -> None:
    from egnn_md.cli.main import app

    known = FOREIGN | options_of(typer.main.get_command(app)) | {"--help"}
    for path in (ROOT / "systems").rglob("*.py"):  # python -m egnn_md_systems...
        text = path.read_text(encoding="utf-8")
        known |= set(re.findall(r'"(--[a-z-]+)"', text))
        known |= {"--" + name.replace("_", "-") for name in re.findall(r"^    (\w+): Annotated\[", text, re.MULTILINE)}
    for page in PAGES:
        for span in spans(page):
            if span.startswith("--"):
                assert span.split()[0].split("=")[0] in known, f"{page.name}: {span}"


def test_python_names_exist() -> None:
    setup = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    groups = {*re.findall(r"^(egnn_md\.\w+) =$", setup, flags=re.MULTILINE), "egnn_md.calculators"}
    for page in PAGES:
        for span in spans(page):
            if not re.fullmatch(r"egnn_md(_\w+)?(\.\w+)+(\([^)]*\))?", span) or span in groups:
                continue
            parts = span.split("(")[0].split(".")
            value: Any = importlib.import_module(parts[0])
            for position, part in enumerate(parts[1:], 2):
                if not hasattr(value, part):
                    importlib.import_module(".".join(parts[:position]))
                value = getattr(value, part)


def test_settings_of_the_environment_exist() -> None:
    code = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("egnn_md", "plugins", "systems", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*.py")
    )
    for page in PAGES:
        for name in re.findall(r"EGNN_MD_\w+", page.read_text(encoding="utf-8")):
            assert name in code, f"{page.name}: {name}"
