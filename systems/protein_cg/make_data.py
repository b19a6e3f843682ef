"""``python -m egnn_md_systems.protein_cg.make_data``: all-atom runs to a force map, a prior and label files.

The labels are mapped forces minus the prior's: what the network has to add. Force matching knows no energies, so the
files say 0 for each, and training gives energies no weight.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ase.io
import h5py
import numpy as np
import typer
from ase.calculators.singlepoint import SinglePointCalculator
from numpy.typing import NDArray

from egnn_md.errors import InputError

from .all_atom import STRIDE, TEMPERATURE, TIMESTEP, alphas, build
from .chain import bead_atoms
from .mapping import ForceMap, basic_map, constraint_groups, quietest_map, residue_map
from .prior import Prior, fit_prior

EQUILIBRATED_PS = 50.0  #: of each run's clock; earlier frames are left out
BLOCK_PS = 10.0  #: consecutive frames of a run that stay on one side of every split
LAGS = (1, 2, 3, 5, 10, 25, 100)  # frames; how soon the labels' noise is forgotten
TEACHER = "ff14SB with GBSA-OBC2, 300 K, C-alpha mean force minus the prior"


@dataclass(frozen=True)
class Beads:
    """All runs as beads.

    Attributes:
        residues: three-letter names.
        prior: fitted to the runs that are not held out.
        positions: (frames, beads, 3), Å.
        forces: (frames, beads, 3), eV/Å, mapped.
        run: (frames,) number of the run.
        block: (frames,) name of the block of time within its run.
        force_map: that gave the forces.
        atoms: OpenMM's, of the all-atom topology.
        rms: of the mapped force components of the run held out, by the three maps, eV/Å.
    """

    residues: tuple[str, ...]
    prior: Prior
    positions: NDArray[np.float64]
    forces: NDArray[np.float64]
    run: NDArray[np.int64]
    block: NDArray[np.int64]
    force_map: ForceMap
    atoms: list[Any]
    rms: dict[str, float]


def read_runs(folder: str | Path, held_out: int) -> Beads:
    """Map every run in ``folder``; prior and force map are fitted to all runs but the one held out.

    Raises:
        InputError: there are no runs, or not the one to hold out and another.
    """
    folder = Path(folder)
    files = sorted(folder.glob("run-*.h5"))
    if not files or not (folder / "all_atom.pdb").exists():
        raise InputError(f"no run-*.h5 with all_atom.pdb in {folder}; make them with {__package__}.all_atom")
    numbers = [int(path.stem.split("-")[1]) for path in files]
    if held_out not in numbers or len(numbers) < 2:
        raise InputError(f"run {held_out} is to be held out and others learnt from, but {folder} has runs {numbers}")
    made = build(folder / "all_atom.pdb")
    constraints = [made.system.getConstraintParameters(i)[:2] for i in range(made.system.getNumConstraints())]
    groups = constraint_groups(len(made.positions), constraints)
    beads = alphas(made.topology)
    owner = np.array([atom.residue.index for atom in made.topology.atoms()])
    positions, forces, run, block = [], [], [], []
    for number, path in zip(numbers, files, strict=True):
        with h5py.File(path, "r") as file:
            time = np.asarray(file["time"])
            kept = time > EQUILIBRATED_PS
            positions.append(np.asarray(file["positions"][kept][:, beads], dtype=np.float64))
            forces.append(np.asarray(file["forces"][kept]))
            block.append((time[kept] // BLOCK_PS).astype(np.int64))
        run.append(np.full(len(forces[-1]), number))
    everything = np.concatenate(forces)
    learnt = np.concatenate(run) != held_out
    beads_at = np.concatenate(positions)
    prior = fit_prior(beads_at[learnt], TEMPERATURE)
    maps = {
        "own group": basic_map(beads, groups),
        "residue": residue_map(beads, groups, owner),
        "quietest": quietest_map(beads, groups, everything[learnt], prior.forces(beads_at[learnt])),
    }
    mapped = {name: chosen.forces(everything) for name, chosen in maps.items()}
    return Beads(
        residues=tuple(residue.name for residue in made.topology.residues()),
        prior=prior,
        positions=beads_at,
        forces=mapped["quietest"],
        run=np.concatenate(run),
        block=np.concatenate(block),
        force_map=maps["quietest"],
        atoms=list(made.topology.atoms()),
        rms={name: _rms(values[~learnt]) for name, values in mapped.items()},
    )


def thinned(run: NDArray[np.int64], every: int) -> NDArray[np.bool_]:
    """Which frames to label: the first of each run and every so many after it; neighbours in time say the same."""
    chosen = np.zeros(len(run), dtype=bool)
    for number in np.unique(run):
        chosen[np.flatnonzero(run == number)[::every]] = True
    return chosen


def autocorrelation(forces: NDArray[np.float64], lag: int) -> float:
    """Of forces (frames, beads, 3) about their means, ``lag`` frames apart; 1 without a lag."""
    about = forces - forces.mean(0)
    return float((about[: len(about) - lag] * about[lag:]).mean() / (about**2).mean())


def label(beads: Beads, chosen: NDArray[np.bool_]) -> list[Any]:
    """ASE atoms with the mapped force minus the prior's, for the chosen frames."""
    frames: list[Any] = []
    rest = beads.forces[chosen] - beads.prior.forces(beads.positions[chosen])
    for positions, forces, run, block in zip(
        beads.positions[chosen], rest, beads.run[chosen], beads.block[chosen], strict=True
    ):
        atoms = bead_atoms(beads.residues, positions.round(4))
        atoms.info.update(teacher=TEACHER, block=f"run {run} block {block}")
        atoms.set_masses(None)  # a force does not know them; they are in chain.MASSES
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=forces.round(4))
        frames.append(atoms)
    return frames


def main(
    source: Annotated[Path, typer.Option(help="folder of the all-atom runs")] = Path("runs/protein_cg"),
    output: Annotated[Path, typer.Option(help="where data/ and prior.json go")] = Path("systems/protein_cg"),
    held_out: Annotated[int, typer.Option(help="number of the run that is the test set")] = 3,
    every: Annotated[int, typer.Option(min=1, help="label one frame in so many; prior and map are fitted to all")] = 5,
) -> None:
    """Write data/train.extxyz.xz, data/test.extxyz.xz, prior.json and force_map.json."""
    beads = read_runs(source, held_out)
    learnt = beads.run != held_out
    labelled = thinned(beads.run, every)
    beads.prior.save(output / "prior.json")
    (output / "data").mkdir(exist_ok=True)
    for name, chosen in (("train", learnt), ("test", ~learnt)):
        ase.io.write(output / "data" / f"{name}.extxyz.xz", label(beads, chosen & labelled), format="extxyz")
    names = [f"{atom.residue.name}{atom.residue.id}:{atom.name}" for atom in beads.atoms]
    rest = (beads.forces - beads.prior.forces(beads.positions))[~learnt]
    frame_ps = STRIDE * TIMESTEP * 1e-3
    report = {
        "frames": {str(run): int((beads.run == run).sum()) for run in np.unique(beads.run)},
        "labelled": {str(run): int((labelled & (beads.run == run)).sum()) for run in np.unique(beads.run)},
        "force_rms_eV_per_A": {**beads.rms, "quietest minus prior": _rms(rest)},
        "autocorrelation": {f"{lag * frame_ps:g} ps": round(autocorrelation(rest, lag), 3) for lag in LAGS},
        "residues": list(beads.residues),
        "atoms": names,
        "coefficients": np.round(beads.force_map.by_atom, 4).tolist(),
    }
    (output / "force_map.json").write_text(json.dumps(report) + "\n")
    shown = ("frames", "labelled", "force_rms_eV_per_A", "autocorrelation")
    typer.echo(json.dumps({key: report[key] for key in shown}, indent=1))


def _rms(values: NDArray[np.float64]) -> float:
    return float(np.sqrt((values**2).mean()))


if __name__ == "__main__":
    typer.run(main)
