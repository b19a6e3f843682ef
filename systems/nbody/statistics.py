"""``python -m egnn_md_systems.nbody.statistics``: what the published law conserves, its chaos, and trivial predictions.

Systems of the test part of seed 0, simulated anew from their start states. Medians are over systems.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
import typer

from egnn_md.data.trajectories import PARTS
from egnn_md_systems.nbody.dataset import WARM_UP
from egnn_md_systems.nbody.physics import energies, simulate, starting_states

PARTICLES, FRAMES, START, END = 100, 42, 30, 40
MOVED = 1e-15  # relative change of a start


def main(
    systems: Annotated[int, typer.Option(help="how many")] = 2000,
    threads: Annotated[int, typer.Option(help="cores")] = 1,
) -> None:
    """Print the figures."""
    keys = [(PARTS.index("test"), number) for number in range(systems)]
    start, speed, charges = starting_states(PARTICLES, keys, 0)

    def run(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return simulate(positions, speed, charges, FRAMES, warm_up=WARM_UP, threads=threads)

    x, v = run(start)
    energy = energies(x[:, [0, -1]], v[:, [0, -1]], charges[:, None])
    change = np.median(np.abs(energy[:, -1] / energy[:, 0] - 1))
    momentum = np.median(np.linalg.norm(v[:, -1].sum(axis=1) - v[:, 0].sum(axis=1), axis=1))
    typer.echo(
        f"{systems} systems: energy changes by {100 * change:.0f} %, momentum by {momentum:.2g} in {FRAMES} frames"
    )
    apart = run(start * (1 + MOVED))[0] - x
    distance = np.linalg.norm(apart, axis=-1)  # (S, T, N)
    for frame in (10, 20, FRAMES - 1):
        typer.echo(
            f"start moved by {MOVED:g}, frame {frame}: worst particle {np.median(distance[:, frame].max(axis=1)):.1g}, "
            f"median particle {np.median(distance[:, frame]):.1g}, mean square {(apart[:, frame] ** 2).mean():.1g}"
        )
    rounded, _ = simulate(
        x[:, START].astype(np.float32), v[:, START].astype(np.float32), charges, END - START + 1, threads=threads
    )
    error = ((rounded[:, -1] - x[:, END]) ** 2).mean()
    typer.echo(f"frame {START} rounded to float32: mean square at frame {END} {error:.1g}")
    moved, time = x[:, END] - x[:, START], 0.1 * (END - START)
    best = float((moved * v[:, START]).sum() / (v[:, START] ** 2).sum())
    tuned = f"linear with the best single time, {best:.2f}"
    for name, factor in (("stay still", 0.0), ("linear", time), (tuned, best)):
        each = ((moved - factor * v[:, START]) ** 2).mean(axis=(1, 2))
        typer.echo(f"{name}: MSE {100 * each.mean():.2f} ± {100 * each.std(ddof=1) / np.sqrt(systems):.2f} (×1e-2)")


if __name__ == "__main__":
    typer.run(main)
