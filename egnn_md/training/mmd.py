"""Losses of the paper for predicted positions and virtual nodes.

Potentials are trained on energies, forces and stress instead; their loss lives with the training module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.nn.segment import segment_sum
from egnn_md.training.share import Share

KERNELS = ("published", "gaussian")


def _kernel(squared: Tensor, sigma: float, kernel: str) -> Tensor:
    if kernel == "gaussian":
        return torch.exp(-squared / (2 * sigma**2))
    # a zero distance (a virtual node with itself) has no gradient; keep sqrt'(0) out of the graph
    positive = squared > 0
    distance = torch.where(positive, squared, torch.ones_like(squared)).sqrt()
    return torch.exp(-torch.where(positive, distance, torch.zeros_like(distance)) / (2 * sigma**2))


def sample_rows(batch: Tensor, graphs: int, samples: int, generator: torch.Generator | None = None) -> Tensor:
    """Rows of ``samples`` random members of every graph, without repetition, all graphs at once.

    Args:
        batch: (n,) graph of each row.
        graphs: G.
        samples: rows a graph; a smaller graph gives all of its rows.
        generator: on the CPU, so that every device draws the same.

    Raises:
        InputError: fewer than one sample.
    """
    if samples < 1:
        raise InputError(f"{samples} samples a graph; at least one is needed")
    # a random order within each graph: sort by graph first, by a random number second
    keys = torch.rand(batch.shape[0], generator=generator, dtype=torch.float64).to(batch.device)
    order = torch.argsort(batch + keys)
    counts = torch.bincount(batch, minlength=graphs)
    rank = torch.arange(batch.shape[0], device=batch.device) - (torch.cumsum(counts, 0) - counts)[batch[order]]
    return order[rank < samples]


def mmd_loss(
    virtual_positions: Tensor,
    target: Tensor,
    batch: Tensor,
    *,
    sigma: float,
    kernel: str = "published",
    samples: int | None = None,
    generator: torch.Generator | None = None,
    share: Share | None = None,
) -> Tensor:
    """Maximum mean discrepancy between virtual nodes and target positions, without the constant term.

    MMD = (1/C²) Σ_cc' k(z_c, z_c') - (2/(n C)) Σ_ic k(y_i, z_c), averaged over graphs (arXiv 2506.19482).

    Args:
        virtual_positions: (G, 3, C).
        target: (n, 3) target positions y of all graphs.
        batch: (n,) graph of each target, every graph at least once.
        sigma: kernel width; σ is a length for ``gaussian``, σ² is one for ``published``.
        kernel: ``published`` is exp(-|a-b| / 2σ²), as the authors' code has it; ``gaussian`` is
            exp(-|a-b|² / 2σ²), as the paper prints it.
        samples: that many random targets a graph (all of a smaller graph); every target if None. The authors'
            configurations draw 3 C of them.
        generator: of the samples, on the CPU; torch's own if None.
        share: of a batch that is divided over ranks: ``virtual_positions`` are those of its graphs, ``target`` and
            ``batch`` those of its own particles. None: they are of the whole batch.

    Returns:
        () the mean over graphs; with ``share`` what this rank brings, which all ranks' together sum up to it.

    Raises:
        InputError: an unknown kernel, a width that is not positive, no virtual nodes, or no sample.
    """
    if kernel not in KERNELS:
        raise InputError(f"unknown MMD kernel {kernel!r}; known: {', '.join(KERNELS)}")
    if not sigma > 0:
        raise InputError(f"the MMD kernel's width sigma is {sigma}; it must be positive")
    graphs = virtual_positions.shape[0]
    if virtual_positions.shape[2] == 0:
        raise InputError("there are no virtual nodes (C = 0), so there is no MMD; leave the term out")
    whole, of_all = (batch, graphs) if share is None else (share.whole.batch, share.whole.num_graphs)
    copies, own_graphs = (1, slice(None)) if share is None else (share.copies, share.graphs)
    drawn = whole
    if samples is not None:
        # every rank draws the same ones out of all particles, and keeps those that it owns
        rows = sample_rows(whole, of_all, samples, generator)
        drawn = whole[rows]
        if share is not None and share.rows is not None:
            number = torch.full_like(whole, -1)
            number[share.rows] = torch.arange(len(batch), device=whole.device)
            rows = number[rows]
            rows = rows[rows >= 0]
        target, batch = target[rows], batch[rows]
    counts = torch.bincount(drawn, minlength=of_all)[own_graphs].clamp_min(1)
    nodes = virtual_positions.transpose(1, 2)  # (G, C, 3)
    among = (nodes[:, :, None] - nodes[:, None]).pow(2).sum(-1)
    across = (target[:, None] - nodes[batch]).pow(2).sum(-1)  # (n, C)
    own = _kernel(among, sigma, kernel).mean(dim=(1, 2)) / copies
    mixed = segment_sum(_kernel(across, sigma, kernel).mean(1), batch, graphs) / counts
    return (own - 2.0 * mixed).sum() / of_all
