"""Labelling one of a system's sets from the command line, in a file that a second call goes on with."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import typer
from ase import Atoms

from egnn_md.data.labelling import LabelSummary, label


def label_set(
    name: str,
    structures: Iterator[Atoms],
    folder: Path,
    method: str,
    *,
    processes: int = 1,
    limit: int | None = None,
    every: int = 100,
) -> LabelSummary:
    """Label ``structures`` into ``folder/NAME.extxyz`` and say how far it is.

    Args:
        name: of the set.
        structures: the same ones in the same order in every call; those with a label are passed over.
        folder: it is made.
        method: the reference method.
        processes: structures labelled at the same time.
        limit: take so many structures only.
        every: labels from one line of progress to the next.

    Raises:
        See :func:`egnn_md.data.labelling.label`.
    """

    def progress(summary: LabelSummary) -> None:
        if (summary.labelled + summary.failed) % every == 0:
            typer.echo(f"{name}: {summary.labelled} labelled, {summary.failed} failed", err=True)

    folder.mkdir(parents=True, exist_ok=True)
    found = label(
        islice(structures, limit), folder / f"{name}.extxyz", method, processes=processes, progress=progress
    )
    typer.echo(f"{name}: {found.labelled} labelled, {found.skipped} there already, {found.failed} failed")
    return found
