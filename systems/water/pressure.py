"""``python -m egnn_md_systems.water.pressure RUN --frames 10,40``: the model's pressure beside its teacher's.

Both on the same frames of a run of ``egnn-md md``: virial part from each method's stress, ideal part N k T / V.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import mdtraj
import typer
from ase import Atoms

from egnn_md.data.calculators import make_calculator
from egnn_md.units import BOLTZMANN_EV_PER_K, GPA_PER_EV_PER_CUBIC_ANGSTROM
from egnn_md_ase import FastEGNNCalculator

METHOD = "gfn2-xtb"
ANGSTROM_PER_NM = 10.0  # mdtraj's lengths


def main(
    run: Annotated[Path, typer.Argument(help="run directory with a DCD trajectory")],
    frames: Annotated[str, typer.Option(help="frame numbers, comma between; negative ones count from the end")] = "-1",
    model: Annotated[str, typer.Option(help="name or path")] = "water",
    temperature: Annotated[float, typer.Option(help="K, of the ideal part")] = 300.0,
) -> None:
    """Print both pressures (GPa) of some frames."""
    trajectory = mdtraj.load(run / "trajectory.dcd", top=run / "topology.pdb")
    numbers = [atom.element.number for atom in trajectory.topology.atoms]
    for frame in (int(word) for word in frames.split(",")):
        atoms = Atoms(
            numbers,
            trajectory.xyz[frame] * ANGSTROM_PER_NM,
            cell=trajectory.unitcell_vectors[frame] * ANGSTROM_PER_NM,
            pbc=True,
        )
        ideal = len(atoms) * BOLTZMANN_EV_PER_K * temperature / atoms.get_volume()
        found = []
        for calculator in (FastEGNNCalculator(model), make_calculator(METHOD)):
            atoms.calc = calculator
            found.append((ideal - atoms.get_stress()[:3].mean()) * GPA_PER_EV_PER_CUBIC_ANGSTROM)
        own, teacher = found
        typer.echo(f"frame {frame}: {model} {own:.3f} GPa, {METHOD} {teacher:.3f} GPa")


if __name__ == "__main__":
    typer.run(main)
