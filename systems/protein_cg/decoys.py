"""``python -m egnn_md_systems.protein_cg.decoys``: chains far from all that was simulated, and nothing to add there.

Force matching tells a network about the places that the all-atom runs visited, and nothing about any other. Just
beyond them it extrapolates, and where that makes a hollow the chain unfolds into it. Decoys are shapes that the prior
visits at several temperatures (or the prior with an earlier network), further from the folded structure than nearly all
all-atom frames. Their label is zero: where nothing is known, the prior rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import ase.io
import numpy as np
import typer
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from egnn_md import load_model

from .chain import bead_atoms
from .dynamics import bead_system, shipped_prior, simulate
from .shapes import mean_structure, superposed_rmsd
from .validate import HERE, reference_frames

TEMPERATURES = (300.0, 450.0, 600.0)
ROUNDS = 3
STEPS = 4000  # of 10 fs, of each chain
COPIES = 16
BEYOND = 0.99  # of the all-atom frames are nearer to the folded structure than a decoy
TEACHER = "decoy: nothing to add to the prior"


def far_frames(
    residues: tuple[str, ...],
    start: NDArray[np.floating],
    folded: NDArray[np.floating],
    limit: float,
    seed: int,
    network: Any = None,
) -> Iterator[NDArray[np.float64]]:
    """(beads, 3) in Å of frames of chains whose RMSD to ``folded`` is beyond ``limit`` (Å)."""
    system = bead_system(residues, shipped_prior(), network, copies=COPIES)
    for number, temperature in enumerate(TEMPERATURES * ROUNDS):
        frames = simulate(system, start, STEPS, seed + number, temperature=temperature).positions
        together = frames.reshape(-1, *frames.shape[-2:])
        yield from together[superposed_rmsd(together, folded) > limit]


def main(
    output: Annotated[Path, typer.Option(help="file")] = HERE / "data" / "decoys.extxyz.xz",
    model: Annotated[str | None, typer.Option(help="earlier network whose runs are taken, too")] = None,
    count: Annotated[int, typer.Option(min=1, help="decoys of each kind of run")] = 1000,
    seed: Annotated[int, typer.Option(help="of runs and choice")] = 1,
) -> None:
    """Write decoys of the prior's runs, and of those of an earlier model."""
    residues, reference, _ = reference_frames([HERE / "data" / "train.extxyz.xz"])
    folded = mean_structure(reference)
    limit = float(np.quantile(superposed_rmsd(reference, folded), BEYOND))
    rng = np.random.default_rng(seed)
    written: list[Atoms] = []
    for network in (None, *((load_model(model),) if model else ())):
        frames = np.array(list(far_frames(residues, reference[0], folded, limit, seed, network)))
        chosen = rng.permutation(len(frames))[:count]
        for positions in frames[chosen]:
            atoms = bead_atoms(residues, (positions - positions.mean(0)).round(4))
            # each a block of its own: few of those that are chosen are neighbours in time
            atoms.info.update(teacher=TEACHER, block=f"decoy {len(written)}")
            atoms.set_masses(None)
            atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros_like(positions))
            written.append(atoms)
        of = "the prior" if network is None else model
        typer.echo(f"{len(chosen)} of {len(frames)} frames beyond {limit:.2f} Å, of {of}")
    ase.io.write(output, written, format="extxyz")


if __name__ == "__main__":
    typer.run(main)
