"""The one record that flows through everything: particles, directed edges, cells, and optional extras.

Conventions: ``edge_index[0]`` receives, ``edge_index[1]`` sends, edges are sorted by receiver, and

    pair = positions[receiver] - positions[sender] + cell_shifts @ cell

Cells are rows. Lengths are Å for molecules (a model file says so when they are not).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from egnn_md.errors import InputError

MINIMUM_VOLUME = 1e-6  # Å³; a cell below it is flat for every purpose
PARTICLE_LABELS = ("forces", "target", "targets", "target_velocities")  # a row a particle; others a row a graph
COINCIDENT = 1e-3  # Å; atoms nearer than this have no physical energy


@dataclass(frozen=True)
class ParticleGraph:
    """A batch of ``G`` graphs with ``N`` particles and ``E`` directed edges in all.

    Attributes:
        positions: (N, 3), Å.
        species: (N,) int64, atomic numbers (or any class of particle).
        edge_index: (2, E) int64; row 0 receives, row 1 sends; sorted by receiver.
        cell_shifts: (E, 3), whole numbers in the dtype of ``positions``: lattice steps of the pair.
        cell: (G, 3, 3), rows are lattice vectors, Å; zeros where a graph is open.
        pbc: (G, 3) bool.
        batch: (N,) int64, the graph of each particle, ascending.
        velocities: (N, 3) or None, Å/fs.
        node_features: (N, F) or None; the network's invariant input.
        node_attributes: (N, A) or None; appended to every feature update.
        edge_features: (E, D) or None.
        labels: optional references: ``energy`` (G,) eV, ``forces`` (N, 3) eV/Å, ``stress`` (G, 3, 3)
            eV/Å³ (positive under tension, NaN where a graph has none), ``target`` (N, 3); for propagators
            ``targets`` and ``target_velocities`` (N, K, 3), one to K strides later.
    """

    positions: Tensor
    species: Tensor
    edge_index: Tensor
    cell_shifts: Tensor
    cell: Tensor
    pbc: Tensor
    batch: Tensor
    velocities: Tensor | None = None
    node_features: Tensor | None = None
    node_attributes: Tensor | None = None
    edge_features: Tensor | None = None
    labels: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_nodes(self) -> int:
        """N, particles in all graphs."""
        return int(self.positions.shape[0])

    @property
    def num_edges(self) -> int:
        """E, directed edges in all graphs."""
        return int(self.edge_index.shape[1])

    @property
    def num_graphs(self) -> int:
        """G, graphs in the batch."""
        return int(self.cell.shape[0])

    @property
    def periodic(self) -> Tensor:
        """(G,) bool: graphs that repeat in at least one direction (they have no centre of mass)."""
        return self.pbc.any(dim=1)

    def shifts(self) -> Tensor:
        """(E, 3) Cartesian lattice translation of each pair, Å."""
        cell_of_edge = self.cell[self.batch[self.edge_index[0]]]
        return torch.einsum("ei,eij->ej", self.cell_shifts, cell_of_edge)

    def pair_vectors(self) -> Tensor:
        """(E, 3) receiver minus sender, nearest-image shift included, Å."""
        receiver, sender = self.edge_index[0], self.edge_index[1]
        return self.positions[receiver] - self.positions[sender] + self.shifts()

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> ParticleGraph:
        """Copy on ``device`` with every floating tensor in ``dtype`` (whole-number tensors keep theirs)."""

        def move(tensor: Tensor) -> Tensor:
            return tensor.to(device=device, dtype=dtype if tensor.is_floating_point() else None)

        moved: dict[str, object] = {}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                moved[item.name] = move(value)
        moved["labels"] = {
            # energies stay in float64: their differences are millielectronvolts in kiloelectronvolts
            name: value.to(device=device) if name == "energy" else move(value)
            for name, value in self.labels.items()
        }
        return replace(self, **moved)  # type: ignore[arg-type]

    def validate(self) -> ParticleGraph:
        """Return self after checking shapes, dtypes, index ranges, order and finiteness.

        Raises:
            InputError: names the field, what it holds and what it should hold.
        """
        n, e, g = self.num_nodes, self.num_edges, self.num_graphs
        floating = self.positions.dtype
        expected: list[tuple[str, tuple[int, ...], torch.dtype]] = [
            ("positions", (n, 3), floating),
            ("species", (n,), torch.int64),
            ("edge_index", (2, e), torch.int64),
            ("cell_shifts", (e, 3), floating),
            ("cell", (g, 3, 3), floating),
            ("pbc", (g, 3), torch.bool),
            ("batch", (n,), torch.int64),
        ]
        if not floating.is_floating_point:
            raise InputError(f"positions have dtype {floating}; a floating dtype is needed")
        for name, shape, dtype in expected:
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape or value.dtype != dtype:
                raise InputError(
                    f"{name} is {tuple(value.shape)} {value.dtype}, but {shape} {dtype} is needed "
                    f"for {n} particles, {e} edges, {g} graphs"
                )
        for name, rows in (
            ("velocities", n),
            ("node_features", n),
            ("node_attributes", n),
            ("edge_features", e),
        ):
            optional: Tensor | None = getattr(self, name)
            if optional is not None and (optional.ndim != 2 or optional.shape[0] != rows):
                raise InputError(f"{name} is {tuple(optional.shape)}, but its first dimension must be {rows}")
        if n and (bool((self.batch.diff() < 0).any()) or int(self.batch[0]) < 0 or int(self.batch[-1]) >= g):
            raise InputError(f"batch must ascend from 0 to at most {g - 1}")
        if e:
            if int(self.edge_index.min()) < 0 or int(self.edge_index.max()) >= n:
                raise InputError(f"edge_index names a particle outside 0..{n - 1}")
            if bool((self.edge_index[0].diff() < 0).any()):
                raise InputError("edges are not sorted by receiver (edge_index[0] must ascend)")
            if not torch.equal(self.batch[self.edge_index[0]], self.batch[self.edge_index[1]]):
                raise InputError("an edge joins two graphs of the batch")
        if not bool(torch.isfinite(self.positions).all()):
            bad = int((~torch.isfinite(self.positions).all(dim=1)).nonzero()[0])
            raise InputError(f"particle {bad} has the position {self.positions[bad].tolist()}, not finite")
        return self

    @staticmethod
    def join(graphs: Sequence[ParticleGraph]) -> ParticleGraph:
        """One batch out of several graphs or batches, in order.

        Raises:
            InputError: nothing to join, or an optional field that only some of them have.
        """
        if not graphs:
            raise InputError("there is no graph to join")
        if len(graphs) == 1:
            return graphs[0]
        node_offsets, graph_offsets = [0], [0]
        for graph in graphs[:-1]:
            node_offsets.append(node_offsets[-1] + graph.num_nodes)
            graph_offsets.append(graph_offsets[-1] + graph.num_graphs)

        def joined(name: str) -> Tensor | None:
            values = [getattr(graph, name) for graph in graphs]
            present = [value is not None for value in values]
            if not any(present):
                return None
            if not all(present):
                raise InputError(f"graph {present.index(False)} has no {name}, but another one has")
            return torch.cat(values)

        names = set(graphs[0].labels)
        for index, graph in enumerate(graphs):
            if set(graph.labels) != names:
                raise InputError(
                    f"graph {index} has the labels {sorted(graph.labels)}, the first one {sorted(names)}"
                )
        return ParticleGraph(
            positions=torch.cat([g.positions for g in graphs]),
            species=torch.cat([g.species for g in graphs]),
            edge_index=torch.cat(
                [g.edge_index + offset for g, offset in zip(graphs, node_offsets, strict=True)], 1
            ),
            cell_shifts=torch.cat([g.cell_shifts for g in graphs]),
            cell=torch.cat([g.cell for g in graphs]),
            pbc=torch.cat([g.pbc for g in graphs]),
            batch=torch.cat([g.batch + offset for g, offset in zip(graphs, graph_offsets, strict=True)]),
            velocities=joined("velocities"),
            node_features=joined("node_features"),
            node_attributes=joined("node_attributes"),
            edge_features=joined("edge_features"),
            labels={name: torch.cat([g.labels[name] for g in graphs]) for name in names},
        )

    def split(self) -> list[ParticleGraph]:
        """The single graphs of the batch, in order: the inverse of :meth:`join`."""
        return [self.between(index, index + 1)[0] for index in range(self.num_graphs)]

    def between(self, first: int, last: int) -> tuple[ParticleGraph, Tensor]:
        """Graphs ``first`` to ``last`` - 1 of the batch, and the numbers (n,) of their particles in it."""
        rows = ((self.batch >= first) & (self.batch < last)).nonzero()[:, 0]
        graph_of_edge = self.batch[self.edge_index[0]]
        edges = ((graph_of_edge >= first) & (graph_of_edge < last)).nonzero()[:, 0]
        before = int((self.batch < first).sum())

        def take(values: Tensor | None, which: Tensor) -> Tensor | None:
            return None if values is None else values[which]

        return replace(
            self,
            positions=self.positions[rows],
            species=self.species[rows],
            edge_index=self.edge_index[:, edges] - before,
            cell_shifts=self.cell_shifts[edges],
            cell=self.cell[first:last],
            pbc=self.pbc[first:last],
            batch=self.batch[rows] - first,
            velocities=take(self.velocities, rows),
            node_features=take(self.node_features, rows),
            node_attributes=take(self.node_attributes, rows),
            edge_features=take(self.edge_features, edges),
            labels={
                name: value[rows] if name in PARTICLE_LABELS else value[first:last]
                for name, value in self.labels.items()
            },
        ), rows


def check_cell(cell: Tensor, pbc: Tensor, place: str = "cell") -> None:
    """Refuse a cell that is not finite, or has no volume in its periodic directions.

    Args:
        cell: (3, 3) rows, Å.
        pbc: (3,) bool.
        place: how the message calls the cell.

    Raises:
        InputError
    """
    if not bool(pbc.any()):
        return
    if not bool(torch.isfinite(cell).all()):
        raise InputError(f"{place} is not finite: {cell.tolist()}")
    vectors = cell[pbc].double()
    volume = float(torch.linalg.det(vectors @ vectors.T).clamp_min(0).sqrt())
    if volume < MINIMUM_VOLUME:
        raise InputError(
            f"{place} {cell.tolist()} spans no volume in its periodic directions {pbc.tolist()}; "
            "give independent lattice vectors or switch periodicity off"
        )


def check_structure(
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    edge_index: Tensor | None = None,
    pair_vectors: Tensor | None = None,
) -> None:
    """Refuse what no potential can evaluate: positions that are not finite, a flat cell, coincident atoms.

    Args:
        positions: (N, 3), Å.
        cell: (3, 3) rows, Å.
        pbc: (3,) bool.
        edge_index: (2, E), with ``pair_vectors`` (E, 3), Å: pairs to test for coincidence.
        pair_vectors: see ``edge_index``.

    Raises:
        InputError: names the atom (or the two) and the value.
    """
    finite = torch.isfinite(positions).all(dim=1)
    if not bool(finite.all()):
        bad = int((~finite).nonzero()[0])
        raise InputError(
            f"atom {bad} has the position {positions[bad].tolist()}, which is not finite; "
            "repair the structure or go back to the last good frame"
        )
    check_cell(cell, pbc)
    if edge_index is not None and pair_vectors is not None and edge_index.shape[1]:
        squared = (pair_vectors * pair_vectors).sum(1)
        nearest = int(squared.argmin())
        if float(squared[nearest]) < COINCIDENT**2:
            first, second = edge_index[:, nearest].tolist()
            raise InputError(
                f"atoms {first} and {second} coincide ({float(squared[nearest]) ** 0.5:.1e} Å apart, images "
                "included); remove one of them or check the cell"
            )
