"""The ``egnn-md`` command. Every subcommand is a file of its own beside this one, or a plug-in.

An entry point of the group ``egnn_md.commands`` names a function ``register(app: typer.Typer)`` that adds a subcommand
under the entry point's name. One that cannot be loaded raises the reason when it is called, and only then.
"""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any, NoReturn

import typer

from egnn_md.cli import (
    check,
    committee,
    doctor,
    evaluate,
    generate,
    info,
    label,
    learn,
    md,
    report,
    rollout,
    train,
    validate,
)
from egnn_md.errors import ConfigError, EgnnMdError, MissingDependencyError

COMMAND_GROUP = "egnn_md.commands"

app = typer.Typer(
    name="egnn-md",
    help="Generate, label, train, check, run and look at FastEGNN simulations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _module in (generate, label, train, committee, learn, info, check, md, validate, rollout, evaluate, report, doctor):
    _module.register(app)


def register_plugin(app: typer.Typer, point: EntryPoint) -> None:
    """Add the subcommand of a plug-in to ``app``; a stand-in that raises the reason if it cannot be loaded."""
    try:
        point.load()(app)
    except Exception as error:  # a plug-in may fail in any way; it must not take the others along
        kind = MissingDependencyError if isinstance(error, ImportError) else ConfigError
        reason = kind(f"the subcommand {point.name!r} ({point.value}) cannot be loaded: {error}")
        reason.__cause__ = error

        def fail(_: typer.Context) -> NoReturn:
            raise reason

        settings: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}
        app.command(point.name, help="Unavailable.", context_settings=settings)(fail)


for _point in sorted(entry_points(group=COMMAND_GROUP)):
    register_plugin(app, _point)


def main() -> None:
    """Entry point: our own errors end in one readable line and exit code 2, all others keep their traceback."""
    try:
        app()
    except EgnnMdError as error:
        print(f"egnn-md: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
