"""``devices: N`` in a plain shell: start N ranks with torch's own launcher, and end as one process would."""

from __future__ import annotations

import json
import logging
import os
import signal
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children
from pathlib import Path
from typing import Any

from egnn_md import errors
from egnn_md.errors import DeviceError, EgnnMdError, TrainingError
from egnn_md.training.config import TrainConfig
from egnn_md.training.fit import TrainResult, find_checkpoint
from egnn_md.training.propagator_config import PropagatorTrainConfig

WATCH = 0.1  # seconds between two looks at the ranks
STOP = "stop"  # file in the launcher's folder: do not begin again


def launch(
    config: TrainConfig | PropagatorTrainConfig, *, resume: bool = False, speak: bool = False, max_restarts: int = 0
) -> TrainResult:
    """Train on ``config.devices`` processes of this machine, each of which calls the same function.

    SIGINT and SIGTERM are passed on: all ranks end after the same step, with a checkpoint.

    Args:
        config: the run.
        resume: continue from ``last.ckpt``; ranks that are started again do so by themselves.
        speak: rank 0 reports its progress on the standard output.
        max_restarts: how often all ranks are started again when one is lost.

    Returns:
        what rank 0 returned.

    Raises:
        ConfigError: the directory holds another run.
        EgnnMdError: the first failing rank's own error.
        DeviceError: a rank was killed or lost, more often than ``max_restarts``.
        TrainingError: a rank failed in another way.
    """
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    if not resume:
        find_checkpoint(config, resume)  # what need not wait for processes to start
    with tempfile.TemporaryDirectory(prefix="egnn-md-train-") as folder:
        launcher = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=config.devices,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=max_restarts,
            monitor_interval=WATCH,
            start_method="spawn",
            signals_to_handle="SIGQUIT",  # the others are ours
        )
        with _passing_signals_on(Path(folder)) as stopped, _silent_launcher():
            try:
                found = elastic_launch(launcher, _work)(config, resume, speak, folder)
            except ChildFailedError as error:
                _, failure = error.get_first_failure()
                if not stopped() or _reports(Path(folder)):
                    raise _explain(Path(folder), failure.local_rank, failure.exitcode) from None
                # told to stop before it could listen
                return TrainResult(Path(config.output), 0, finished=False)
        result = found[0]
        assert isinstance(result, TrainResult)
        return result


def _work(config: TrainConfig | PropagatorTrainConfig, resume: bool, speak: bool, folder: str) -> TrainResult:
    """One rank; what it fails with is left in ``folder`` for the launcher."""
    from rich.console import Console

    from egnn_md.training.memory import keep_freed_memory
    from egnn_md.training.tasks import run_training

    if (Path(folder) / STOP).exists():
        return TrainResult(Path(config.output), 0, finished=False)
    keep_freed_memory()
    try:
        return run_training(config, resume=resume, console=Console() if speak else None)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        _report(Path(folder), error)
        raise


def _report(folder: Path, error: Exception) -> None:
    from egnn_md.training.ranks import RanksLostError

    rank, attempt = int(os.environ["RANK"]), int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    report = {
        "rank": rank,
        "attempt": attempt,
        "lost": isinstance(error, RanksLostError),
        "time": time.monotonic(),
        "type": type(error).__name__,
        "text": str(error),
        # our own errors say all there is to say
        "trace": "" if isinstance(error, EgnnMdError) else traceback.format_exc(),
    }
    temporary = folder / f"{attempt}-{rank}.tmp"
    temporary.write_text(json.dumps(report))
    temporary.replace(folder / f"{attempt}-{rank}.json")


def _reports(folder: Path) -> list[dict[str, Any]]:
    """Of the last attempt: what ranks failed with, the causes before their consequences, the earliest first."""
    found = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    last = max((report["attempt"] for report in found), default=0)
    return sorted((r for r in found if r["attempt"] == last), key=lambda report: (report["lost"], report["time"]))


def _explain(folder: Path, rank: int, exitcode: int) -> EgnnMdError:
    """The error that the user should see; ``rank`` is the one that the launcher saw ending first."""
    reports = _reports(folder)
    if not reports or (reports[0]["lost"] and exitcode < 0):
        how = f"was ended by {signal.Signals(-exitcode).name}" if exitcode < 0 else f"ended with exit code {exitcode}"
        why = ", perhaps because memory ran out" if exitcode == -signal.SIGKILL else ""
        return DeviceError(f"rank {rank} {how}{why}; go on from the last checkpoint with --resume")
    first = reports[0]
    kind = getattr(errors, first["type"], None)
    if isinstance(kind, type) and issubclass(kind, EgnnMdError):
        return kind(first["text"])
    if first["lost"]:
        return DeviceError(first["text"])
    return TrainingError(f"rank {first['rank']} failed: {first['type']}: {first['text']}\n{first['trace']}")


@contextmanager
def _passing_signals_on(folder: Path) -> Iterator[Any]:
    """SIGINT and SIGTERM of this process are the ranks'; gives a function that tells whether there was one."""
    told: list[int] = []

    def tell(number: int, frame: Any) -> None:
        told.append(number)
        (folder / STOP).touch()
        for child in active_children():
            if child.pid is not None:
                # a terminal sends SIGINT to all of them itself, and a second one would not let them save
                os.kill(child.pid, signal.SIGTERM)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: bool(told)
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    for number in numbers[:2]:
        signal.signal(number, tell)
    variable = "TORCHELASTIC_SIGNALS_TO_HANDLE"
    variables = os.environ.get(variable)
    try:
        yield lambda: bool(told)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if variables is None:
            os.environ.pop(variable, None)
        else:
            os.environ[variable] = variables


@contextmanager
def _silent_launcher() -> Iterator[None]:
    """Without the launcher's own screens: a rank's error is told once, in our words."""
    theirs = ("torch.distributed.elastic", "torch.multiprocessing")
    names = [name for name in logging.root.manager.loggerDict if name.startswith(theirs)]
    loggers = [logging.getLogger(name) for name in names]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled
