"""SiLU for force training: the same function with its second derivative in few passes over memory.

A loss on forces is differentiated twice. PyTorch composes that second derivative of SiLU from a dozen
elementwise operations on tensors of a row an edge, which is most of a training step on a CPU. Here each
derivative is one or a few passes:

    s = sigmoid(x),  y = x s,  y' = s (1 + x (1 - s)),  y'' = s (1 - s) (2 + x (1 - 2 s))
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _SiluBackward(torch.autograd.Function):
    """(g, x) → g y'(x), once more differentiable."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(g, x)
        return torch.ops.aten.silu_backward(g, x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gg: Tensor) -> tuple[Tensor | None, Tensor | None]:
        g, x = ctx.saved_tensors
        by_g = torch.ops.aten.silu_backward(gg, x) if ctx.needs_input_grad[0] else None
        by_x = None
        if ctx.needs_input_grad[1]:
            s = torch.sigmoid(x)
            by_x = torch.ops.aten.sigmoid_backward(g * gg, s)  # g gg s (1 - s)
            by_x.mul_(s.mul_(-2).add_(1).mul_(x).add_(2))
        return by_g, by_x


class _Silu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.nn.functional.silu(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return _SiluBackward.apply(g, x)


def fast_silu(x: Tensor) -> Tensor:
    """``x * sigmoid(x)`` with derivatives up to the second (a third one raises)."""
    found: Tensor = _Silu.apply(x)
    return found


class FastSiLU(nn.Module):
    """Drop-in for :class:`torch.nn.SiLU` with derivatives up to the second (a third one raises)."""

    def forward(self, x: Tensor) -> Tensor:
        """``x * sigmoid(x)``."""
        return fast_silu(x)


def use_fast_silu(model: nn.Module) -> int:
    """Replace every SiLU inside ``model`` in place; it has no weights, so model files stay the same.

    The model cannot be scripted afterwards: it is for the copy that is trained.

    Returns:
        How many were replaced.
    """
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.SiLU:
                setattr(parent, name, FastSiLU())
                count += 1
    return count
