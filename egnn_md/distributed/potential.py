"""``ParallelPotential``: a potential over several devices, used as one on a single device is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model
from egnn_md.devices import find_dtype
from egnn_md.distributed.parallel import Parallel
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import EvaluatesItself, check_elements


class ParallelPotential(Parallel, EvaluatesItself, Potential):
    """A potential over several devices: the same energies, forces and stress as on one, by default.

    It goes wherever a potential goes that is evaluated: ``FastEGNNCalculator``, ``PythonForce``, ``evaluate``. Worker
    processes are started at once and ended by :meth:`close` (or a ``with`` block, or the end of Python); an evaluation
    after that starts them again. One that dies or hangs is replaced and the evaluation repeated, with the same result
    bit by bit on the CPU.
    Under ``torchrun`` the ranks are those it started, and all but rank 0 must call :func:`egnn_md.distributed.serve`.

    Args:
        model: name of an installed model, path of a model file, or a potential.
        devices: how many, or a list such as ``["cuda:0", "cuda:2"]``; None is one, or all of ``torchrun``'s.
        device: ``cpu`` or ``cuda``, with a number of devices.
        dtype: ``float32`` or ``float64``.
        mode: ``exact``, or ``paper``: edges between devices are dropped, as published.
        partition: ``bisection`` (fast), ``random``, ``k-means``, ``metis``, ``spectral``.
        weights: relative speed of each device; equal if None.
        balance: shift weights by measured times whenever neighbour lists are made anew. Timing then decides who sums
            what, so that two runs differ by rounding.
        skin: of the neighbour lists, Å, or ``auto``.
        kernels: see :func:`egnn_md.kernels.accelerate`.
        neighbors: backend of the neighbour lists.
        backend: ``gloo`` or ``nccl``; by the devices if None.
        time_limit: seconds that one evaluation may take before a rank is taken as hanging.
        heartbeat: seconds without a sign of life of a process, likewise.
        threads: of torch in each rank; the cores (or OMP_NUM_THREADS, if less) are shared out if None.

    Raises:
        InputError: devices that are not there, more ranks than the memory holds, NCCL without GPUs, unknown options;
            a model that is not a potential with a model file.
        DeviceError: ranks are lost again and again, or one runs out of memory.
    """

    def __init__(
        self,
        model: str | Path | Potential,
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
        if isinstance(given, ParallelPotential):
            raise InputError("this potential is parallel already; pass the model that it was made of")
        if not isinstance(given, Potential):
            raise InputError(f"{model!r} holds a {type(given).__name__}, not a potential; see ParallelPropagator")
        super().__init__(given.cutoff, list(given.elements), long_range=given.long_range)
        self.card = getattr(given, "card", None)
        self._dtype = find_dtype(dtype)
        self._open(
            given, given.cutoff, devices=devices, device=device, dtype=str(dtype).removeprefix("torch."), mode=mode,
            partition=partition, weights=weights, balance=balance, skin=skin, kernels=kernels, neighbors=neighbors,
            backend=backend, time_limit=time_limit, heartbeat=heartbeat, threads=threads,
        )  # fmt: skip

    @property
    def dtype(self) -> torch.dtype:
        """Floating type that the ranks compute in."""
        return self._dtype

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """Not for autograd: energies of other processes cannot be differentiated here.

        Raises:
            InputError: always; tells what to call.
        """
        raise InputError(
            "a ParallelPotential is evaluated by egnn_md.evaluate, a calculator or a PythonForce, which ask its ranks "
            "for energies and forces together; calling it as a module would lose the forces"
        )

    def evaluate_structure(
        self,
        positions: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        *,
        forces: bool = True,
        stress: bool = False,
    ) -> dict[str, Tensor]:
        """``energy`` (1,), ``energies`` (N,), ``forces`` (N, 3), ``stress`` (1, 3, 3): float64, eV and Å.

        Each rank makes the neighbour list of its own region.

        Args:
            positions: (N, 3) Å, wrapped or not.
            species: (N,) atomic numbers.
            cell: (3, 3) rows, Å.
            pbc: (3,) bool.
            forces: whether wanted.
            stress: whether wanted.

        Raises:
            InputError: unusable positions or cell, coincident atoms.
            UnknownElementError: an element that the model does not know.
            DeviceError: see the class.
        """
        check_elements(self, species)
        return self.coordinator.energies(positions, species, cell, pbc, forces=forces, stress=stress)

    def evaluate_graph(self, graph: ParticleGraph, *, forces: bool = True, stress: bool = False) -> dict[str, Tensor]:
        """The same for a graph whose edges are given; :func:`egnn_md.evaluate` calls it."""
        check_elements(self, graph.species)
        answer = self.coordinator.graph(graph, forces=forces, stress=stress)
        found = {"energy": answer.totals["energy"], "energies": answer.rows[:, 3]}
        if forces:
            found["forces"] = answer.rows[:, :3].to(graph.positions.dtype)
        if stress:
            found["stress"] = answer.totals["stress"].to(graph.positions.dtype)
        return found

    def mode_error(self, positions: Tensor, species: Tensor, cell: Tensor, pbc: Tensor) -> Mapping[str, float]:
        """What the mode costs: this answer against an exact one by the same ranks.

        Returns:
            ``energy`` (eV an atom), ``force_rmse`` and ``force_max`` (eV/Å).
        """
        here = self.evaluate_structure(positions, species, cell, pbc)
        kept = self.coordinator.model
        self.coordinator.change_model({**kept, "mode": "exact"})
        try:
            exact = self.evaluate_structure(positions, species, cell, pbc)
        finally:
            self.coordinator.change_model(kept)
        difference = here["forces"] - exact["forces"]
        return {
            "energy": float((here["energy"] - exact["energy"]).abs()) / max(len(species), 1),
            "force_rmse": float(difference.pow(2).sum() / max(difference.numel(), 1)) ** 0.5,
            "force_max": float(difference.abs().max()) if difference.numel() else 0.0,
        }
