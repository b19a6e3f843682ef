"""Partitions that look at the neighbour graph: METIS and recursive spectral bisection.

Arguments as in :mod:`egnn_md.distributed.partition_methods`; the graph is a symmetric adjacency without loops.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from egnn_md.distributed.partition_methods import bisection, left_count, one_thread
from egnn_md.errors import InputError, MissingDependencyError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

LARGEST_METIS_INDEX = 2**31 - 1  # its indices and sums of weights have 32 bits in the packages of PyMetis
METIS_TOTAL_LOAD = 2.0**29
SPECTRAL_PARTICLES = 200_000  # beyond it the eigenvectors take minutes
DENSE_PARTICLES = 100  # up to here all eigenvectors at once are quicker than a search for one
FIEDLER_TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)  # of the eigenvalue, tried until it exceeds one by this factor:
FIEDLER_MARGIN = 20.0
FIEDLER_RESTARTS = 300
FIEDLER_SHIFT = -1e-9  # just outside the spectrum, so that the factorised matrix is not singular
FIEDLER_DIGITS = 6  # what is kept of the eigenvector's entries: the rest is the solver's rounding


def adjacency(edge_index: np.ndarray, count: int) -> csr_array:
    """(N, N) of ones: the undirected graph, every pair both ways and once, no particle with itself.

    Args:
        edge_index: (2, E), in any order, perhaps with periodic images of a pair or only one direction.
        count: N.
    """
    from scipy.sparse import coo_array

    receiver, sender = edge_index[:, edge_index[0] != edge_index[1]]
    one_way = coo_array((np.ones(len(receiver), dtype=np.int32), (receiver, sender)), shape=(count, count)).tocsr()
    graph = (one_way + one_way.T).tocsr()
    graph.sort_indices()
    graph.data = np.ones(graph.nnz)
    return graph


def metis(
    graph: csr_array, coordinates: np.ndarray, shares: np.ndarray, loads: np.ndarray | None, seed: int
) -> np.ndarray:
    """METIS: multilevel partition of few cut edges (recursive bisection up to 8 parts, k-way beyond).

    Raises:
        MissingDependencyError: PyMetis is not installed.
        InputError: the graph is beyond 32-bit indices.

    Source:
        Karypis, Kumar, SIAM J. Sci. Comput. 20, 359 (1998).
    """
    try:
        import pymetis
    except ImportError as error:
        raise MissingDependencyError("the partition method 'metis' needs PyMetis: pip install pymetis") from error
    count, parts = graph.shape[0], len(shares)
    if graph.nnz > LARGEST_METIS_INDEX:
        raise InputError(
            f"the neighbour graph has {graph.nnz:,} edges, METIS counts to {LARGEST_METIS_INDEX:,}; "
            "use method='bisection'"
        )
    if count <= parts or parts == 1 or graph.nnz == 0:
        return bisection(coordinates, shares, loads)  # METIS wants a graph worth cutting
    whole = None
    if loads is not None:
        # a vertex weight of 0 is allowed; the total must stay inside 32 bits
        whole = np.rint(loads * (METIS_TOTAL_LOAD / loads.sum())).astype(np.int32).tolist()
    result = pymetis.part_graph(
        parts,
        pymetis.CSRAdjacency(graph.indptr.astype(np.int32), graph.indices.astype(np.int32)),
        vweights=whole,
        tpwgts=(shares / shares.sum()).tolist(),
        options=pymetis.Options(seed=seed),
    )
    return np.asarray(result.vertex_part, dtype=np.int64)


def spectral(
    graph: csr_array, coordinates: np.ndarray, shares: np.ndarray, loads: np.ndarray | None, seed: int
) -> np.ndarray:
    """Recursive spectral bisection: order by the Fiedler vector, cut at the share of the load, again and again.

    See :func:`fiedler`. Disconnected pieces are lined up by their centres along the greatest extent, and only the
    piece at the cut is divided.

    Raises:
        InputError: more than ``SPECTRAL_PARTICLES`` particles.
        MissingDependencyError: scikit-learn is not installed.

    Source:
        Pothen, Simon, Liou, SIAM J. Matrix Anal. Appl. 11, 430 (1990).
    """
    import scipy.sparse.linalg  # noqa: F401  (loads its BLAS before the threads are limited)

    count = graph.shape[0]
    if count > SPECTRAL_PARTICLES:
        raise InputError(
            f"method='spectral' takes at most {SPECTRAL_PARTICLES:,} particles, not {count:,}: its eigenvectors "
            "take too long; use method='metis' or 'bisection'"
        )
    cost = np.ones(count) if loads is None else loads
    owner = np.zeros(count, dtype=np.int64)

    def divide(index: np.ndarray, first: int, last: int) -> None:
        if last - first == 1 or len(index) == 0:
            owner[index] = first
            return
        middle = (first + last) // 2
        fraction = float(shares[first:middle].sum() / shares[first:last].sum())
        points = coordinates[:, index]
        axis = points[np.argmax(points.max(axis=1) - points.min(axis=1))]
        part = graph if len(index) == count else graph[index][:, index]
        order = _spectral_order(part, axis, cost[index], fraction, seed)
        left = np.zeros(len(index), dtype=bool)
        left[order[: left_count(cost[index[order]], fraction)]] = True
        divide(index[left], first, middle)
        divide(index[~left], middle, last)

    with one_thread("spectral"):
        divide(np.arange(count), 0, len(shares))
    return owner


def _spectral_order(graph: csr_array, axis: np.ndarray, loads: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(n,) the particles in the order in which they go left: piece by piece, inside the cut piece by Fiedler."""
    from scipy.sparse.csgraph import connected_components

    pieces, label = connected_components(graph, directed=False)
    centre = np.bincount(label, weights=axis) / np.bincount(label)
    by_centre = np.argsort(centre, kind="stable")
    place = np.empty(pieces, dtype=np.int64)
    place[by_centre] = np.arange(pieces)
    piece = place[label]
    filled = np.cumsum(np.bincount(piece, weights=loads, minlength=pieces))
    cut = min(int(np.searchsorted(filled, fraction * filled[-1], side="right")), pieces - 1)
    members = np.flatnonzero(piece == cut)
    value = np.zeros(len(axis))
    if len(members) > 2:
        vector = fiedler(graph if pieces == 1 else graph[members][:, members], seed)
        # the end that is nearer to the pieces on the left goes left
        local = axis[members] - axis[members].mean()
        value[members] = vector if vector @ local >= 0 else -vector
    return np.lexsort((value, piece))


def fiedler(graph: csr_array, seed: int) -> np.ndarray:
    """(n,) second eigenvector of a connected graph's normalised Laplacian, greatest entry 1 or -1.

    ``(D - A) y = λ D y``, solved as ``D^-1/2 A D^-1/2 u = (1 - λ) u`` with ``y = D^-1/2 u``, so that the wanted end
    of the spectrum is found by products with the matrix alone. They are too many only where λ is tiny, in long
    thin graphs, and there a factorisation is cheap.

    Source:
        Shi, Malik, IEEE Trans. Pattern Anal. Mach. Intell. 22, 888 (2000).
    """
    from scipy.sparse import diags_array, eye_array
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    degree = np.asarray(graph.sum(axis=1)).ravel()
    count = len(degree)
    scale = 1.0 / np.sqrt(degree)
    similarity = (diags_array(scale) @ graph @ diags_array(scale)).tocsr()
    if count <= DENSE_PARTICLES:
        vector = np.linalg.eigh(similarity.toarray())[1][:, -2]
    else:
        start = np.random.default_rng(seed).uniform(-1.0, 1.0, count)
        # shifted by one: the spectrum lies in [0, 2], so the relative tolerance is nearly an absolute one
        turned = (similarity + eye_array(count)).tocsr()
        vector = None
        for tolerance in FIEDLER_TOLERANCES:
            try:
                values, vectors = eigsh(turned, k=2, which="LA", v0=start, tol=tolerance, maxiter=FIEDLER_RESTARTS)
            except ArpackNoConvergence:
                break
            if 2.0 - values.min() >= FIEDLER_MARGIN * tolerance:  # λ stands out from the solver's error
                vector = vectors[:, np.argmin(values)]
                break
            start = vectors.sum(axis=1)
        if vector is None:
            laplacian = (eye_array(count) - similarity).tocsc()
            values, vectors = eigsh(laplacian, k=2, sigma=FIEDLER_SHIFT, which="LM", v0=start)
            vector = vectors[:, np.argmax(values)]
    vector = vector * scale
    return np.round(vector / np.abs(vector).max(), FIEDLER_DIGITS)
