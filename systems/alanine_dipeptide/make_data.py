"""``python -m egnn_md_systems.alanine_dipeptide.make_data SET``: sample and label one of the sets, resumable.

SET is ``plain``, ``grid``, ``stiff``, ``omega``, ``test`` or ``visited`` (needs ``--model``). Each goes to its own
extended XYZ file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms

from egnn_md_systems.labelling import label_set

from .structures import grid_structures, omega_structures, plain_structures, stiff_structures, test_structures

METHOD = "gfn2-xtb"
SETS: dict[str, Callable[[], Iterator[Atoms]]] = {
    "plain": plain_structures,
    "grid": grid_structures,
    "stiff": stiff_structures,
    "omega": omega_structures,
    "test": test_structures,
}


def structures_of(name: str, model: str | None) -> Iterator[Atoms]:
    """The generator behind a set's name."""
    if name == "visited":
        from .visited import visited_structures

        if model is None:
            raise typer.BadParameter("the set 'visited' needs --model: whose dynamics is to be visited?")
        return visited_structures(model)
    if name not in SETS:
        raise typer.BadParameter(f"unknown set {name!r}; known: {', '.join([*SETS, 'visited'])}")
    return SETS[name]()


def main(
    name: Annotated[str, typer.Argument(metavar="SET", help="plain, grid, stiff, omega, test or visited")],
    output: Annotated[Path, typer.Option(help="folder of the label files")] = Path("runs/alanine_dipeptide"),
    processes: Annotated[int, typer.Option(help="structures labelled at the same time")] = 2,
    model: Annotated[str | None, typer.Option(help="model whose dynamics is visited")] = None,
    limit: Annotated[int | None, typer.Option(help="stop after so many structures")] = None,
) -> None:
    """Sample and label one set; a second call goes on where the first was stopped."""
    label_set(name, structures_of(name, model), output, METHOD, processes=processes, limit=limit, every=200)


if __name__ == "__main__":
    typer.run(main)
