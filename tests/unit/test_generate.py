"""``egnn-md generate``: the plug-ins behind it, whole, missing and broken."""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points

import pytest
import typer
from typer.testing import CliRunner

from egnn_md.cli import generate, main
from egnn_md.errors import ConfigError, InputError, MissingDependencyError


def works(app: typer.Typer) -> None:
    @app.command("otherwise-named")
    def make(output: str, size: int = 3) -> None:
        """Make something."""
        if size < 0:
            raise InputError("size is negative")
        print(f"made {output} of {size}")


def adds_two(app: typer.Typer) -> None:
    app.command("one")(lambda: None)
    app.command("two")(lambda: None)


def fails(app: typer.Typer) -> None:
    raise KeyError("some key")


def needs_more(app: typer.Typer) -> None:
    import a_package_that_is_not_there  # noqa: F401


POINTS = {
    "good": f"{__name__}:works",
    "two": f"{__name__}:adds_two",
    "failing": f"{__name__}:fails",
    "poor": f"{__name__}:needs_more",
    "absent": "egnn_md_systems.not_there:register",
    "nameless": f"{__name__}:no_such_function",
}


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch):
    def found(*, group: str) -> list[EntryPoint]:
        assert group == "egnn_md.generators"
        return [EntryPoint(name, value, group) for name, value in POINTS.items()]

    monkeypatch.setattr(generate, "entry_points", found)
    return lambda *words: CliRunner().invoke(main.app, ["generate", *words], env={"COLUMNS": "200"})


def test_a_generator_runs_with_its_options(run):
    done = run("good", "here", "--size", "5")
    assert done.exit_code == 0, done.output
    assert done.output == "made here of 5\n"
    assert "--size" in run("good", "--help").output


def test_its_own_errors_pass_through(run):
    assert isinstance(run("good", "here", "--size", "-1").exception, InputError)


def test_help_lists_all_with_the_reason_of_those_that_cannot_run(run):
    shown = " ".join(run("--help").output.replace("│", " ").split())
    assert "good Make something." in shown
    for name in POINTS.keys() - {"good"}:
        assert f"{name} Unavailable: generator '{name}'" in shown
    assert "pip install 'egnn-md[systems]'" in shown  # the brackets are not taken for markup


@pytest.mark.parametrize(
    ("name", "kind", "text"),
    [
        ("absent", MissingDependencyError, "No module named 'egnn_md_systems.not_there'"),
        ("poor", MissingDependencyError, "No module named 'a_package_that_is_not_there'"),
        ("failing", ConfigError, "KeyError: 'some key'"),
        ("nameless", ConfigError, "AttributeError"),
        ("two", ConfigError, "must add one command, but added 2"),
    ],
)
@pytest.mark.parametrize("words", [[], ["somewhere", "--an-option", "3"], ["--help"]])
def test_one_that_cannot_be_loaded_says_why(run, name: str, kind: type, text: str, words: list[str]):
    error = run(name, *words).exception
    assert type(error) is kind
    assert text in str(error)
    assert POINTS[name] in str(error)


def test_an_unknown_name_is_refused(run):
    done = run("nothing")
    assert done.exit_code == 2
    assert "No such command" in done.output


def test_the_shipped_generators_are_declared():
    assert {"nbody", "adk", "liquid"} <= {point.name for point in entry_points(group=generate.GENERATOR_GROUP)}


def test_other_commands_do_not_load_generators(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: str) -> None:
        raise AssertionError("a generator was looked for")

    monkeypatch.setattr(generate, "entry_points", refuse)
    assert CliRunner().invoke(main.app, ["info", "--help"]).exit_code == 0
    assert CliRunner().invoke(main.app, ["--help"]).exit_code == 0
