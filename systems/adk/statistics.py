"""``python -m egnn_md_systems.adk.statistics RUN``: what a run of ``egnn-md generate adk`` shows, and how far ahead.

Temperature, distance from the start structure and size of the protein; then, for some strides, the root mean square
displacement of an atom and what trivial predictions miss of it. Å and fs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import mdtraj
import numpy as np
import typer

from egnn_md_systems.adk.blocks import read_blocks
from egnn_md_systems.adk.trajectory import read_run

STRIDES = (1, 2, 5, 10, 25, 50)  # frames


def missed(displacement: np.ndarray, velocities: np.ndarray, time: float) -> tuple[float, float, float]:
    """Errors of ``x + v · time``, and of ``x + a v · time`` with the best ``a``.

    Args:
        displacement: (T, N, 3).
        velocities: (T, N, 3) at the starts.
        time: of the stride.

    Returns:
        Root mean square error of an atom going straight on; the best ``a``, and the error with it.
    """
    step = velocities * time
    best = float((step * displacement).sum() / (step * step).sum())
    return _size(displacement - step), best, _size(displacement - best * step)


def _size(vectors: np.ndarray) -> float:
    """Root mean square length of vectors (..., 3)."""
    return float(np.sqrt((vectors**2).sum(axis=-1).mean()))


def main(run: Annotated[Path, typer.Argument(help="directory of egnn-md generate adk")]) -> None:
    """Print both tables as Markdown."""
    protein = read_run(run)
    assert protein.velocities is not None  # the generator stores them
    frames = mdtraj.Trajectory(protein.positions / 10, mdtraj.load_topology(str(run / "kept.pdb")))
    start = mdtraj.load(str(run / "kept.pdb"))
    distance = 10 * mdtraj.rmsd(frames, start)
    size = 10 * mdtraj.compute_rg(frames)
    interval = protein.frame_interval
    typer.echo(
        f"{len(protein)} frames, {interval:g} fs each; {read_blocks(run).temperatures.mean():.1f} K; from the start "
        f"structure {distance.min():.2f} to {distance.max():.2f} Å; radius of gyration {size.min():.2f} to "
        f"{size.max():.2f} Å\n\n| stride | stays still | linear, true velocity | linear, backward difference "
        "| best multiple of the true velocity | of the difference |\n| --- | --- | --- | --- | --- | --- |"
    )
    x = np.asarray(protein.positions, dtype=np.float64)
    velocities = np.asarray(protein.velocities, dtype=np.float64)
    for stride in STRIDES:
        if len(x) < stride + 2:
            break
        moved = x[1 + stride :] - x[1:-stride]
        true = missed(moved, velocities[1:-stride], stride * interval)
        backward = missed(moved, ((x[1:] - x[:-1]) / interval)[: len(moved)], stride * interval)
        typer.echo(
            f"| {stride * interval:g} fs | {_size(moved):.3f} Å | {true[0]:.3f} Å | {backward[0]:.3f} Å "
            f"| {true[1]:.2f}: {true[2]:.3f} Å | {backward[1]:.2f}: {backward[2]:.3f} Å |"
        )


if __name__ == "__main__":
    typer.run(main)
