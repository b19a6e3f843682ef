"""Radial basis and the envelope that lets neighbours come and go smoothly."""

import math

import torch
from torch import Tensor, nn


def polynomial_envelope(distance: Tensor, cutoff: float, p: int = 6) -> Tensor:
    """Polynomial that falls from 1 at zero to 0 at ``cutoff`` with value, slope and curvature zero there.

    u(d) = 1 - (p+1)(p+2)/2 dᵖ + p(p+2) dᵖ⁺¹ - p(p+1)/2 dᵖ⁺², d = distance / cutoff; 0 beyond
    (Gasteiger, Groß, Günnemann, ICLR 2020, equation 8).

    Args:
        distance: any shape, in the unit of ``cutoff``.
        cutoff: where the envelope ends.
        p: degree; 6 by default.
    """
    d = (distance / cutoff).clamp(max=1.0)
    dp = d**p
    return (
        1.0
        - 0.5 * (p + 1.0) * (p + 2.0) * dp
        + p * (p + 2.0) * dp * d
        - 0.5 * p * (p + 1.0) * dp * d * d
    )


class BesselBasis(nn.Module):
    """``sqrt(2/c) sin(n π d / c) / d`` for n = 1..size, c the cutoff (Gasteiger et al. 2020, equation 7)."""

    orders: Tensor

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = float(cutoff)
        self.prefactor = math.sqrt(2.0 / cutoff)
        # computed in float64 and kept as a buffer, so that a model cast to float64 has exact frequencies
        self.register_buffer("orders", torch.arange(1, size + 1, dtype=torch.float64), persistent=False)

    def forward(self, distance: Tensor) -> Tensor:
        """(E,) distances above zero to (E, size)."""
        orders = self.orders.to(distance.dtype)
        d = distance.unsqueeze(-1)
        return self.prefactor * torch.sin(orders * (math.pi / self.cutoff) * d) / d
