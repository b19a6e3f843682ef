"""One rank of a pool, as a process of its own that :mod:`egnn_md.distributed.pool` starts."""

from __future__ import annotations

import mmap
import os
import re
import shutil
import threading
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from egnn_md.distributed.rank import Rank

LOST_PEER = 75  # exit code of a rank whose collective failed because another one went away
BEAT = 0.2  # seconds between two heartbeats
FOREVER = 10 * 365 * 86400.0  # seconds; ranks wait for the next step as long as nobody asks for one
_ALLOCATOR = re.compile(
    r"(?:not enough memory|out of memory|can't allocate memory).*?(\d[\d.]* ?(?:bytes|[KMGT]i?B))", re.DOTALL
)
_COLLECTIVE = re.compile(r"gloo|nccl|connection (?:closed|reset|refused)|timed out|broken pipe", re.I)


class Heartbeat:
    """A file of one float64 a rank: when it was last alive, by the machine's monotonic clock."""

    def __init__(self, path: Path, size: int) -> None:
        if not path.exists():
            path.write_bytes(bytes(8 * size))
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8 * size)
        self.times = np.frombuffer(self._map, dtype=np.float64)

    def beat(self, rank: int) -> None:
        """Rank ``rank`` is alive."""
        self.times[rank] = time.monotonic()

    def silence(self, rank: int, since: float = 0.0) -> float:
        """Seconds since the last beat of a rank, or since ``since`` by the monotonic clock if that is later."""
        return time.monotonic() - max(float(self.times[rank]), since)


def _keep_beating(heartbeat: Heartbeat, rank: int, folder: str) -> None:
    parent = os.getppid()
    while True:
        heartbeat.beat(rank)
        time.sleep(BEAT)
        if os.getppid() != parent:  # nobody is left to work for, or to tidy up
            shutil.rmtree(folder, ignore_errors=True)
            os._exit(1)


def describe_failure(error: BaseException) -> tuple[str, str]:
    """Kind (``memory``, ``lost`` or ``error``) of what went wrong on a rank, and a text for the user."""
    text = f"{type(error).__name__}: {error}"
    found = _ALLOCATOR.search(str(error))
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or found:
        return "memory", found.group(1) if found else "an unknown amount"
    if isinstance(error, (RuntimeError, ConnectionError, EOFError)) and _COLLECTIVE.search(text):
        return "lost", text
    return "error", text


def main(descriptor: int) -> int:
    """Serve until the driver closes its end. Returns the exit code."""
    channel = Connection(descriptor)
    options: dict[str, Any] = channel.recv()
    rank, size = options["rank"], options["size"]
    heartbeat = Heartbeat(Path(options["folder"]) / "heartbeat", size)
    threading.Thread(target=_keep_beating, args=(heartbeat, rank, options["folder"]), daemon=True).start()
    try:
        _serve(channel, options)
    except (EOFError, BrokenPipeError, ConnectionResetError):  # the driver is gone, waiting or not
        shutil.rmtree(options["folder"], ignore_errors=True)
        return 0
    except KeyboardInterrupt:
        return 0
    except BaseException as error:
        traceback.print_exc()
        kind, text = describe_failure(error)
        name = type(error).__name__
        try:
            channel.send(("failed", kind, name, text if kind == "memory" else str(error)))
        except OSError:
            return 1
        return LOST_PEER if kind == "lost" else 1
    return 0


def _serve(channel: Connection, options: dict[str, Any]) -> None:
    import torch
    import torch.distributed as dist

    from egnn_md.distributed.rank import Rank, follow
    from egnn_md.distributed.wire import Wire, open_group

    rank, size, backend = options["rank"], options["size"], options["backend"]
    torch.set_num_threads(options["threads"])
    device = torch.device(options["device"])
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.zeros(1, device=device)  # a device that is gone fails here, at a place that names it
    channel.send(("started", rank))
    store = dist.FileStore(str(Path(options["folder"]) / "store"), size)
    quiet = open_group(dist.PrefixStore("control", store), rank, size, limit=FOREVER, loopback=True)
    # the driver notices a rank that hangs; this limit is for collectives that nobody else would end
    busy = open_group(
        dist.PrefixStore("compute", store), rank, size, backend=backend, limit=2 * options["limit"], loopback=True
    )
    here = Rank(Wire(busy, rank, size), Wire(quiet, rank, size), device)
    channel.send(("ready", rank))
    try:
        if rank != 0:
            follow(here)
        else:
            _lead(channel, here)
    finally:
        here.close()


def _lead(channel: Connection, here: Rank) -> None:
    """Rank 0: hand on what the driver says, and give it the answers."""
    import torch

    from egnn_md.distributed.rank import lead_message, lead_step, lead_stop

    while True:
        kind, content = channel.recv()
        if kind == "stop":
            lead_stop(here)
            return
        if kind == "step":
            answer = lead_step(here, torch.from_numpy(content))
        else:
            found = lead_message(here, torch.from_numpy(content))
            if found is None:
                channel.send(("done", None))
                continue
            answer = found
        channel.send(
            (
                "done",
                (
                    answer.rows.numpy(),
                    {name: value.numpy() for name, value in answer.totals.items()},
                    answer.reports.numpy(),
                ),
            )
        )
