"""What one rank does: keep a model and its part of a system, and answer steps together with the others."""

from __future__ import annotations

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model, save_model
from egnn_md.devices import find_dtype
from egnn_md.distributed.part import Part, communicating, part_of_graph
from egnn_md.distributed.protocol import (
    HEADER,
    MESSAGE,
    REPORT,
    STEP,
    STOP,
    Answer,
    Report,
    Step,
    from_bytes,
    header_of,
)
from egnn_md.distributed.region import RegionList
from egnn_md.distributed.wire import Network, Wire
from egnn_md.graph import ParticleGraph
from egnn_md.models.evaluate import evaluate
from egnn_md.models.propagator import predict_unchecked
from egnn_md.neighbors.frame import Frame


def pack_model(model: torch.nn.Module) -> Tensor:
    """A model file as (n,) uint8. Raises InputError for a class that has none."""
    with tempfile.TemporaryDirectory() as folder:
        path = save_model(model, Path(folder) / "model.safetensors")
        return torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)


def unpack_model(content: Tensor, dtype: torch.dtype, device: torch.device, kernels: str) -> Any:
    """The inverse of :func:`pack_model`."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(content.numpy().tobytes())
        return load_model(path, dtype=dtype, device=device, kernels=kernels)


class Rank:
    """One rank's model and part.

    Args:
        wire: to the other ranks, for the network's collectives.
        control: to the other ranks, on the CPU, for steps and answers; it may wait as long as nobody steps.
        device: where the network computes.
    """

    def __init__(self, wire: Wire, control: Wire, device: torch.device | str = "cpu") -> None:
        self.wire, self.control = wire, control
        self.device = torch.device(device)
        self.model: Any = None
        self.dtype = torch.float32
        self.columns = 3  # numbers a particle in a step's vector
        self.mode = "exact"
        self.owner = torch.zeros(0, dtype=torch.int64)
        self._largest = 0  # particles of the rank that has most
        self._pbc = torch.zeros(3, dtype=torch.bool)
        self._frame = Frame()
        self._list: RegionList | None = None
        self._part: Part | None = None
        self._constants: dict[str, Tensor | None] = {}

    @property
    def length(self) -> int:
        """Of a step's vector."""
        return HEADER + self.columns * self.owner.shape[0]

    def close(self) -> None:
        """Leave the groups, whose threads must end before Python does."""
        self.wire.group = self.control.group = None

    def handle(self, message: dict[str, Any]) -> Answer | None:
        """Do what a message says; all ranks are given the same one. Only a graph has an answer, at rank 0."""
        kind = message["kind"]
        if kind == "model":
            self._take_model(message)
        elif kind == "system":
            self._take_system(message)
        elif kind == "lists":
            self._make_lists(message["positions"], message["cell"], message["skin"])
        elif kind == "network":
            chosen = Network(**message["options"])
            only = message["rank"]
            self.wire.network = chosen if only in (-1, self.wire.rank) else None
        else:
            assert kind == "graph", kind
            return self._graph(message)
        return None

    def _take_model(self, message: dict[str, Any]) -> None:
        self.dtype, self.mode = find_dtype(message["dtype"]), message["mode"]
        self.model = unpack_model(message["content"], self.dtype, self.device, message["kernels"])
        self.columns = 6 if self.model.kind == "propagator" else 3
        self._backend = message["neighbors"]
        self.owner = self.owner[:0]
        self._list, self._part = None, None

    def _take_system(self, message: dict[str, Any]) -> None:
        self.owner = message["owner"].long()
        self._largest = int(torch.bincount(self.owner, minlength=self.wire.size).max()) if len(self.owner) else 0
        self._pbc = message["pbc"]
        self._constants = {"species": message["species"].long(), "features": message["features"]}
        self._part = None

    def _make_lists(self, positions: Tensor, cell: Tensor, skin: float) -> None:
        cutoff = float(self.model.config.cutoff)
        in_double = self.columns == 3  # a propagator's positions are in its own precision already
        positions = positions if in_double else positions.to(self.dtype)
        self._list = RegionList(cutoff, skin, self._backend, dtype=self.dtype)
        self._part = self._list.make(
            positions, cell.to(positions.dtype), self._pbc, self.owner, self.wire, mode=self.mode, device=self.device
        )
        local = self._part.local
        species, features = self._constants["species"], self._constants["features"]
        assert species is not None
        self._species = species[local].to(self.device)
        self._features = None if features is None else features[local].to(self.device, self.dtype)

    def step(self, step: Step) -> Answer | None:
        """Answer a step together with the other ranks; at rank 0 for all of them, elsewhere None."""
        self.wire.start()
        begin, waited = time.perf_counter(), self.wire.waited
        if step.remake:
            self._make_lists(step.positions, step.cell, step.skin)
        rows, totals, edges = self._propagate(step) if step.velocities is not None else self._evaluate(step)
        self.wire.rest()
        seconds = time.perf_counter() - begin - (self.wire.waited - waited)
        return self._gather(rows, totals, edges, seconds)

    def _made(self) -> tuple[Part, RegionList]:
        assert self._part is not None
        assert self._list is not None
        return self._part, self._list

    def _evaluate(self, step: Step) -> tuple[Tensor, dict[str, Tensor], int]:
        part, pairs = self._made()
        local, own = part.local, part.own.shape[0]
        x = step.positions[local]
        self._frame.take(step.cell.numpy(), self._pbc.numpy())
        cell = self._frame.cell
        home = self._frame.home(x)
        edge_index, steps = pairs.update(x, cell, self._pbc, home)
        if home is not None:
            x = x - home @ cell
        graph = self._local_graph((x - step.offset)[:own], cell, edge_index, steps)
        with communicating(self.model, part.parts):
            answer = evaluate(self.model, graph, forces=step.forces, stress=step.stress)
        forces = answer.pop("forces", None)
        energies = answer.pop("energies")
        rows = _energy_rows(energies, forces, edge_index[0])
        return rows, {name: value.double().cpu() for name, value in answer.items()}, edge_index.shape[1]

    def _propagate(self, step: Step) -> tuple[Tensor, dict[str, Tensor], int]:
        part, pairs = self._made()
        assert step.velocities is not None
        own = part.own.shape[0]
        cell = step.cell.to(self.dtype)
        x = step.positions[part.local].to(self.dtype)
        edge_index, steps = pairs.update(x, cell, self._pbc)
        velocities = step.velocities[part.own].to(self.device, self.dtype)
        graph = replace(self._local_graph(x[:own], cell, edge_index, steps), velocities=velocities)
        return (*self._predict(graph, part), edge_index.shape[1])

    def _predict(self, graph: ParticleGraph, part: Part) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad(), communicating(self.model, part.parts):
            found = predict_unchecked(self.model, graph)
        degree = torch.bincount(graph.edge_index[0], minlength=graph.num_nodes).unsqueeze(1)
        rows = torch.cat([found.positions.double(), found.velocities.double(), degree.double()], 1).cpu()
        return rows, {"virtual_positions": found.virtual_positions.cpu()}

    def _local_graph(self, positions: Tensor, cell: Tensor, edge_index: Tensor, steps: Tensor) -> ParticleGraph:
        return ParticleGraph(
            positions=positions.to(self.device, self.dtype),
            species=self._species,
            edge_index=edge_index.to(self.device),
            cell_shifts=steps.to(self.device, self.dtype),
            cell=cell[None].to(self.device, self.dtype),
            pbc=self._pbc[None].to(self.device),
            batch=torch.zeros(positions.shape[0], dtype=torch.int64, device=self.device),
            node_features=self._features,
        )

    def _graph(self, message: dict[str, Any]) -> Answer | None:
        """A graph whose edges are given: every rank takes its part of it."""
        self.wire.start()
        begin, waited = time.perf_counter(), self.wire.waited
        owner = message["owner"].long()
        before, self.owner = self.owner, owner
        largest, self._largest = self._largest, int(torch.bincount(owner, minlength=self.wire.size).max())
        graph = ParticleGraph(**message["graph"]).to(self.device, self.dtype)
        part, local = part_of_graph(graph, owner, self.wire, mode=self.mode)
        if self.columns == 6:
            rows, totals = self._predict(local, part)
        else:
            with communicating(self.model, part.parts):
                answer = evaluate(self.model, local, forces=message["forces"], stress=message["stress"])
            rows = _energy_rows(answer.pop("energies"), answer.pop("forces", None), local.edge_index[0])
            totals = {name: value.double().cpu() for name, value in answer.items()}
        seconds = time.perf_counter() - begin - (self.wire.waited - waited)
        found = self._gather(rows, totals, local.num_edges, seconds, part)
        self.owner, self._largest = before, largest
        return found

    def _gather(
        self, rows: Tensor, totals: dict[str, Tensor], edges: int, seconds: float, part: Part | None = None
    ) -> Answer | None:
        pairs, given = self._list, part
        part = part or self._part
        assert part is not None
        nearest, ends = float("inf"), (-1, -1)
        if given is None and pairs is not None:
            nearest, ends = pairs.nearest_pair()
        local = part.local
        report = Report(
            particles=rows.shape[0],
            halo=part.halo.shape[0],
            edges=edges,
            pairs=edges if pairs is None or given is not None else pairs.pairs,
            seconds=seconds,
            nearest=nearest,
            receiver=-1 if ends[0] < 0 else int(local[ends[0]]),
            sender=-1 if ends[1] < 0 else int(local[ends[1]]),
        )
        width = rows.shape[1]
        piece = torch.zeros(REPORT + self._largest * width, dtype=torch.float64)
        piece[:REPORT] = report.pack()
        piece[REPORT : REPORT + rows.numel()] = rows.reshape(-1)
        pieces = self.control.gather(piece)
        if self.control.rank != 0:
            return None
        whole = torch.zeros(self.owner.shape[0], width, dtype=torch.float64)
        for number, values in enumerate(pieces):
            members = (self.owner == number).nonzero().reshape(-1)
            whole[members] = values[REPORT : REPORT + len(members) * width].reshape(-1, width)
        return Answer(whole, totals, torch.stack([values[:REPORT] for values in pieces]))


def _energy_rows(energies: Tensor, forces: Tensor | None, receivers: Tensor) -> Tensor:
    """(n, 5) forces (zero where there are none), energies, and edges received."""
    rows = torch.zeros(energies.shape[0], 5, dtype=torch.float64)
    if forces is not None:
        rows[:, :3] = forces
    rows[:, 3] = energies
    rows[:, 4] = torch.bincount(receivers, minlength=energies.shape[0])
    return rows


def lead_step(rank: Rank, frame: Tensor) -> Answer:
    """Rank 0: one step, of which everybody learns by one broadcast."""
    rank.control.broadcast(frame)
    answer = rank.step(Step.unpack(frame))
    assert answer is not None
    return answer


def lead_message(rank: Rank, content: Tensor) -> Answer | None:
    """Rank 0: a message, as :func:`to_bytes` makes it, to everybody, itself included."""
    # as long as a step's vector, for which the others wait
    header = torch.zeros(rank.length, dtype=torch.float64)
    header[:HEADER] = header_of(MESSAGE, content.numel())
    rank.control.broadcast(header)
    rank.control.broadcast(content)
    return rank.handle(from_bytes(content))


def lead_stop(rank: Rank) -> None:
    """Rank 0: everybody may go."""
    header = torch.zeros(rank.length, dtype=torch.float64)
    header[:HEADER] = header_of(STOP)
    rank.control.broadcast(header)


def follow(rank: Rank) -> None:
    """Every other rank: serve until rank 0 says stop."""
    while True:
        frame = torch.zeros(rank.length, dtype=torch.float64)
        rank.control.broadcast(frame)
        operation = int(frame[0])
        if operation == STOP:
            return
        if operation == STEP:
            rank.step(Step.unpack(frame))
            continue
        content = torch.zeros(int(frame[1]), dtype=torch.uint8)
        rank.control.broadcast(content)
        rank.handle(from_bytes(content))
