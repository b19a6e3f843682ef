"""When the ranks' neighbour lists have to be made again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from egnn_md.neighbors import VerletList

_TUNED = (
    "skin", "place", "best", "direction", "best_cost", "climbed", "settled", "lists", "uses", "looked", "made",
)  # fmt: skip


class Clock(VerletList):
    """Tells when lists have to be made again, and with which skin; holds none itself."""

    def due(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        self.statistics.updates += 1
        made = not self._still_valid(positions, cell, pbc)
        if made:
            self.adopt(positions, cell, pbc, self._edge_index, self._steps)
            self.statistics.skin = self.skin
        self._tuner.used(self._edge_index.shape[1])
        return made

    def learn(self, pairs: int) -> None:
        """So many pairs are in the lists of all ranks."""
        self._edge_index = torch.zeros(2, 1, dtype=torch.int64).expand(2, pairs)

    @property
    def reference(self) -> tuple[Tensor, Tensor, Tensor] | None:
        """Positions, cell and periodic directions that the lists were made for."""
        return None if self._positions is None else (self._positions, self._cell, self._pbc)

    def state(self) -> dict[str, Any]:
        """What :meth:`take` needs to decide as this one would."""
        tuned = {name: getattr(self._tuner, name) for name in _TUNED}
        return {"tuned": tuned, "statistics": dict(vars(self.statistics)), "pairs": int(self._edge_index.shape[1])}

    def take(self, state: dict[str, Any], reference: tuple[Tensor, Tensor, Tensor]) -> None:
        """Go on as the one whose :meth:`state` and :attr:`reference` these are."""
        self.learn(int(state["pairs"]))
        for name, value in state["tuned"].items():  # the skin first: it says how far the lists reach
            setattr(self._tuner, name, value)
        self.adopt(*reference, self._edge_index, self._steps)
        for name, value in state["statistics"].items():
            setattr(self.statistics, name, value)
