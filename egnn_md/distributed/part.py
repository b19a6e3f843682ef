"""One rank's part of a system: the particles it owns, the edges they receive, and the halo that sends to them.

| word | meaning |
| --- | --- |
| own | particles of this rank, in the order of their numbers in the whole system |
| halo | particles of other ranks that send to an own one, by owner, then by number |
| local number | own particles first, halo after them |

In ``exact`` mode each layer fetches the halo's rows and the answer is that of one process. In ``paper`` mode, the
published DistEGNN (arXiv 2506.19482), edges between ranks are dropped, there is no halo, and virtual nodes are the
only bridge: the answer depends on the partition.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor, nn

from egnn_md.distributed.wire import Wire, exchange, total
from egnn_md.errors import InputError
from egnn_md.graph import PARTICLE_LABELS, ParticleGraph
from egnn_md.nn.communication import Alone

MODES = ("exact", "paper")


class Parts(Alone):
    """What a network says to the other ranks; see :class:`egnn_md.nn.communication.Alone`.

    Args:
        wire: to the other ranks.
        send_rows: (S,) own rows that others need, by the rank that needs them.
        send: how many of them each rank needs.
        receive: how many halo rows each rank sends.
        fetches: False leaves out every exchange (paper mode).
    """

    def __init__(
        self, wire: Wire, send_rows: Tensor, send: list[int], receive: list[int], *, fetches: bool = True
    ) -> None:
        super().__init__()
        self.wire, self.send_rows, self.send, self.receive = wire, send_rows, send, receive
        self.fetches = fetches

    def rows(self, own: int) -> int:
        """See the base class."""
        return own + sum(self.receive)

    def halo(self, values: list[Tensor]) -> list[Tensor]:
        """See the base class: one exchange for all of ``values``."""
        if not self.fetches:
            return values
        own = values[0].shape[0]
        widths = [prod(v.shape[1:]) for v in values]
        flat = torch.cat([v.reshape(own, width) for v, width in zip(values, widths, strict=True)], 1)
        fetched = exchange(self.wire, flat.index_select(0, self.send_rows), self.send, self.receive)
        shares = fetched.split(widths, 1)
        return [
            torch.cat([value, share.reshape([-1, *value.shape[1:]])])
            for value, share in zip(values, shares, strict=True)
        ]

    def total(self, sums: list[Tensor]) -> list[Tensor]:
        """See the base class: one reduction for all of ``sums``."""
        flat = total(self.wire, torch.cat([value.reshape(-1) for value in sums]))
        shares = flat.split([value.numel() for value in sums])
        return [share.reshape(value.shape) for value, share in zip(sums, shares, strict=True)]


@contextmanager
def communicating(model: nn.Module, parts: Alone) -> Iterator[None]:
    """Let every part of ``model`` that talks to others do so through ``parts``.

    Raises:
        InputError: the model has nothing that could talk, so that its answer for a part would be wrong.
    """
    found = [(module, module.communication) for module in model.modules() if hasattr(module, "communication")]
    if not found:
        raise InputError(
            f"a {type(model).__name__} cannot be split over devices: it has no communication object "
            "(see egnn_md.nn.communication)"
        )
    for module, _ in found:
        module.communication = parts
    try:
        yield
    finally:
        for module, before in found:
            module.communication = before


@dataclass(frozen=True)
class Part:
    """One rank's part.

    Attributes:
        own: (n,) numbers of its particles in the whole system, ascending.
        halo: (m,) numbers of the halo's.
        parts: what its network says to others.
    """

    own: Tensor
    halo: Tensor
    parts: Parts

    @property
    def local(self) -> Tensor:
        """(n + m,) numbers in the whole system."""
        return torch.cat([self.own, self.halo])


def check_mode(mode: str) -> str:
    """``mode``. Raises InputError if it is unknown."""
    if mode not in MODES:
        raise InputError(f"mode must be exact or paper, not {mode!r}")
    return mode


def take_part(
    owner: Tensor, senders: Tensor, wire: Wire, *, mode: str = "exact", device: torch.device | str = "cpu"
) -> Part:
    """The part of ``wire.rank``; all ranks call it together.

    Args:
        owner: (N,) rank of each particle.
        senders: (E,) numbers of the particles that send to own ones (repetitions are fine).
        wire: to the other ranks.
        mode: ``exact`` or ``paper``.
        device: where the network computes.
    """
    rank, size = wire.rank, wire.size
    own = (owner == rank).nonzero().reshape(-1)
    if check_mode(mode) == "paper":
        nobody = [0] * size
        return Part(own, own[:0], Parts(wire, own[:0].to(device), nobody, nobody, fetches=False))
    near = torch.zeros(owner.shape[0], dtype=torch.bool)
    near[senders] = True
    near &= owner != rank
    halo = near.nonzero().reshape(-1)
    halo = halo[torch.sort(owner[halo], stable=True)[1]]
    receive = torch.bincount(owner[halo], minlength=size)
    ones = [1] * size
    send = wire.exchange(receive, ones, ones)
    asked = wire.exchange(halo, receive.tolist(), send.tolist())
    number = torch.full((owner.shape[0],), -1, dtype=torch.int64)
    number[own] = torch.arange(own.shape[0])
    return Part(own, halo, Parts(wire, number[asked].to(device), send.tolist(), receive.tolist()))


def local_edges(part: Part, edge_index: Tensor, particles: int) -> tuple[Tensor, Tensor]:
    """Edges in local numbers (2, e) and their places (e,) in ``edge_index`` (2, E), in its order.

    Edges that others receive, and those whose sender is neither own nor in the halo (paper mode), are left out.
    """
    number = torch.full((particles,), -1, dtype=torch.int64)
    number[part.own] = torch.arange(part.own.shape[0])
    receivers = number[edge_index[0]]
    number[part.halo] = torch.arange(part.own.shape[0], part.own.shape[0] + part.halo.shape[0])
    senders = number[edge_index[1]]
    kept = ((receivers >= 0) & (senders >= 0)).nonzero().reshape(-1)
    return torch.stack([receivers[kept], senders[kept]]), kept


def part_of_graph(
    graph: ParticleGraph, owner: Tensor, wire: Wire, *, mode: str = "exact"
) -> tuple[Part, ParticleGraph]:
    """This rank's part of a graph that every rank has as a whole; all ranks call it together.

    Args:
        graph: the whole; on the device where the network computes.
        owner: (N,) rank of each particle.
        wire: to the other ranks.
        mode: ``exact`` or ``paper``.

    Returns:
        the part, and a graph whose ``positions``, ``batch``, ``velocities``, ``node_attributes`` and labels have a row
        for every own particle; ``species`` and ``node_features`` have more, those of the halo; edges are in local
        numbers. It is meant for a model that is :func:`communicating`.

    Raises:
        InputError: ``owner`` does not fit.
    """
    count = graph.num_nodes
    if owner.shape != (count,):
        raise InputError(f"owner is {tuple(owner.shape)}, but the graph has {count} particles")
    outside = (owner < 0) | (owner >= wire.size)
    if bool(outside.any()):
        bad = int(outside.nonzero()[0])
        raise InputError(
            f"particle {bad} is owned by rank {int(owner[bad])}, but there are the ranks 0..{wire.size - 1}"
        )
    device = graph.positions.device
    edge_index = graph.edge_index.cpu()
    mine = owner[edge_index[0]] == wire.rank
    part = take_part(owner, edge_index[1][mine], wire, mode=mode, device=device)
    edges, kept = local_edges(part, edge_index, count)
    own, local, kept = part.own.to(device), part.local.to(device), kept.to(device)

    def take(values: Tensor | None, rows: Tensor) -> Tensor | None:
        return None if values is None else values[rows]

    return part, replace(
        graph,
        positions=graph.positions[own],
        species=graph.species[local],
        edge_index=edges.to(device),
        cell_shifts=graph.cell_shifts[kept],
        batch=graph.batch[own],
        velocities=take(graph.velocities, own),
        node_features=take(graph.node_features, local),
        node_attributes=take(graph.node_attributes, own),
        edge_features=take(graph.edge_features, kept),
        labels={
            name: value[own] if name in PARTICLE_LABELS else value for name, value in graph.labels.items()
        },
    )
