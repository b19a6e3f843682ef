"""Distances between clouds of particles that do not care which particle is which."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError

POINTS = 512  # particles of a cloud that are compared
REGULARISATION = 0.01  # over the mean squared distance of two points of the reference
LARGEST_EXPONENT = 600.0  # exp(-600) is still a double
ITERATIONS = 1000
TOLERANCE = 1e-6  # largest error of a marginal, of 1


@dataclass(frozen=True)
class Sinkhorn:
    """Debiased Sinkhorn divergence, length²; ``regularisation`` that was used, length²; iterations converged."""

    value: float
    regularisation: float
    converged: bool


def _squared_distances(x: NDArray, y: NDArray, cell: NDArray | None) -> NDArray[np.float64]:
    from scipy.spatial.distance import cdist

    if cell is None:
        return cdist(x, y, "sqeuclidean")
    difference = x[:, None] - y[None]
    fractional = difference @ np.linalg.inv(cell)
    return ((difference - np.round(fractional) @ cell) ** 2).sum(-1)


def sample(number: int, points: int = POINTS, seed: int = 0) -> NDArray[np.int64]:
    """Ascending indices of at most ``points`` of ``number`` particles, drawn without repetition."""
    if number <= points:
        return np.arange(number)
    return np.sort(np.random.default_rng(seed).choice(number, points, replace=False))


def sinkhorn_divergence(
    predicted: NDArray, reference: NDArray, *, regularisation: float | None = None, cell: NDArray | None = None
) -> Sinkhorn:
    """Debiased entropic transport between two clouds of equal weights, cost ``|x - y|²``.

    S(X, Y) = W(X, Y) - ½ W(X, X) - ½ W(Y, Y) with W the transport cost of the plan that POT's
    ``ot.sinkhorn2`` finds (Genevay, Peyré, Cuturi, 2018). It is zero for equal clouds, whatever their order,
    and exactly ``|s|²`` for a cloud shifted by ``s``: the shift of the means is therefore taken out first and
    added at the end, which changes nothing but the rounding.

    Args:
        predicted: (n, 3).
        reference: (m, 3).
        regularisation: length²; ``REGULARISATION`` times the mean squared distance of two reference points if
            None. It is raised where the clouds are so far apart that exp(-cost/regularisation) underflows.
        cell: (3, 3) rows of a periodic system, where the cost takes the nearest image.

    Raises:
        InputError: a cloud is empty or holds values that are not finite.
    """
    import ot

    x, y = np.asarray(predicted, dtype=np.float64), np.asarray(reference, dtype=np.float64)
    for name, cloud in (("predicted", x), ("reference", y)):
        if cloud.ndim != 2 or len(cloud) == 0 or not np.isfinite(cloud).all():
            raise InputError(f"the {name} cloud {cloud.shape} is empty or holds values that are not finite")
    shift = 0.0
    if cell is None:
        between = x.mean(axis=0) - y.mean(axis=0)
        shift = float(between @ between)
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    costs = [_squared_distances(a, b, cell) for a, b in ((x, y), (x, x), (y, y))]
    if regularisation is None:
        regularisation = REGULARISATION * float(costs[2].mean())
    highest = max(float(cost.max()) for cost in costs)
    if highest == 0.0:
        return Sinkhorn(shift, regularisation, True)
    regularisation = max(regularisation, highest / LARGEST_EXPONENT)
    weights = [np.full(len(cloud), 1.0 / len(cloud)) for cloud in (x, y)]
    values, converged = [], True
    for cost, (a, b) in zip(costs, ((0, 1), (0, 0), (1, 1)), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value, log = ot.sinkhorn2(
                weights[a], weights[b], cost, regularisation, numItermax=ITERATIONS, stopThr=TOLERANCE, log=True
            )
        values.append(float(value))
        converged &= bool(log["err"][-1] < 100 * TOLERANCE)
    return Sinkhorn(shift + max(values[0] - 0.5 * (values[1] + values[2]), 0.0), regularisation, converged)


def grid_density_error(
    predicted: NDArray, reference: NDArray, spacing: float, *, bounds: Sequence[Sequence[float]] | None = None,
    cell: NDArray | None = None,
) -> float:  # fmt: skip
    """Share of the particles that are in the wrong box of a grid: ``Σ |n - n_ref| / (2 N)``, between 0 and 1.

    Args:
        predicted: (N, 3).
        reference: (N, 3).
        spacing: length of a box.
        bounds: three [low, high] pairs that the grid fills; the reference's extent if None.
        cell: (3, 3) rows: particles are wrapped, and the grid divides the cell.

    Particles outside the grid, or not finite, are in the wrong box unless as many of the reference are outside.
    """
    if spacing <= 0:
        raise InputError(f"the grid's spacing must be positive, not {spacing}")
    if cell is not None:
        inverse = np.linalg.inv(cell)
        clouds = [cloud @ inverse % 1.0 for cloud in (predicted, reference)]
        low, lengths = np.zeros(3), np.ones(3)
        boxes = np.maximum(np.linalg.norm(cell, axis=1) / spacing, 1).round().astype(int)
    else:
        clouds = [predicted, reference]
        box = np.stack([reference.min(axis=0), reference.max(axis=0)], 1) if bounds is None else np.asarray(bounds)
        low, lengths = box[:, 0], np.maximum(box[:, 1] - box[:, 0], spacing)
        boxes = np.ceil(lengths / spacing - 1e-9).astype(int)
        lengths = boxes * spacing
    counts = []
    for cloud in clouds:
        with np.errstate(invalid="ignore"):
            index = np.floor((cloud - low) / lengths * boxes)
            inside = np.isfinite(index).all(axis=1) & (index >= 0).all(axis=1)
            # a particle exactly on the upper face belongs to the last box
            index = np.where(cloud == low + lengths, boxes - 1, index)
            inside &= (index < boxes).all(axis=1)
        flat = np.ravel_multi_index(tuple(index[inside].astype(np.int64).T), tuple(boxes))
        found = np.bincount(flat, minlength=int(boxes.prod()))
        counts.append(np.append(found, len(cloud) - inside.sum()))
    return float(np.abs(counts[0] - counts[1]).sum() / (2 * max(len(predicted), 1)))


def neighbour_counts(positions: NDArray, radius: float, cell: NDArray | None = None) -> NDArray[np.int64] | None:
    """(N,) particles within ``radius`` of each, itself not counted; None in a cell that is not rectangular."""
    from scipy.spatial import cKDTree

    box = None
    if cell is not None:
        box = np.diag(cell)
        if not np.allclose(cell, np.diag(box)) or radius > box.min() / 2:
            return None
        positions = positions % box
        positions = np.where(positions >= box, 0.0, positions)
    tree = cKDTree(positions, boxsize=box)
    return np.asarray(tree.query_ball_point(positions, radius, return_length=True)) - 1


@dataclass(frozen=True)
class LocalDensity:
    """Number of neighbours of each particle against the reference's, both at the same time.

    Attributes:
        error: root mean square over particles of the difference, over the reference's mean.
        ratio: mean over the reference's mean: above 1 the rollout is denser.
    """

    error: float
    ratio: float


def local_density(
    predicted: NDArray, reference: NDArray, radius: float, cell: NDArray | None = None
) -> LocalDensity | None:
    """Compare local number densities of (N, 3) clouds whose particles correspond; None where it has no meaning."""
    if not np.isfinite(predicted).all():
        return None
    counts = neighbour_counts(predicted, radius, cell), neighbour_counts(reference, radius, cell)
    if counts[0] is None or counts[1] is None or counts[1].mean() == 0:
        return None
    mean = float(counts[1].mean())
    error = float(np.sqrt(((counts[0] - counts[1]).astype(float) ** 2).mean())) / mean
    return LocalDensity(error, float(counts[0].mean()) / mean)
