"""Batches of propagator samples: kept in little memory, with noise and edge dropping that depend on the step only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from egnn_md.data.windows import WindowSet, all_pairs
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import PropagatorConfig
from egnn_md.neighbors.backends import neighbor_list
from egnn_md.neighbors.drop import drop_edges
from egnn_md.training.propagator_config import NoiseSection
from egnn_md.training.stream import BatchStream

NOISE, DROP, SAMPLES = 1, 2, 3  #: what a generator is for; strides of an unrolled step count on from DROP


def step_generator(seed: int, step: int, purpose: int, stride: int = 0) -> torch.Generator:
    """Random numbers of one training step: a pure function of its arguments, so that a resumed run repeats them."""
    state = np.random.SeedSequence((seed, step, purpose, stride)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0]) & (2**63 - 1))


class AllPairs:
    """Edges of a batch in which every particle sees every other, kept for the last few compositions of a batch."""

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device
        self._kept: dict[tuple[int, ...], Tensor] = {}

    def __call__(self, sizes: Sequence[int]) -> Tensor:
        """(2, E) edges of graphs with ``sizes`` particles; do not write into it."""
        key = tuple(sizes)
        if key not in self._kept:
            if len(self._kept) >= 4:
                self._kept.clear()
            starts = np.concatenate([[0], np.cumsum(key)[:-1]]).tolist()
            parts = [all_pairs(size) + start for size, start in zip(key, starts, strict=True)]
            self._kept[key] = torch.cat(parts, 1).to(self.device)
        return self._kept[key]


def rebuild_edges(
    graph: ParticleGraph, config: PropagatorConfig, generator: torch.Generator | None = None
) -> ParticleGraph:
    """The same batch with the edges that its positions now have: cutoff and edge dropping of ``config``.

    Neighbour lists know no gradient: positions are taken as they are. The work is done on the CPU, where the
    generator lives.
    """
    device = graph.positions.device
    positions, batch = graph.positions.detach().cpu(), graph.batch.cpu()
    cell, pbc = graph.cell.cpu(), graph.pbc.cpu()
    sizes = torch.bincount(batch, minlength=graph.num_graphs).tolist()
    if config.cutoff is None:
        edge_index = AllPairs()(sizes)
        cell_shifts = positions.new_zeros(edge_index.shape[1], 3)
    else:
        edges, shifts, start = [], [], 0
        for index, size in enumerate(sizes):
            found, steps = neighbor_list(positions[start : start + size], cell[index], pbc[index], config.cutoff)
            edges.append(found + start)
            shifts.append(steps.to(positions.dtype))
            start += size
        edge_index, cell_shifts = torch.cat(edges, 1), torch.cat(shifts)
    if config.drop != "none" and config.drop_fraction > 0:
        graph_of_edge = batch[edge_index[0]]
        pair = positions[edge_index[0]] - positions[edge_index[1]]
        pair = pair + torch.einsum("ei,eij->ej", cell_shifts, cell[graph_of_edge])
        kept = drop_edges(
            edge_index,
            pair.norm(dim=1),
            graph_of_edge,
            fraction=config.drop_fraction,
            mode=config.drop,
            generator=generator,
        )
        edge_index, cell_shifts = edge_index[:, kept], cell_shifts[kept]
    return replace(graph, edge_index=edge_index.to(device), cell_shifts=cell_shifts.to(device))


@dataclass(frozen=True)
class _Sample:
    """A graph without what can be made again: edges of all pairs, shifts of an open system, 64-bit indices."""

    graph: ParticleGraph  # without edges
    edges: Tensor | None  # (2, E) in the smallest integer type; None for all pairs
    shifts: Tensor | None  # (E, 3) int8; None where all are zero

    @property
    def bytes(self) -> int:
        tensors = [self.graph.positions, self.graph.velocities, self.edges, self.shifts, *self.graph.labels.values()]
        return sum(t.numel() * t.element_size() for t in tensors if t is not None)

    @staticmethod
    def of(graph: ParticleGraph, keep_edges: bool) -> _Sample:
        bare = replace(graph, edge_index=graph.edge_index[:, :0], cell_shifts=graph.cell_shifts[:0])
        if not keep_edges:
            return _Sample(bare, None, None)
        small = torch.int16 if graph.num_nodes < 2**15 else torch.int32
        whole = graph.cell_shifts.abs().amax() if graph.num_edges else torch.tensor(0)
        shifts = None if float(whole) == 0 else graph.cell_shifts.to(torch.int8 if float(whole) < 100 else torch.int32)
        return _Sample(bare, graph.edge_index.to(small), shifts)


class WindowBatches:
    """Joined batches of a :class:`WindowSet`.

    Samples are kept in memory up to ``cache_bytes`` and made again beyond it. Edges of all pairs are not stored at
    all: a batch of N-body systems takes them from one shared tensor.

    With ``noise`` the positions and velocities of particles that can move get normal noise, and edges are found
    anew; with ``drop: random`` the edges of a training batch are drawn anew each step. Both are functions of ``seed``
    and the step. Without a step (validation) there is no noise, and random edges are those of the sample.

    Args:
        windows: the samples; for training with ``drop: random`` those of a configuration without dropping.
        config: the model's, which says how edges are dropped.
        noise: of training batches.
        seed: of noise and random edges.
        cache_bytes: memory for samples.
        device: where batches go.
    """

    def __init__(
        self,
        windows: WindowSet,
        config: PropagatorConfig,
        *,
        noise: NoiseSection | None = None,
        seed: int = 0,
        cache_bytes: float = 2e9,
        device: torch.device | str = "cpu",
    ) -> None:
        self.windows = windows
        self.config = config
        self.noise = noise or NoiseSection()
        self.seed = seed
        self.device = torch.device(device)
        self._free = cache_bytes
        self._kept: dict[int, _Sample] = {}
        self._all_pairs = AllPairs(self.device)
        self._every_pair = windows.config.cutoff is None and windows.config.drop_fraction == 0.0

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> ParticleGraph:
        return self.batch([index])

    def _sample(self, index: int) -> _Sample:
        found = self._kept.get(index)
        if found is None:
            found = _Sample.of(self.windows[index], not self._every_pair)
            if found.bytes <= self._free:
                self._free -= found.bytes
                self._kept[index] = found
        return found

    def batch(self, indices: Sequence[int], step: int | None = None) -> ParticleGraph:
        """Samples ``indices`` joined, on the device.

        Args:
            indices: of samples.
            step: of the training, for noise and random edges; None for validation.
        """
        samples = [self._sample(index) for index in indices]
        graph = ParticleGraph.join([sample.graph for sample in samples])
        if step is not None and (self.noise.positions or self.noise.velocities):
            graph = self._noisy(graph, step)
        drops = self.config.drop != "none" and self.config.drop_fraction > 0
        depends = self.config.cutoff is not None or (drops and self.config.drop == "longest")
        if step is not None and self.noise.positions > 0 and depends:
            return rebuild_edges(graph, self.config, step_generator(self.seed, step, DROP)).to(self.device)
        sizes = [sample.graph.num_nodes for sample in samples]
        graph = graph.to(self.device)
        if self._every_pair:
            edge_index = self._all_pairs(sizes)
            cell_shifts = graph.positions.new_zeros(1, 3).expand(edge_index.shape[1], 3)
        else:
            edge_index, cell_shifts = self._joined_edges(samples, sizes, graph)
        if step is not None and drops and self.config.drop == "random":
            kept = drop_edges(
                edge_index.cpu(),
                torch.zeros(edge_index.shape[1]),
                graph.batch.cpu()[edge_index[0].cpu()],
                fraction=self.config.drop_fraction,
                mode="random",
                generator=step_generator(self.seed, step, DROP),
            ).to(self.device)
            edge_index, cell_shifts = edge_index[:, kept], cell_shifts[kept]
        return replace(graph, edge_index=edge_index, cell_shifts=cell_shifts)

    def _joined_edges(
        self, samples: Sequence[_Sample], sizes: Sequence[int], graph: ParticleGraph
    ) -> tuple[Tensor, Tensor]:
        edges, start = [], 0
        for sample, size in zip(samples, sizes, strict=True):
            assert sample.edges is not None
            edges.append(sample.edges.long() + start)
            start += size
        edge_index = torch.cat(edges, 1).to(self.device)
        if all(sample.shifts is None for sample in samples):
            return edge_index, graph.positions.new_zeros(1, 3).expand(edge_index.shape[1], 3)
        like = graph.positions.dtype
        shifts = [
            torch.zeros(s.edges.shape[1], 3, dtype=like) if s.shifts is None else s.shifts.to(like)
            for s in samples
            if s.edges is not None
        ]
        return edge_index, torch.cat(shifts).to(self.device)

    def _noisy(self, graph: ParticleGraph, step: int) -> ParticleGraph:
        generator = step_generator(self.seed, step, NOISE)
        shape, dtype = graph.positions.shape, graph.positions.dtype
        static = torch.isin(graph.species, torch.tensor(self.config.static_species, dtype=torch.long))
        moving = (~static).to(dtype).unsqueeze(1)
        first, second = (torch.randn(shape, generator=generator, dtype=dtype) for _ in range(2))
        assert graph.velocities is not None
        return replace(
            graph,
            positions=graph.positions + self.noise.positions * moving * first,
            velocities=graph.velocities + self.noise.velocities * moving * second,
        )


class WindowStream(BatchStream):
    """The stream of training batches: samples in the order of :class:`BatchStream`, changed as the step says."""

    def __init__(
        self,
        batches: WindowBatches,
        batch_size: int,
        seed: int,
        periods: Sequence[int],
        current_step: Callable[[], int],
    ) -> None:
        super().__init__(batches, batch_size, seed, periods, current_step)
        self.batches = batches

    def batch(self, step: int) -> ParticleGraph:
        """Batch ``step``."""
        return self.batches.batch(self.indices(step), step)
