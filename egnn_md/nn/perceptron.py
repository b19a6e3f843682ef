"""The two-layer perceptrons φ of the paper."""

import torch
from torch import nn

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

    def forward(self, message: torch.Tensor) -> torch.Tensor:
        """Scale (..., hidden) messages by one number each."""
        return message * torch.sigmoid(self.linear(message))
