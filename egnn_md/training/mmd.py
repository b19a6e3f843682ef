"""Losses of the paper for predicted positions and virtual nodes.

Potentials are trained on energies, forces and stress instead; their loss lives with the training module.
"""

from __future__ import annotations

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.nn.segment import segment_mean

KERNELS = ("published", "gaussian")


def _kernel(squared: Tensor, sigma: float, kernel: str) -> Tensor:
    if kernel == "gaussian":
        return torch.exp(-squared / (2 * sigma**2))
    # a zero distance (a virtual node with itself) has no gradient; keep sqrt'(0) out of the graph
    positive = squared > 0
    distance = torch.where(positive, squared, torch.ones_like(squared)).sqrt()
    return torch.exp(-torch.where(positive, distance, torch.zeros_like(distance)) / (2 * sigma**2))


def mmd_loss(
    virtual_positions: Tensor,
    target: Tensor,
    batch: Tensor,
    *,
    sigma: float,
    kernel: str = "published",
) -> Tensor:
    """Maximum mean discrepancy between virtual nodes and target positions, without the constant term.

    MMD = (1/C²) Σ_cc' k(z_c, z_c') - (2/(n C)) Σ_ic k(y_i, z_c), averaged over graphs (arXiv 2506.19482).

    Args:
        virtual_positions: (G, 3, C).
        target: (n, 3) sampled target positions y of all graphs.
        batch: (n,) graph of each target, every graph at least once.
        sigma: kernel width.
        kernel: ``published`` is exp(-|a-b| / 2σ²), as the authors' code has it; ``gaussian`` is
            exp(-|a-b|² / 2σ²), as the paper prints it.

    Raises:
        InputError: an unknown kernel.
    """
    if kernel not in KERNELS:
        raise InputError(f"unknown MMD kernel {kernel!r}; known: {', '.join(KERNELS)}")
    graphs = virtual_positions.shape[0]
    nodes = virtual_positions.transpose(1, 2)  # (G, C, 3)
    among = (nodes[:, :, None] - nodes[:, None]).pow(2).sum(-1)
    across = (target[:, None] - nodes[batch]).pow(2).sum(-1)  # (n, C)
    own = _kernel(among, sigma, kernel).mean(dim=(1, 2))
    mixed = segment_mean(_kernel(across, sigma, kernel).mean(1), batch, graphs)
    return (own - 2.0 * mixed).mean()
