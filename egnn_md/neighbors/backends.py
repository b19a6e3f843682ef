"""Backends behind one contract.

Contract: given positions (N, 3), cell (3, 3), pbc (3,) and a cutoff, return every ordered pair
(receiver, sender, shift) with ``0 < |x_r - x_s + shift @ cell| <= cutoff`` up to rounding, self-images
included, a particle with itself at no shift excluded; sorted by receiver, then sender, then shift.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.graph import check_cell
from egnn_md.neighbors.skin import both_ways, sort_order

Pairs = tuple[Tensor, Tensor]
MAXIMUM_BRUTE_PAIRS = 200_000_000
THREADED_POINTS = 20_000  # from here on vesin uses threads


def _brute(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> Pairs:
    """Every pair with every image that can matter: slow, obvious, the reference of the tests."""
    device, dtype = positions.device, positions.dtype
    images = torch.zeros(1, 3, device=device, dtype=dtype)
    if bool(pbc.any()):
        complete = completed_cell(cell, pbc)
        inverse = torch.linalg.inv(complete)
        # the height of the cell along direction k is 1 / |column k of the inverse|
        reach = cutoff * inverse.norm(dim=0)
        fractional = positions @ inverse
        spread = (
            fractional.max(0).values - fractional.min(0).values if len(positions) else torch.zeros_like(reach)
        )
        bound = torch.where(pbc, torch.ceil(reach + spread), torch.zeros_like(reach)).long().tolist()
        axes = [torch.arange(-b, b + 1, device=device, dtype=dtype) for b in bound]
        images = torch.cartesian_prod(*axes).reshape(-1, 3)
    n = len(positions)
    if n * n * len(images) > MAXIMUM_BRUTE_PAIRS:
        raise InputError(
            f"the brute-force neighbour list would test {n * n * len(images):,} pairs; use backend='vesin'"
        )
    translations = images @ cell
    receivers, senders, shifts = [], [], []
    difference = positions[:, None] - positions[None, :]
    itself = torch.eye(n, dtype=torch.bool, device=device)
    for image, translation in zip(images, translations, strict=True):
        near = (difference + translation).pow(2).sum(-1) <= cutoff * cutoff
        if not bool(image.any()):
            near = near & ~itself
        receiver, sender = near.nonzero(as_tuple=True)
        receivers.append(receiver)
        senders.append(sender)
        shifts.append(image.expand(len(receiver), 3))
    return sort_pairs(torch.stack([torch.cat(receivers), torch.cat(senders)]), torch.cat(shifts))


def completed_cell(cell: Tensor, pbc: Tensor) -> Tensor:
    """``cell`` with open directions replaced by unit vectors normal to the periodic ones."""
    rows = [cell[k] if bool(pbc[k]) else None for k in range(3)]
    for k in range(3):
        if rows[k] is None:
            known = [row for row in rows if row is not None]
            basis = torch.eye(3, dtype=cell.dtype, device=cell.device)
            if known:
                q, _ = torch.linalg.qr(torch.stack(known).T, mode="reduced")
                basis = basis - basis @ q @ q.T
            best = basis[basis.norm(dim=1).argmax()]
            rows[k] = best / best.norm()
    return torch.stack([row for row in rows if row is not None])


def _vesin(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> Pairs:
    from vesin_torch import NeighborList

    # vesin computes in double precision and wants the tensors detached on one device
    points = positions.detach().double()
    box = cell.detach().double()
    periodic: Tensor | bool = pbc.to(points.device) if bool(pbc.any()) else False
    if points.device.type == "cpu":
        # half the pairs take two thirds of the time; threads of its own would fight with torch's over few cores
        threads = 1 if len(points) < THREADED_POINTS else 0
        finder = NeighborList(cutoff=cutoff, full_list=False, sorted=False, n_threads=threads)
        half, half_steps = finder.compute(points, box, periodic, "PS")
        edge_index, steps = both_ways(half, half_steps)
        return edge_index, steps.to(positions.dtype)
    calculator = NeighborList(cutoff=cutoff, full_list=True, sorted=False)
    first, second, shifts = calculator.compute(points, box, periodic, "ijS")
    # vesin's pair is x[second] - x[first] + S·cell with first = centre; ours is the opposite difference
    edge_index = torch.stack([first.long(), second.long()])
    return sort_pairs(edge_index, -shifts.to(positions.dtype))


def _torch_cluster(positions: Tensor, cell: Tensor, pbc: Tensor, cutoff: float) -> Pairs:
    if bool(pbc.any()):
        raise InputError(
            "the torch_cluster backend knows no periodic cell (pbc = "
            f"{pbc.tolist()}); use backend='vesin' for periodic systems"
        )
    try:
        from torch_cluster import radius_graph
    except ImportError as error:
        raise MissingDependencyError(
            "the torch_cluster backend needs torch-cluster, which is compiled on installation: `make cluster`, "
            "or pip install --no-build-isolation torch-cluster"
        ) from error
    points = positions.detach().double()
    # its cutoff is exclusive and its neighbour count bounded: widen by rounding, and bound by N
    edges = radius_graph(
        points, cutoff * (1 + 1e-12), loop=False, max_num_neighbors=max(len(points), 1), flow="target_to_source"
    )
    return sort_pairs(edges, torch.zeros(edges.shape[1], 3, dtype=positions.dtype, device=positions.device))


_BACKENDS: dict[str, Callable[[Tensor, Tensor, Tensor, float], Pairs]] = {
    "vesin": _vesin,
    "torch_cluster": _torch_cluster,
    "brute": _brute,
}


def available_backends() -> list[str]:
    """Names that work in this environment (``torch_cluster`` only if it is installed)."""
    return [
        name
        for name in _BACKENDS
        if name != "torch_cluster" or importlib.util.find_spec("torch_cluster") is not None
    ]


def sort_pairs(edge_index: Tensor, cell_shifts: Tensor) -> Pairs:
    """Order by receiver, then sender, then shift, so that every backend gives the same sums."""
    order = sort_order(edge_index[0], edge_index[1], cell_shifts)
    return edge_index[:, order], cell_shifts[order]


def neighbor_list(
    positions: Tensor | np.ndarray,
    cell: Tensor | np.ndarray,
    pbc: Tensor | np.ndarray,
    cutoff: float,
    *,
    backend: str = "vesin",
) -> Pairs:
    """All directed pairs within ``cutoff``, periodic images included, sorted by receiver.

    Args:
        positions: (N, 3), Å; need not be wrapped into the cell.
        cell: (3, 3), rows are lattice vectors, Å; ignored in open directions.
        pbc: (3,) bool.
        cutoff: Å; may exceed half the cell, then several images of one neighbour appear.
        backend: ``vesin`` (default), ``torch_cluster`` (open systems) or ``brute`` (reference).

    Returns:
        ``edge_index`` (2, E) int64 with receivers in row 0, and ``cell_shifts`` (E, 3), whole numbers in the
        dtype of ``positions``: ``pair = positions[receiver] - positions[sender] + cell_shifts @ cell``.

    Raises:
        InputError: positions that are not finite, a flat cell, a cutoff that is not positive, an unknown
            backend, a periodic system for ``torch_cluster``.
        MissingDependencyError: the backend's package is not installed.
    """
    points = torch.as_tensor(positions)
    if not points.is_floating_point():
        points = points.double()
    lattice = torch.as_tensor(cell, dtype=points.dtype, device=points.device)
    periodic = torch.as_tensor(pbc, dtype=torch.bool, device=points.device)
    if points.ndim != 2 or points.shape[1] != 3:
        raise InputError(f"positions must be (N, 3), not {tuple(points.shape)}")
    if lattice.shape != (3, 3) or periodic.shape != (3,):
        raise InputError(
            f"cell must be (3, 3) and pbc (3,), not {tuple(lattice.shape)} and {tuple(periodic.shape)}"
        )
    if not cutoff > 0:
        raise InputError(f"the cutoff must be positive, not {cutoff}")
    if backend not in _BACKENDS:
        raise InputError(f"unknown neighbour backend {backend!r}; known: {', '.join(_BACKENDS)}")
    if not bool(torch.isfinite(points).all()):
        bad = int((~torch.isfinite(points).all(dim=1)).nonzero()[0])
        raise InputError(f"atom {bad} has the position {points[bad].tolist()}, which is not finite")
    check_cell(lattice, periodic)
    points, lattice = points.detach(), lattice.detach()
    if len(points) == 0:
        return (
            torch.zeros(2, 0, dtype=torch.long, device=points.device),
            torch.zeros(0, 3, dtype=points.dtype, device=points.device),
        )
    lattice = torch.where(periodic[:, None], lattice, torch.zeros_like(lattice))
    return _BACKENDS[backend](points, lattice, periodic, float(cutoff))
