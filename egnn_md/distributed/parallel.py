"""``ParallelPotential`` and ``ParallelPropagator``: a model over several devices, used as one on a single device is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import load_model, model_digest
from egnn_md.distributed import session
from egnn_md.distributed.coordinator import Channel, Coordinator
from egnn_md.distributed.part import check_mode
from egnn_md.distributed.partition import METHODS, PartitionQuality
from egnn_md.distributed.pool import Pool
from egnn_md.distributed.protocol import Report
from egnn_md.distributed.rank import DTYPES, pack_model
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.kernels import PATHS
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import EvaluatesItself, check_elements
from egnn_md.models.propagator import Prediction, check_known
from egnn_md.neighbors import VerletStatistics
from egnn_md.neighbors.verlet import check_skin


def device_names(devices: int | Sequence[str], device: str = "cpu") -> list[str]:
    """A name for every rank: ``3`` is three of ``device``; a list is taken as it is.

    Raises:
        InputError: none, or CUDA devices that this machine does not have.
    """
    if isinstance(devices, int):
        if devices < 1:
            raise InputError(f"devices must be at least 1, not {devices}")
        kind = torch.device(device).type
        names = [f"cuda:{index}" for index in range(devices)] if kind == "cuda" else [str(device)] * devices
    else:
        names = [str(name) for name in devices]
        if not names:
            raise InputError("devices is an empty list; name at least one, such as ['cpu']")
    there = torch.cuda.device_count() if torch.cuda.is_available() else 0
    for name in names:
        try:
            found = torch.device(name)
        except RuntimeError as error:
            raise InputError(f"unknown device {name!r}; use cpu, cuda:0, cuda:1...") from error
        if found.type not in ("cpu", "cuda"):
            raise InputError(f"ranks run on cpu or cuda, not on {name!r}")
        if found.type == "cuda" and (found.index or 0) >= there:
            raise InputError(
                f"the device {name} is not there (CUDA devices found: {there}); use fewer, or device='cpu'"
            )
    kinds = {torch.device(name).type for name in names}
    if len(kinds) > 1:
        raise InputError(f"devices {names} mix CPU and CUDA, between which there is no backend; choose one kind")
    if kinds == {"cuda"} and len(set(names)) < len(names):
        raise InputError(f"devices {names} name a GPU twice; NCCL needs one each")
    return names


class _Parallel:
    """What potentials and propagators over several devices share."""

    def _open(
        self,
        model: Any,
        cutoff: float | None,
        *,
        devices: int | Sequence[str] | None,
        device: str,
        dtype: str,
        mode: str,
        partition: str,
        weights: Sequence[float] | None,
        balance: bool,
        skin: float | str,
        kernels: str,
        neighbors: str,
        backend: str | None,
        time_limit: float,
        heartbeat: float,
        threads: int | None,
    ) -> None:
        check_mode(mode)
        check_skin(skin)
        if dtype not in DTYPES:
            raise InputError(f"dtype must be one of {', '.join(DTYPES)}, not {dtype!r}")
        if partition not in METHODS:
            raise InputError(f"partition must be one of {', '.join(METHODS)}, not {partition!r}")
        if kernels not in PATHS:
            raise InputError(f"kernels must be one of {', '.join(PATHS)}, not {kernels!r}")
        for name, value in (("time_limit", time_limit), ("heartbeat", heartbeat)):
            if not value > 0:
                raise InputError(f"{name} must be a positive number of seconds, not {value}")
        self.channel: Channel
        if session.launched():
            self.channel = session.channel(devices, backend)
        else:
            names = device_names(1 if devices is None else devices, device)
            chosen = backend or ("nccl" if names[0].startswith("cuda") else "gloo")
            session.check_backend(chosen)
            self.channel = Pool(names, backend=chosen, limit=time_limit, heartbeat=heartbeat, threads=threads)
        if weights is not None and len(list(weights)) != self.channel.size:
            raise InputError(f"{len(list(weights))} weights for {self.channel.size} devices; give one each")
        message = {
            "kind": "model", "content": pack_model(model), "dtype": dtype, "mode": mode, "kernels": kernels,
            "neighbors": neighbors, "digest": model_digest(model),
        }  # fmt: skip
        self.coordinator = Coordinator(
            self.channel, message, cutoff, skin=skin, method=partition, weights=weights, balance=balance
        )
        self.mode = mode

    @property
    def devices(self) -> int:
        """P, number of ranks now."""
        return self.channel.size

    @property
    def reports(self) -> list[Report]:
        """What each rank had to do in the last evaluation."""
        return self.coordinator.reports

    @property
    def recoveries(self) -> list[tuple[float, str]]:
        """Ranks that were lost and replaced: seconds until the answer was there after all, and what had happened."""
        return list(getattr(self.channel, "recoveries", []))

    @property
    def neighbor_statistics(self) -> VerletStatistics:
        """How often the neighbour lists were used and made anew."""
        statistics: VerletStatistics = self.coordinator.statistics
        return statistics

    def quality(self, edge_index: Tensor) -> PartitionQuality:
        """Particles, edges, halo and cut edges of each rank as partitioned now, for these edges (2, E).

        Raises:
            InputError: nothing was evaluated yet.
        """
        from egnn_md.distributed.partition import Partition

        owner = self.coordinator.owner
        if owner is None:
            raise InputError("nothing is partitioned before the first evaluation")
        return Partition.from_owner(owner, self.channel.size).quality(edge_index)

    def forget(self) -> None:
        """Drop partition and neighbour lists: the next answer depends on what is asked alone."""
        self.coordinator.forget()

    def pretend_network(
        self, *, latency: float = 0.0, bandwidth: float = 0.0, slowdown: float = 1.0, rank: int = -1
    ) -> None:
        """Behave as behind a slow network, or slow one rank down, to see what that costs. Results stay.

        Args:
            latency: seconds a message.
            bandwidth: bytes a second a rank; 0 is unlimited.
            slowdown: factor on the work of a rank, 2 is half speed.
            rank: only this one; all if negative.
        """
        options = {"latency": latency, "bandwidth": bandwidth, "slowdown": slowdown}
        self.coordinator.pretend(options, rank)

    def close(self) -> None:
        """End the ranks; another evaluation starts them again."""
        self.channel.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ParallelPotential(_Parallel, EvaluatesItself, Potential):
    """A potential over several devices: the same energies, forces and stress as on one, by default.

    It goes wherever a potential goes that is evaluated: ``FastEGNNCalculator``, ``PythonForce``, ``evaluate``. Worker
    processes are started at the first evaluation and ended by :meth:`close` (or a ``with`` block, or the end of
    Python). One that dies or hangs is replaced and the evaluation repeated, with the same result bit by bit on the CPU.
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
        threads: of torch in each rank; the cores are shared out if None.

    Raises:
        InputError: devices that are not there, more ranks than the memory holds, NCCL without GPUs, unknown options;
            a model that is not a potential with a model file.
        SimulationError: ranks are lost again and again, or one runs out of memory.
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
        self._dtype = DTYPES.get(str(dtype).removeprefix("torch."), torch.float32)
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
            SimulationError: see the class.
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
            "force_rmse": float(difference.pow(2).mean().sqrt()),
            "force_max": float(difference.abs().max()),
        }


class ParallelPropagator(_Parallel):
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
        self.dtype = DTYPES.get(str(dtype).removeprefix("torch."), torch.float32)
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
        return Prediction(rows[:, :3], rows[:, 3:], virtual)

    def predict_structure(
        self,
        positions: Tensor,
        velocities: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        features: Tensor | None = None,
    ) -> Prediction:
        """One stride of one system, whose edges each rank finds for itself (:attr:`makes_lists`).

        Args:
            positions: (N, 3), in the model's length.
            velocities: (N, 3).
            species: (N,).
            cell: (3, 3) rows.
            pbc: (3,) bool.
            features: (N, F) or None.
        """
        found, moved, virtual = self.coordinator.stride(positions, velocities, species, cell, pbc, features)
        return Prediction(found.to(self.dtype), moved.to(self.dtype), virtual.to(self.dtype))
