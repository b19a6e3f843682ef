"""Parts of a split system, each run alone: the network says all that it would say, and nobody is there to hear it.

A part alone uses the same :class:`egnn_md.distributed.part.Parts` and the same :class:`egnn_md.distributed.wire.Wire`
as a rank among others, so what it computes, copies and counts is the same. Only the process group behind the wire is
another one, :class:`DryGroup`: rows that others would send are made up there (positions are the true ones, so that
every pair has its true length), sums are taken as if all ranks had the same.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from egnn_md.devices import find_dtype
from egnn_md.distributed.part import Part, Parts, communicating, part_of_graph
from egnn_md.distributed.wire import Traffic, Wire
from egnn_md.graph import ParticleGraph
from egnn_md.nn.communication import Alone
from egnn_md_benchmarks.clouds import Cloud, cloud_size, make_cloud, network_config
from egnn_md_benchmarks.counts import Shape
from egnn_md_benchmarks.paths import on_path
from egnn_md_benchmarks.water import water_atoms_count, water_graph
from egnn_md_benchmarks.workloads import Case, expected_shape, shared


@dataclass(frozen=True)
class Collective:
    """One collective of one rank.

    Attributes:
        kind: ``exchange`` (with the ranks at its border) or ``reduction`` (over all).
        peers: ranks that something is sent to, of an exchange.
        sent: bytes that leave the rank in an exchange, bytes that are summed in a reduction.
        received: bytes that come.
        width: numbers a row of an exchange.
    """

    kind: str
    peers: int
    sent: int
    received: int
    width: int = 0


class _Done:
    def wait(self) -> bool:
        return True


class DryGroup:
    """What a wire needs of a process group, for one rank without others.

    Args:
        answers: what the others say while the part is made, in order.
        size: P.
    """

    def __init__(self, answers: list[Tensor], size: int) -> None:
        self.answers, self.size = answers, size
        self.places: Tensor | None = None  # (m, 3) of the halo
        self.log: list[Collective] = []

    def alltoall_base(self, found: Tensor, rows: Tensor, receive: list[int], send: list[int]) -> _Done:
        """Fill ``found``: the next answer, or rows like our own."""
        if self.answers:
            found.copy_(self.answers.pop(0))
            return _Done()
        size, width = rows.element_size(), prod(rows.shape[1:])
        peers = sum(count > 0 for count in send)
        self.log.append(Collective("exchange", peers, rows.numel() * size, found.numel() * size, width))
        common = min(len(found), len(rows))
        found[:common] = rows[:common]
        found[common:] = 0
        if self.places is not None and len(found) == len(self.places) and found.ndim == 2 and width >= 3:
            # a row is a position or ends with one; gradients on their way back may become any number
            found[:, -3:] = self.places
        return _Done()

    def allreduce(self, values: list[Tensor]) -> _Done:
        """As if every rank had the same."""
        size = values[0].numel() * values[0].element_size()
        self.log.append(Collective("reduction", 0, size, size))
        values[0].mul_(self.size)
        return _Done()


def halos(owner: Tensor, edge_index: Tensor, size: int) -> list[Tensor]:
    """For each of ``size`` ranks the numbers of its halo, ascending."""
    home, origin = owner[edge_index[0]], owner[edge_index[1]]
    cut = (home != origin).nonzero().reshape(-1)
    count = max(len(owner), 1)
    key = torch.unique(home[cut] * count + edge_index[1][cut])
    needed_by = torch.bincount(key // count, minlength=size)
    return list((key % count).split(needed_by.tolist()))


def take_alone(
    graph: ParticleGraph, owner: Tensor, rank: int, found: list[Tensor], *, mode: str = "exact"
) -> tuple[Part, ParticleGraph]:
    """What :func:`egnn_md.distributed.part.part_of_graph` gives rank ``rank``, without the other ranks.

    Args:
        graph: the whole.
        owner: (N,) rank of each particle.
        rank: whose part.
        found: :func:`halos` of all ranks.
        mode: ``exact`` or ``paper``.
    """
    size = len(found)
    asked = [halo[owner[halo] == rank] for halo in found]
    answers = [torch.tensor([len(rows) for rows in asked]), torch.cat(asked)]
    group = DryGroup(answers if mode == "exact" else [], size)
    wire = Wire(group, rank, size)
    part, local = part_of_graph(graph, owner, wire, mode=mode)
    assert not group.answers
    group.places = graph.positions[part.halo]
    wire.traffic = Traffic()  # the making of a part belongs to no step
    return part, local


@dataclass(frozen=True)
class Piece:
    """One part as a process needs it: :attr:`graph` in local numbers, and what it sends to whom."""

    rank: int
    size: int
    particles: int  # N, of the whole
    graph: ParticleGraph
    send_rows: Tensor
    send: list[int]
    receive: list[int]
    places: Tensor  # (m, 3)
    fetches: bool = True

    def dry(self) -> Alone:
        """What the network of a part alone talks through."""
        if self.size == 1:
            return Alone()
        group = DryGroup([], self.size)
        group.places = self.places
        return self.wired(Wire(group, self.rank, self.size))

    def wired(self, wire: Wire) -> Parts:
        """What the network of a rank among others talks through."""
        return Parts(wire, self.send_rows, self.send, self.receive, fetches=self.fetches)

    @property
    def halo(self) -> int:
        """m."""
        return len(self.places)

    @property
    def input_bytes(self) -> int:
        """Of all tensors of the graph."""
        values = [getattr(self.graph, item.name) for item in fields(self.graph)] + list(self.graph.labels.values())
        # shifts of an open system are one row for all edges
        return sum(min(v.nbytes, v.untyped_storage().nbytes()) for v in values if isinstance(v, Tensor))

    def save(self, path: Path) -> Path:
        """Write for a process that does not know the whole."""
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        content["graph"] = {item.name: getattr(self.graph, item.name) for item in fields(self.graph)}
        torch.save(content, path)
        return path

    @staticmethod
    def load(path: Path) -> Piece:
        """The inverse of :meth:`save`."""
        content = torch.load(path, weights_only=True)
        return Piece(**{**content, "graph": ParticleGraph(**content["graph"])})


def pieces(graph: ParticleGraph, owner: Tensor, size: int, *, mode: str = "exact") -> list[Piece]:
    """All ``size`` parts; one is the whole."""
    nobody, count = owner[:0], graph.num_nodes
    if size == 1:
        return [Piece(0, 1, count, graph, nobody, [0], [0], graph.positions[:0])]
    found, out = halos(owner, graph.edge_index, size), []
    for rank in range(size):
        part, local = take_alone(graph, owner, rank, found, mode=mode)
        said = part.parts
        places = graph.positions[part.halo]
        out.append(Piece(rank, size, count, local, said.send_rows, said.send, said.receive, places, said.fetches))
    return out


def whole_graph(case: Case) -> ParticleGraph:
    """The input of a case as one graph, with labels."""
    dtype = find_dtype(case.dtype)
    if case.network == "potential":
        from egnn_md.checkpoint import read_header

        cutoff = float(read_header(case.model)["config"]["cutoff"])
        return water_graph(water_atoms_count(case.size), cutoff, dtype, case.seed)
    cloud: Cloud = make_cloud(cloud_size(case.size), case.seed, dtype)
    graphs = cloud.num_graphs
    return ParticleGraph(
        positions=cloud.positions,
        species=torch.zeros_like(cloud.batch),
        edge_index=cloud.edge_index,
        cell_shifts=cloud.positions.new_zeros(1, 3).expand(cloud.edge_index.shape[1], 3),
        cell=cloud.positions.new_zeros(graphs, 3, 3),
        pbc=torch.zeros(graphs, 3, dtype=torch.bool),
        batch=cloud.batch,
        velocities=cloud.velocities,
        node_features=cloud.node_features,
        edge_features=cloud.edge_features,
        labels={"target": cloud.target},
    )


class PartWork:
    """The network of a case on one piece of its input, and the calls that are measured."""

    def __init__(self, case: Case, piece: Piece) -> None:
        self.case, self.piece = case, piece
        dtype = find_dtype(case.dtype)
        self.module: nn.Module
        if case.network == "potential":
            from egnn_md.checkpoint import load_model

            model = load_model(case.model).to(dtype=dtype).eval().requires_grad_(False)
            self.module = on_path(model, "plain")
            return
        from egnn_md.nn.fast_egnn import FastEGNN

        config = network_config(cloud_size(case.size), case.hidden, case.layers, case.virtual_nodes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            self.module = FastEGNN(config).to(dtype=dtype)

    def call(self, path: str, quantity: str, parts: Alone) -> Callable[[], Any]:
        """What is timed, talking through ``parts``.

        A training step is the part's share of the loss of the whole, its gradient and the gradient's sum over all
        parts, without the optimiser; it returns the share of the loss, ``forward`` positions (n, 3), or of a
        potential what :func:`egnn_md.models.evaluate.evaluate` gives.

        Raises:
            Unavailable: the path or quantity does not exist.
        """
        make = self._potential if self.case.network == "potential" else self._published
        model, run = make(path, quantity)

        def call() -> Any:
            # an Alone needs no place: what a network has is one
            with communicating(model, parts) if isinstance(parts, Parts) else nullcontext():
                found = run()
                if quantity == "step" and isinstance(parts, Parts):
                    _sum_gradients(model, parts.wire)
            return found

        return call

    def _published(self, path: str, quantity: str) -> tuple[nn.Module, Callable[[], Any]]:
        from egnn_md.training.mmd import mmd_loss

        network, graph, piece = on_path(shared(self.module), path), self.piece.graph, self.piece
        assert graph.node_features is not None
        size, own, target = cloud_size(self.case.size), graph.num_nodes, graph.labels["target"]
        inputs = {
            "node_features": graph.node_features[:own], "positions": graph.positions, "velocities": graph.velocities,
            "edge_index": graph.edge_index, "batch": graph.batch, "num_graphs": graph.num_graphs,
            "edge_features": graph.edge_features,
        }  # fmt: skip

        def forward() -> Any:
            with torch.no_grad():
                return network(**inputs)[0]

        def step() -> Any:
            network.zero_grad(set_to_none=True)
            positions, places, _ = network(**inputs)
            loss = (positions - target).pow(2).sum() / (3 * piece.particles)
            if self.case.virtual_nodes and not own:
                loss = loss + 0.0 * places.sum()  # all ranks go back the same way
            elif self.case.virtual_nodes:
                generator = torch.Generator().manual_seed(self.case.seed + piece.rank)
                mmd = mmd_loss(
                    places, target, graph.batch, sigma=size.sigma, samples=-(-size.samples // piece.size),
                    generator=generator,
                )  # fmt: skip
                loss = loss + size.mmd * mmd / piece.size
            loss.backward()
            return loss.detach()

        return network, forward if quantity == "forward" else step

    def _potential(self, path: str, quantity: str) -> tuple[nn.Module, Callable[[], Any]]:
        from egnn_md.kernels.fast_silu import use_fast_silu
        from egnn_md.models.evaluate import evaluate
        from egnn_md.training.config import LossSection

        graph, piece, weights = self.piece.graph, self.piece, LossSection()
        if quantity != "step":
            model = on_path(shared(self.module), path)
            return model, lambda: evaluate(model, graph, forces=quantity == "forces")
        trained = copy.deepcopy(self.module).requires_grad_(True)
        use_fast_silu(trained)
        model = on_path(trained, path)

        def step() -> Any:
            model.zero_grad(set_to_none=True)
            found = evaluate(model, graph, training=True)
            energy = ((found["energy"] - graph.labels["energy"]) / piece.particles).pow(2).mean() / piece.size
            forces = (found["forces"] - graph.labels["forces"]).pow(2).sum() / (3 * piece.particles)
            loss = weights.energy * energy + weights.forces * forces
            loss.backward()
            return loss.detach()

        return model, step


def _sum_gradients(model: nn.Module, wire: Wire) -> None:
    found = [item.grad for item in model.parameters() if item.grad is not None]
    total = wire.total(torch.cat([gradient.reshape(-1) for gradient in found]))
    for gradient, share in zip(found, total.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(share.reshape(gradient.shape))


def layer_traffic(log: list[Collective]) -> tuple[Collective | None, Collective | None]:
    """The exchange and the reduction of one layer: the first exchange of the widest rows, and what comes next."""
    exchanges = [item for item in log if item.kind == "exchange"]
    widest = max((item.width for item in exchanges), default=0)
    start = next((k for k, item in enumerate(log) if item.kind == "exchange" and item.width == widest), -1)
    after = [item for item in log[start + 1 :] if item.kind == "reduction"]
    # without an exchange (paper mode) the first reduction is that of the mean position
    reduction = after[0] if start >= 0 and after else after[1] if len(after) > 1 else None
    return (log[start] if start >= 0 else None), reduction


def part_shape(case: Case, piece: Piece, weights: int) -> Shape:
    """Sizes of a part for :func:`egnn_md_benchmarks.counts.count`."""
    whole = vars(expected_shape(case))
    return Shape(**{**whole, "nodes": piece.graph.num_nodes, "edges": piece.graph.num_edges, "weights": weights})
