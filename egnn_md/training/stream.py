"""The order of the training data: a pure function of seed and step, so that a resumed run sees the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch

from egnn_md.graph import ParticleGraph


class Samples(Protocol):
    """A list of graphs, or something that makes them when asked."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> ParticleGraph: ...


class BatchStream:
    """Endless stream of batches, cut into rounds for the trainer.

    The stream is the concatenation of one permutation after another (permutation ``k`` is drawn with
    ``seed`` and ``k``), and batch ``s`` is its elements ``[s·B, (s+1)·B)``: every batch is full, and every
    structure is seen once before any is seen again.

    Iterating gives the batches from the current step to the end of its round: the next multiple of one of
    ``periods``. Nothing else about a position needs to be stored to continue a run exactly.

    Args:
        graphs: what there is to learn from.
        batch_size: B.
        seed: of the permutations.
        periods: steps at whose multiples a round ends.
        current_step: gives the number of steps made so far.
    """

    def __init__(
        self,
        graphs: Samples,
        batch_size: int,
        seed: int,
        periods: Sequence[int],
        current_step: Callable[[], int],
    ) -> None:
        self.graphs = graphs
        self.batch_size = batch_size
        self.seed = seed
        self.periods = list(periods)
        self.current_step = current_step
        self._permutations: dict[int, list[int]] = {}

    def _permutation(self, number: int) -> list[int]:
        if number not in self._permutations:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
            self._permutations = {
                key: value for key, value in self._permutations.items() if key == number - 1
            }
            self._permutations[number] = torch.randperm(len(self.graphs), generator=generator).tolist()
        return self._permutations[number]

    def indices(self, step: int) -> list[int]:
        """Members of batch ``step``."""
        n = len(self.graphs)
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self._permutation(position // n)[position % n] for position in positions]

    def batch(self, step: int) -> ParticleGraph:
        """Batch ``step``, joined."""
        return ParticleGraph.join([self.graphs[index] for index in self.indices(step)])

    def __iter__(self) -> Iterator[ParticleGraph]:
        step = self.current_step()
        end = min((step // period + 1) * period for period in self.periods)
        while step < end:
            yield self.batch(step)
            step += 1
