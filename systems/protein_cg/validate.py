"""``python -m egnn_md_systems.protein_cg.validate``: the coarse-grained ensemble beside the all-atom one.

Independent chains run from the folded structure twice: with prior and network, and with the prior alone as the
control. The all-atom ensemble is the frames of the label files. A plot and a JSON file are written.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from numpy.typing import NDArray

from egnn_md import load_model
from egnn_md.data.structures import read_frames, read_labelled
from egnn_md.models import Potential
from egnn_md.training.metrics import measure_errors

from . import weights_path
from .chain import NUMBERS
from .dynamics import STRIDE, TIMESTEP, bead_system, shipped_prior, simulate
from .prior import SEPARATION
from .shapes import distances, fluctuations, gyration, mean_structure, overlap, superposed_rmsd

HERE = Path(__file__).resolve().parent
EQUILIBRATION = 0.1  #: part of each coarse-grained run that is left out


def reference_frames(files: Sequence[Path]) -> tuple[tuple[str, ...], NDArray[np.float64], list[str]]:
    """Residues, positions (frames, beads, 3) in Å and the run of each frame, from label files."""
    names = {number: name for name, number in NUMBERS.items()}
    frames = [atoms for path in files for atoms in read_frames(path)]
    runs = [str(atoms.info["block"]).split(" block")[0] for atoms in frames]
    return tuple(names[n] for n in frames[0].numbers), np.array([atoms.positions for atoms in frames]), runs


def compare(frames: NDArray[np.float64], reference: NDArray[np.float64], folded: NDArray[np.float64]) -> dict[str, Any]:
    """Figures of an ensemble beside those of the reference ensemble; lengths in Å."""
    rmsf, expected = fluctuations(frames), fluctuations(reference)
    rmsd = superposed_rmsd(frames, folded)
    size = gyration(frames)
    return {
        "rmsd_mean": float(rmsd.mean()),
        "rmsd_95": float(np.quantile(rmsd, 0.95)),
        "rmsd_last_fifth": float(rmsd[-len(rmsd) // 5 :].mean()),
        "rmsf": rmsf.tolist(),
        "rmsf_correlation": float(np.corrcoef(rmsf, expected)[0, 1]),
        "rmsf_rms_difference": float(np.sqrt(((rmsf - expected) ** 2).mean())),
        "gyration_mean": float(size.mean()),
        "gyration_std": float(size.std()),
        "distance_overlap": overlap(distances(frames, SEPARATION), distances(reference, SEPARATION)),
    }


def force_errors(model: Potential, files: Sequence[Path]) -> dict[str, float]:
    """Root mean square of the held-out mapped forces that prior, and prior with network, leave over (eV/Å).

    ``explained`` is the part of the variance, left over by the prior, that the network removes. The largest part is
    noise, that no function of the beads' positions can remove.
    """
    labelled = read_labelled(list(files), model.cutoff)
    errors = measure_errors(model, labelled.graphs, batch_size=256)
    left, without = errors["force_rmse"] / 1e3, errors["force_rms_reference"] / 1e3
    return {"prior": without, "prior and network": left, "explained": 1.0 - (left / without) ** 2}


def main(
    output: Annotated[Path, typer.Option(help="where the plot and the figures go")] = HERE,
    model: Annotated[str, typer.Option(help="model file or name")] = str(weights_path()),
    steps: Annotated[int, typer.Option(help=f"steps of {TIMESTEP:g} fs of each chain")] = 10_000,
    copies: Annotated[int, typer.Option(help="independent chains, with and without the network")] = 16,
    seed: Annotated[int, typer.Option(help="of velocities and noise")] = 1,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
) -> None:
    """Compare the shipped model's dynamics with the all-atom ensemble; writes validation.json and validation.png."""
    torch.set_num_threads(threads)
    potential = load_model(model)
    files = [HERE / "data" / f"{part}.extxyz.xz" for part in ("train", "test")]
    residues, reference, owner = reference_frames(files)
    folded = mean_structure(reference)
    ensembles = {"all-atom": {name: reference[np.array(owner) == name] for name in sorted(set(owner))}}
    speed = {}
    for name, network in (("prior and network", potential), ("prior alone", None)):
        system = bead_system(residues, shipped_prior(), network, copies=copies)
        run = simulate(system, reference[0], steps, seed)
        speed[name] = run.steps_per_second * TIMESTEP * 1e-6 * 86400
        kept = run.positions[:, int(EQUILIBRATION * run.positions.shape[1]) :]
        ensembles[name] = {f"chain {index + 1}": frames for index, frames in enumerate(kept)}
    figures: dict[str, Any] = {
        "steps": steps,
        "copies": copies,
        "timestep_fs": TIMESTEP,
        "frame_ps": STRIDE * TIMESTEP * 1e-3,
        "speed_ns_per_day": speed,
        "force_rms_held_out": force_errors(potential, files[1:]),
    }
    for name, parts in ensembles.items():
        together = np.concatenate(list(parts.values()))
        each = {part: compare(frames, reference, folded) for part, frames in parts.items()}
        figures[name] = {"all": compare(together, reference, folded), **each}
    (output / "validation.json").write_text(json.dumps(figures, indent=1) + "\n")
    plot(ensembles, residues, folded, output / "validation.png")
    for name in ensembles:
        values = figures[name]["all"]
        typer.echo(
            f"{name}: RMSD {values['rmsd_mean']:.2f} Å (95 %: {values['rmsd_95']:.2f}), RMSF correlation "
            f"{values['rmsf_correlation']:.2f}, difference {values['rmsf_rms_difference']:.2f} Å, Rg "
            f"{values['gyration_mean']:.2f} ± {values['gyration_std']:.2f} Å, overlap of distances "
            f"{values['distance_overlap']:.2f}"
        )


def plot(
    ensembles: dict[str, dict[str, NDArray[np.float64]]],
    residues: Sequence[str],
    folded: NDArray[np.float64],
    path: Path,
) -> None:
    """RMSD over the runs, RMSF a residue, and the distributions of the radius of gyration and the end distance."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2)
    for (name, parts), colour in zip(ensembles.items(), ("black", "tab:blue", "tab:orange"), strict=True):
        together = np.concatenate(list(parts.values()))
        for index, frames in enumerate(parts.values()):
            label = name if index == 0 else None
            part = np.linspace(0, 1, len(frames))
            axes[0, 0].plot(part, superposed_rmsd(frames, folded), colour, lw=0.5, alpha=0.7, label=label)
        axes[0, 1].plot(fluctuations(together), "o-", color=colour, label=name)
        for axis, values in (
            (axes[1, 0], gyration(together)),
            (axes[1, 1], np.linalg.norm(together[:, 0] - together[:, -1], axis=-1)),
        ):
            axis.hist(values, bins=60, density=True, histtype="step", color=colour, label=name)
    axes[0, 0].set(xlabel="part of the run", ylabel="RMSD to the mean all-atom structure (Å)")
    axes[0, 1].set(ylabel="RMSF (Å)")
    axes[0, 1].set_xticks(range(len(residues)), [f"{name}{i + 1}" for i, name in enumerate(residues)], rotation=60)
    axes[1, 0].set(xlabel="radius of gyration (Å)", ylabel="density")
    axes[1, 1].set(xlabel="distance between the ends (Å)", ylabel="density")
    axes[0, 0].legend()
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    typer.run(main)
