"""Inputs of the published network: clouds of random points with the paper's numbers of particles and edges.

Uniform points in a cube, whose side makes the cutoff about 1; the list is found with a cutoff that gives more pairs
than wanted, and its longest are dropped until the number is met exactly. Edge features are [d, d], the distance twice,
as all four published configurations have them; node features are [|v|, q] with q = ±1, as in the N-body one.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.neighbors import neighbor_list
from egnn_md.nn.layer import FastEGNNConfig

EDGE_FEATURES = 2
NODE_FEATURES = 2
GROWTH_NEIGHBOURS = 15  # as Fluid113K has them


@dataclass(frozen=True)
class CloudSize:
    """One size: ``edges`` of one graph, directed; σ, λ and targets a graph of the published loss."""

    name: str
    nodes: int
    edges: int
    graphs: int = 1
    normalize: bool = False
    sigma: float = 1.5
    mmd: float = 0.03
    samples: int = 9


#: arXiv 2506.19482: particles and edges (means over the data set), σ and λ, and the authors' samples a graph.
PAPER = {
    size.name: size
    for size in (
        CloudSize("nbody", 100, 9_900, normalize=True),
        CloudSize("protein", 855, 55_107, sigma=1.0, mmd=0.5),
        CloudSize("water3d", 7_806, 94_931, mmd=0.01),
        CloudSize("fluid113k", 113_140, 1_706_973, sigma=3.0, mmd=0.01, samples=150),
    )
}


def cloud_size(name: str) -> CloudSize:
    """``nbody``, ``protein``, ``water3d``, ``fluid113k`` or ``cloud-N`` (15 neighbours each), ``:B`` for a batch of B.

    Raises:
        InputError: another name; the message lists the known ones.
    """
    base, _, count = name.partition(":")
    graphs = int(count) if re.fullmatch("[1-9][0-9]*", count) else 0
    if graphs or not count:
        if base in PAPER:
            return replace(PAPER[base], name=name, graphs=max(graphs, 1))
        found = re.fullmatch("cloud-([1-9][0-9]*)", base)
        if found and int(found[1]) > GROWTH_NEIGHBOURS:
            nodes = int(found[1])
            return CloudSize(name, nodes, GROWTH_NEIGHBOURS * nodes, graphs=max(graphs, 1))
    raise InputError(
        f"unknown size {name!r}; known: {', '.join(PAPER)}, cloud-N for N > {GROWTH_NEIGHBOURS} particles with "
        f"{GROWTH_NEIGHBOURS} neighbours each, and any of them with :B for a batch of B graphs (nbody:8)"
    )


@dataclass(frozen=True)
class Cloud:
    """What the network is called with; ``target`` (N, 3) is what its loss compares with."""

    node_features: Tensor
    positions: Tensor
    velocities: Tensor
    edge_index: Tensor
    batch: Tensor
    num_graphs: int
    edge_features: Tensor
    target: Tensor

    def inputs(self) -> dict[str, Any]:
        """Arguments of ``FastEGNN.forward``."""
        return {item.name: getattr(self, item.name) for item in fields(self) if item.name != "target"}

    def to(self, device: torch.device) -> Cloud:
        """Copy on ``device``."""
        moved = {name: getattr(self, name).to(device) for name in (*self.inputs(), "target") if name != "num_graphs"}
        return replace(self, **moved)


def cut_to(positions: Tensor, edge_index: Tensor, count: int) -> Tensor:
    """(2, count) the shortest edges, in the order they had; of two of one length the first."""
    pair = positions[edge_index[0]] - positions[edge_index[1]]
    kept = torch.sort((pair * pair).sum(1), stable=True).indices[:count]
    return edge_index[:, torch.sort(kept).values]


def _single(size: CloudSize, seed: int) -> tuple[Tensor, Tensor]:
    """Positions (n, 3) float64 and edges (2, e) of one graph, sorted by receiver."""
    generator = torch.Generator().manual_seed(seed)
    mean = size.edges / size.nodes
    side = (size.nodes * 4.0 * math.pi / (3.0 * mean)) ** (1.0 / 3.0)
    points = torch.rand(size.nodes, 3, generator=generator, dtype=torch.float64) * side
    if size.edges > size.nodes * (size.nodes - 1):
        raise InputError(f"{size.nodes} particles have {size.nodes * (size.nodes - 1)} edges at most, not {size.edges}")
    cutoff, open_cell = 1.02, torch.zeros(3, 3, dtype=torch.float64)
    while True:
        edges, _ = neighbor_list(points, open_cell, torch.zeros(3, dtype=torch.bool), cutoff)
        if edges.shape[1] >= size.edges:
            return points, cut_to(points, edges, size.edges)
        # a particle near a face has fewer neighbours than the density says
        cutoff *= 1.01 * max(size.edges / max(edges.shape[1], 1), 1.0) ** (1.0 / 3.0)


def make_cloud(size: CloudSize, seed: int, dtype: torch.dtype = torch.float32) -> Cloud:
    """The inputs of ``size``; the same seed gives the same ones.

    Args:
        size: of :func:`cloud_size`.
        seed: of the positions, velocities, charges and targets.
        dtype: of all that is not an index.
    """
    generator = torch.Generator().manual_seed(seed + 1)
    points, edges = zip(*(_single(size, seed + 1000 * graph) for graph in range(size.graphs)), strict=True)
    positions = torch.cat(points)
    edge_index = torch.cat([edge + size.nodes * graph for graph, edge in enumerate(edges)], 1)
    total = len(positions)
    velocities = torch.randn(total, 3, generator=generator, dtype=torch.float64) * 0.1
    charge = torch.randint(0, 2, (total, 1), generator=generator).double() * 2 - 1
    distance = (positions[edge_index[0]] - positions[edge_index[1]]).norm(dim=1, keepdim=True)
    return Cloud(
        node_features=torch.cat([velocities.norm(dim=1, keepdim=True), charge], 1).to(dtype),
        positions=positions.to(dtype),
        velocities=velocities.to(dtype),
        edge_index=edge_index,
        batch=torch.arange(size.graphs).repeat_interleave(size.nodes),
        num_graphs=size.graphs,
        edge_features=distance.repeat(1, EDGE_FEATURES).to(dtype),
        target=(positions + velocities).to(dtype),
    )


def network_config(size: CloudSize, hidden: int = 64, layers: int = 4, virtual_nodes: int = 3) -> FastEGNNConfig:
    """The published network's sizes for ``size``."""
    return FastEGNNConfig(
        node_features=NODE_FEATURES,
        edge_features=EDGE_FEATURES,
        hidden=hidden,
        layers=layers,
        virtual_nodes=virtual_nodes,
        normalize=size.normalize,
    )
