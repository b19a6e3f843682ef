"""The ranks of one training: which of them share a graph, what each takes of a batch, what they add up.

Rank ``r`` of ``devices`` is in group ``r // graph_devices``. The ranks of a group hold the parts of the same graphs
(:mod:`egnn_md.distributed.part`), and each group takes its share of the graphs of a batch. Every rank makes the whole
batch, which is a function of seed and step, and takes its part of it; the gradient is summed over all ranks, and as
every rank gets the same bits of a sum, their weights stay the same to the bit.

All collectives of a step are called by all ranks in the same order. What a clock or a signal decides is therefore
settled between them, once a step, together with the numbers of the log.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn

from egnn_md.distributed.part import Parts, part_of_graph
from egnn_md.distributed.partition import GRAPH_METHODS, partition
from egnn_md.distributed.session import check_backend, launched, restarted
from egnn_md.distributed.wire import Wire, open_group
from egnn_md.distributed.worker import describe_failure
from egnn_md.errors import ConfigError, DeviceError, TrainingError
from egnn_md.graph import ParticleGraph
from egnn_md.models import Potential, evaluate
from egnn_md.models.propagator import Prediction, predict_unchecked
from egnn_md.training.config import RunConfig
from egnn_md.training.share import Share

MEETING = 120.0  # seconds in which all ranks must have started
LIMIT = 1800.0  # seconds that a collective may take: the others may still be reading data, or writing a checkpoint
HASH = 32  # bytes of a sha256


class RanksLostError(DeviceError):
    """Another rank went away, so this one cannot go on; that rank knows the reason."""


@dataclass(frozen=True)
class Groups:
    """The wires of one rank.

    Args:
        control: between all ranks, for numbers on the CPU.
        world: between all ranks, where they compute.
        graph_control: between those of a graph, on the CPU.
        graph: between those of a graph, where they compute.
    """

    control: Wire
    world: Wire
    graph_control: Wire
    graph: Wire


class Ranks:
    """One rank among those of a training; without ``groups`` there is only one.

    Args:
        device: where this rank computes.
        groups: wires to the others.
        method: how a graph is divided (:data:`egnn_md.distributed.partition.METHODS`).
        mode: ``exact`` or ``paper``.
        seed: of random partitions.
        threads: torch threads of this rank, None leaves them.
    """

    def __init__(
        self,
        device: str = "cpu",
        groups: Groups | None = None,
        *,
        method: str = "bisection",
        mode: str = "exact",
        seed: int = 0,
        threads: int | None = None,
    ) -> None:
        self.device = device
        self.groups = groups or Groups(Wire(), Wire(), Wire(), Wire())
        self.method, self.mode, self.seed, self.threads = method, mode, seed, threads
        self.rank, self.size = self.groups.world.rank, self.groups.world.size
        self.copies = self.groups.graph.size
        self.group, self.group_count = self.rank // self.copies, self.size // self.copies

    @property
    def alone(self) -> bool:
        """There are no others."""
        return self.size == 1

    @property
    def writes(self) -> bool:
        """This is the one rank that writes files and speaks to the user."""
        return self.rank == 0

    # what a rank takes of a batch -------------------------------------------------------------------------------

    def take(self, batch: ParticleGraph, owner: Tensor | None = None) -> Share:
        """This rank's share of a batch that every rank has as a whole; all ranks call it together.

        Args:
            batch: on the device where the network computes.
            owner: of each particle of the group's graphs a rank of the group; as the method says if None.

        Returns:
            the share; of a batch with fewer graphs than groups it may have none.
        """
        if self.alone:
            return Share.all_of(batch)
        graphs = batch.num_graphs
        first, last = self.group * graphs // self.group_count, (self.group + 1) * graphs // self.group_count
        piece, rows = batch.between(first, last)
        owner = self._owner(piece) if owner is None else owner
        # what the ranks need of each other is agreed on the CPU; what they compute is sent where they compute
        part, graph = part_of_graph(piece, owner, self.groups.graph_control, mode=self.mode)
        told = part.parts
        parts = Parts(self.groups.graph, told.send_rows, told.send, told.receive, fetches=told.fetches)
        own = part.own.to(rows.device)
        return Share(batch, graph, first, rows[own], self.copies, parts, owner, self)

    def _owner(self, batch: ParticleGraph) -> Tensor:
        sizes = torch.bincount(batch.batch, minlength=batch.num_graphs).tolist()
        positions, edge_index = batch.positions.detach().cpu(), batch.edge_index.cpu()
        graph_of_edge = batch.batch.cpu()[edge_index[0]]
        owners, start = [torch.zeros(0, dtype=torch.int64)], 0
        for number, size in enumerate(sizes):
            periodic = batch.pbc[number].cpu()
            edges = edge_index[:, graph_of_edge == number] - start if self.method in GRAPH_METHODS else None
            found = partition(
                positions[start : start + size],
                self.copies,
                method=self.method,
                cell=batch.cell[number].cpu() if bool(periodic.any()) else None,
                pbc=periodic,
                edge_index=edges,
                seed=self.seed % 2**31,
            )
            owners.append(found.owner)
            start += size
        return torch.cat(owners)

    def collect(self, share: Share, values: Tensor) -> Tensor:
        """(N, K) of the whole batch on every rank, out of every rank's ``values`` (n, K) of its own particles."""
        assert share.rows is not None
        whole = values.new_zeros(share.whole.num_nodes, values.shape[1])
        whole[share.rows] = values.detach()
        return self.groups.world.total(whole)  # all others bring zeros

    # what the ranks add up and agree on -------------------------------------------------------------------------

    def sum_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """Replace each gradient by its sum over the ranks, in one reduction; None stays None where all have it."""
        if self.alone:
            return
        flat = [
            torch.zeros_like(p).reshape(-1) if p.grad is None else p.grad.detach().reshape(-1) for p in parameters
        ]
        # an optimizer leaves a weight without gradient alone, but lets one with a zero gradient decay
        present = flat[0].new_tensor([p.grad is not None for p in parameters])
        summed = self.groups.world.total(torch.cat([*flat, present]))
        *gradients, present = summed.split([*(f.numel() for f in flat), len(flat)])
        for parameter, gradient, known in zip(parameters, gradients, (present > 0).tolist(), strict=True):
            parameter.grad = gradient.reshape(parameter.shape) if known else None

    def settle(self, numbers: list[float], stop: bool, elapsed: float) -> tuple[list[float], bool, float]:
        """Once a step: the sums of ``numbers`` over the ranks, whether anybody was told to stop, rank 0's clock."""
        if self.alone:
            return numbers, stop, elapsed
        mine = torch.tensor([*numbers, float(stop), elapsed if self.rank == 0 else 0.0], dtype=torch.float64)
        *sums, stops, clock = self.groups.control.total(mine).tolist()
        return sums, stops > 0, clock

    def agree(self, **digests: str) -> None:
        """Compare what must be the same everywhere.

        Args:
            digests: a text for each thing that is compared, under its name.

        Raises:
            TrainingError: names the first rank that differs from rank 0, and in what. Every rank raises the same.
        """
        if self.alone:
            return
        hashes = b"".join(hashlib.sha256(text.encode()).digest() for text in digests.values())
        found = self.groups.control.everywhere(torch.frombuffer(bytearray(hashes), dtype=torch.uint8))
        for rank, theirs in enumerate(found):
            other = [
                name.replace("_", " ")
                for number, name in enumerate(digests)
                if not torch.equal(theirs[HASH * number : HASH * (number + 1)], found[0][HASH * number :][:HASH])
            ]
            if other:
                raise TrainingError(
                    f"rank {rank} differs from rank 0 in: {', '.join(other)}. All ranks need the same versions and "
                    "files; look at what that rank reads, and start all of them again"
                )

    def same_weights(self, model: nn.Module, *, chosen: bool) -> bool:
        """Give every rank the weights of rank 0's ``model``, in place, if it says so with ``chosen``."""
        if self.alone:
            return chosen
        control = self.groups.control
        if not bool(control.broadcast(torch.tensor([float(chosen)]))):
            return False
        with torch.no_grad():
            for tensor in model.state_dict().values():
                tensor.copy_(control.broadcast(tensor.detach().cpu().clone()))
        return True

    # a model that is spread out, evaluated as one ---------------------------------------------------------------

    @torch.no_grad()
    def evaluate(
        self, model: Potential, graph: ParticleGraph, *, forces: bool = True, stress: bool = False
    ) -> dict[str, Tensor]:
        """:func:`egnn_md.models.evaluate` of a batch that all ranks have, computed by all of them together.

        Returns:
            ``energy`` (G,), ``forces`` (N, 3) and ``stress`` (G, 3, 3), the same bits on every rank.
        """
        if self.alone:
            return evaluate(model, graph, forces=forces, stress=stress)
        share = self.take(graph)
        kinds = {"energy": torch.float64, "forces": graph.positions.dtype, "stress": graph.cell.dtype}
        whole = {"energy": graph.cell.new_zeros(graph.num_graphs, dtype=torch.float64)}
        if forces:
            whole["forces"] = graph.positions.new_zeros(graph.positions.shape, dtype=torch.float64)
        if stress:
            whole["stress"] = graph.cell.new_zeros(graph.cell.shape, dtype=torch.float64)
        if share.graph.num_graphs:
            with share.communicating(model):
                found = evaluate(model, share.graph, forces=forces, stress=stress)
            for name in whole:
                if name == "forces":
                    whole[name][share.rows] = found[name].double()
                elif self.groups.graph.rank == 0:  # the others of this group know the same
                    whole[name][share.graphs] = found[name].double()
        summed = self.groups.world.total(torch.cat([value.reshape(-1) for value in whole.values()]))
        shares = summed.split([value.numel() for value in whole.values()])
        return {
            name: flat.reshape(value.shape).to(kinds[name])
            for flat, (name, value) in zip(shares, whole.items(), strict=True)
        }

    @torch.no_grad()
    def predict(self, model: nn.Module, graph: ParticleGraph) -> Prediction:
        """One stride of a propagator for a batch that all ranks have, computed by all of them together.

        Returns:
            positions and velocities (N, 3), the same bits on every rank; no virtual positions.
        """
        talks = any(hasattr(module, "communication") for module in model.modules())
        if self.alone or not talks:
            return predict_unchecked(model, graph)
        share = self.take(graph)
        found = share.graph.positions.new_zeros(0, 6)
        if share.graph.num_graphs:
            with share.communicating(model):
                prediction = predict_unchecked(model, share.graph)
            found = torch.cat([prediction.positions, prediction.velocities], 1)
        whole = self.collect(share, found)
        return Prediction(whole[:, :3], whole[:, 3:], whole.new_zeros(graph.num_graphs, 3, 0))

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Within, the loss of another rank is a :class:`RanksLostError`."""
        try:
            yield
        except RuntimeError as error:
            kind, text = describe_failure(error)
            if self.alone or kind != "lost":
                raise
            raise RanksLostError(
                f"rank {self.rank} lost the others: {text}. Go on from the last checkpoint with --resume"
            ) from error


def make_groups(
    open_one: Callable[[str, int, int, bool], Wire], rank: int, size: int, copies: int, cuda: bool
) -> Groups:
    """The wires of one rank.

    Args:
        open_one: opens a group from its name, a rank in it, its size, and whether it is for what CUDA computes.
        rank: of this process.
        size: number of ranks.
        copies: ranks that share a graph.
        cuda: the networks compute there; otherwise one group serves for both.
    """
    control = open_one("control", rank, size, False)
    world = open_one("world", rank, size, True) if cuda else control
    if copies == size:
        return Groups(control, world, control, world)
    group, place = divmod(rank, copies)
    graph_control = open_one(f"graph-control-{group}", place, copies, False)
    graph = open_one(f"graph-{group}", place, copies, True) if cuda else graph_control
    return Groups(control, world, graph_control, graph)


def join(config: RunConfig) -> Ranks:
    """Meet the other ranks that ``torchrun`` or ``egnn-md train --devices`` started; alone without them.

    Raises:
        ConfigError: another number of ranks than the configuration says, or a device that this rank does not have.
        RanksLostError: the others did not come.
    """
    size = int(os.environ["WORLD_SIZE"]) if launched() else 1
    if config.devices != size:
        if size > 1:
            raise ConfigError(
                f"devices = {config.devices}, but torchrun started {size} processes; train with --devices {size}, or "
                f"let it start {config.devices}"
            )
        raise ConfigError(
            f"devices = {config.devices}, but this process is alone; start the training with egnn-md train --devices "
            f"{config.devices}, or with torchrun"
        )
    if size == 1:
        return Ranks(config.device)
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    cuda = config.device.startswith("cuda")
    backend = "nccl" if cuda else "gloo"
    check_backend(backend)
    device = f"cuda:{local}" if cuda else config.device
    if cuda:
        if local >= torch.cuda.device_count():
            raise ConfigError(
                f"device = {config.device!r}: local rank {local} has no GPU of its own (CUDA devices found: "
                f"{torch.cuda.device_count()}); use fewer devices"
            )
        torch.cuda.set_device(local)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    loopback = int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == size
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        base = dist.PrefixStore(f"egnn-md-train-{attempt}", store)

        def open_one(name: str, number: int, count: int, computes: bool) -> Wire:
            here = dist.PrefixStore(name, base)
            kind = backend if computes else "gloo"
            group = open_group(here, number, count, backend=kind, limit=LIMIT, loopback=loopback)
            return Wire(group, number, count)

        groups = make_groups(open_one, rank, size, config.graph_size, cuda)
    except (dist.DistNetworkError, dist.DistStoreError) as error:
        raise RanksLostError(f"rank {rank} of {size} did not meet the others at {place}: {error}") from error
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    return Ranks(
        device,
        groups,
        method=config.partition,
        mode=config.mode,
        seed=config.seed,
        threads=None if "OMP_NUM_THREADS" in os.environ else threads,
    )


def resumes(resume: bool) -> bool:
    """Whether to go on from a checkpoint: asked to, or started again by the launcher after a rank was lost."""
    return resume or (launched() and restarted())
