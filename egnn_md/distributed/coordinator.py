"""The side of the one who drives an engine: who owns what, when lists are made anew, what a step needs to know.

Ranks hold nothing that could not be told to them again: ownership, the positions for which the lists were made and the
skin are kept here. So an evaluation that was lost with a rank is repeated by others with the same result, bit by bit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from egnn_md.distributed.channel import Channel, RankLostError
from egnn_md.distributed.clock import Clock
from egnn_md.distributed.partition import balanced_weights, partition
from egnn_md.distributed.protocol import Answer, Report, Step
from egnn_md.errors import InputError
from egnn_md.graph import COINCIDENT, ParticleGraph, check_structure
from egnn_md.neighbors import neighbor_list
from egnn_md.neighbors.frame import Frame

DRIFT = 1.1  # the load of the busiest rank may grow by this factor before the system is partitioned anew
FURTHEST = 1e8  # length; so far from the origin even float64 knows positions to 1e-8 only
T = TypeVar("T")
OPEN = torch.zeros(3, dtype=torch.bool)


class Coordinator:
    """Answers for whole systems, got from the ranks.

    Args:
        channel: to the ranks.
        model: message that gives them the model.
        cutoff: of the model, length.
        skin: ``auto`` or a length.
        method: of the partition.
        weights: relative speed of each rank; equal if None.
        balance: shift the weights by the measured times of the ranks whenever lists are made anew. Results then depend
            on timing, by rounding.
    """

    def __init__(
        self,
        channel: Channel,
        model: dict[str, Any],
        cutoff: float | None,
        *,
        skin: float | str = "auto",
        method: str = "bisection",
        weights: Sequence[float] | None = None,
        balance: bool = False,
    ) -> None:
        self.channel = channel
        self.model, self.cutoff, self.skin = model, cutoff, skin
        self.method, self.balance = method, balance
        self.weights = None if weights is None else torch.tensor(list(weights), dtype=torch.float64)
        self.reports: list[Report] = []
        self.partitions = 0
        self._frame = Frame()
        self._clock = Clock(cutoff or 1.0, skin)
        self._system: dict[str, Any] | None = None
        self._owner: Tensor | None = None
        self._even = 0.0  # imbalance right after partitioning; 0 until it is known
        self._imbalance = 0.0  # of the last answer
        self._loads: Tensor | None = None  # (N,) likewise: edges and one for the particle itself
        self._network: dict[str, Any] | None = None
        self._size = channel.size
        self._told: int | None = None  # the ranks that were told everything
        self._turn = threading.RLock()  # answers of two threads that ask at once must not be mixed up
        self._reliably(lambda: None)

    # what the ranks have to be told, again if need be

    def _reliably(self, ask: Callable[[], T]) -> T:
        """``ask()``, again with new ranks as often as ranks are lost and the channel finds new ones."""
        lost: RankLostError | None = None
        with self._turn:
            while True:
                try:
                    if lost is not None:
                        self.channel.recover(lost)
                        lost = None
                    if self.channel.open() != self._told:
                        self.restore()
                    found = ask()
                except RankLostError as error:
                    lost = error
                else:
                    self.channel.succeeded()
                    return found

    def _answer(self, positions: Tensor, cell: Tensor, pbc: Tensor, step_of: Callable[[bool, float], Step]) -> Answer:
        """Of one step; ``step_of(remake, skin)`` makes it."""
        remake: bool | None = None

        def ask() -> Answer:
            nonlocal remake
            # decided once: an evaluation that is repeated counts once, so that later lists are made when they would be
            if remake is None or self._owner is None:
                remake = self._prepare(positions, cell, pbc)
            return self.channel.step(step_of(remake, self._clock.statistics.skin).pack())

        try:
            answer = self._reliably(ask)
            self._learn(answer)
        except BaseException:
            # nobody knows what the ranks were told and which lists they have: tell them again, and make new ones
            self._told = None
            self._clock.reset()
            raise
        return answer

    def restore(self) -> None:
        """Tell ranks that know nothing all that they need to go on as the ones before them."""
        told = self.channel.open()
        self._told = None
        self._tell_everything()
        self._told = told

    def _tell_everything(self) -> None:
        self.channel.message(self.model)
        if self._network is not None:
            self.channel.message(self._network)
        if self._system is None or self._owner is None:
            return
        if self._size != self.channel.size:
            self.forget()  # fewer ranks than before
            return
        self._tell_system()
        reference = self._clock.reference
        if reference is not None:
            positions, cell, _ = reference
            self.channel.message(
                {"kind": "lists", "positions": positions, "cell": cell, "skin": self._clock.statistics.skin}
            )

    def forget(self) -> None:
        """Drop partition and lists: the next answer depends on what is asked alone."""
        self._owner = self._loads = None
        self._clock = Clock(self.cutoff or 1.0, self.skin)

    def memory(self) -> dict[str, Any]:
        """What, beside the positions, decides how sums are rounded: arrays and plain values. Empty before an answer."""
        reference = self._clock.reference
        if self._owner is None or reference is None:
            return {}
        positions, cell, pbc = reference
        return {
            "owner": self._owner.to(torch.int32).numpy(),
            "reference": positions.numpy(),
            "reference_cell": cell.numpy(),
            "reference_pbc": pbc.numpy(),
            "clock": self._clock.state(),
            "loads": np.zeros(0) if self._loads is None else self._loads.to(torch.int32).numpy(),
            "even": self._even,
            "imbalance": self._imbalance,
            "weights": None if self.weights is None else self.weights.tolist(),
            "ranks": self.channel.size,
        }

    def remember(
        self, memory: dict[str, Any], species: Tensor, pbc: Tensor, features: Tensor | None = None
    ) -> None:
        """Go on as the one whose :meth:`memory` it is, bit by bit; with another number of ranks, to rounding."""
        if memory.get("ranks") != self.channel.size:  # also where one process wrote it, without ranks
            return
        self._take_system(species, pbc, features)
        self._owner = torch.as_tensor(memory["owner"]).long()
        names = ("reference", "reference_cell", "reference_pbc")
        self._clock.take(memory["clock"], tuple(torch.as_tensor(memory[name]) for name in names))  # type: ignore[arg-type]
        loads = torch.as_tensor(memory["loads"])
        self._loads = loads.long() if len(loads) else None
        self._even, self._imbalance = float(memory["even"]), float(memory["imbalance"])
        self.weights = None if memory["weights"] is None else torch.tensor(memory["weights"], dtype=torch.float64)
        self._told = None
        self._reliably(lambda: None)

    def change_model(self, message: dict[str, Any]) -> None:
        """Give the ranks another model, or another mode; partition and lists are made anew."""
        self.model = message
        self.forget()
        self._system = None
        self._reliably(lambda: self.channel.message(message))

    def pretend(self, options: dict[str, float], rank: int = -1) -> None:
        """Let all ranks, or one, behave as behind a slow network (:class:`egnn_md.distributed.wire.Network`)."""
        self._network = {"kind": "network", "options": options, "rank": rank}
        self._reliably(lambda: self.channel.message(self._network or {}))

    @property
    def statistics(self) -> Any:
        """Of the neighbour lists; see :class:`egnn_md.neighbors.VerletStatistics`."""
        return self._clock.statistics

    @property
    def owner(self) -> Tensor | None:
        """(N,) rank of each particle now; None before the first answer."""
        return self._owner

    def _tell_system(self) -> None:
        assert self._system is not None
        assert self._owner is not None
        self._size = self.channel.size
        self.channel.message({"kind": "system", "owner": self._owner.to(torch.int32), **self._system})

    def _take_system(self, species: Tensor, pbc: Tensor, features: Tensor | None) -> None:
        known = self._system
        if (
            known is None
            or not torch.equal(known["species"], species)
            or not torch.equal(known["pbc"], pbc)
            or (features is None) != (known["features"] is None)
            or (features is not None and not torch.equal(known["features"], features))
        ):
            kept = None if features is None else features.clone()
            self._system = {"species": species.clone(), "pbc": pbc.clone(), "features": kept}
            self.forget()

    def _divide(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> None:
        """Partition for these positions, and tell it. What particles cost is what they did in the last answer."""
        self._owner = self._partition(positions, cell, pbc, None, self._loads)
        self._even = 0.0
        self._tell_system()

    def _partition(
        self, positions: Tensor, cell: Tensor, pbc: Tensor, edge_index: Tensor | None, loads: Tensor | None
    ) -> Tensor:
        self.partitions += 1
        if self.weights is not None and len(self.weights) != self.channel.size:
            self.weights = None  # a device is gone
        if edge_index is None and self.method in ("metis", "spectral") and self.cutoff is not None:
            edge_index = neighbor_list(positions, cell, pbc, self.cutoff)[0]
        return partition(
            positions, self.channel.size, method=self.method, cell=cell, pbc=pbc, weights=self.weights,
            edge_index=edge_index, loads=loads,
        ).owner  # fmt: skip

    def _prepare(self, positions: Tensor, cell: Tensor, pbc: Tensor) -> bool:
        """Partition where needed; True if lists have to be made at these positions."""
        if self._owner is None:
            self._divide(positions, cell, pbc)
        if not self._clock.due(positions, cell, pbc):
            return False
        if self._even:
            drifted = self._imbalance > DRIFT * self._even
            if self.balance and len(self.reports) == self.channel.size > 1:
                self._shift_weights()
                drifted = True
            if drifted:
                self._divide(positions, cell, pbc)
        return True

    def _shift_weights(self) -> None:
        """Less for ranks that took longer than others."""
        busy = torch.tensor([max(report.seconds, 1e-9) for report in self.reports], dtype=torch.float64)
        before = torch.ones(self.channel.size, dtype=torch.float64) if self.weights is None else self.weights
        self.weights = balanced_weights(before, busy)

    def _learn(self, answer: Answer) -> None:
        self.reports = [Report.unpack(row) for row in answer.reports]
        self._loads = 1 + answer.rows[:, -1].long()
        self._imbalance = imbalance(self.reports)
        if not self._even:
            self._even = self._imbalance
        self._clock.learn(sum(report.pairs for report in self.reports))

    # answers

    def energies(
        self, positions: Tensor, species: Tensor, cell: Tensor, pbc: Tensor, *, forces: bool, stress: bool
    ) -> dict[str, Tensor]:
        """Of a potential: ``energy`` (1,), ``energies`` (N,), ``forces`` (N, 3), ``stress`` (1, 3, 3), all float64.

        Args:
            positions: (N, 3) float64, Å; need not be wrapped.
            species: (N,) int64.
            cell: (3, 3) float64, Å.
            pbc: (3,) bool.
            forces: whether wanted.
            stress: whether wanted.

        Raises:
            InputError: positions that are not finite or too far out, a flat cell, coincident atoms.
        """
        positions = positions.detach().to("cpu", torch.float64)
        pbc = pbc.cpu()
        _check_rows(positions, species)
        furthest = float(positions.abs().max()) if len(positions) else 0.0
        if not furthest <= FURTHEST:
            check_structure(positions, torch.zeros(3, 3), OPEN)
            raise InputError(f"an atom is {furthest:.1e} Å from the origin; something went wrong before this")
        with self._turn:
            self._frame.take(cell.detach().cpu().double().numpy(), pbc.numpy())
            box = self._frame.cell
            self._take_system(species.detach().cpu(), pbc, None)
            home = self._frame.home(positions)
            at_home = positions if home is None else positions - home @ box
            offset = at_home.mean(dim=0) if len(at_home) else torch.zeros(3, dtype=torch.float64)
            answer = self._answer(
                positions, box, pbc,
                lambda remake, skin: Step(positions, box, offset, None, forces, stress, remake, skin),
            )  # fmt: skip
            self._refuse_coincident()
        found = {"energies": answer.rows[:, 3], "energy": answer.totals["energy"]}
        if forces:
            found["forces"] = answer.rows[:, :3]
        if stress:
            found["stress"] = answer.totals["stress"]
        return found

    def _refuse_coincident(self) -> None:
        nearest = min(self.reports, key=lambda report: report.nearest)
        if nearest.nearest < COINCIDENT:
            raise InputError(
                f"atoms {nearest.receiver} and {nearest.sender} coincide ({nearest.nearest:.1e} Å apart, images "
                "included); remove one of them or check the cell"
            )

    def stride(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        features: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Of a propagator with a cutoff, a stride later: positions, velocities (N, 3), virtual positions; degrees (N,).

        Positions are those of the model's precision; see :meth:`energies` for the rest.
        """
        x = positions.detach().to("cpu", torch.float64)
        pbc, box = pbc.cpu(), cell.detach().cpu().double()
        v = velocities.detach().to("cpu", torch.float64)
        for rows in (x, v) if features is None else (x, v, features):
            _check_rows(rows, species)
        with self._turn:
            self._take_system(species.detach().cpu(), pbc, None if features is None else features.detach().cpu())
            answer = self._answer(
                x, box, pbc, lambda remake, skin: Step(x, box, x.new_zeros(3), v, remake=remake, skin=skin)
            )
        return answer.rows[:, :3], answer.rows[:, 3:6], answer.totals["virtual_positions"], answer.rows[:, 6].long()

    def graph(self, graph: ParticleGraph, *, forces: bool = False, stress: bool = False) -> Answer:
        """Of a graph whose edges are given; it is partitioned by itself, and nothing of it is kept."""
        periodic = graph.num_graphs == 1 and bool(graph.pbc.any())
        positions = graph.positions.detach().cpu().double()
        cell = graph.cell[0].cpu().double() if periodic else torch.zeros(3, 3, dtype=torch.float64)
        pbc = graph.pbc[0].cpu() if periodic else OPEN
        tensors = {
            name: value.detach().cpu() for name, value in vars(graph).items() if isinstance(value, Tensor)
        }

        edges = graph.edge_index.cpu()
        loads = 1 + torch.bincount(edges[0], minlength=graph.num_nodes)

        def ask() -> Answer:
            owner = self._partition(positions, cell, pbc, edges, loads).to(torch.int32)
            message = {"kind": "graph", "graph": tensors, "owner": owner, "forces": forces, "stress": stress}
            found = self.channel.message(message)
            assert found is not None
            return found

        answer = self._reliably(ask)
        self.reports = [Report.unpack(row) for row in answer.reports]
        return answer


def _check_rows(values: Tensor, species: Tensor) -> None:
    if len(values) != len(species):
        raise InputError(f"{tuple(values.shape)} values do not fit {len(species)} particles")


def imbalance(reports: Sequence[Report]) -> float:
    """Load of the busiest rank over the mean load; the load is edges and particles."""
    loads = [report.edges + report.particles for report in reports]
    return max(loads) * len(loads) / max(sum(loads), 1)
