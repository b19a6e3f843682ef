"""What potentials and propagators over several devices share: options, ranks, and what can be asked about them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from egnn_md.checkpoint import model_digest
from egnn_md.devices import find_device
from egnn_md.distributed import session
from egnn_md.distributed.channel import Channel
from egnn_md.distributed.coordinator import Coordinator
from egnn_md.distributed.part import check_mode
from egnn_md.distributed.partition import METHODS, PartitionQuality
from egnn_md.distributed.pool import Pool
from egnn_md.distributed.protocol import Report
from egnn_md.distributed.rank import pack_model
from egnn_md.errors import InputError
from egnn_md.kernels import PATHS
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
        kind = str(device).partition(":")[0]
        names = [f"cuda:{index}" for index in range(devices)] if kind == "cuda" else [str(device)] * devices
    else:
        names = [str(name) for name in devices]
        if not names:
            raise InputError("devices is an empty list; name at least one, such as ['cpu']")
    for name in names:
        find_device(name)
    kinds = {torch.device(name).type for name in names}
    if len(kinds) > 1:
        raise InputError(f"devices {names} mix CPU and CUDA, between which there is no backend; choose one kind")
    if kinds == {"cuda"} and len(set(names)) < len(names):
        raise InputError(f"devices {names} name a GPU twice; NCCL needs one each")
    return names


class Parallel:
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
    def digest(self) -> str:
        """Of the model that it was made of; see :func:`egnn_md.checkpoint.model_digest`."""
        return str(self.coordinator.model["digest"])

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

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise InputError(
            f"a {type(self).__name__} can be neither copied nor pickled: it holds processes. Give several calculators "
            "the same one, or copy the model that it was made of"
        )

    def close(self) -> None:
        """End the ranks; another evaluation starts them again."""
        self.channel.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
