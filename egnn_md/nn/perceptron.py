"""The two-layer perceptrons φ of the paper."""

import torch
from torch import Tensor, nn
from torch.nn import functional

#: Xavier gain of the last map of every coordinate perceptron: a fresh network hardly moves anything.
COORDINATE_GAIN = 0.001


def perceptron(inputs: int, hidden: int, outputs: int, *, final_activation: bool = False) -> nn.Sequential:
    """``Linear · SiLU · Linear [· SiLU]``."""
    layers: list[nn.Module] = [nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs)]
    if final_activation:
        layers.append(nn.SiLU())
    return nn.Sequential(*layers)


def coordinate_perceptron(hidden: int, *, tanh: bool = False, inputs: int | None = None) -> nn.Sequential:
    """``Linear · SiLU · Linear without bias [· Tanh]`` to one number, starting near zero; ``inputs`` or hidden ones."""
    last = nn.Linear(hidden, 1, bias=False)
    nn.init.xavier_uniform_(last.weight, gain=COORDINATE_GAIN)
    layers: list[nn.Module] = [nn.Linear(inputs or hidden, hidden), nn.SiLU(), last]
    if tanh:
        layers.append(nn.Tanh())
    return nn.Sequential(*layers)


class Gate(nn.Module):
    """Attention of the paper: ``m · sigmoid(Linear(m))``."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden, 1)

    def forward(self, message: Tensor) -> Tensor:
        """Scale (..., hidden) messages by one number each."""
        return message * torch.sigmoid(self.linear(message))


class SplitPerceptron(nn.Module):
    """``Linear · SiLU · Linear · SiLU`` of [a, b, geometry], the first map taken part by part.

    A particle has many edges: its part of the first map is worked out once a particle and gathered, and the joined
    input (E, 2 hidden + ...) never exists.

    Args:
        hidden: size of a, of b and of the output.
        geometry: size of the rest, what differs from edge to edge.
    """

    hidden: torch.jit.Final[int]

    def __init__(self, hidden: int, geometry: int) -> None:
        super().__init__()
        self.hidden = hidden
        self.first = nn.Linear(2 * hidden + geometry, hidden)
        self.second = nn.Linear(hidden, hidden)

    def part_a(self, a: Tensor) -> Tensor:
        """(..., hidden) part of the first map that a has, with the bias."""
        return functional.linear(a, self.first.weight[:, : self.hidden], self.first.bias)

    def part_b(self, b: Tensor) -> Tensor:
        """(..., hidden) part of the first map that b has."""
        return functional.linear(b, self.first.weight[:, self.hidden : 2 * self.hidden])

    def geometry_map(self) -> Tensor:
        """(geometry, hidden) rest of the first map, to be multiplied from the right.

        Contiguous: the gradient of a weight with few inputs is ten times faster to work out in this layout (MKL).
        """
        return self.first.weight[:, 2 * self.hidden :].t().contiguous()

    def forward(self, joined: Tensor) -> Tensor:
        """What follows the sum of all parts (..., hidden)."""
        return functional.silu(self.second(functional.silu(joined)))
