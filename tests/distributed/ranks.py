"""Ranks as threads of this process: the same process groups and collectives, without the seconds a process needs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from egnn_md.distributed.channel import RankLostError
from egnn_md.distributed.protocol import Answer
from egnn_md.distributed.rank import Rank, follow
from egnn_md.distributed.session import LaunchedRanks
from egnn_md.distributed.wire import Wire, open_group


def on_ranks(size: int, work: Callable[[Wire], Any], *, limit: float = 60.0) -> list[Any]:
    """What ``work`` gives on each of ``size`` ranks; the first error of a rank is raised."""
    store = dist.HashStore()
    found: list[Any] = [None] * size
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            group = open_group(dist.PrefixStore("ranks", store), rank, size, limit=limit, loopback=True)
            found[rank] = work(Wire(group, rank, size))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


class Loses(LaunchedRanks):
    """Ranks as threads; before the steps in ``at`` (counted from 0) all of them forget everything."""

    at: tuple[int, ...] = ()
    steps = 0
    lost = 0

    def step(self, frame: Any) -> Answer:
        """See the base class."""
        self.steps += 1
        if self.steps - 1 in self.at:
            raise RankLostError("lost for a test")
        return super().step(frame)

    def open(self) -> int:
        """See the base class."""
        return 1000 * self.lost + super().open()

    def recover(self, error: RankLostError) -> None:
        """They are asked to start again from nothing."""
        self.lost += 1


@contextmanager
def threads(size: int) -> Iterator[Loses]:
    """Ranks that serve as long as the block lasts: rank 0 in this thread, the others in threads of their own."""
    store = dist.HashStore()

    def rank(number: int) -> Rank:
        wires = [
            Wire(open_group(dist.PrefixStore(name, store), number, size, limit=60.0, loopback=True), number, size)
            for name in ("compute", "control")
        ]
        return Rank(*wires)

    others = [
        threading.Thread(target=lambda number=number: follow(rank(number)), daemon=True) for number in range(1, size)
    ]
    for other in others:
        other.start()
    first = Loses(rank(0))
    try:
        yield first
    finally:
        first.end()
        for other in others:
            other.join(60.0)
