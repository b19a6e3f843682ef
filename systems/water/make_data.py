"""``python -m egnn_md_systems.water.make_data SET``: sample and label one of the water sets, resumable.

SET is ``boxes``, ``clusters``, ``test`` or ``visited`` (needs ``--model``). Each goes to its own extended XYZ file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms

from egnn_md_systems.labelling import label_set
from egnn_md_systems.water.structures import test_boxes, training_boxes, training_clusters
from egnn_md_systems.water.visited import visited_structures

METHOD = "gfn2-xtb"


def structures_of(name: str, model: str | None) -> Iterator[Atoms]:
    """The generator behind a set's name."""
    if name == "visited":
        if model is None:
            raise typer.BadParameter("the set 'visited' needs --model: whose dynamics is to be visited?")
        return visited_structures(model)
    sets = {"boxes": training_boxes, "clusters": training_clusters, "test": test_boxes}
    if name not in sets:
        raise typer.BadParameter(f"unknown set {name!r}; known: {', '.join([*sets, 'visited'])}")
    return sets[name]()


def main(
    name: Annotated[str, typer.Argument(metavar="SET", help="boxes, clusters, test or visited")],
    output: Annotated[Path, typer.Option(help="folder of the label files")] = Path("runs/water"),
    processes: Annotated[int, typer.Option(help="structures labelled at the same time")] = 2,
    model: Annotated[str | None, typer.Option(help="model whose dynamics is visited")] = None,
    limit: Annotated[int | None, typer.Option(help="stop after so many structures")] = None,
) -> None:
    """Sample and label one set; a second call goes on where the first was stopped."""
    label_set(name, structures_of(name, model), output, METHOD, processes=processes, limit=limit, every=20)


if __name__ == "__main__":
    typer.run(main)
