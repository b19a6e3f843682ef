"""``egnn-md committee``: several potentials as one model file whose members can disagree."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    """Add the subcommand to ``app``."""
    app.command("committee")(command)


def command(
    models: Annotated[
        list[str], typer.Argument(help="Model files of one training with several seeds (or names of models).")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Model file to write, .safetensors.")],
    name: Annotated[str, typer.Option(help="For the model card.")] = "",
    description: Annotated[str, typer.Option(help="For the model card.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Put potentials of several seeds together: one file that runs like any model and knows where it is unsure.

    Examples:

      egnn-md committee seed-0/model.safetensors seed-1/model.safetensors -o committee.safetensors

      egnn-md md molecule.pdb --model committee.safetensors --max-uncertainty 0.5 --steps 10000 --output runs/watched

    Energy and forces are the members' mean. Members know the same elements, units and reference method.
    """
    from rich.console import Console

    from egnn_md.checkpoint import save_model
    from egnn_md.errors import InputError
    from egnn_md.models.committee import make_committee

    if output.exists() and not overwrite:
        raise InputError(f"--output {output} exists; give another file, or --overwrite")
    committee = make_committee(models, name=name, description=description)
    save_model(committee, output)
    Console().print(f"{committee.count} members: {output}", highlight=False, soft_wrap=True)
