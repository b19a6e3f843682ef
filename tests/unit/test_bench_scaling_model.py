"""``egnn-md bench scaling``: the model of a step, links fitted to pings, rounds that count, ratios, child processes."""

from __future__ import annotations

import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scaling_cases import answer

from egnn_md_benchmarks import scaling_measure
from egnn_md_benchmarks.counts import H100, Shape, count
from egnn_md_benchmarks.results import Record
from egnn_md_benchmarks.scaling_measure import ChildError, fit_link, run_children, shares_of_others, summarise
from egnn_md_benchmarks.scaling_model import (
    LAUNCH,
    LINKS,
    Collective,
    Device,
    Link,
    collective_seconds,
    device_seconds,
    step_seconds,
)
from egnn_md_benchmarks.scaling_table import memory_ratios, notes


def test_the_model_on_a_hand_made_step() -> None:
    link = Link("made up", 0.1, 1e4, "test")
    logs = [
        [Collective("exchange", 1, 1000, 3000), Collective("reduction", 0, 800, 800)],
        [Collective("exchange", 1, 3000, 1000), Collective("reduction", 0, 800, 800)],
    ]
    # the slower part; 0.1 + 3000/1e4; 2 · 1 · 0.1 + 2 · 1/2 · 800/1e4
    assert step_seconds([1.0, 2.0], logs, link) == pytest.approx(2.0 + 0.4 + 0.28)
    assert step_seconds([3.0], [[]], link) == 3.0
    four = [[Collective("exchange", peers, 100, 0), Collective("reduction", 0, 400, 400)] for peers in (1, 3, 2, 0)]
    # the one with three neighbours; 2 · 2 · 0.1 + 2 · 3/4 · 400/1e4
    assert step_seconds([0.0] * 4, four, link) == pytest.approx(0.31 + 0.46)
    other = replace(link, reduction_latency=0.5)
    assert step_seconds([0.0] * 4, four, other) == pytest.approx(0.31 + 2.06)
    assert collective_seconds(logs[0][0], 1, link) == 0.0
    for sent, received in ((100, 500), (500, 100)):
        assert collective_seconds(Collective("exchange", 2, sent, received), 4, link) == pytest.approx(0.25)


def test_stated_networks_are_marked_so() -> None:
    assert all("stated" in link.source and "assumed" in link.source for link in LINKS.values())
    assert [link.bandwidth for link in LINKS.values()] == [450e9, 50e9, 3.1e9, 1.25e9]


def test_a_device_is_its_floor_or_the_start_of_its_kernels() -> None:
    shape = Shape(nodes=1000, edges=20000)
    counted = count(shape, "step", 4)
    floor = (counted["flops"] + counted["recompute"]) / H100.flops
    assert device_seconds(shape, 0, "step", H100) == pytest.approx(floor)
    # the halo's rows pass one part of a map in each of four layers, forward and twice back
    assert device_seconds(shape, 50, "step", H100) == pytest.approx(floor + 3 * 4 * 2 * 50 * 64**2 / H100.flops)
    assert Device("slow", H100, 3.0).seconds(shape, 0, "step") == pytest.approx(3 * floor)
    assert Device("eager", H100, 3.0, 1000).seconds(shape, 0, "step") == pytest.approx(1000 * LAUNCH)


def test_a_link_is_fitted_to_pings() -> None:
    def ping(kind: str, number: int, size: int, seconds: float, peers: int = 3) -> dict[str, Any]:
        return {"kind": kind, "number": number, "peers": peers, "bytes": size, "seconds": seconds}

    pings = [
        ping("exchange", 67, 67_000, 0.0036), ping("exchange", 1, 1000, 0.003),
        ping("reduction", 1, 4, 0.008), ping("reduction", 1000, 4000, 0.009),
    ]  # fmt: skip
    link = fit_link(pings, 4)
    assert link.latency == pytest.approx(0.001)
    assert link.bandwidth == pytest.approx(66_000 / 0.0006)
    assert link.reduction_latency == pytest.approx(0.008 / 4)
    alone = fit_link(pings[2:], 4)
    assert alone.bandwidth == pytest.approx(1.5 * 3996 / 0.001)
    assert fit_link([ping("exchange", 1, 4, 0.1), ping("exchange", 9, 36, 0.05), *pings[2:]], 4).bandwidth == math.inf


def test_rounds_that_others_disturb_do_not_count() -> None:
    step, others = [1.0, 9.0, 2.0, 3.0], [0.0, 0.5, 0.02, 0.04]
    found = [answer(1, step, others), answer(0, step, others)]
    assert shares_of_others(found, "step") == pytest.approx(others)
    assert shares_of_others(found, "alone") == pytest.approx([0.0] * 4)
    said = summarise(found)
    assert (said["quiet"], said["rounds"]) == (3, 4)
    assert said["step"]["times"] == [1.0, 2.0, 3.0]
    assert said["alone"] == [0.5, 1.5]
    loud = summarise([answer(rank, step, [0.4] * 4) for rank in (0, 1)])
    assert (loud["quiet"], loud["step"]["median"]) == (0, 2.5)


def test_ratios_of_memory() -> None:
    record = Record("scaling", {"system": "other", "clock": "x"}, {}, more={"links": [], "measured": [], "gpu": []})
    head = {"scaling": "strong", "quantity": "step", "basis": "measured", "inputs": 100, "weights": 10}
    record.add(**head, ranks=1, rank=0, peak_memory=1000)
    record.add(**head, ranks=2, rank=0, peak_memory=400)
    record.add(**head, ranks=2, rank=1, peak_memory=600)
    record.add(**head, ranks=2, peak_memory=9999)  # a process, not a part alone
    (found,) = memory_ratios(record)
    assert (found["ranks"], found["peak"], found["ratio"]) == (2, 600, 0.6)
    assert found["device_ratio"] == pytest.approx(710 / 1110)
    assert any("0.600 of one process's" in text for text in notes(record))


def test_the_papers_numbers_stand_beside_ours() -> None:
    record = Record("scaling", {"system": "fluid113k", "clock": "x"}, {}, more={"links": [], "measured": [], "gpu": []})
    head = {"scaling": "strong", "quantity": "step", "inputs": 10**8, "weights": 0, "basis": "measured"}
    for ranks, peak in ((1, 10**9), (8, 10**8)):
        for rank in range(ranks):
            record.add(**head, ranks=ranks, rank=rank, peak_memory=peak)
    record.add(scaling="strong", quantity="step", ranks=8, basis="modelled", who="GPUs", speedup=6.5)
    text = "\n".join(notes(record))
    assert "step, GPUs: 6.50. The paper's measured one: 7.34" in text
    assert "0.200 GB; the paper's: 1.58 GB" in text


def test_a_process_that_fails_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    def start(request: dict[str, Any], folder: Path, name: str) -> Any:
        out, err = folder / f"{name}.out", folder / f"{name}.err"
        with out.open("wb") as answers, err.open("wb") as errors:
            started.append(subprocess.Popen([sys.executable, "-c", request["code"]], stdout=answers, stderr=errors))
        return started[-1], out, err

    monkeypatch.setattr(scaling_measure, "_start", start)
    good = {"code": "print('words'); print('{\"a\": 1}')"}
    assert run_children([good, good], tmp_path) == [{"a": 1}, {"a": 1}]
    with pytest.raises(ChildError, match=r"process 1 of 2 ended with 1: ValueError: no such thing"):
        run_children([{"code": "import time; time.sleep(60)"}, {"code": "raise ValueError('no such thing')"}], tmp_path)
    with pytest.raises(ChildError, match="within 0"):
        run_children([{"code": "import time; time.sleep(60)"}], tmp_path, limit=0.1)
    assert all(process.poll() is not None for process in started)
