"""The way from the one who drives an engine to the ranks, and what is said when one of them is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from torch import Tensor

from egnn_md.distributed.protocol import Answer
from egnn_md.errors import DeviceError


class Channel(Protocol):
    """The way to the ranks."""

    @property
    def size(self) -> int:
        """P, number of ranks."""

    def open(self) -> int:
        """Have ranks ready; a number that is another one whenever they are new and know nothing."""

    def step(self, frame: Tensor) -> Answer:
        """One evaluation."""

    def message(self, message: dict[str, Any]) -> Answer | None:
        """A message to all ranks."""

    def succeeded(self) -> None:
        """The ranks answered."""

    def recover(self, error: RankLostError) -> None:
        """Ranks were lost: get new ones, which know nothing. Raises DeviceError if there is no way on."""

    def close(self) -> None:
        """Let the ranks go."""


class RankLostError(DeviceError):
    """A rank died, or does not answer; what it was asked for can be asked again once there are new ranks."""

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)
