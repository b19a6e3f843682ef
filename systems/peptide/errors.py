"""``python -m egnn_md_systems.peptide.errors MODEL FILES``: errors by number of residues and by residue."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from ase import Atoms

from egnn_md.data.structures import graph_from_atoms, read_frames
from egnn_md.models.evaluate import evaluate
from egnn_md_systems.peptide.builder import NEUTRAL, build, sequence_of


@cache
def residue_of_atoms(states: str) -> tuple[str, ...]:
    """State (``ACE``, ``ALA``, ``ASH`` ...) that each atom of a structure belongs to, molecules joined by ``+``."""
    out: list[str] = []
    for letters, names in zip(sequence_of(states).split("+"), states.split("+"), strict=True):
        chosen = dict(enumerate(names.split("-")))
        peptide = build(letters, states={k: s for k, s in chosen.items() if s != NEUTRAL[letters[k]]})
        labels = ("ACE", *chosen.values(), "NME")
        out += [labels[atom.residue.index] for atom in peptide.topology.atoms()]
    return tuple(out)


@dataclass
class Errors:
    """Squares that were seen; energies in eV an atom, forces in eV/Å."""

    structures: int = 0
    energy: list[float] = field(default_factory=list)
    forces: list[np.ndarray] = field(default_factory=list)
    reference: list[np.ndarray] = field(default_factory=list)

    def row(self) -> dict[str, float]:
        """Force RMSE and RMS (meV/Å), energy RMSE after the mean offset, and that offset (meV/atom)."""
        errors = np.concatenate([part.ravel() for part in self.forces])
        reference = np.concatenate([part.ravel() for part in self.reference])
        out = {
            "force_rmse": 1e3 * float(np.sqrt(np.mean(errors**2))),
            "force_rms": 1e3 * float(np.sqrt(np.mean(reference**2))),
        }
        if self.energy:
            energy = 1e3 * np.array(self.energy)
            out |= {"energy_rmse": float(energy.std()), "energy_offset": float(energy.mean())}
        return out


def measure(model: Any, frames: Sequence[Atoms]) -> tuple[Mapping[str, Errors], Mapping[str, Errors]]:
    """Errors by size (``"3"`` residues, ``"1+1"`` for a pair) and by residue state."""
    sizes: defaultdict[str, Errors] = defaultdict(Errors)
    residues: defaultdict[str, Errors] = defaultdict(Errors)
    for atoms in frames:
        found = evaluate(model, graph_from_atoms(atoms, model.cutoff))
        reference = atoms.get_forces()
        difference = found["forces"].detach().numpy() - reference
        states = str(atoms.info["states"])
        size = sizes["+".join(str(len(word.split("-"))) for word in states.split("+"))]
        size.structures += 1
        size.energy.append((float(found["energy"]) - atoms.get_potential_energy()) / len(atoms))
        size.forces.append(difference)
        size.reference.append(reference)
        names = np.array(residue_of_atoms(states))
        for name in sorted(set(names)):
            part = residues[name]
            part.structures += 1
            part.forces.append(difference[names == name])
            part.reference.append(reference[names == name])
    return dict(sizes), dict(residues)


def main(
    model: Annotated[str, typer.Argument(help="name or path of a potential")],
    files: Annotated[list[Path], typer.Argument(help="label files of this system")],
) -> None:
    """Print both tables in Markdown."""
    from egnn_md import load_model

    frames = [atoms for path in files for atoms in read_frames(path)]
    sizes, residues = measure(load_model(model), frames)
    typer.echo("| residues | structures | force RMSE, meV/Å | force RMS, meV/Å | energy RMSE (offset), meV/atom |")
    typer.echo("| --- | --- | --- | --- | --- |")
    for name in sorted(sizes, key=lambda text: sum(map(int, text.split("+")))):
        row = sizes[name].row()
        energy = f"{row['energy_rmse']:.2f} ({row['energy_offset']:+.2f})"
        line = f"{sizes[name].structures} | {row['force_rmse']:.1f} | {row['force_rms']:.0f} | {energy}"
        typer.echo(f"| {name} | {line} |")
    typer.echo("\n| residue | structures | force RMSE, meV/Å | force RMS, meV/Å |\n| --- | --- | --- | --- |")
    for name in sorted(residues):
        row = residues[name].row()
        typer.echo(f"| {name} | {residues[name].structures} | {row['force_rmse']:.1f} | {row['force_rms']:.0f} |")


if __name__ == "__main__":
    typer.run(main)
