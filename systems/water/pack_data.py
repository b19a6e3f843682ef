"""``python -m egnn_md_systems.water.pack_data FILES --output packed.extxyz.xz``: labels in a form small enough to keep.

Positions are rounded to 1e-6 Å and forces to 1e-5 eV/Å (a stiff O-H bond of 50 eV/Å² turns the first into less than
1e-4 eV/Å); energies, cells and stresses keep what extended XYZ holds. Frames keep their order and their tags.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import ase.io
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from egnn_md.data.structures import read_frames

POSITION_DECIMALS = 6
FORCE_DECIMALS = 5


def packed(atoms: Atoms) -> Atoms:
    """Copy of a labelled structure with rounded positions and forces."""
    out = atoms.copy()
    out.positions = out.positions.round(POSITION_DECIMALS)
    results = dict(atoms.calc.results)
    results["forces"] = results["forces"].round(FORCE_DECIMALS)
    out.calc = SinglePointCalculator(out, **{k: results[k] for k in ("energy", "forces", "stress") if k in results})
    return out


def main(
    files: Annotated[list[Path], typer.Argument(help="label files")],
    output: Annotated[Path, typer.Option(help="compressed extended XYZ file (.extxyz.xz)")],
) -> None:
    """Pack label files into one compressed file."""
    frames = [packed(atoms) for path in files for atoms in read_frames(path)]
    ase.io.write(output, frames, format="extxyz")
    typer.echo(f"{len(frames)} structures in {output} ({output.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    typer.run(main)
