"""Collectives of one group of ranks that autograd can differentiate, any number of times.

Every function here is one collective of torch.distributed's process group, and its gradient is another: what is
differentiated is the *sum of every rank's loss*, so the gradient of a sum over ranks is a sum over ranks, and that of
an exchange is the exchange backwards. All ranks must therefore call the same functions in the same order, forward and
backward; they do, because they run the same network.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from datetime import timedelta
from math import inf
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from egnn_md.errors import InputError, MissingDependencyError

BACKENDS = ("gloo", "nccl")


@dataclass
class Traffic:
    """What one rank sent to others: collectives by kind, messages and bytes, since the object was made."""

    exchanges: int = 0
    reductions: int = 0
    messages: int = 0
    bytes: int = 0

    def copy(self) -> Traffic:
        """The numbers now."""
        return Traffic(**vars(self))


@dataclass(frozen=True)
class Network:
    """A slow network that is pretended: every collective waits as long as this one would make it wait.

    Args:
        latency: seconds a message.
        bandwidth: bytes a second that a rank sends; 0 is unlimited.
        slowdown: factor that the rank's own work, from collective to collective, takes longer; 2 for half speed.
    """

    latency: float = 0.0
    bandwidth: float = 0.0
    slowdown: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.latency < inf and self.bandwidth >= 0 and 1 <= self.slowdown < inf):
            raise InputError(
                f"a pretended network needs finite latency >= 0, bandwidth >= 0 and slowdown >= 1, not {self}"
            )


@dataclass
class Wire:
    """The collectives of one rank in one group.

    Args:
        group: process group; None is a group of one, in which nothing is sent.
        rank: of this process in the group.
        size: P, number of ranks.
        network: a slow network to pretend.
    """

    group: Any = None
    rank: int = 0
    size: int = 1
    network: Network | None = None
    traffic: Traffic = field(default_factory=Traffic)
    waited: float = 0.0  # seconds inside collectives
    _since: float | None = None

    def exchange(self, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """Send the first ``send[0]`` of ``rows`` (S, ...) to rank 0 and so on; what came, (sum(receive), ...)."""
        found = rows.new_empty([sum(receive), *rows.shape[1:]])
        self._delay(sum(count > 0 for count in send), rows.numel() * rows.element_size())
        self.traffic.exchanges += 1
        self.traffic.messages += sum(count > 0 for count in send)
        self.traffic.bytes += rows.numel() * rows.element_size()
        if self.group is None:
            found.copy_(rows)
        else:
            self._wait(self.group.alltoall_base(found, rows.contiguous(), receive, send))
        self._resume()
        return found

    def total(self, values: Tensor) -> Tensor:
        """Sum of ``values`` over the ranks; every rank gets the same bits."""
        # a ring passes every number on twice
        sent = 0 if self.size == 1 else 2 * values.numel() * values.element_size() * (self.size - 1) // self.size
        self._delay(2 * (self.size - 1), sent)
        self.traffic.reductions += 1
        self.traffic.messages += 2 * (self.size - 1)
        self.traffic.bytes += sent
        found = values.detach().clone(memory_format=torch.contiguous_format)
        if self.group is not None:
            self._wait(self.group.allreduce([found]))
        self._resume()
        return found

    def broadcast(self, values: Tensor, root: int = 0) -> Tensor:
        """``values`` of ``root``, in place."""
        if self.group is not None:
            options = dist.BroadcastOptions()
            options.rootRank = root
            self.group.broadcast([values], options).wait()
        return values

    def gather(self, values: Tensor, root: int = 0) -> list[Tensor]:
        """``values``, of one shape on every rank, at ``root``: a list by rank; elsewhere an empty one."""
        if self.group is None:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)] if self.rank == root else []
        options = dist.GatherOptions()
        options.rootRank = root
        self.group.gather([found] if self.rank == root else [], [values.contiguous()], options).wait()
        return found

    def everywhere(self, values: Tensor) -> list[Tensor]:
        """``values``, of one shape on every rank: a list by rank, on every rank."""
        if self.group is None:
            return [values]
        found = [torch.empty_like(values) for _ in range(self.size)]
        self.group.allgather([found], [values.contiguous()]).wait()
        return found

    def _wait(self, work: Any) -> None:
        begin = time.perf_counter()
        work.wait()
        self.waited += time.perf_counter() - begin

    def _delay(self, messages: int, size: int) -> None:
        network = self.network
        if network is None:
            return
        seconds = network.latency * messages
        if network.bandwidth:
            seconds += size / network.bandwidth
        if self._since is not None:
            seconds += (network.slowdown - 1.0) * (time.perf_counter() - self._since)
        time.sleep(seconds)

    def _resume(self) -> None:
        if self.network is not None:
            self._since = time.perf_counter()

    def rest(self) -> None:
        """The rank has nothing to do from here on: what follows until the next collective is no work of its own."""
        if self.network is not None and self._since is not None:
            time.sleep((self.network.slowdown - 1.0) * (time.perf_counter() - self._since))
        self._since = None

    def start(self) -> None:
        """The rank's own work begins."""
        self._resume()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wire: Wire, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
        ctx.wire, ctx.counts = wire, (send, receive)
        return wire.exchange(rows, send, receive)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        send, receive = ctx.counts
        return None, _Exchange.apply(ctx.wire, gradient, receive, send), None, None


class _Total(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, wire: Wire, values: Tensor) -> Tensor:
        ctx.wire = wire
        return wire.total(values)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        return None, _Total.apply(ctx.wire, gradient)


def exchange(wire: Wire, rows: Tensor, send: list[int], receive: list[int]) -> Tensor:
    """:meth:`Wire.exchange` with a gradient: rows (S, ...) to rows (sum(receive), ...)."""
    found: Tensor = _Exchange.apply(wire, rows, send, receive)
    return found


def total(wire: Wire, values: Tensor) -> Tensor:
    """:meth:`Wire.total` with a gradient."""
    found: Tensor = _Total.apply(wire, values)
    return found


def open_group(
    store: dist.Store, rank: int, size: int, *, backend: str = "gloo", limit: float = 1800.0, loopback: bool = False
) -> Any:
    """A process group of its own; torch's default group stays as it is.

    Args:
        store: where the ranks meet; a prefix of its own for every group.
        rank: of this process.
        size: number of ranks.
        backend: ``gloo`` (CPU) or ``nccl`` (CUDA).
        limit: seconds that a collective may take before it fails.
        loopback: all ranks are on this machine, and its name need not be resolvable. Else Gloo uses the interfaces that
            the environment variable GLOO_SOCKET_IFNAME names, or the one that the machine's name belongs to.

    Raises:
        InputError: an unknown backend, or NCCL without GPUs.
    """
    waiting = timedelta(seconds=limit)
    if backend == "nccl":
        if not torch.cuda.is_available():
            raise InputError(
                "NCCL needs CUDA devices, and this machine has none that torch can use; use backend='gloo' on CPUs"
            )
        if not dist.is_nccl_available():
            raise MissingDependencyError("this build of torch has no NCCL; use backend='gloo'")
        nccl = dist.ProcessGroupNCCL.Options()
        nccl._timeout = waiting
        return dist.ProcessGroupNCCL(store, rank, size, nccl)
    if backend != "gloo":
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    gloo: Any = dist.ProcessGroupGloo._Options()  # type: ignore[attr-defined]
    gloo._timeout = waiting
    device = dist.ProcessGroupGloo.create_device
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    if loopback:
        gloo._devices = [device(hostname="127.0.0.1")]
    elif interfaces:
        gloo._devices = [device(interface=name) for name in interfaces]
    else:
        gloo._devices = [dist.ProcessGroupGloo.create_default_device()]
    return dist.ProcessGroupGloo(store, rank, size, gloo)
