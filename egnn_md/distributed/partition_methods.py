"""How particles are divided: spatial bisection, random, balanced k-means. The graph methods are next door.

Every function takes checked NumPy arrays and returns the part of each particle, (N,) int64, so that the sum of
``loads`` in part ``p`` is close to the share ``shares[p]``. Shares are positive and sum to one; ``loads`` is None
where every particle costs the same. Nothing here depends on threads or on a global random state.
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator

import numpy as np

from egnn_md.errors import MissingDependencyError

# Wrapped coordinates are put on this grid (a fraction of the cell), far above the rounding that a lattice
# translation leaves and far below any distance that matters, so that particles on the cell's face stay together.
FRACTION_GRID = {4: 2.0**20, 8: 2.0**40}
MINIBATCH_POINTS = 50_000  # from here on k-means looks at samples
BALANCE_POINTS = 50_000  # the offsets of the balanced assignment are found on at most so many particles
BALANCE_STEPS = 200
BALANCED = 0.002  # relative; the assignment with capacities mends what remains


@contextlib.contextmanager
def one_thread(method: str) -> Iterator[None]:
    """Compute with one thread inside: sums of several threads differ from run to run in the last digit.

    Only libraries that are loaded already are limited, so import them before. The old limits come back after it.

    Raises:
        MissingDependencyError: scikit-learn, which brings what limits the threads, is not installed.
    """
    try:
        from threadpoolctl import threadpool_limits
    except ImportError as error:
        raise MissingDependencyError(
            f"the partition method {method!r} needs threadpoolctl, a part of scikit-learn: pip install scikit-learn"
        ) from error
    with threadpool_limits(limits=1):
        yield


def open_axes(periodic_rows: np.ndarray) -> np.ndarray:
    """(3 - k, 3) orthonormal directions normal to the k periodic lattice vectors, near the Cartesian axes."""
    known = np.linalg.qr(periodic_rows.T)[0].T
    found = []
    for _ in range(3 - len(periodic_rows)):
        left = np.eye(3) - np.eye(3) @ known.T @ known
        # the slack makes the choice between equals independent of rounding
        axis = left[int(np.argmax(np.linalg.norm(left, axis=1) > np.linalg.norm(left, axis=1).max() - 1e-6))]
        found.append(axis / np.linalg.norm(axis))
        known = np.vstack([known, found[-1]])
    return np.array(found).reshape(-1, 3)


def lengths_along_axes(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates in which an axis-aligned cut is a plane parallel to the cell's faces.

    Args:
        positions: (N, 3), Å.
        cell: (3, 3) rows, Å.
        pbc: (3,) bool.

    Returns:
        ``coordinates`` (3, N), Å: first the periodic directions (fraction of the cell, wrapped into [0, 1), times
        the cell's height), then the open ones (Cartesian, normal to the periodic ones); and ``heights`` (3,), Å,
        infinite in open directions.
    """
    points = positions.astype(np.float64)
    if not pbc.any():
        return np.ascontiguousarray(points.T), np.full(3, np.inf)
    rows = cell[pbc]
    inverse = np.linalg.pinv(rows)  # (3, k): the fraction along each periodic vector
    heights = 1.0 / np.linalg.norm(inverse, axis=0)
    grid = FRACTION_GRID[4 if positions.dtype.itemsize <= 4 else 8]
    fractions = np.mod(np.rint(points @ inverse * grid), grid) / grid
    coordinates = np.concatenate([fractions * heights, points @ open_axes(rows).T], axis=1)
    return np.ascontiguousarray(coordinates.T), np.concatenate([heights, np.full(3 - len(rows), np.inf)])


def sequence_parts(count: int, loads: np.ndarray | None, shares: np.ndarray) -> np.ndarray:
    """(N,) part of each particle when a row of ``count`` particles is cut into ``shares``, in order.

    A particle belongs to the part that holds the middle of its load, so no part is off by more than one particle.
    """
    ends = np.cumsum(shares)[:-1]
    if loads is None:
        middles = (np.arange(count) + 0.5) / max(count, 1)
    else:
        middles = (np.cumsum(loads) - 0.5 * loads) / loads.sum() if count else np.zeros(0)
    return np.searchsorted(ends, middles, side="right").astype(np.int64)


def left_count(loads_in_order: np.ndarray, fraction: float) -> int:
    """How many particles of a row go left, so that ``fraction`` of the load does (to half a particle)."""
    middles = np.cumsum(loads_in_order) - 0.5 * loads_in_order
    return int(np.searchsorted(middles, fraction * loads_in_order.sum(), side="left"))


def bisection(coordinates: np.ndarray, shares: np.ndarray, loads: np.ndarray | None) -> np.ndarray:
    """Recursive coordinate bisection: cut across the greatest extent, at the share of the load, again and again.

    Equal coordinates are told apart by the particle's index. Time is O(N log P) for equal loads (a selection a
    level) and O(N log N log P) otherwise (a sort a level).

    Args:
        coordinates: (3, N), see :func:`lengths_along_axes`.
        shares: (P,).
        loads: (N,) or None.

    Source:
        Berger, Bokhari, IEEE Trans. Comput. C-36, 570 (1987).
    """
    count = coordinates.shape[1]
    owner = np.zeros(count, dtype=np.int64)
    # With equal loads the number of particles of each part is settled before the first cut: rounding at every
    # level would let parts differ by more than one.
    ends = np.concatenate([[0], np.cumsum(np.bincount(sequence_parts(count, None, shares), minlength=len(shares)))])

    def divide(index: np.ndarray, points: np.ndarray, first: int, last: int) -> None:
        if last - first == 1 or len(index) == 0:
            owner[index] = first
            return
        middle = (first + last) // 2
        values = points[np.argmax(points.max(axis=1) - points.min(axis=1))]
        if loads is None:
            left = smallest(values, int(ends[middle] - ends[first]))
        else:
            order = np.argsort(values, kind="stable")
            fraction = float(shares[first:middle].sum() / shares[first:last].sum())
            left = np.zeros(len(index), dtype=bool)
            left[order[: left_count(loads[index[order]], fraction)]] = True
        divide(index[left], points[:, left], first, middle)
        divide(index[~left], points[:, ~left], middle, last)

    divide(np.arange(count), coordinates, 0, len(shares))
    return owner


def smallest(values: np.ndarray, number: int) -> np.ndarray:
    """(n,) bool: the ``number`` smallest of ``values``, the earlier one of equals."""
    if number <= 0 or number >= len(values):
        return np.full(len(values), number > 0)
    pivot = np.partition(values, number - 1)[number - 1]
    chosen = values < pivot
    ties = np.flatnonzero(values == pivot)
    chosen[ties[: number - int(chosen.sum())]] = True
    return chosen


def random(count: int, shares: np.ndarray, loads: np.ndarray | None, seed: int) -> np.ndarray:
    """A seeded shuffle, cut into the shares: the worst that a sensible partition can be compared with."""
    order = np.random.default_rng(seed).permutation(count)
    owner = np.empty(count, dtype=np.int64)
    owner[order] = sequence_parts(count, None if loads is None else loads[order], shares)
    return owner


def k_means(
    coordinates: np.ndarray, heights: np.ndarray, shares: np.ndarray, loads: np.ndarray | None, seed: int
) -> np.ndarray:
    """Centres from k-means, then every particle to a near centre that has room for it.

    k-means alone gives parts of unequal size. Its centres are kept, and the boundaries between the clusters are
    shifted (a power diagram, see :func:`shifted_distances`) until every part holds its share.

    Args:
        coordinates: (3, N), see :func:`lengths_along_axes`. Periodic directions are laid on circles of the same
            circumference, so that the two faces of the cell meet; distances across a circle are chords.
        heights: (3,), infinite where open.
        shares: (P,).
        loads: (N,) or None.
        seed: of the first centres.

    Raises:
        MissingDependencyError: scikit-learn is not installed.
    """
    count, parts = coordinates.shape[1], len(shares)
    if count <= parts or parts == 1:
        return bisection(coordinates, shares, loads)
    columns = []
    for values, height in zip(coordinates, heights, strict=True):
        if np.isfinite(height):
            radius = height / (2 * np.pi)
            columns += [radius * np.cos(values / radius), radius * np.sin(values / radius)]
        else:
            columns.append(values - values.mean())
    points = np.stack(columns, axis=1)
    if len(np.unique(points[:MINIBATCH_POINTS], axis=0)) < parts:
        return bisection(coordinates, shares, loads)  # fewer places than centres
    try:
        from sklearn.cluster import KMeans, MiniBatchKMeans
    except ImportError as error:
        raise MissingDependencyError(
            "the partition method 'k-means' needs scikit-learn: pip install scikit-learn"
        ) from error
    with one_thread("k-means"):
        if count > MINIBATCH_POINTS:
            finder = MiniBatchKMeans(parts, n_init=3, batch_size=8192, random_state=seed)
        else:
            finder = KMeans(parts, n_init=3, random_state=seed)
        label = finder.fit(points, sample_weight=loads).labels_
        centres = np.asarray(finder.cluster_centers_, dtype=np.float64)
    # the greatest share goes to the cluster that is the greatest already
    sizes = np.bincount(label, weights=loads, minlength=parts)
    matched = np.empty(parts, dtype=np.int64)
    matched[np.argsort(-shares, kind="stable")] = np.argsort(-sizes, kind="stable")
    centres = centres[matched]
    squared = np.stack([((points - centre) ** 2).sum(axis=1) for centre in centres], axis=1)
    if loads is None:
        loads = np.ones(count)
        room = np.bincount(sequence_parts(count, None, shares), minlength=parts).astype(np.float64)
    else:
        room = shares * loads.sum()
    return fill(shifted_distances(squared, loads, shares), loads, room)


def shifted_distances(squared: np.ndarray, loads: np.ndarray, shares: np.ndarray) -> np.ndarray:
    """(N, P) squared distances less an offset a part, so that the nearest centre is nearly balanced.

    The regions {x: |x - c_p|² - offset_p least} are a power diagram; offsets that give each region its share exist
    and maximise a concave function whose gradient is share less load. It is climbed with a step of its own for
    each part that halves when the part overshoots.

    Source:
        Aurenhammer, Hoffmann, Aronov, Algorithmica 20, 61 (1998).
    """
    stride = -(-len(squared) // BALANCE_POINTS)
    sample, weight = squared[::stride], loads[::stride]
    if not weight.sum() > 0:
        return squared
    offsets = np.zeros(len(shares))
    steps = np.full(len(shares), float(sample.min(axis=1).mean()))
    before = np.zeros(len(shares))
    for _ in range(BALANCE_STEPS):
        held = np.bincount(np.argmin(sample - offsets, axis=1), weights=weight, minlength=len(shares))
        missing = 1.0 - held / weight.sum() / shares
        if np.abs(missing).max() < BALANCED:
            break
        steps *= np.where(missing * before < 0, 0.5, 1.1)
        offsets += steps * np.clip(missing, -1.0, 1.0)
        before = missing
    return squared - offsets


def fill(distances: np.ndarray, loads: np.ndarray, room: np.ndarray) -> np.ndarray:
    """(N,) part of each particle: the nearest one with room, those who would lose most by another one first.

    In every round the particles that are left ask their nearest open part; a part with more requests than room
    keeps those with the greatest difference to their next open part, and closes, within half a particle's load of
    its room.

    Args:
        distances: (N, P), any measure of cost.
        loads: (N,).
        room: (P,), load that each part should hold; the sum of ``loads`` in all.
    """
    parts = len(room)
    owner = np.full(len(loads), -1, dtype=np.int64)
    room = room.copy()
    is_open = np.ones(parts, dtype=bool)
    left = np.arange(len(loads))
    while len(left) and is_open.any():
        names = np.flatnonzero(is_open)
        cost = distances[np.ix_(left, names)]
        choice = np.argmin(cost, axis=1)
        regret = np.zeros(len(left))
        if len(names) > 1:
            two = np.partition(cost, 1, axis=1)
            regret = two[:, 1] - two[:, 0]
        for column, part in enumerate(names):
            asking = np.flatnonzero(choice == column)
            asking = asking[np.argsort(-regret[asking], kind="stable")]
            load = loads[left[asking]]
            total = np.cumsum(load)
            kept = asking[: np.searchsorted(total - 0.5 * load, room[part], side="right")]
            owner[left[kept]] = part
            room[part] -= loads[left[kept]].sum()
            is_open[part] = len(kept) == len(asking)
        left = left[owner[left] < 0]
    # what is left is about half a particle a part: each goes where most room is
    emptiest = [(-float(free), rank) for rank, free in enumerate(room)]
    heapq.heapify(emptiest)
    for particle in left.tolist():
        free, rank = emptiest[0]
        owner[particle] = rank
        heapq.heapreplace(emptiest, (free + float(loads[particle]), rank))
    return owner
