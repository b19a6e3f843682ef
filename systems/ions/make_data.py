"""``python -m egnn_md_systems.ions.make_data SET``: sample and label one set; a second call goes on.

SET is ``pairs``, ``pairs-near`` (charges at most 9 Å apart), ``pairs-test``, ``salt-water``, ``salt-water-test`` (other
runs), ``salt-water-large`` (a cell of twice the volume) or ``water-boxes`` (the periodic ones among the labels of
:mod:`egnn_md_systems.water`, which are only copied).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ase.io
import typer
from ase import Atoms

from egnn_md.data.labelling import label
from egnn_md.data.structures import read_frames
from egnn_md_systems.ions import pairs, salt_water

NEAR = 9.0  # Å


def structures_of(name: str, start: Path) -> Iterator[Atoms]:
    """The generator behind a set's name; ``start`` is a file of both molecules."""
    if name == "pairs":
        return pairs.structures(800, 10, start)
    if name == "pairs-near":
        return (atoms for atoms in pairs.structures(1600, 20, start) if atoms.info["distance"] <= NEAR)
    if name == "pairs-test":
        return pairs.structures(200, 30, start)
    if name == "salt-water":
        return salt_water.structures(16, 20, seed=1000)
    if name == "salt-water-test":
        return salt_water.structures(4, 10, seed=5000)
    if name == "salt-water-large":
        sizes = {"waters": 2 * salt_water.WATERS, "pairs": 2 * salt_water.PAIRS}
        return salt_water.structures(2, 10, seed=7000, **sizes)
    raise typer.BadParameter(f"unknown set {name!r}")


def main(
    name: Annotated[str, typer.Argument(metavar="SET", help="see above")],
    output: Annotated[Path, typer.Option(help="folder of the label files")] = Path("runs/ions"),
    processes: Annotated[int, typer.Option(help="structures labelled at the same time")] = 1,
) -> None:
    """Sample and label one set."""
    output.mkdir(parents=True, exist_ok=True)
    if name == "water-boxes":
        source = Path(__file__).parent.parent / "water" / "data" / "train.extxyz.xz"
        boxes = [atoms for atoms in read_frames(source) if atoms.pbc.all()]
        ase.io.write(output / f"{name}.extxyz", boxes, format="extxyz")
        typer.echo(f"{name}: {len(boxes)} copied")
        return
    # molecules guessed from distances would bond sodium to its waters
    kind = "pair" if name.startswith("pairs") else "large" if name.endswith("large") else "salt-water"
    topology = output / f"{kind}.pdb"
    if not topology.exists():
        if kind == "pair":
            pairs.write_topology(topology)
        else:
            times = 2 if kind == "large" else 1
            salt_water.write_topology(topology, times * salt_water.WATERS, times * salt_water.PAIRS)
    files = [pairs.FORCE_FIELD if kind == "pair" else salt_water.FORCE_FIELD]
    options: dict[str, Any] = {"forcefield": files, "topology": str(topology)}
    found = label(
        structures_of(name, topology), output / f"{name}.extxyz", "openmm", options=options, processes=processes
    )
    typer.echo(f"{name}: {found.labelled} labelled, {found.skipped} there already, {found.failed} failed")


if __name__ == "__main__":
    typer.run(main)
