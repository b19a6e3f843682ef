"""The maps of a message and of a head as the kernels read them, and their gradients taken apart again."""

from __future__ import annotations

import torch
from torch import Tensor

from egnn_md.kernels.native.arrays import LANES, address, rows, square

MESSAGE_FIELDS = ("w2", "w2_t", "b2", "gate_w", "gate_b")
HEAD_FIELDS = ("w1", "w1_t", "b1", "last")


def message_maps(
    w2: Tensor, b2: Tensor, gate_w: Tensor | None, gate_b: Tensor | None, width: int
) -> tuple[Tensor | None, ...]:
    """In the order of ``MESSAGE_FIELDS``."""
    whole = square(w2, width)
    gate = None if gate_w is None else rows(gate_w, width)
    return whole, whole.t().contiguous(), rows(b2, width), gate, gate_b


def head_maps(w1: Tensor, b1: Tensor, last: Tensor, width: int) -> tuple[Tensor, ...]:
    """In the order of ``HEAD_FIELDS``."""
    whole = square(w1, width)
    return whole, whole.t().contiguous(), rows(b1, width), rows(last, width)


def addresses(tensors: tuple[Tensor | None, ...]) -> list[int]:
    """Of each."""
    return [address(tensor) for tensor in tensors]


class WeightGradients:
    """The kernels' sums (float64) of the gradients of all weights, read from front to back."""

    def __init__(self, size: int, hidden: int, width: int, dtype: torch.dtype) -> None:
        self.sums = torch.zeros(size, dtype=torch.float64)
        self.hidden, self.width, self.dtype = hidden, width, dtype
        self.place = 0
        self._rounded: Tensor | None = None

    @staticmethod
    def message_size(width: int) -> int:
        """Numbers that a message's maps take."""
        return width * width + 2 * width + LANES

    @staticmethod
    def head_size(width: int) -> int:
        """Numbers that a head's maps take."""
        return width * width + 2 * width

    def _next(self, count: int) -> Tensor:
        if self._rounded is None:  # once for all: the parts are views
            self._rounded = self.sums.to(self.dtype)
        self.place += count
        return self._rounded[self.place - count : self.place]

    def take(self, count: int) -> Tensor:
        """(count, F): rows of a map."""
        block = self._next(count * self.width).reshape(count, self.width)
        return block if self.width == self.hidden else block[:, : self.hidden].contiguous()

    def take_square(self) -> Tensor:
        """(F, F)."""
        return self.take(self.width)[: self.hidden]

    def take_message(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of w2 (F, F), b2 (F,), gate_w (F,), gate_b (1,)."""
        w2, b2, gate_w = self.take_square(), self.take(1)[0], self.take(1)[0]
        return w2, b2, gate_w, self._next(LANES)[:1]

    def take_head(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of a head's first map (F, F), its bias (F,) and its last map (F,)."""
        return self.take_square(), self.take(1)[0], self.take(1)[0]
