"""``egnn-md bench scaling``: parts alone are the parts of real ranks and say the same; the model; table and page."""

from __future__ import annotations

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from scaling_cases import answer
from torch import Tensor
from typer.testing import CliRunner

sys.path.append(str(Path(__file__).parents[1] / "distributed"))

from cases import owners, system
from ranks import on_ranks

from egnn_md.cli.main import app
from egnn_md.distributed.part import part_of_graph
from egnn_md.distributed.wire import Wire
from egnn_md.errors import InputError
from egnn_md.nn.communication import Alone
from egnn_md_benchmarks import hardware, scaling, scaling_measure, scaling_parts
from egnn_md_benchmarks.clouds import cloud_size
from egnn_md_benchmarks.scaling_measure import ChildError
from egnn_md_benchmarks.scaling_parts import (
    Collective,
    PartWork,
    Piece,
    halos,
    layer_traffic,
    part_shape,
    pieces,
    take_alone,
    whole_graph,
)
from egnn_md_benchmarks.scaling_table import ring
from egnn_md_benchmarks.workloads import Case

CLOUD, WATER = Case("cloud-64", hidden=16, layers=2), Case("water-24")


def divided(case: Case, size: int, mode: str = "exact") -> list[Piece]:
    graph = whole_graph(case)
    return pieces(graph, owners(graph.num_nodes, size), size, mode=mode)


@pytest.mark.parametrize("mode", ["exact", "paper"])
@pytest.mark.parametrize("name", ["triclinic", "own-images", "no-edges"])
def test_a_part_alone_is_the_part_of_a_rank(name: str, mode: str) -> None:
    graph, size = system(name), 3
    owner = owners(graph.num_nodes, size)
    real = on_ranks(size, lambda wire: part_of_graph(graph, owner, wire, mode=mode))
    found = halos(owner, graph.edge_index, size)
    assert name == "no-edges" or sum(len(halo) for halo in found) > 3
    for rank, (part, local) in enumerate(real):
        ours, graph_alone = take_alone(graph, owner, rank, found, mode=mode)
        assert torch.equal(ours.own, part.own)
        assert torch.equal(ours.halo, part.halo)
        assert torch.equal(ours.parts.send_rows, part.parts.send_rows)
        assert (ours.parts.send, ours.parts.receive) == (part.parts.send, part.parts.receive)
        assert ours.parts.fetches == part.parts.fetches == (mode == "exact")
        assert ours.parts.wire.traffic.messages == 0
        for item in fields(local):
            one, other = getattr(graph_alone, item.name), getattr(local, item.name)
            assert torch.equal(one, other) if isinstance(other, Tensor) else (one is None) == (other is None)
        for label, value in local.labels.items():
            assert torch.equal(graph_alone.labels[label], value)


@pytest.mark.parametrize("mode", ["exact", "paper"])
@pytest.mark.parametrize(
    ("case", "quantity"),
    [(CLOUD, "forward"), (CLOUD, "step"), (WATER, "forward"), (WATER, "forces"), (WATER, "step")],
)
def test_a_part_alone_says_what_a_rank_says(case: Case, quantity: str, mode: str) -> None:
    parts = divided(case, 3, mode)

    def work(wire: Wire) -> dict[str, int]:
        piece = parts[wire.rank]
        PartWork(case, piece).call("plain", quantity, piece.wired(wire))()
        return vars(wire.traffic.copy())

    for piece, said in zip(parts, on_ranks(3, work), strict=True):
        talk: Any = piece.dry()
        PartWork(case, piece).call("plain", quantity, talk)()
        assert vars(talk.wire.traffic) == said
        log: list[Collective] = talk.wire.group.log
        assert sum(item.kind == "exchange" for item in log) == said["exchanges"]
        assert (said["exchanges"] > 0) == (mode == "exact")
        counted = [ring(item, 3) for item in log]
        assert [sum(column) for column in zip(*counted, strict=True)] == [said["messages"], said["bytes"]]


def test_what_one_layer_says() -> None:
    case = Case("cloud-64", hidden=16, layers=3)
    for piece in divided(case, 3):
        for quantity in ("forward", "step"):
            talk: Any = piece.dry()
            PartWork(case, piece).call("plain", quantity, talk)()
            exchange, reduction = layer_traffic(talk.wire.group.log)
            assert exchange is not None
            assert reduction is not None
            assert exchange.sent == sum(piece.send) * (16 + 3) * 4
            assert exchange.received == piece.halo * (16 + 3) * 4
            assert exchange.peers == sum(count > 0 for count in piece.send)
            # virtual nodes: steps and messages, and the particles' sum
            assert reduction.sent == (3 * 3 + 16 * 3 + 3) * 4
    water: Any = divided(WATER, 3)[0].dry()
    PartWork(WATER, divided(WATER, 3)[0]).call("plain", "forces", water)()
    exchange, reduction = layer_traffic(water.wire.group.log)
    assert exchange is not None
    assert reduction is not None
    assert water.wire.group.log[0].width == 3  # positions, before any layer
    assert exchange.width == max(item.width for item in water.wire.group.log) > 3
    talk = divided(case, 3, "paper")[0].dry()
    PartWork(case, divided(case, 3, "paper")[0]).call("plain", "forward", talk)()
    assert layer_traffic(talk.wire.group.log)[0] is None
    assert layer_traffic(talk.wire.group.log)[1] is not None


@pytest.mark.parametrize(
    ("case", "quantity"), [(CLOUD, "forward"), (CLOUD, "step"), (WATER, "forces"), (WATER, "step")]
)
def test_real_ranks_together_give_what_one_process_gives(
    case: Case, quantity: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Positions or forces, and the gradients of a training step, in float64."""
    # all targets are samples of the MMD, so that the parts together draw what the whole draws
    monkeypatch.setattr(scaling_parts, "cloud_size", lambda name: replace(cloud_size(name), samples=1000))
    case, size = replace(case, dtype="float64"), 2
    graph = whole_graph(case)
    owner = torch.arange(graph.num_nodes) % size
    parts = pieces(graph, owner, size)

    if case.network == "potential" and quantity == "step":  # the weights whose gradients are compared
        monkeypatch.setattr(scaling_parts.copy, "deepcopy", lambda module: module)
    # not by the ranks themselves: threads share one random generator
    works = [PartWork(case, piece) for piece in (*parts, *pieces(graph, owner, 1))]

    def work(wire: Wire | None) -> tuple[Any, list[Tensor]]:
        made = works[-1 if wire is None else wire.rank]
        found = made.call("plain", quantity, Alone() if wire is None else made.piece.wired(wire))()
        return found, [item.grad for item in made.module.parameters() if item.grad is not None]

    whole, gradients = work(None)
    if quantity == "step":
        assert len(gradients) > 20
        answers = on_ranks(size, work)
        torch.testing.assert_close(sum(float(loss) for loss, _ in answers), float(whole), rtol=1e-10, atol=0)
        largest = max(float(value.abs().max()) for value in gradients)
        for _, shares in answers:
            for ours, theirs in zip(shares, gradients, strict=True):
                torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10 * largest)
        return
    together = torch.zeros_like(graph.positions)
    for rank, (found, _) in enumerate(on_ranks(size, work)):
        together[owner == rank] = found["forces"] if quantity == "forces" else found
    torch.testing.assert_close(together, whole["forces"] if quantity == "forces" else whole, rtol=1e-9, atol=1e-9)


def test_parts_alone_see_true_distances_and_stay_finite() -> None:
    graph = whole_graph(WATER)
    owner = owners(graph.num_nodes, 3)
    for piece in pieces(graph, owner, 3):
        talk: Any = piece.dry()
        (everywhere,) = talk.halo([piece.graph.positions])
        local = torch.cat([piece.graph.positions, piece.places])
        assert torch.equal(everywhere, local)
        pair = local[piece.graph.edge_index[0]] - local[piece.graph.edge_index[1]]
        pair = pair + piece.graph.cell_shifts @ graph.cell[0]
        mine = owner[graph.edge_index[0]] == piece.rank
        torch.testing.assert_close(pair, graph.pair_vectors()[mine], rtol=1e-5, atol=1e-4)
        found = PartWork(WATER, piece).call("plain", "forces", talk)()
        assert bool(found["forces"].isfinite().all())


def test_a_rank_without_particles_goes_the_same_way() -> None:
    graph = whole_graph(CLOUD)
    parts = pieces(graph, torch.zeros(64, dtype=torch.int64), 2)
    logs = []
    for piece in parts:
        talk: Any = piece.dry()
        PartWork(CLOUD, piece).call("plain", "step", talk)()
        logs.append([item.kind for item in talk.wire.group.log])
    assert parts[1].graph.num_nodes == 0
    assert logs[0] == logs[1]


def test_a_piece_comes_back_from_its_file(tmp_path: Path) -> None:
    for piece in (divided(WATER, 2)[1], divided(CLOUD, 1)[0]):
        again = Piece.load(piece.save(tmp_path / "piece.pt"))
        for name in ("rank", "size", "particles", "send", "receive", "fetches"):
            assert getattr(again, name) == getattr(piece, name)
        assert torch.equal(again.graph.edge_index, piece.graph.edge_index)
        assert torch.equal(again.places, piece.places)
        assert set(again.graph.labels) == set(piece.graph.labels)
    # positions, species, batch, velocities, features, target; edges and their features; cell, pbc, one row of shifts
    expected = 64 * (12 + 8 + 8 + 12 + 8 + 12) + 960 * (16 + 8) + 36 + 3 + 12
    assert divided(CLOUD, 1)[0].input_bytes == expected


def test_sizes_of_a_part_are_its_own() -> None:
    piece = divided(CLOUD, 3)[1]
    shape = part_shape(CLOUD, piece, 5)
    assert (shape.nodes, shape.edges, shape.weights) == (piece.graph.num_nodes, piece.graph.num_edges, 5)
    assert (shape.hidden, shape.layers, shape.potential) == (16, 2, False)


@pytest.fixture
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "TRIAD_BYTES", 2**20)
    monkeypatch.setattr(hardware, "GEMM_ROWS", 64)


def bench(folder: Path, *words: str) -> tuple[dict[str, Any], str, str]:
    """results.json, what was printed, the page."""
    done = CliRunner().invoke(app, ["bench", "scaling", *words, "--output", str(folder), "--repeats", "2"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    content = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    return content, done.output, (folder / "index.html").read_text()


@pytest.mark.usefixtures("small_peaks")
def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def memory(case: Case, piece: Piece, path: str, quantity: str, threads: int) -> dict[str, Any]:
        return {"bytes": 1000 * piece.graph.num_nodes, "inputs": 500, "weights": 100, "method": "made up"}

    def steps(case: Case, parts: list[Piece], *rest: Any) -> list[dict[str, Any]]:
        return [answer(piece.rank, [2.0, 2.0, 2.0], [0.0] * 3) for piece in parts]

    monkeypatch.setattr(scaling, "part_memory", memory)
    monkeypatch.setattr(scaling, "real_steps", steps)
    words = ("--system", "cloud-64", "--ranks", "1,3", "--what", "step", "--measure", "2", "--weak", "32")
    content, shown, page = bench(tmp_path / "a", *words, "--path", "plain", "--partition", "random")
    rows = content["rows"]
    alone = [row for row in rows if "rank" in row and row["scaling"] == "strong"]
    assert [(row["ranks"], row["rank"]) for row in alone] == [(1, 0), (3, 0), (3, 1), (3, 2)]
    assert [sum(row[key] for row in alone[1:]) for key in ("particles", "edges")] == [64, 960]
    assert all(row["halo"] > 0 and row["layer_messages"] == 2 + 4 and row["bytes"] > 0 for row in alone[1:])
    assert all(row["peak_memory"] == 1000 * row["particles"] for row in alone)
    modelled = [row for row in rows if row["basis"] == "modelled" and row["scaling"] == "strong"]
    for device in ("this CPU", "H100 floor"):
        for name in ("NVLink 4", "10 GbE"):
            (one,) = [r for r in modelled if r.get("device") == device and r["ranks"] == 1]
            (row,) = [r for r in modelled if r.get("device") == device and r["ranks"] == 3 and r.get("link") == name]
            assert row["step"] == pytest.approx(row["compute"] + row["talk"], rel=1e-3)
            assert row["speedup"] == pytest.approx(one["step"] / row["step"], rel=1e-3)
        if device == "this CPU":
            assert one["step"] == pytest.approx(alone[0]["compute"], rel=1e-4)
            assert row["compute"] == pytest.approx(max(r["compute"] for r in alone[1:]), rel=1e-4)
    (gloo,) = [row for row in rows if row["who"] == "this CPU, gloo here"]
    # two ranks, the slower alone 1.5 s, nothing said: 25 % less than the 2 s of the made-up measurement
    assert gloo["deviation"] == pytest.approx(-0.25)
    assert content["measured"][0]["deviation"] == gloo["deviation"]
    weak = [row for row in rows if row["scaling"] == "weak" and "rank" in row]
    assert [row["particles"] for row in weak] == [32, 32, 32, 32]
    grown = [row for row in rows if row["scaling"] == "weak" and row["who"] == "this CPU, NVLink 4"]
    one, three = sorted(grown, key=lambda row: row["ranks"])
    assert three["efficiency"] == pytest.approx(one["step"] / three["step"], rel=1e-3)
    assert three["speedup"] == pytest.approx(3 * three["efficiency"], rel=1e-3)
    assert content["memory"][0]["ratio"] == pytest.approx(max(r["particles"] for r in alone[1:]) / 64, rel=1e-3)
    for text in ("measured", "modelled", "NVLink 4", "-25.0 % of the measured step", "3 of 3 rounds quiet"):
        assert text in shown
    for text in ("strong scaling, step: speedup", "weak scaling, step: efficiency", "peak memory a rank", "modelled"):
        assert text in page


@pytest.mark.usefixtures("small_peaks")
def test_the_command_for_forces_without_parts_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise ChildError("process 0 of 2 ended with -9: killed")

    monkeypatch.setattr(scaling, "real_steps", fail)
    content, _, page = bench(tmp_path, "--system", "water-24", "--what", "forces", "--measure", "2", "--no-parts")
    (row,) = content["rows"]
    assert row["status"] == "failed"
    assert "failed: process 0 of 2 ended with -9: killed" in page


@pytest.mark.multirank
@pytest.mark.usefixtures("small_peaks")
def test_processes_that_really_run(tmp_path: Path) -> None:
    words = ("--system", "cloud-400", "--ranks", "2", "--what", "step", "--measure", "2", "--no-memory")
    content, _, _ = bench(tmp_path, *words)
    (found,) = content["measured"]
    alone = [row for row in content["rows"] if row.get("rank") is not None and row["ranks"] == 2]
    for row, traffic, link in zip(alone, found["traffic"], [found["link"]] * 2, strict=True):
        assert {key: row[key] for key in ("messages", "bytes", "exchanges", "reductions")} == traffic
        assert link["latency"] > 0
    assert len(found["all_steps"]) == 2
    assert all(size > 0 for size in found["memory"])
    assert 0 < found["modelled"] < 10


@pytest.mark.multirank
def test_memory_of_a_part_in_its_own_process() -> None:
    case = Case("cloud-20000")
    small, large = (
        scaling_measure.part_memory(case, divided(case, size)[0], "plain", "forward", 1) for size in (4, 1)
    )
    assert 0 < small["bytes"] < 0.6 * large["bytes"]
    assert large["inputs"] == 20000 * (12 + 8 + 8 + 12 + 8 + 12) + 300_000 * (16 + 8) + 36 + 3 + 12
    assert small["weights"] == large["weights"] > 60_000 * 4


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("--system", "nobody"), "unknown size 'nobody'"),
        (("--system", "nbody:2"), "one graph is split"),
        (("--ranks", "1,x"), "--ranks x: numbers of ranks, at least 1"),
        (("--measure", "1"), "--measure 1: numbers of ranks, at least 2"),
        (("--what", "forces"), "no forces"),
        (("--what", "all"), "unknown quantity 'all'"),
        (("--partition", "halves"), "unknown partition method 'halves'; known: bisection"),
        (("--mode", "fast"), "mode must be exact or paper"),
        (("--networks", "carrier"), "unknown network 'carrier'; known: nvlink"),
        (("--path", "quick"), "unknown path 'quick'"),
        (("--particles", "900000000000"), "needs about"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], text: str) -> None:
    with pytest.raises(InputError, match=text.replace(".", r"\.")):
        bench(tmp_path, *words)
    assert not (tmp_path / "results.json").exists()
