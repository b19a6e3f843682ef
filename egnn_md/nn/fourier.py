"""Virtual nodes that have a geometry in a periodic cell: Fourier modes of learned particle weights.

A cell has no centre of mass, but it has wave vectors. With q = |k| σ for the cell's wave vectors k ≠ 0, each virtual
channel c keeps modes and gives back a potential and a field:

| equation | variable |
| --- | --- |
| S_c(k) = Σ_i a_c(h_i) exp(-i k·x_i) | ``modes`` (G, W, 2C): sums of a cos, then of a sin |
| w_c(k) = 4π σ³ u(q / q_max) exp(-q²/2) Σ_b W_cb r_b(q) | ``FourierResponse``; r_b(q): q⁻², 1, q²/3, q⁴/15 |
| φ_ic = Σ_k w_c(k) Re[S_c(k) exp(i k·x_i)] / V | ``potential`` (N, C) |
| E_ic = -σ ∂φ_ic/∂x_i | ``field`` (N, 3, C) |

With r = q⁻² this is the long-range part of an Ewald sum with Gaussians of width σ (P. P. Ewald, Ann. Phys. 369, 253,
1921), a_c being charges; k = 0 is left out, which is a neutralising background under conducting boundaries. The
envelope u makes it smooth when a change of the cell lets a wave vector in or out. φ does not change when particles
are wrapped or all are moved, and a repeated cell has the same φ. k and -k say the same, so one of each pair is kept
and counted twice.

The cost is particles times wave vectors: quadratic in the size of the system at fixed density.
"""

import math
from typing import List, NamedTuple  # noqa: UP035 - TorchScript reads types from here

import torch
from torch import Tensor, nn

from egnn_md.nn.basis import polynomial_envelope

#: Wave vectors end at this |k| σ, where the Gaussian is 2e-3 and the envelope exactly zero.
LARGEST_Q = 3.5
RADIAL_FUNCTIONS = 4


class Waves(NamedTuple):
    """The wave vectors of a batch's cells, and the phases of its particles."""

    vectors: Tensor  #: (G, W, 3), 1/Å; W counts one of each pair ±k
    radial: Tensor  #: (G, W, B), radial functions times 8π σ³ u exp(-q²/2) / V; zero where a graph lacks the vector
    cosine: Tensor  #: (N, W), cos(k·x)
    sine: Tensor  #: (N, W)
    sizes: List[int]  # noqa: UP006  #: particles of each graph, which follow each other


def no_waves(positions: Tensor, graphs: int, functions: int = RADIAL_FUNCTIONS) -> Waves:
    """For networks without Fourier modes."""
    return Waves(
        positions.new_zeros([graphs, 0, 3]),
        positions.new_zeros([graphs, 0, functions]),
        positions.new_zeros([positions.shape[0], 0]),
        positions.new_zeros([positions.shape[0], 0]),
        [0],
    )


def whole_waves(cells: Tensor, reach: float) -> Tensor:
    """(W, 3) whole numbers n, one of each pair ±n, of all wave vectors up to ``reach`` (1/Å) of any of ``cells``.

    Args:
        cells: (G, 3, 3) rows, Å, float64, each with a volume.
        reach: largest |k|.
    """
    # k·a_j = 2π n_j, so |n_j| <= |k| |a_j| / 2π
    most = torch.floor(torch.linalg.vector_norm(cells, dim=2).amax(0) * (reach / (2.0 * math.pi))).to(torch.int64)
    a, b, c = int(most[0]), int(most[1]), int(most[2])
    first = torch.arange(0, a + 1, device=cells.device).reshape(-1, 1, 1)
    second = torch.arange(-b, b + 1, device=cells.device).reshape(1, -1, 1)
    third = torch.arange(-c, c + 1, device=cells.device).reshape(1, 1, -1)
    half = (first > 0) | ((first == 0) & ((second > 0) | ((second == 0) & (third > 0))))
    shape = [a + 1, 2 * b + 1, 2 * c + 1]
    grid = torch.stack([first.expand(shape), second.expand(shape), third.expand(shape)], 3)[half]
    numbers = grid.to(cells.dtype)
    reciprocal = 2.0 * math.pi * torch.linalg.inv(cells).transpose(1, 2)
    squared = torch.matmul(numbers, reciprocal).pow(2).sum(2)  # (G, W)
    return grid[(squared < reach * reach).any(0)]


def find_waves(positions: Tensor, cell: Tensor, batch: Tensor, width: float, largest: float = LARGEST_Q) -> Waves:
    """Wave vectors and phases.

    Args:
        positions: (N, 3), Å.
        cell: (G, 3, 3) rows, Å; zero for a graph that does not repeat in all directions, which gets none.
        batch: (N,), ascending.
        width: σ, Å.
        largest: |k| σ at which wave vectors end.
    """
    reach = largest / width
    volume = torch.linalg.det(cell).abs()
    # a cell so small that its first wave vector is beyond the reach stands in for none: nothing of it remains,
    # and nothing divides by zero
    tiny = torch.eye(3, dtype=cell.dtype, device=cell.device) * (math.pi / reach)
    there = (volume > 0).reshape(-1, 1, 1)
    cell = torch.where(there, cell, tiny)
    volume = torch.where(there.reshape(-1), volume, torch.ones_like(volume))
    numbers = whole_waves(cell.detach().to(torch.float64), reach).to(cell.dtype)
    vectors = torch.matmul(numbers, 2.0 * math.pi * torch.linalg.inv(cell).transpose(1, 2))  # (G, W, 3)
    squared = (vectors * vectors).sum(2) * width**2
    decay = torch.exp(-0.5 * squared) * polynomial_envelope(squared.sqrt(), largest)
    # twice, for -k
    decay = decay * (8.0 * math.pi * width**3) / volume.reshape(-1, 1)
    functions = torch.stack([1.0 / squared, torch.ones_like(squared), squared / 3.0, squared * squared / 15.0], 2)
    graphs = cell.shape[0]
    sizes: List[int] = [positions.shape[0]]  # noqa: UP006
    if graphs > 1:  # to ask a GPU would be to wait for it
        counted: List[int] = torch.bincount(batch, minlength=graphs).tolist()  # noqa: UP006
        sizes = counted
    phases: List[Tensor] = []  # noqa: UP006
    for graph, own in enumerate(torch.split(positions, sizes)):
        phases.append(torch.matmul(own, vectors[graph].t()))
    phase = torch.cat(phases)
    return Waves(vectors, functions * decay.unsqueeze(2), torch.cos(phase), torch.sin(phase), sizes)


def modes_of(charges: Tensor, waves: Waves) -> Tensor:
    """This part's share of the modes (G, W, 2C) of weights ``charges`` (N, C)."""
    found: List[Tensor] = []  # noqa: UP006
    cosines, sines = torch.split(waves.cosine, waves.sizes), torch.split(waves.sine, waves.sizes)
    for graph, own in enumerate(torch.split(charges, waves.sizes)):
        found.append(torch.cat([torch.matmul(cosines[graph].t(), own), torch.matmul(sines[graph].t(), own)], 1))
    return torch.stack(found)


class FourierResponse(nn.Module):
    """Modes back to particles by a learned radial weight of each channel.

    Args:
        channels: C.
        width: σ, Å.
    """

    def __init__(self, channels: int, width: float) -> None:
        super().__init__()
        self.channels = channels
        self.width = float(width)
        self.radial_weight = nn.Parameter(torch.zeros(RADIAL_FUNCTIONS, channels))
        with torch.no_grad():
            # begins as what charges feel: most of what is long-ranged is that
            self.radial_weight[0] = 1.0

    def weighted(self, modes: Tensor, waves: Waves) -> Tensor:
        """``modes`` (G, W, 2C) times w_c(k) / V."""
        weight = torch.matmul(waves.radial, self.radial_weight)
        return modes * torch.cat([weight, weight], 2)

    def potential(self, weighted: Tensor, waves: Waves) -> Tensor:
        """φ (N, C)."""
        return self.along(
            waves.cosine, waves.sine, weighted[:, :, : self.channels], weighted[:, :, self.channels :], waves
        )

    def field(self, weighted: Tensor, waves: Waves) -> Tensor:
        """E (N, 3, C)."""
        c = self.channels
        graphs, count = waves.vectors.shape[0], waves.vectors.shape[1]
        slopes = (self.width * waves.vectors).unsqueeze(3) * weighted.unsqueeze(2)  # (G, W, 3, 2C)
        of_cosine = slopes[:, :, :, :c].reshape(graphs, count, 3 * c)
        of_sine = slopes[:, :, :, c:].reshape(graphs, count, 3 * c)
        return self.along(waves.sine, waves.cosine, of_cosine, -of_sine, waves).reshape(-1, 3, c)

    def along(self, first: Tensor, second: Tensor, a: Tensor, b: Tensor, waves: Waves) -> Tensor:
        """Σ_k of ``first`` times ``a`` and ``second`` times ``b``: (N, W) and (G, W, n) to (N, n)."""
        found: List[Tensor] = []  # noqa: UP006
        seconds = torch.split(second, waves.sizes)
        for graph, own in enumerate(torch.split(first, waves.sizes)):
            found.append(torch.matmul(own, a[graph]) + torch.matmul(seconds[graph], b[graph]))
        return torch.cat(found)
