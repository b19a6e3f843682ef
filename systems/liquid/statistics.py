"""``python -m egnn_md_systems.liquid.statistics DIRECTORY``: graphs, walls and predictability of a liquid data set.

How far particles go in some frames, and how much of that the trivial predictions miss:

| prediction of ``x(t + s)`` | formula |
| --- | --- |
| stay still | ``x`` |
| linear | ``x + v s`` |
| ballistic | ``x + v s + ½ g s²``, what ends behind a wall is put on it |

All errors are root mean squares over particles and coordinates (m), as the square root of the paper's MSE.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.spatial import cKDTree

from egnn_md.data.trajectories import TrajectorySet, open_trajectories
from egnn_md.errors import InputError

STRIDES = (1, 2, 5, 10, 15, 20)


@dataclass(frozen=True)
class GraphStatistics:
    """Of frames spread over all scenes.

    Attributes:
        particles: mean number of particles.
        edges: mean number of directed edges.
        fewest, most: neighbours of a particle, over all frames.
        alone: share of particles without a neighbour.
    """

    particles: float
    edges: float
    fewest: int
    most: int
    alone: float

    @property
    def neighbors(self) -> float:
        """Edges over particles."""
        return self.edges / self.particles


@dataclass(frozen=True)
class Predictability:
    """Root-mean-square errors (length unit of the set) of trivial predictions ``frames`` ahead."""

    frames: int
    still: float
    linear: float
    ballistic: float


def _spread(trajectories: TrajectorySet, frames: int, last: int = 1) -> Iterator[tuple[Any, int]]:
    """About ``frames`` (trajectory, frame) pairs, evenly over scenes and times; ``last`` frames follow each."""
    each = max(1, frames // len(trajectories))
    for trajectory in trajectories:
        if len(trajectory) >= last:
            yield from ((trajectory, int(t)) for t in np.linspace(0, len(trajectory) - last, each).round())


def graph_statistics(trajectories: TrajectorySet, cutoff: float, frames: int = 100) -> GraphStatistics:
    """Neighbours within ``cutoff`` in an open box.

    Raises:
        InputError: a periodic data set.
    """
    if any(trajectories.metadata.pbc):
        raise InputError("these statistics are of liquids in closed boxes, but the data set is periodic")
    counts = []
    for trajectory, frame in _spread(trajectories, frames):
        positions = np.asarray(trajectory.positions[frame], dtype=np.float64)
        counts.append(cKDTree(positions).query_ball_point(positions, cutoff, return_length=True) - 1)
    together = np.concatenate(counts)
    return GraphStatistics(
        particles=float(np.mean([len(count) for count in counts])),
        edges=float(np.mean([count.sum() for count in counts])),
        fewest=int(together.min()),
        most=int(together.max()),
        alone=float((together == 0).mean()),
    )


def predictability(trajectories: TrajectorySet, stride: int, frames: int = 200) -> Predictability:
    """Errors of the trivial predictions ``stride`` frames ahead.

    Raises:
        InputError: no scene is long enough, or there are no velocities.
    """
    metadata = trajectories.metadata
    time = stride * metadata.frame_interval
    gravity = np.array(metadata.gravity or (0.0, 0.0, 0.0))
    squares, number = np.zeros(3), 0
    for trajectory, frame in _spread(trajectories, frames, stride + 1):
        if trajectory.velocities is None:
            raise InputError(f"trajectory {trajectory.name!r} has no velocities")
        start = np.asarray(trajectory.positions[frame], dtype=np.float64)
        end = np.asarray(trajectory.positions[frame + stride], dtype=np.float64)
        linear = start + np.asarray(trajectory.velocities[frame], dtype=np.float64) * time
        ballistic = linear + 0.5 * gravity * time**2
        if metadata.walls is not None:
            low, high = np.array(metadata.walls).T
            ballistic = np.clip(ballistic, low, high)
        squares += [((guess - end) ** 2).sum() for guess in (start, linear, ballistic)]
        number += end.size
    if not number:
        raise InputError(f"no scene has the {stride + 1} frames that a prediction {stride} frames ahead needs")
    still, straight, thrown = np.sqrt(squares / number)
    return Predictability(stride, float(still), float(straight), float(thrown))


def overshoot(trajectories: TrajectorySet) -> float:
    """How far a particle's centre gets behind a wall at most (length unit; 0 if none does)."""
    walls = trajectories.metadata.walls
    if walls is None:
        raise InputError("the data set has no walls")
    low, high = np.array(walls).T
    worst = 0.0
    for trajectory in trajectories:
        for frame in range(len(trajectory)):
            positions = trajectory.positions[frame]
            worst = max(worst, float((low - positions.min(axis=0)).max()), float((positions.max(axis=0) - high).max()))
    return worst


def main(
    directory: Annotated[Path, typer.Argument(help="Data set of egnn-md generate liquid.")],
    part: Annotated[str, typer.Option(help="train, valid or test")] = "test",
    frames: Annotated[int, typer.Option(help="About so many frames are looked at.")] = 200,
) -> None:
    """Print the tables of one part as Markdown."""
    trajectories = open_trajectories(directory, part)
    metadata = trajectories.metadata
    cutoff = metadata.default_connectivity_radius
    if cutoff is None:
        raise InputError(f"{directory} names no default_connectivity_radius")
    graph = graph_statistics(trajectories, cutoff, frames)
    lengths = sorted({len(trajectory) for trajectory in trajectories})
    typer.echo(
        f"{part}: {len(trajectories)} scenes of {', '.join(map(str, lengths))} frames, "
        f"{metadata.frame_interval:g} s each; cutoff {cutoff:g} m\n\n"
        f"{graph.particles:.0f} particles, {graph.edges:.0f} directed edges: {graph.neighbors:.1f} neighbours "
        f"({graph.fewest} to {graph.most}; {100 * graph.alone:.2f} % of the particles have none); "
        f"at most {1000 * overshoot(trajectories):.2f} mm behind a wall\n\n"
        "| frames | time (s) | still (m) | linear (m) | ballistic (m) |\n| --- | --- | --- | --- | --- |"
    )
    for stride in STRIDES:
        if stride >= max(lengths):
            break
        row = predictability(trajectories, stride, frames)
        typer.echo(
            f"| {stride} | {stride * metadata.frame_interval:g} "
            f"| {row.still:.3g} | {row.linear:.3g} | {row.ballistic:.3g} |"
        )


if __name__ == "__main__":
    typer.run(main)
