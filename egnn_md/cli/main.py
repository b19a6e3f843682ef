"""The ``egnn-md`` command. Every subcommand is a file of its own beside this one."""

from __future__ import annotations

import sys

import typer

from egnn_md.cli import check, doctor, evaluate, generate, info, label, md, report, rollout, train
from egnn_md.errors import EgnnMdError

app = typer.Typer(
    name="egnn-md",
    help="Generate, label, train, check, run and look at FastEGNN simulations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _module in (generate, label, train, info, check, md, rollout, evaluate, report, doctor):
    _module.register(app)


def main() -> None:
    """Entry point: our own errors end in one readable line and exit code 2, all others keep their traceback."""
    try:
        app()
    except EgnnMdError as error:
        print(f"egnn-md: {type(error).__name__}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
