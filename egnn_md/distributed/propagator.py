"""``ParallelPropagator``: a propagator over several devices, for rollouts in every engine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model
from egnn_md.devices import find_dtype
from egnn_md.distributed.parallel import Parallel
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import Prediction, check_known


class ParallelPropagator(Parallel):
    """A propagator over several devices, behind the contract of ``FastEGNNPropagator``: for ``rollout`` and engines.

    Neighbour lists are made by each rank for its own region, except where edges are dropped or all pairs interact:
    there the list is made here and handed round.

    Args:
        model: name, path or propagator; the other arguments are those of :class:`ParallelPotential`.

    Raises:
        See :class:`ParallelPotential`.
    """

    kind = "propagator"
    training = False

    def __init__(
        self,
        model: str | Path | torch.nn.Module,
        devices: int | Sequence[str] | None = None,
        *,
        device: str = "cpu",
        dtype: str = "float32",
        mode: str = "exact",
        partition: str = "bisection",
        weights: Sequence[float] | None = None,
        balance: bool = False,
        skin: float | str = "auto",
        kernels: str = "auto",
        neighbors: str = "vesin",
        backend: str | None = None,
        time_limit: float = 600.0,
        heartbeat: float = 15.0,
        threads: int | None = None,
    ) -> None:
        given: Any = load_model(model, kernels="plain") if isinstance(model, (str, Path)) else model
        if getattr(given, "kind", None) != "propagator":
            raise InputError(f"{model!r} holds a {type(given).__name__}, not a propagator; see ParallelPotential")
        self.config = given.config
        self.card = getattr(given, "card", None)
        self.dtype = find_dtype(dtype)
        self.device = torch.device("cpu")  # where answers are; the ranks compute on their own
        self._open(
            given, self.config.cutoff, devices=devices, device=device, dtype=str(dtype).removeprefix("torch."),
            mode=mode, partition=partition, weights=weights, balance=balance, skin=skin, kernels=kernels,
            neighbors=neighbors, backend=backend, time_limit=time_limit, heartbeat=heartbeat, threads=threads,
        )  # fmt: skip

    @property
    def makes_lists(self) -> bool:
        """Whether the ranks find the edges themselves."""
        return self.config.cutoff is not None and (self.config.drop == "none" or self.config.drop_fraction == 0)

    def eval(self) -> ParallelPropagator:
        """Nothing to switch."""
        return self

    def parameters(self) -> list[Tensor]:
        """None: the weights are the ranks'."""
        return []

    def buffers(self) -> list[Tensor]:
        """One number in the precision of the answers."""
        return [torch.zeros(1, dtype=self.dtype)]

    def predict(self, graph: ParticleGraph) -> Prediction:
        """One stride; a graph without edges of a propagator that finds its own stands for its structure.

        Raises:
            InputError: unknown particle types, missing velocities or features.
        """
        check_known(self.config, graph)
        answer = self.coordinator.graph(graph)
        virtual = answer.totals["virtual_positions"].to(graph.positions.dtype)
        rows = answer.rows.to(graph.positions.dtype)
        return Prediction(rows[:, :3], rows[:, 3:6], virtual)

    def predict_structure(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        features: Tensor | None = None,
    ) -> tuple[Prediction, Tensor]:
        """One stride of one system, whose edges each rank finds for itself (:attr:`makes_lists`), and degrees (N,).

        Args:
            positions: (N, 3), in the model's length.
            velocities: (N, 3).
            species: (N,).
            cell: (3, 3) rows.
            pbc: (3,) bool.
            features: (N, F) or None.

        Raises:
            InputError: unknown particle types, missing features.
        """
        nothing = torch.zeros(2, 0, dtype=torch.int64)
        check_known(
            self.config,
            ParticleGraph(
                positions=positions, species=species, edge_index=nothing, cell_shifts=positions.new_zeros(0, 3),
                cell=cell[None], pbc=pbc[None], batch=torch.zeros_like(species), velocities=velocities,
                node_features=features,
            ),
        )  # fmt: skip
        found, moved, virtual, degrees = self.coordinator.stride(positions, velocities, species, cell, pbc, features)
        return Prediction(found.to(self.dtype), moved.to(self.dtype), virtual.to(self.dtype)), degrees
