"""What pages show, found, made smaller and run: every shell and Python block in order, in one folder."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: Every page that is written for readers.
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "systems").glob("*/README.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


def blocks(language: str, text: str) -> list[str]:
    """The code of every fenced block in ``language``."""
    return [code for found, code in FENCE.findall(text) if found == language]


def blocks_in_order(text: str) -> list[tuple[str, str]]:
    """(language, code) of every shell and Python block."""
    return [(language, code) for language, code in FENCE.findall(text) if language in ("bash", "python")]


def chapters(text: str) -> dict[str, str]:
    """Title to text of every part that ``##`` begins; a title in a code block begins none."""
    outside = FENCE.sub(lambda match: re.sub(r"^#", " #", match[0], flags=re.MULTILINE), text)
    parts = re.split(r"^## (.+)$", outside, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def command_lines(block: str) -> list[str]:
    """The commands of a shell block: continued lines joined, comments and empty lines left out."""
    found = (re.sub(r"(^|\s)#.*", "", line).strip() for line in re.sub(r"\\\n\s*", "", block).splitlines())
    return [line for line in found if line]


def shorter(text: str, changes: Mapping[str, str], page: str) -> str:
    """``text`` with every replacement made; one whose words the page no longer has is an error."""
    for long, short in changes.items():
        assert long in text, f"{page}: {long!r} is not in the page any more"
        text = text.replace(long, short)
    return text


def run_block(language: str, code: str, folder: Path, environment: Mapping[str, str]) -> str:
    """Run a block as a reader would, and return what it printed; an exit code that is not 0 fails the test."""
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    # the commands of this environment, whatever else is installed
    path = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    done = subprocess.run(
        command,
        cwd=folder,
        env={**environment, "PATH": path},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{code}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    assert "print(" not in code or done.stdout.strip()
    return done.stdout
