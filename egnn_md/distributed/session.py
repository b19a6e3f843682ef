"""Ranks that ``torchrun`` started: the same script runs on all; rank 0 drives the engine and the others serve."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from egnn_md.distributed.channel import RankLostError
from egnn_md.distributed.protocol import Answer, to_bytes
from egnn_md.distributed.rank import Rank, follow, lead_message, lead_step, lead_stop
from egnn_md.distributed.wire import BACKENDS, Wire, open_group
from egnn_md.distributed.worker import FOREVER, describe_failure
from egnn_md.errors import DeviceError, InputError

MEETING = 120.0  # seconds in which all ranks must have come to serve() or to the first model
LIMIT = 600.0  # seconds that a collective may take
_open: LaunchedRanks | None = None


def launched() -> bool:
    """Whether ``torchrun`` (or what sets its variables) started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ and "MASTER_PORT" in os.environ


def restarted() -> bool:
    """Whether ``torchrun`` started all ranks again after one was lost: a run then goes on from its checkpoint."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


def serve() -> bool:
    """To be called first in a script that ``torchrun`` runs: ranks other than 0 work here until rank 0 is done.

    Returns:
        True on a rank that has served and has nothing left to do; False on rank 0 and where there is no ``torchrun``::

            if serve():
                sys.exit()
            atoms.calc = FastEGNNCalculator(ParallelPotential("water"))

    Raises:
        DeviceError: another rank was lost.
        InputError: ranks of different versions; a port that is in use; NCCL without GPUs.
    """
    if not launched() or int(os.environ["RANK"]) == 0:
        return False
    rank = _meet()
    try:
        follow(rank)
    except RuntimeError as error:
        kind, text = describe_failure(error)
        if kind != "lost":
            raise
        raise DeviceError(f"rank {rank.wire.rank} lost the others: {text}") from error
    finally:
        rank.close()
    return True


class LaunchedRanks:
    """Rank 0 of ``torchrun``'s processes, as one coordinator sees them; several coordinators take turns."""

    def __init__(self, rank: Rank, before: LaunchedRanks | None = None) -> None:
        self._rank = rank
        self.size = rank.wire.size
        # shared by all of them: whose model and system the ranks know, and whether they still follow
        self._shared: dict[str, Any] = {"holder": None, "broken": False} if before is None else before._shared
        self._turns = 0

    def _ask(self, call: Any) -> Any:
        if self._shared["broken"]:
            raise DeviceError(
                "an evaluation was interrupted or failed, and the ranks are no longer in step with it; start torchrun "
                "again, and a run goes on from its checkpoint (--resume)"
            )
        try:
            return call()
        except BaseException as error:
            # the others may be anywhere; nothing that all have to do can be asked for any more
            self._shared["broken"] = True
            if not isinstance(error, RuntimeError):
                raise
            kind, text = describe_failure(error)
            if kind != "lost":
                raise
            raise RankLostError(text) from error

    def open(self) -> int:
        """They are there, always the same; a new number where another model was asked in between."""
        if self._shared["holder"] is not self:
            self._shared["holder"] = self
            self._turns += 1
        return self._turns

    def step(self, frame: Tensor) -> Answer:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        answer: Answer = self._ask(lambda: lead_step(self._rank, frame))
        return answer

    def message(self, message: dict[str, Any]) -> Answer | None:
        """See :class:`egnn_md.distributed.channel.Channel`."""
        answer: Answer | None = self._ask(lambda: lead_message(self._rank, to_bytes(message)))
        return answer

    def succeeded(self) -> None:
        """Nothing to note."""

    def recover(self, error: RankLostError) -> None:
        """Only torchrun can start ranks again."""
        raise DeviceError(
            f"a rank was lost: {error}. Let torchrun start all of them again (--max-restarts) and the run go on from "
            "its checkpoint (--resume)"
        ) from error

    def close(self) -> None:
        """The ranks go when rank 0's Python ends: another model may need them."""

    def end(self) -> None:
        """Let the ranks go."""
        try:
            if not self._shared["broken"]:
                lead_stop(self._rank)
        except RuntimeError:  # they are gone already
            self._shared["broken"] = True
        finally:
            self._rank.close()


def channel(devices: int | Sequence[str] | None, backend: str | None) -> LaunchedRanks:
    """The ranks that torchrun started, at rank 0.

    Raises:
        InputError: not rank 0; a number of devices that is not theirs; see :func:`serve`.
    """
    global _open
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if rank != 0:
        raise InputError(
            f"rank {rank} of {size} runs the script itself, but only rank 0 may; call egnn_md.distributed.serve() "
            "first, and leave the script where it returns True"
        )
    asked = devices if devices is None or isinstance(devices, int) else len(devices)
    if asked is not None and asked != size:
        raise InputError(
            f"devices = {asked}, but torchrun started {size} processes; leave devices out, or make them agree"
        )
    if _open is None:
        _open = LaunchedRanks(_meet(backend))
        atexit.register(_open.end)
        return _open
    return LaunchedRanks(_open._rank, _open)


def check_backend(backend: str) -> None:
    """Raises InputError for NCCL without GPUs or an unknown backend."""
    if backend not in BACKENDS:
        raise InputError(f"backend must be one of {', '.join(BACKENDS)}, not {backend!r}")
    if backend == "nccl" and not torch.cuda.is_available():
        raise InputError("NCCL needs CUDA devices, and this machine has none that torch can use; use backend='gloo'")


def versions() -> str:
    """What must be installed alike on all ranks."""
    from importlib.metadata import version

    return f"egnn-md {version('egnn-md')}, torch {torch.__version__}"


def _meet(backend: str | None = None) -> Rank:
    """Open the groups together with the other ranks."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    chosen = backend or os.environ.get("EGNN_MD_BACKEND") or ("nccl" if torch.cuda.is_available() else "gloo")
    check_backend(chosen)
    device = torch.device("cpu")
    if chosen == "nccl":
        if local >= torch.cuda.device_count():
            raise InputError(
                f"local rank {local} has no GPU of its own (CUDA devices found: {torch.cuda.device_count()}); start "
                "fewer processes a machine, or set EGNN_MD_BACKEND=gloo"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
        store = dist.PrefixStore(f"egnn-md-{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
        _check_versions(store, rank, size)
        control = open_group(dist.PrefixStore("control", store), rank, size, limit=FOREVER)
        compute = open_group(dist.PrefixStore("compute", store), rank, size, backend=chosen, limit=LIMIT)
    except dist.DistNetworkError as error:
        if "address already in use" in str(error).lower():
            raise InputError(
                f"the port of {place} is in use; choose another one with torchrun --master-port"
            ) from error
        raise InputError(f"rank {rank} of {size} cannot reach {place}: {error}") from error
    except dist.DistStoreError as error:
        raise InputError(
            f"rank {rank} of {size} waited {MEETING:g} s for the others in vain; every rank must call "
            "egnn_md.distributed.serve(), and rank 0 make a ParallelPotential or ParallelPropagator"
        ) from error
    except RuntimeError as error:
        if "gloo" not in str(error).lower():
            raise
        raise InputError(
            f"rank {rank} of {size} cannot connect to the others: {error}; name the network interface that joins the "
            "machines with the environment variable GLOO_SOCKET_IFNAME"
        ) from error
    return Rank(Wire(compute, rank, size), Wire(control, rank, size), device)


def _check_versions(store: Any, rank: int, size: int) -> None:
    mine = versions()
    store.set(f"version-{rank}", mine)
    for other in range(size):
        theirs = store.get(f"version-{other}").decode()
        if theirs != mine:
            raise InputError(
                f"rank {rank} runs {mine}, but rank {other} runs {theirs}; install the same versions on every machine"
            )
