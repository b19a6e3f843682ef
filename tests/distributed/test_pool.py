"""Processes that are watched: what is said of which rank when one is lost, and answers that come too late."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parallel_cases import argon, potential, structure

from egnn_md.distributed import DeviceLostWarning, ParallelPotential, RankLostWarning
from egnn_md.distributed import pool as pools
from egnn_md.distributed.channel import RankLostError
from egnn_md.distributed.pool import Pool
from egnn_md.distributed.worker import LOST_PEER, Heartbeat, describe_failure
from egnn_md.errors import DeviceError, InputError


class Channel:
    """One end of a pipe that says what it was given."""

    def __init__(self, *said: Any) -> None:
        self.said = list(said)

    def poll(self) -> bool:
        return bool(self.said)

    def recv(self) -> Any:
        found = self.said.pop(0)
        if isinstance(found, type):
            raise found
        return found

    def close(self) -> None: ...


def worker(rank: int, code: int | None = None, *said: Any) -> Any:
    process = SimpleNamespace(poll=lambda: code, kill=lambda: None, wait=lambda **_: code, pid=0)
    return SimpleNamespace(
        rank=rank, device="cpu", process=process, channel=Channel(*said), failure=None, ended="",
        last_words=lambda: f"    words of {rank}", end=lambda: None,
    )  # fmt: skip


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pool:
    found = Pool(["cpu"] * 3, heartbeat=0.5, limit=1.0)
    found._heartbeat = Heartbeat(tmp_path / "heartbeat", 3)
    found._heartbeat.times[:] = time.monotonic() + 1000.0
    monkeypatch.setattr(pools, "GRACE", 0.2)
    monkeypatch.setattr(pools, "LOOK", 0.01)

    def ready(channels: list[Any], timeout: float) -> list[Any]:
        time.sleep(0.001)
        return [channel for channel in channels if channel.poll()][:1]

    monkeypatch.setattr(pools, "wait", ready)
    return found


LOST = ("failed", "lost", "RuntimeError", "Connection closed by peer")


@pytest.mark.parametrize(
    ("workers", "ranks", "text"),
    [
        # the others' connections break because one was killed: it alone is told of
        ([(0, LOST_PEER, LOST), (1, -9), (2, LOST_PEER, LOST)], (1,), "rank 1 of 3 .* SIGKILL .*out of memory"),
        ([(0, None, EOFError), (1, None), (2, -11)], (2,), "rank 2 of 3 .* SIGSEGV"),
        ([(0, None, EOFError), (1, 3), (2, LOST_PEER)], (1,), "rank 1 of 3 .* exit code 3"),
        ([(0, LOST_PEER, LOST), (1, None), (2, None)], (0,), "rank 0 of 3"),
        ([(0, None, EOFError), (1, None), (2, None)], (), "the connection was lost"),
    ],
)
def test_the_cause_is_told_not_its_consequences(pool: Pool, workers: Any, ranks: Any, text: str) -> None:
    pool._workers = [worker(*given) for given in workers]
    with pytest.raises(RankLostError, match=text) as caught:
        pool._await("done", pool._workers[:1], 1.0)
    assert caught.value.ranks == ranks
    for rank in ranks:
        assert f"words of {rank}" in str(caught.value)


def test_a_cause_that_shows_after_its_consequences_is_awaited(pool: Pool) -> None:
    late = worker(1)
    begin = time.monotonic()
    late.process.poll = lambda: -9 if time.monotonic() - begin > 0.12 else None
    pool._workers = [worker(0, LOST_PEER, LOST), late, worker(2)]
    with pytest.raises(RankLostError, match=r"rank 1 of 3 .* SIGKILL") as caught:
        pool._await("done", pool._workers[:1], 1.0)
    assert caught.value.ranks == (1,)


def test_errors_that_no_retry_mends(pool: Pool) -> None:
    for failure, kind, text in (
        (("memory", "RuntimeError", "12 bytes"), DeviceError, "rank 2 of 3 .* ran out of memory .* 12 bytes"),
        (("error", "InputError", "a flat cell"), InputError, "rank 2 of 3 .*: a flat cell"),
        (("error", "ZeroDivisionError", "oh"), DeviceError, "(?s)failed with ZeroDivisionError: oh.*words of 2"),
    ):
        # it comes after the others complain of a lost connection
        pool._workers = [worker(0, LOST_PEER, LOST), worker(1), worker(2, 1, ("failed", *failure))]
        heartbeat = pool._heartbeat
        with pytest.raises(kind, match=text):
            pool._await("done", pool._workers[:1], 1.0)
        assert pool._workers == [], "they were ended"
        pool._heartbeat = heartbeat


def test_silence_and_the_time_limit(pool: Pool) -> None:
    assert pool._heartbeat is not None
    pool._workers = [worker(0), worker(1), worker(2)]
    begin = time.monotonic()
    with pytest.raises(RankLostError, match=r"3 ranks: no answer within the time limit of 0\.3 s") as caught:
        pool._await("done", pool._workers[:1], 0.3)
    assert caught.value.ranks == ()
    assert 0.3 <= time.monotonic() - begin < 2.0
    pool._heartbeat.times[1] = 0.0
    with pytest.raises(RankLostError, match=r"rank 1 of 3 .* no sign of life for 0\.5 s") as caught:
        pool._await("done", pool._workers[:1], 5.0)
    assert caught.value.ranks == (1,)
    with pytest.raises(RankLostError, match="time limit"):  # libraries are being loaded
        pool._await("done", pool._workers[:1], 0.8, silence=False)


def test_silence_while_nobody_looked_is_none(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A frozen container, a suspended job: driver and ranks wake together, and the ranks have not beaten yet."""
    assert pool._heartbeat is not None
    pool._workers = [worker(0), worker(1), worker(2)]
    pool._heartbeat.times[:] = time.monotonic()
    real, lost = time.monotonic, [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: real() + lost[0])
    looks = []

    def asleep(channels: list[Any], timeout: float) -> list[Any]:
        looks.append(0)
        time.sleep(0.01)
        if len(looks) == 3:
            lost[0] += 100.0
        if len(looks) == 5:
            pool._workers[0].channel.said.append(("done", "answer"))
        return [channel for channel in channels if channel.poll()]

    monkeypatch.setattr(pools, "wait", asleep)
    assert pool._await("done", pool._workers[:1], 1000.0) == ["answer"]
    lost[0] += 100.0  # and between two evaluations
    looks.clear()
    assert pool._await("done", pool._workers[:1], 1000.0) == ["answer"]


def test_losses_are_counted_by_rank(pool: Pool) -> None:
    """Three of one rank end its device, three of every rank or three time limits the run."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeviceLostWarning)
        for ranks in ((1,), (2,), (1,)):
            with pytest.warns(RankLostWarning, match="repeated"):
                pool.recover(RankLostError("x", ranks))
        pool.succeeded()
        for _ in range(2):  # counted from the last answer
            with pytest.warns(RankLostWarning):
                pool.recover(RankLostError("x", (1,)))
    with pytest.warns(DeviceLostWarning, match=r"cpu \(rank 1\) was lost 3 times"):
        pool.recover(RankLostError("x", (1,)))
    assert pool.size == 2
    pool.succeeded()
    assert pool.recoveries[-1][0] > 0
    for _ in range(2):
        with pytest.warns(RankLostWarning):
            pool.recover(RankLostError("slow"))
    with pytest.raises(DeviceError, match=r"3 attempts failed one after another\. Last one: slow"):
        pool.recover(RankLostError("slow"))
    pool.succeeded()
    for _ in range(2):
        with pytest.warns(RankLostWarning):
            pool.recover(RankLostError("both", (0, 1)))
    with pytest.raises(DeviceError, match="none to go on with"):
        pool.recover(RankLostError("both", (0, 1)))


def test_failures_are_told_apart() -> None:
    assert describe_failure(RuntimeError("[enforce] not enough memory: you tried to allocate 64 bytes."))[0] == "memory"
    assert describe_failure(MemoryError()) == ("memory", "an unknown amount")
    assert describe_failure(RuntimeError("Gloo: Connection closed by peer"))[0] == "lost"
    assert describe_failure(InputError("the connection closed circle"))[0] == "error"
    assert describe_failure(ValueError("shapes")) == ("error", "ValueError: shapes")


def test_a_fork_leaves_the_ranks_alone(pool: Pool) -> None:
    ended: list[int] = []
    mine = worker(0, -9)
    mine.end = lambda: ended.append(0)
    pool._workers, pool._process = [mine], os.getpid() + 1
    pool.close()
    pool.__del__()
    assert not ended
    pool._process = os.getpid()
    pool.close()
    assert ended == [0]


def test_interrupted_evaluation_is_not_the_answer_to_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C in a notebook: the ranks go on and answer what nobody waits for any more."""
    first, second = argon(), argon()
    second.positions[::2] += 0.1
    with ParallelPotential(potential(), 1, dtype="float64", threads=1) as split:
        wanted = split.evaluate_structure(*structure(second))
        original = Pool._await

        def interrupted(self: Pool, kind: str, *args: Any, **options: Any) -> Any:
            if kind == "done":
                raise KeyboardInterrupt
            return original(self, kind, *args, **options)

        monkeypatch.setattr(Pool, "_await", interrupted)
        with pytest.raises(KeyboardInterrupt):
            split.evaluate_structure(*structure(first))
        monkeypatch.undo()
        time.sleep(0.3)
        found = split.evaluate_structure(*structure(second))
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)


@pytest.mark.multirank
@pytest.mark.filterwarnings("ignore::egnn_md.distributed.RankLostWarning")
def test_stopped_rank_0_cannot_hold_up_who_writes_to_it() -> None:
    """More than a pipe takes: whoever writes it waits for the reader."""
    atoms = argon((16, 16, 16))
    with ParallelPotential(potential(hidden=4), 2, threads=1, heartbeat=2.0, kernels="plain") as split:
        wanted = split.evaluate_structure(*structure(atoms), forces=False)
        assert isinstance(split.channel, Pool)
        os.kill(split.channel.pids[0], signal.SIGSTOP)
        found = split.evaluate_structure(*structure(atoms), forces=False)
        assert torch.equal(found["energies"], wanted["energies"])
        assert "rank 0 of 2 (cpu) gave no sign of life for 2 s" in split.recoveries[0][1]
        assert len(split.recoveries) == 1


def test_large_exchanges_are_watched_while_a_pipe_blocks(pool: Pool) -> None:
    assert pool._heartbeat is not None
    killed: list[int] = []
    blocked = worker(0)
    blocked.process.kill = lambda: killed.append(0)
    pool.patience, pool.limit = -0.9, 1000.0
    for size, silent, expected in ((10, True, []), (10**6, False, []), (10**6, True, [0])):
        killed.clear()
        blocked.ended = ""
        pool._heartbeat.times[0] = 0.0 if silent else time.monotonic() + 1000.0
        with pool._watching(blocked, size):
            time.sleep(0.3)
        assert killed == expected
        assert ("no sign of life" in blocked.ended) == bool(expected)
    pool._heartbeat.times[0] = time.monotonic() + 1000.0
    pool.limit = -0.9
    with pool._watching(blocked, 10**6):
        time.sleep(0.3)
    assert "time limit" in blocked.ended or "no sign" in blocked.ended
