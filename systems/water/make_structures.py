"""Make the shipped starting boxes: ``python -m egnn_md_systems.water.make_structures``.

The force field only has to hand over an equilibrated liquid; the trained potential relaxes the rest.
OpenMM's dynamics is chaotic, so another processor gives another, equally good box from the same seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from ase import Atoms

from .sampling import BoxRun, force_field_trajectory

DENSITY = 0.997  # g/cm³, water at 298 K and 1 bar
EQUILIBRATION_PS = 20.0


def water_box(molecules: int, *, temperature: float = 300.0, seed: int = 64) -> Atoms:
    """Cubic box of liquid water at 0.997 g/cm³ after 20 ps of flexible TIP3P-FB, molecules whole.

    Atoms are ordered O, H, H; positions and cell are in Å, with every oxygen inside the cell.
    """
    run = BoxRun(molecules, temperature, DENSITY, perturb_force_field=False, seed=seed)
    last = EQUILIBRATION_PS - 1.0
    (atoms,) = force_field_trajectory(run, frames=1, stride_ps=1.0, equilibration_ps=last)
    oxygens = atoms.positions[::3]
    cells = np.floor(oxygens @ np.linalg.inv(atoms.cell.array)) @ atoms.cell.array
    atoms.positions -= np.repeat(cells, 3, axis=0)
    return atoms


def pdb_text(atoms: Atoms) -> str:
    """PDB of waters (residue HOH, atoms O, H1, H2) with the cell in CRYST1; no CONECT, HOH needs none."""
    a, b, c, alpha, beta, gamma = atoms.cell.cellpar()
    lines = [f"CRYST1{a:9.3f}{b:9.3f}{c:9.3f}{alpha:7.2f}{beta:7.2f}{gamma:7.2f} P 1           1"]
    for index, (symbol, (x, y, z)) in enumerate(zip(atoms.symbols, atoms.positions, strict=True)):
        name = ("O", "H1", "H2")[index % 3]
        lines.append(
            f"HETATM{index + 1:5d}  {name:<3} HOH A{index // 3 + 1:4d}    "
            f"{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00          {symbol:>2}"
        )
    return "\n".join([*lines, f"TER   {len(atoms) + 1:5d}      HOH A{len(atoms) // 3:4d}", "END", ""])


def main() -> None:
    """Write ``water<molecules>.pdb`` into the output folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--molecules", type=int, default=64)
    parser.add_argument("--temperature", type=float, default=300.0, help="K")
    parser.add_argument("--seed", type=int, default=64)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    atoms = water_box(options.molecules, temperature=options.temperature, seed=options.seed)
    path = options.output / f"water{options.molecules}.pdb"
    path.write_text(pdb_text(atoms), encoding="ascii")
    print(f"{path}: {options.molecules} molecules, cell {atoms.cell.lengths().round(3)} Å")


if __name__ == "__main__":
    main()
