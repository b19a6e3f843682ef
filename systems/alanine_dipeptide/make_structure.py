"""Make the shipped starting structure: ``python -m egnn_md_systems.alanine_dipeptide.make_structure``.

C7eq of the reference method itself, so that every engine begins at a minimum of what the model imitates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from ase import Atoms
from ase.optimize import BFGS

from egnn_md.data.calculators import make_calculator

from .molecule import C7EQ, PHI, PSI, build, dihedral, topology

METHOD = "gfn2-xtb"
FORCE_LIMIT = 0.001  # eV/Å


def relaxed(phi: float, psi: float) -> Atoms:
    """The minimum of the reference method next to these angles (degrees), its centre of mass at the origin."""
    atoms = build(phi, psi)
    atoms.calc = make_calculator(METHOD)
    BFGS(atoms, logfile=None).run(fmax=FORCE_LIMIT, steps=1000)
    atoms.positions -= atoms.get_center_of_mass()
    return atoms


def main(output: Annotated[Path, typer.Option(help="folder")] = Path(__file__).parent) -> None:
    """Write ``alanine_dipeptide.pdb``."""
    from openmm import app

    atoms = relaxed(*C7EQ)
    path = output / "alanine_dipeptide.pdb"
    with path.open("w", encoding="ascii") as file:
        app.PDBFile.writeFile(topology(), atoms.positions, file, keepIds=True)
    phi, psi = dihedral(atoms.positions, PHI), dihedral(atoms.positions, PSI)
    typer.echo(f"{path}: {atoms.get_potential_energy():.4f} eV, phi {phi:.1f}, psi {psi:.1f} degrees")


if __name__ == "__main__":
    typer.run(main)
