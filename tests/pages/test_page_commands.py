"""Every command that any page shows would be understood: it exists, and takes these arguments and options."""

from __future__ import annotations

import argparse
import importlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import typer.main
from page_commands import FENCE, PAGES, ROOT, blocks, command_lines

#: Files that tell commands in comments, docstrings and help texts.
TELLING = [
    path
    for folder in ("examples", "systems", "egnn_md/cli", "benchmarks")
    for pattern in ("*.py", "*.yaml")
    for path in sorted((ROOT / folder).rglob(pattern))
    if path.name != "scaling_rank.py"  # a process that a command starts
]
PROGRAM = re.compile(r"(?:^|\s)(egnn-md (?!\d)|python -m egnn_md|python examples/|pytest )")


def shown(path: Path) -> Iterator[tuple[str, bool]]:
    """(command, is it whole) of shell blocks and indented lines, and of what stands in a sentence."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        for block in blocks("bash", text):
            yield from ((line, True) for line in command_lines(block))
        outside = FENCE.sub("", text)
        for span in re.findall(r"`([^`]+)`", outside):
            yield re.sub(r"\s+", " ", span), False
    else:
        outside = text
        for span in re.findall(r"`+([^`\n]+)`+", outside):
            yield span, False
    comment = r"^(?: {4}|\t|#  +)\s*((?:egnn-md|python -m|pytest) .*(?:\\\n.*)*)"
    for line in re.findall(comment, outside, flags=re.MULTILINE):
        for command in command_lines(line.replace("\n#", "\n")):
            # in a comment of ours two spaces end a command, and what it does may follow
            yield (command, True) if path.suffix == ".md" else (re.split(r"  +", command)[0], False)


def commands() -> list[Any]:
    """(first page that shows it, words, is it whole) of every command of ours and of pytest, once each."""
    found: dict[tuple[str, ...], tuple[str, bool]] = {}
    for path in [*PAGES, *TELLING]:
        for text, whole in shown(path):
            match = PROGRAM.search(text.replace(".venv/bin/", ""))
            if match is None or (path.suffix != ".md" and set(text) & set("{\"'…")):  # a command in the making
                continue
            words = shlex.split(text.replace(".venv/bin/", "")[match.start(1) :])
            words = [word.rstrip(";") for word in words if word.strip(".…") and word not in ("`", "done")]
            whole = whole or found.get(tuple(words), ("", False))[1]
            page = found.get(tuple(words), (str(path.relative_to(ROOT)), whole))[0]
            found[tuple(words)] = (page, whole)
    return [
        pytest.param(page, list(words), whole, id=f"{page}-{number}")
        for number, (words, (page, whole)) in enumerate(found.items())
    ]


def understand(command: Any, words: list[str], whole: bool) -> None:
    """Let the command read its words, without running it; a file that is not there is no error here.

    typer keeps click in itself since 0.16 or so, hence no classes of click are named.
    """
    while hasattr(command, "list_commands"):
        if not words or words[0].startswith("-"):
            return
        name, *words = words
        found = command.get_command(None, name)
        if name.isupper() and not whole:  # NAME
            return
        assert found is not None, f"there is no subcommand {name!r}"
        command = found
    try:
        command.make_context(command.name, list(words))
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else f"{type(error).__name__} {error}"
        a_part = ("Missing", "requires an argument", "requires a value", "Exit")
        assert "does not exist" in message or (not whole and any(words in message for words in a_part)), message


def command_of(module: Any) -> Any:
    """The typer command of ``python -m``; None where argparse reads the words."""
    for name in ("app", "command", "main"):
        found = getattr(module, name, None)
        if isinstance(found, typer.Typer):
            return typer.main.get_command(found)
        if callable(found) and "argparse" not in vars(module):
            app = typer.Typer()
            app.command()(found)
            return typer.main.get_command(app)
    assert "argparse" in vars(module), f"{module.__name__} is no command"
    return None


class Understood(Exception):  # noqa: N818
    """Raised where argparse has read its words, before anything is done with them."""


@pytest.mark.parametrize(("page", "words", "whole"), commands())
def test_it_would_be_understood(page: str, words: list[str], whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if words[0] == "egnn-md":
        from egnn_md.cli.main import app

        understand(typer.main.get_command(app), words[1:], whole)
    elif words[0] == "pytest":
        tests = [ROOT / word for word in words[1:] if word.startswith("tests/")]
        assert all(path.exists() for path in tests)
        if "-k" in words:
            assert any(f"{words[words.index('-k') + 1]}" in path.read_text(encoding="utf-8") for path in tests)
    elif words[1] == "-m":
        module = importlib.import_module(words[2])
        command = command_of(module)
        if command is not None:
            understand(command, words[3:], whole)
            return
        read = argparse.ArgumentParser.parse_args

        def stop(self: argparse.ArgumentParser, *arguments: Any) -> NoReturn:
            read(self, *arguments)
            raise Understood

        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
        monkeypatch.setattr(sys, "argv", words[2:])
        with pytest.raises((Understood, SystemExit) if not whole else Understood):
            module.main()
    else:
        assert (ROOT / words[1]).exists()


def test_every_subcommand_is_told() -> None:
    from egnn_md.cli.main import app

    group: Any = typer.main.get_command(app)
    found = [(p.values[0], p.values[1][1]) for p in commands() if p.values[1][0] == "egnn-md"]
    told = {name for _, name in found if not name.isupper()}  # NAME
    assert told == set(group.list_commands(None))
    assert told == {name for page, name in found if page == "README.md"}


def test_configurations_take_the_changes_that_are_shown() -> None:
    """``egnn-md train FILE --set KEY=VALUE`` of every page, where the file is one of ours."""
    from egnn_md.training.tasks import load_any_config

    tried = 0
    for _, words, _ in (p.values for p in commands()):
        if words[:2] == ["egnn-md", "train"] and len(words) > 2 and words[2].startswith("systems/"):
            changes = [words[i + 1] for i, word in enumerate(words) if word == "--set"]
            load_any_config(str(ROOT / words[2]), changes)
            tried += 1
    assert tried > 10
