"""A model of a step's time on P devices: what each part computes, and what all parts say to each other.

    T(P) = max_r t_r + Σ_k max_r c_rk

over the step's collectives k, forward and backward, in the order in which every rank makes them:

    exchange    c = λ m + max(s, r) / β
    reduction   c = 2 log₂(P) λ' + 2 (P - 1)/P b / β

| symbol | variable |
| --- | --- |
| t_r, time of part r alone (measured, or of a stated device) | ``compute`` |
| m ranks that something is sent to, s and r bytes sent and received, b bytes summed | :class:`Collective` |
| λ, λ' seconds a message of an exchange and of a reduction, β bytes a second and direction | :class:`Link` |

Nothing overlaps, no two messages disturb each other, and every device is alone with its memory: a model, no
measurement. Waiting for the slowest part in each layer instead of once a step is left out, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from egnn_md.errors import InputError
from egnn_md_benchmarks.counts import Peak, Shape, count
from egnn_md_benchmarks.scaling_parts import Collective

PAPER_SPEEDUP, PAPER_BYTES, PAPER_RANKS = 7.34, 1.58e9, 8  # arXiv 2506.19482, Fluid113K on 8 devices


@dataclass(frozen=True)
class Link:
    """A network between devices.

    Attributes:
        name: for tables.
        latency: λ, s.
        bandwidth: β, bytes a second in one direction; infinite if it cannot be told from the latency.
        source: where the numbers come from.
        reduction_latency: λ', s; ``latency`` if None.
    """

    name: str
    latency: float
    bandwidth: float
    source: str
    reduction_latency: float | None = None


#: Stated, not measured. Bandwidths are the makers', one direction: NVLink 4 has 900 GB/s both ways together (data
#: sheet of the H100), NDR InfiniBand 400 Gbit/s, Ethernet what its name says. Latencies are round numbers, assumed, for
#: a small message between two devices through NCCL (NVLink, InfiniBand) and through TCP (Ethernet).
LINKS = {
    "nvlink": Link("NVLink 4", 5e-6, 450e9, "stated: 450 GB/s a direction (maker), 5 µs assumed"),
    "infiniband": Link("InfiniBand NDR", 10e-6, 50e9, "stated: 400 Gbit/s (maker), 10 µs assumed"),
    "25gbe": Link("25 GbE", 30e-6, 3.1e9, "stated: 25 Gbit/s, 30 µs assumed"),
    "10gbe": Link("10 GbE", 30e-6, 1.25e9, "stated: 10 Gbit/s, 30 µs assumed"),
}
LAUNCH = 5e-6  # s, assumed: what a GPU's host needs to start one kernel, one after the other


def check_links(names: Sequence[str]) -> list[Link]:
    """The links, each once. Raises InputError for an unknown one."""
    for name in names:
        if name not in LINKS:
            raise InputError(f"unknown network {name!r}; known: {', '.join(LINKS)}")
    return [LINKS[name] for name in dict.fromkeys(names)]


def collective_seconds(item: Collective, size: int, link: Link) -> float:
    """c of one rank (see the module)."""
    if size == 1:
        return 0.0
    if item.kind == "exchange":
        return link.latency * item.peers + max(item.sent, item.received) / link.bandwidth
    latency = link.latency if link.reduction_latency is None else link.reduction_latency
    return 2 * math.log2(size) * latency + 2 * (size - 1) / size * item.sent / link.bandwidth


def talk_seconds(logs: Sequence[Sequence[Collective]], link: Link) -> float:
    """Σ_k max_r c_rk.

    Args:
        logs: of every rank, the same collectives in the same order.
        link: between them.
    """
    assert len({tuple(item.kind for item in log) for log in logs}) == 1, "ranks do not say the same things"
    return sum(max(collective_seconds(item, len(logs), link) for item in items) for items in zip(*logs, strict=True))


def step_seconds(compute: Sequence[float], logs: Sequence[Sequence[Collective]], link: Link) -> float:
    """T(P) (see the module); ``compute`` of every rank, s."""
    return max(compute) + talk_seconds(logs, link)


def halo_flops(shape: Shape, halo: int, quantity: str) -> int:
    """Operations that a part does again for rows that others own: the sender's part of the first map, each layer."""
    passes = {"forward": 1, "forces": 2, "step": 6 if shape.potential else 3}[quantity]
    return passes * shape.layers * 2 * halo * shape.hidden**2


def device_seconds(shape: Shape, halo: int, quantity: str, peak: Peak, itemsize: int = 4) -> float:
    """The floor of a part on a device (:mod:`egnn_md_benchmarks.counts`), the edges' forward pass done again, too."""
    counted = count(shape, quantity, itemsize)
    flops = counted["flops"] + counted["recompute"] + halo_flops(shape, halo, quantity)
    passes = {"forward": 1, "forces": 2, "step": 4 if shape.potential else 3}[quantity]
    moved = counted["bytes"] + passes * shape.layers * 2 * halo * (shape.hidden + 3) * itemsize
    return max(flops / peak.flops, moved / peak.bandwidth)


@dataclass(frozen=True)
class Device:
    """A GPU that is not at hand: its stated peaks, how many times its floor it takes, kernels started a step."""

    name: str
    peak: Peak
    times: float = 1.0
    launches: int = 0

    def seconds(self, shape: Shape, halo: int, quantity: str, itemsize: int = 4) -> float:
        """Of a part: arithmetic and memory, or the starting of the kernels, whichever is longer."""
        return max(self.times * device_seconds(shape, halo, quantity, self.peak, itemsize), LAUNCH * self.launches)
