"""Which rank owns which particle: several ways to divide one system, what a division costs, how to mend it.

Edges live with their receiver, so a rank computes the edges that its particles receive (``edge_index[0]``) and
needs copies of the particles owned elsewhere that send to them: its halo.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from egnn_md.distributed import partition_methods as methods
from egnn_md.errors import InputError
from egnn_md.graph import check_cell

if TYPE_CHECKING:
    from scipy.sparse import csr_array

METHODS = ("bisection", "random", "k-means", "metis", "spectral")
GRAPH_METHODS = ("metis", "spectral")


@dataclass(frozen=True, eq=False)
class PartitionQuality:
    """What each of ``P`` ranks has to hold, compute and receive.

    Attributes:
        particles: (P,) int64, particles owned.
        edges: (P,) int64, edges received by them, the work of a layer.
        halo: (P,) int64, distinct particles owned elsewhere that send to them, the traffic of a layer.
        cut_edges: (P,) int64, received edges whose sender is owned elsewhere.
        method: how the partition was made.
    """

    particles: Tensor
    edges: Tensor
    halo: Tensor
    cut_edges: Tensor
    method: str = "explicit"

    @property
    def imbalance(self) -> float:
        """Greatest load of a rank over the mean load, load = particles + received edges; 1 is perfect.

        The mean runs over all ranks, also those without particles; with nothing to compute it is 1.
        """
        load = (self.particles + self.edges).double()
        return float(load.max() / load.mean()) if float(load.sum()) > 0 else 1.0

    @property
    def cut_fraction(self) -> float:
        """Cut edges over all edges; 0 without edges."""
        total = int(self.edges.sum())
        return int(self.cut_edges.sum()) / total if total else 0.0

    def __str__(self) -> str:
        """A table: one row a rank, then the sums."""
        columns = (self.particles, self.edges, self.halo, self.cut_edges)
        rows: list[tuple[str, ...]] = [("rank", "particles", "edges", "halo", "cut edges")]
        rows += [(str(rank), *(f"{int(column[rank]):,}" for column in columns)) for rank in range(len(self.particles))]
        rows.append(("all", *(f"{int(column.sum()):,}" for column in columns)))
        widths = [max(len(row[k]) for row in rows) for k in range(5)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        rule = "-" * len(lines[0])
        summary = f"{self.method}: imbalance {self.imbalance:.3f}, {100 * self.cut_fraction:.1f} % of the edges cut"
        return "\n".join([summary, lines[0], rule, *lines[1:-1], rule, lines[-1]])


@dataclass(frozen=True, eq=False)
class Partition:
    """The owner of every particle. Made by :func:`partition` or, checked, by :meth:`from_owner`.

    Attributes:
        owner: (N,) int64 on the CPU, a rank from 0 to ``parts`` - 1 each.
        parts: P, number of ranks; some may own nothing.
        method: how it was made (one of ``METHODS``, or ``explicit``).
    """

    owner: Tensor
    parts: int
    method: str = "explicit"

    @staticmethod
    def from_owner(owner: Tensor | np.ndarray, parts: int, method: str = "explicit") -> Partition:
        """A partition out of explicit owners, which are checked and copied.

        Args:
            owner: (N,) whole numbers.
            parts: P.
            method: a name for the tables.

        Raises:
            InputError: owners that are not whole numbers, of another shape, or outside 0..P-1; P below 1.
        """
        parts = _checked_parts(parts)
        found = _tensor(owner)
        if found.ndim != 1:
            raise InputError(f"owner must be (N,), one rank a particle, not {tuple(found.shape)}")
        if len(found) and (found.is_floating_point() or found.is_complex() or found.dtype == torch.bool):
            raise InputError(f"owner has dtype {found.dtype}; give the ranks as whole numbers (int64)")
        ranks = found.to(dtype=torch.int64, copy=True)
        outside = (ranks < 0) | (ranks >= parts)
        if bool(outside.any()):
            bad = int(outside.nonzero()[0])
            raise InputError(
                f"particle {bad} is owned by rank {int(ranks[bad])}, but there are the ranks 0..{parts - 1}; "
                "give more parts or other owners"
            )
        return Partition(owner=ranks, parts=parts, method=method)

    @property
    def counts(self) -> Tensor:
        """(P,) int64, particles owned by each rank."""
        return torch.bincount(self.owner, minlength=self.parts)

    def members(self, rank: int) -> Tensor:
        """(n,) int64, the particles of one rank, ascending.

        Raises:
            InputError: there is no such rank.
        """
        self._check_rank(rank)
        return (self.owner == rank).nonzero()[:, 0]

    def moved(self, index: int, rank: int) -> Partition:
        """A copy in which particle ``index`` is owned by ``rank``.

        Raises:
            InputError: there is no such particle or rank.
        """
        self._check_rank(rank)
        if not 0 <= index < len(self.owner):
            raise InputError(f"there is no particle {index} to move: the partition has {len(self.owner)} particles")
        owner = self.owner.clone()
        owner[index] = rank
        return Partition(owner=owner, parts=self.parts, method=self.method)

    def quality(self, edge_index: Tensor | np.ndarray) -> PartitionQuality:
        """Count what each rank holds, computes and receives.

        Args:
            edge_index: (2, E) of the whole system; row 0 receives, row 1 sends; periodic images count each.

        Raises:
            InputError: another shape, or an edge that names a particle the partition does not have.
        """
        count = len(self.owner)
        receiver, sender = torch.from_numpy(_checked_edges(edge_index, count))
        home, origin = self.owner[receiver], self.owner[sender]
        cut = home != origin
        visitors = torch.unique(home[cut] * count + sender[cut])
        return PartitionQuality(
            particles=self.counts,
            edges=torch.bincount(home, minlength=self.parts),
            halo=torch.bincount(visitors // max(count, 1), minlength=self.parts),
            cut_edges=torch.bincount(home[cut], minlength=self.parts),
            method=self.method,
        )

    def _check_rank(self, rank: int) -> None:
        if not 0 <= rank < self.parts:
            raise InputError(f"there is no rank {rank}: the partition has the ranks 0..{self.parts - 1}")


def partition(
    positions: Tensor | np.ndarray,
    parts: int,
    *,
    method: str = "bisection",
    cell: Tensor | np.ndarray | None = None,
    pbc: Tensor | np.ndarray | None = None,
    weights: Tensor | np.ndarray | None = None,
    loads: Tensor | np.ndarray | None = None,
    edge_index: Tensor | np.ndarray | None = None,
    cutoff: float | None = None,
    seed: int = 0,
) -> Partition:
    """Divide the particles of one system over ``parts`` ranks.

    The same arguments give the same owners on every run and with any number of threads.

    Args:
        positions: (N, 3), Å; need not be wrapped into the cell.
        parts: P, number of ranks, at least 1; may exceed N, then some ranks own nothing.
        method: one of ``METHODS``:

            - ``bisection``: cut across the greatest extent, again and again; parts differ by one particle at most
              (with equal loads and weights). Periodic directions are cut at the cell's origin. The fastest one.
            - ``random``: a shuffle, as balanced; for comparison.
            - ``k-means``: compact cells around the centres of k-means, their boundaries shifted for balance, to one
              particle (with loads: to half the greatest load times P at worst).
            - ``metis``: few cut edges; off the shares by a few per cent (METIS' own tolerance).
            - ``spectral``: recursive bisection by Fiedler vectors, few cut edges, exact balance, up to 200,000
              particles.
        cell: (3, 3), rows are lattice vectors, Å; None for an open system.
        pbc: (3,) bool; None: open in all directions.
        weights: (P,) relative speed of each rank, None for equal ones; a rank of weight 0 owns nothing.
        loads: (N,) cost of each particle, None for equal ones (its number of edges is a good one).
        edge_index: (2, E), the neighbour graph for ``metis`` and ``spectral``; others do not look at it.
        cutoff: Å, used to make this graph where ``edge_index`` is None.
        seed: 0 to 2³¹ - 1, of every method that draws random numbers.

    Raises:
        InputError: names the argument, its value and the remedy.
        MissingDependencyError: PyMetis (``metis``) or scikit-learn (``k-means``, ``spectral``) is not installed.
    """
    parts = _checked_parts(parts)
    if method not in METHODS:
        raise InputError(f"unknown partition method {method!r}; known: {', '.join(METHODS)}")
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**31:
        raise InputError(f"the seed of a partition is a whole number from 0 to {2**31 - 1}, not {seed!r}")
    points = _checked_positions(positions)
    count = len(points)
    lattice, periodic = _checked_cell(cell, pbc)
    speed = np.ones(parts) if weights is None else _checked_numbers(weights, parts, "weights", "rank")
    cost = None if loads is None else _checked_numbers(loads, count, "loads", "particle")
    active = np.flatnonzero(speed > 0)  # the methods see only the ranks that get something
    shares = speed[active] / speed[active].sum()
    coordinates, heights = methods.lengths_along_axes(points, lattice, periodic)

    if method == "bisection":
        owner = methods.bisection(coordinates, shares, cost)
    elif method == "random":
        owner = methods.random(count, shares, cost, int(seed))
    elif method == "k-means":
        owner = methods.k_means(coordinates, heights, shares, cost, int(seed))
    else:
        from egnn_md.distributed import partition_graph

        graph = _graph(method, points, lattice, periodic, edge_index, cutoff)
        divide = partition_graph.metis if method == "metis" else partition_graph.spectral
        owner = divide(graph, coordinates, shares, cost, int(seed))
    return Partition(owner=torch.from_numpy(active[owner].astype(np.int64)), parts=parts, method=method)


def balanced_weights(weights: Tensor | np.ndarray, seconds: Tensor | np.ndarray, *, damping: float = 0.5) -> Tensor:
    """Relative weights for the next partition, from the time that each rank took with the present ones.

    A rank that takes twice as long as another one for the same share is half as fast, so its share is halved in
    proportion: ``target_p = (w_p / t_p) / Σ w/t`` and ``w' = damping · w + (1 - damping) · target``. At the fixed
    point all ranks take the same time.

    Args:
        weights: (P,) present weights, not negative; need not be normalised.
        seconds: (P,) measured time of a step on each rank (any unit), waiting for others excluded.
        damping: 0 to below 1, the part of the present weights that is kept, against noise in the times.

    Returns:
        (P,) float64 that sum to 1; ranks of weight 0 keep 0, whatever their time.

    Raises:
        InputError: weights of a wrong shape, negative, not finite or all zero; a time that is not positive for a
            rank with a share; damping outside its range.
    """
    present = _tensor(weights)
    if present.ndim != 1 or len(present) == 0:
        raise InputError(f"weights must be (P,), one number a rank, not {tuple(present.shape)}")
    parts = len(present)
    share = _checked_numbers(present, parts, "weights", "rank")
    if not 0.0 <= damping < 1.0:
        raise InputError(f"damping is the part of the weights that is kept, from 0 to below 1, not {damping!r}")
    times = _tensor(seconds).double().numpy()
    if times.shape != share.shape:
        raise InputError(f"seconds must be ({parts},), one time a rank, not {times.shape}")
    busy = share > 0
    wrong = busy & ~(np.isfinite(times) & (times > 0))
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise InputError(f"rank {bad} took {times[bad]} s; give the measured time of a step, which is positive")
    share = share / share.sum()
    target = np.zeros_like(share)
    target[busy] = share[busy] / times[busy]
    mixed = damping * share + (1.0 - damping) * target / target.sum()
    return torch.from_numpy(mixed / mixed.sum())


def _tensor(values: Tensor | np.ndarray) -> Tensor:
    """On the CPU and detached; arrays are copied, because torch takes no reversed and no read-only ones."""
    return torch.as_tensor(np.array(values) if isinstance(values, np.ndarray) else values).detach().cpu()


def _checked_parts(parts: int) -> int:
    if isinstance(parts, bool) or not isinstance(parts, (int, np.integer)) or parts < 1:
        raise InputError(f"a system is divided over at least 1 rank (a whole number), not parts = {parts!r}")
    return int(parts)


def _checked_positions(positions: Tensor | np.ndarray) -> np.ndarray:
    found = _tensor(positions)
    if found.ndim != 2 or found.shape[1] != 3:
        raise InputError(f"positions must be (N, 3), not {tuple(found.shape)}")
    if found.dtype not in (torch.float32, torch.float64):
        found = found.float() if found.is_floating_point() else found.double()
    finite = torch.isfinite(found).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise InputError(
            f"particle {bad} has the position {found[bad].tolist()}, which is not finite; repair the structure "
            "before it is divided over ranks"
        )
    return found.numpy()


def _checked_cell(cell: Tensor | np.ndarray | None, pbc: Tensor | np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """The cell (3, 3) and pbc (3,); zeros and False for an open system."""
    periodic = torch.zeros(3, dtype=torch.bool) if pbc is None else _tensor(pbc).bool()
    lattice = torch.zeros(3, 3).double() if cell is None else _tensor(cell).double()
    if lattice.shape != (3, 3) or periodic.shape != (3,):
        raise InputError(f"cell must be (3, 3) and pbc (3,), not {tuple(lattice.shape)} and {tuple(periodic.shape)}")
    if cell is None and bool(periodic.any()):
        raise InputError(f"pbc is {periodic.tolist()}, but there is no cell; give the lattice vectors")
    check_cell(lattice, periodic)
    return lattice.numpy(), periodic.numpy()


def _checked_numbers(values: Tensor | np.ndarray, count: int, name: str, of: str) -> np.ndarray:
    """(count,) float64: finite, none negative, not all zero."""
    found = _tensor(values).double().numpy()
    if found.shape != (count,):
        raise InputError(f"{name} must be ({count},), one number a {of}, not {found.shape}")
    wrong = ~(np.isfinite(found) & (found >= 0))
    if wrong.any():
        bad = int(np.flatnonzero(wrong)[0])
        raise InputError(f"{name}[{bad}] is {found[bad]}; the number of a {of} is finite and not negative")
    if count and not found.sum() > 0:
        raise InputError(f"{name} are all zero; at least one {of} needs a positive number")
    return found


def _checked_edges(edge_index: Tensor | np.ndarray, count: int) -> np.ndarray:
    found = _tensor(edge_index)
    if found.ndim != 2 or found.shape[0] != 2 or found.is_floating_point():
        raise InputError(f"edge_index must be (2, E) of whole numbers, not {tuple(found.shape)} {found.dtype}")
    if found.shape[1] and (int(found.min()) < 0 or int(found.max()) >= count):
        raise InputError(
            f"edge_index names the particles {int(found.min())}..{int(found.max())}, but there are {count} "
            "particles; give the graph of the whole system that is divided"
        )
    return found.long().numpy()


def _graph(
    method: str,
    points: np.ndarray,
    cell: np.ndarray,
    pbc: np.ndarray,
    edge_index: Tensor | np.ndarray | None,
    cutoff: float | None,
) -> csr_array:
    from egnn_md.distributed.partition_graph import adjacency

    if edge_index is None:
        if cutoff is None:
            raise InputError(
                f"method={method!r} divides the neighbour graph, and neither edge_index nor cutoff was given; give "
                "one of them, or use method='bisection'"
            )
        from egnn_md.neighbors import neighbor_list

        edge_index, _ = neighbor_list(points, cell, pbc, cutoff)
    return adjacency(_checked_edges(edge_index, len(points)), len(points))
