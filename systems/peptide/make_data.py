"""``python -m egnn_md_systems.peptide.make_data SET``: sample and label one of the peptide sets, resumable.

SET is ``singles``, ``dipeptides``, ``tripeptides``, ``pairs``, ``acids``; made of their label files ``stretched``,
``protons``, ``transfers``, ``parted``, ``protonated``, ``shaken`` and ``visited`` (needs ``--model``); or ``test``,
``test-singles``, ``chignolin``. Each goes to its own extended XYZ file.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms

from egnn_md_systems.labelling import label_set
from egnn_md_systems.peptide.structures import (
    chignolin_frames,
    test_sequences,
    test_singles,
    training_acids,
    training_dipeptides,
    training_pairs,
    training_parted,
    training_protonated,
    training_protons,
    training_shaken,
    training_singles,
    training_stretched,
    training_transfers,
    training_tripeptides,
)
from egnn_md_systems.peptide.visited import visited_structures

METHOD = "gfn2-xtb"
FROM_LABELS = {
    "stretched": training_stretched,
    "protons": training_protons,
    "transfers": training_transfers,
    "parted": training_parted,
    "protonated": training_protonated,
    "shaken": training_shaken,
}


def structures_of(name: str, model: str | None, folder: Path) -> Iterator[Atoms]:
    """The generator behind a set's name; sets made of other sets read their label files in ``folder``."""
    if name == "visited":
        if model is None:
            raise typer.BadParameter("the set 'visited' needs --model: whose dynamics is to be visited?")
        starts = ("tripeptides", "pairs", "transfers", "parted", "acids")
        return visited_structures(model, [folder / f"{part}.extxyz" for part in starts])
    if name in FROM_LABELS:
        parts = ("singles", "dipeptides", "tripeptides", "pairs")
        return FROM_LABELS[name]([folder / f"{part}.extxyz" for part in parts])
    sets = {
        "singles": training_singles,
        "dipeptides": training_dipeptides,
        "tripeptides": training_tripeptides,
        "pairs": training_pairs,
        "acids": training_acids,
        "test": test_sequences,
        "test-singles": test_singles,
        "chignolin": chignolin_frames,
    }
    if name not in sets:
        raise typer.BadParameter(f"unknown set {name!r}; known: {', '.join([*sets, *FROM_LABELS, 'visited'])}")
    return sets[name]()


def main(
    name: Annotated[str, typer.Argument(metavar="SET", help="one of the sets")],
    output: Annotated[Path, typer.Option(help="folder of the label files")] = Path("runs/peptide"),
    processes: Annotated[int, typer.Option(help="structures labelled at the same time")] = 2,
    model: Annotated[str | None, typer.Option(help="model whose dynamics is visited")] = None,
    limit: Annotated[int | None, typer.Option(help="stop after so many structures")] = None,
) -> None:
    """Sample and label one set; a second call goes on where the first was stopped."""
    label_set(name, structures_of(name, model, output), output, METHOD, processes=processes, limit=limit, every=100)


if __name__ == "__main__":
    typer.run(main)
