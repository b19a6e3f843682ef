"""Energy and forces as one captured CUDA graph, for shapes that are padded to stay the same.

A captured graph replays hundreds of kernels for the price of one launch, which is what a small system's step on a GPU
is made of; but it replays fixed shapes. Atoms are fixed in a simulation. Edges are padded with pairs far beyond the
cutoff, which contribute exactly nothing by the contract of :class:`egnn_md.models.base.Potential`.
"""

from __future__ import annotations

import warnings
from dataclasses import replace

import torch
from torch import Tensor

from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import evaluate

MARGIN = 1.1  # room for more edges than there were at the capture
FAR = 100.0  # of cutoffs and cell lengths: a padded pair's length
WARM_UP = 3  # evaluations before the capture, as PyTorch asks for


class CudaGraphWarning(UserWarning):
    """CUDA graphs were asked for and cannot be had; evaluation goes on without."""


def pad_edges(
    edge_index: Tensor, shifts: Tensor, size: int, particles: int, distance: float
) -> tuple[Tensor, Tensor]:
    """Edges (2, size) and Cartesian shifts (size, 3) with pairs of the last particle and itself, ``distance`` long.

    They go to the end, where the receivers stay sorted.

    Args:
        edge_index: (2, E), sorted by receiver; E may not exceed ``size``.
        shifts: (E, 3), Å.
        size: number of edges to come to.
        particles: N.
        distance: beyond the cutoff, Å.
    """
    missing = size - edge_index.shape[1]
    filler = torch.full((2, missing), particles - 1, dtype=edge_index.dtype, device=edge_index.device)
    far = torch.zeros(missing, 3, dtype=shifts.dtype, device=shifts.device)
    far[:, 0] = distance
    return torch.cat([edge_index, filler], 1), torch.cat([shifts, far])


class CudaGraphEvaluator:
    """``evaluate(model, graph)`` for one system, replayed from a captured graph where that is possible.

    Args:
        model: parameters frozen; whatever the captured graph reads must not be replaced later.

    Attributes:
        captures: graphs captured so far; one more whenever edges outgrow their room or the atoms change.
        reason: why there is none (and never will be), or an empty string.
    """

    def __init__(self, model: Potential) -> None:
        self.model = model
        self.captures = 0
        self.reason = ""
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._outputs: dict[str, Tensor] = {}

    @property
    def captured(self) -> bool:
        """Whether evaluations replay a graph now."""
        return self._graph is not None

    def __call__(self, graph: ParticleGraph) -> dict[str, Tensor]:
        """Energy and forces as :func:`evaluate` gives them, of a batch of one graph."""
        if not self.reason and graph.positions.device.type != "cuda":
            self._give_up(f"they need CUDA, and the model is on {graph.positions.device}")
        if not self.reason and graph.num_graphs != 1:
            self._give_up("they are for one system at a time")
        if not self.reason and self.model.needs_cell:
            self._give_up("the wave vectors of Fourier modes are as many as the cell has, and change with it")
        if self.reason or graph.num_edges == 0:
            return evaluate(self.model, graph)
        padded = self.padded(graph)
        try:
            if not self._fits(padded):
                self._capture(padded)
        except RuntimeError as error:
            self._graph = None
            torch.cuda.synchronize()
            self._give_up(f"the capture failed: {error}")
            return evaluate(self.model, graph)
        for place, value in zip(self._inputs, self._values(padded), strict=True):
            place.copy_(value)
        assert self._graph is not None
        self._graph.replay()
        return {name: value.clone() for name, value in self._outputs.items()}

    def padded(self, graph: ParticleGraph) -> ParticleGraph:
        """The graph with edges up to the room there is, which grows where they outgrow it; shifts are Cartesian.

        Its cell is the identity, so that ``cell_shifts`` are translations in Å and need not be whole numbers.
        """
        shifts = graph.cell_shifts @ graph.cell[0]
        room = self._inputs[1].shape[1] if self._inputs else 0
        if room < graph.num_edges:
            room = int(MARGIN * graph.num_edges) + 1
        distance = FAR * max(float(self.model.cutoff), 1.0)
        edges, shifts = pad_edges(graph.edge_index, shifts, room, graph.num_nodes, distance)
        return replace(graph, edge_index=edges, cell_shifts=shifts, cell=torch.eye(3).to(graph.cell)[None])

    @staticmethod
    def _values(graph: ParticleGraph) -> list[Tensor]:
        return [graph.positions, graph.edge_index, graph.cell_shifts, graph.species, graph.pbc]

    def _fits(self, graph: ParticleGraph) -> bool:
        if self._graph is None:
            return False
        values = self._values(graph)
        same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in zip(values, self._inputs, strict=True))
        return same and values[0].device == self._inputs[0].device

    def _capture(self, graph: ParticleGraph) -> None:
        self._graph = None
        self._inputs = [value.detach().clone() for value in self._values(graph)]
        positions, edges, shifts, species, pbc = self._inputs
        fixed = replace(graph, positions=positions, edge_index=edges, cell_shifts=shifts, species=species, pbc=pbc)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP):
                evaluate(self.model, fixed)
        torch.cuda.current_stream().wait_stream(stream)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured):
            self._outputs = evaluate(self.model, fixed)
        self._graph = captured
        self.captures += 1

    def _give_up(self, reason: str) -> None:
        """Say once why there are no CUDA graphs."""
        self.reason = reason.splitlines()[0]
        warnings.warn(f"no CUDA graphs: {self.reason}", CudaGraphWarning, stacklevel=3)
