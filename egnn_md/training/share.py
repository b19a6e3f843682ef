"""What one rank has of a batch, and how its numbers enter the means over the whole batch.

The loss of a batch is the *sum* of what all ranks bring. So a mean over particles is the sum over the own ones divided
by the number in the whole batch, and what every rank of a graph has anyway (its energy, its stress, its virtual nodes)
enters with one part in ``copies``. Alone both are the ordinary mean.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn

from egnn_md.distributed.part import Parts, communicating
from egnn_md.graph import ParticleGraph


class Splits(Protocol):
    """Who divides batches; :class:`egnn_md.training.ranks.Ranks`."""

    def collect(self, share: Share, values: Tensor) -> Tensor: ...

    def take(self, batch: ParticleGraph, owner: Tensor | None = None) -> Share: ...


@dataclass(frozen=True, eq=False)
class Share:
    """One rank's share of a batch.

    Attributes:
        whole: the batch of all ranks, G graphs and N particles.
        graph: this rank's part of it (:func:`egnn_md.distributed.part.part_of_graph`): g graphs, n own particles.
        first: number of its first graph in ``whole``.
        rows: (n,) numbers of its particles in ``whole``; None for all of them.
        copies: P, ranks that share each of its graphs.
        parts: what its network says to them; None if it is alone.
        owner: of each particle of its graphs a rank, as they are divided.
        ranks: who divided it.
    """

    whole: ParticleGraph
    graph: ParticleGraph
    first: int = 0
    rows: Tensor | None = None
    copies: int = 1
    parts: Parts | None = None
    owner: Tensor | None = None
    ranks: Splits | None = None

    @staticmethod
    def all_of(graph: ParticleGraph) -> Share:
        """One process has everything."""
        return Share(graph, graph)

    @property
    def graphs(self) -> slice:
        """Its graphs among those of ``whole``."""
        return slice(self.first, self.first + self.graph.num_graphs)

    def own(self, values: Tensor) -> Tensor:
        """(n, ...) rows of its particles out of ``values`` (N, ...)."""
        return values if self.rows is None else values[self.rows]

    def communicating(self, model: nn.Module) -> AbstractContextManager[None]:
        """Within, ``model`` talks to the ranks that have the other parts."""
        return nullcontext() if self.parts is None else communicating(model, self.parts)

    def moved(
        self, positions: Tensor, velocities: Tensor, rebuild: Callable[[ParticleGraph], ParticleGraph] | None
    ) -> Share:
        """The same share with other positions and velocities; all ranks call it together.

        Args:
            positions: (n, 3) of the own particles; their gradient stays.
            velocities: (n, 3).
            rebuild: finds the edges of a whole batch anew, held fixed for the gradient; None keeps them.
        """
        new = {"positions": positions, "velocities": velocities}
        if self.ranks is None:
            graph = replace(self.graph, **new)  # type: ignore[arg-type]
            return Share.all_of(graph if rebuild is None else rebuild(graph))
        if rebuild is None:
            return replace(self, graph=replace(self.graph, **new))  # type: ignore[arg-type]
        # random edges are drawn out of those of the whole batch, so everybody needs all positions
        everywhere = self.ranks.collect(self, torch.cat([positions.detach(), velocities.detach()], 1))
        whole = rebuild(replace(self.whole, positions=everywhere[:, :3], velocities=everywhere[:, 3:]))
        share = self.ranks.take(whole, self.owner)
        return replace(share, graph=replace(share.graph, **new))  # type: ignore[arg-type]
