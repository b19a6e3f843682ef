"""Ranks as threads of this process: the same process groups and collectives, without the seconds a process needs."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch.distributed as dist

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
