"""``egnn-md generate NAME``: makes data sets; the generators are plug-ins of the group ``egnn_md.generators``.

An entry point names a function ``register(app: typer.Typer)`` that adds one command. It is loaded when its command
is called or listed, so the other subcommands of ``egnn-md`` never pay for it. One that cannot be loaded stays in the
list with the reason, and calling it raises the error.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

import typer
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup
from typer.main import get_command

from egnn_md.errors import ConfigError, EgnnMdError, MissingDependencyError

GENERATOR_GROUP = "egnn_md.generators"


def load_generator(point: EntryPoint) -> TyperCommand:
    """The command of a plug-in.

    Raises:
        MissingDependencyError: its module, or one that it imports, is not installed.
        ConfigError: the plug-in is broken.
    """
    place = f"generator {point.name!r} ({point.value})"
    try:
        register = point.load()
        app = typer.Typer(add_completion=False)
        register(app)
        if len(app.registered_commands) != 1 or app.registered_groups:
            raise ConfigError(f"{place} must add one command, but added {len(app.registered_commands)}")
        loaded = get_command(app)
    except EgnnMdError:
        raise
    except ImportError as error:
        raise MissingDependencyError(
            f"{place} cannot be imported ({error}); install what it needs: pip install 'egnn-md[systems]'"
        ) from error
    except Exception as error:  # a plug-in may fail in any way; it must not take the others along
        raise ConfigError(f"{place} is broken: {type(error).__name__}: {error}") from error
    assert isinstance(loaded, TyperCommand)  # what Typer makes of an app with one command
    return loaded


class GeneratorGroup(TyperGroup):
    """The commands are the installed entry points (``ctx`` is click's context; Typer may bring its own click)."""

    def _points(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=GENERATOR_GROUP)}

    def list_commands(self, ctx: Any) -> list[str]:
        """Names, sorted."""
        return sorted(self._points())

    def get_command(self, ctx: Any, cmd_name: str) -> TyperCommand | None:
        """The command; a stand-in that raises the reason if it cannot be loaded; None if there is no such name."""
        point = self._points().get(cmd_name)
        if point is None:
            return None
        try:
            command = load_generator(point)
        except EgnnMdError as error:
            return _stand_in(cmd_name, error)
        command.name = cmd_name
        return command


def _stand_in(name: str, error: EgnnMdError) -> TyperCommand:
    def fail(*_: Any) -> NoReturn:
        raise error

    settings = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}
    return TyperCommand(name, callback=fail, help=f"Unavailable: {escape(str(error))}", context_settings=settings)


def register(app: typer.Typer) -> None:
    """Add the sub-app to ``app``."""
    generators = typer.Typer(cls=GeneratorGroup, no_args_is_help=True)

    @generators.callback()
    def describe() -> None:
        """Make the data set of a system."""

    app.add_typer(generators, name="generate")
