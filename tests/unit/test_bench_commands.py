"""``egnn-md bench``: every subcommand on something tiny, what it writes, and what it refuses."""

from __future__ import annotations

import json
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from egnn_md.cli.main import app, register_plugin
from egnn_md.errors import EgnnMdError, InputError, MissingDependencyError
from egnn_md_benchmarks import hardware, peers
from egnn_md_benchmarks.results import STATUS
from egnn_md_benchmarks.workloads import Case

TOP = {
    "schema", "benchmark", "command", "settings", "machine", "versions", "started", "seconds", "peaks", "notes",
    "warnings", "rows",
}  # fmt: skip


@pytest.fixture(autouse=True)
def small_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "TRIAD_BYTES", 2**20)
    monkeypatch.setattr(hardware, "GEMM_ROWS", 64)


def bench(folder: Path, *words: str) -> tuple[dict[str, Any], str]:
    """results.json and what was printed; every file and every row is checked."""
    done = CliRunner().invoke(app, ["bench", *words, "--output", str(folder), "--threads", "1"])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    content = json.loads((folder / "results.json").read_text(), parse_constant=pytest.fail)
    assert set(content) >= TOP
    assert content["benchmark"] == words[0]
    assert content["machine"]["processor"]
    assert content["settings"]["threads"] == 1
    assert all(row["status"] in STATUS for row in content["rows"])
    assert all(row["status"] == "ok" or row["reason"] for row in content["rows"])
    page = (folder / "index.html").read_text()
    assert "Plotly.newPlot" in page
    assert 'src="http' not in page
    return content, done.output


def rows(content: dict[str, Any], **wanted: str) -> list[dict[str, Any]]:
    return [row for row in content["rows"] if all(row.get(key) == value for key, value in wanted.items())]


def test_model(tmp_path: Path) -> None:
    words = ("--sizes", "cloud-40,water-24", "--repeats", "2", "--no-memory")
    content, shown = bench(tmp_path / "model", "model", *words)
    assert [peak["name"] for peak in content["peaks"]][1:] == ["H100, float32", "H100, tf32"]
    assert all(peak["flops"] > 1e6 for peak in content["peaks"])
    for quantity in ("forward", "step"):
        (plain,) = rows(content, size="cloud-40", quantity=quantity, path="plain")
        (published,) = rows(content, size="cloud-40", quantity=quantity, path="published")
        assert (plain["nodes"], plain["edges"], len(plain["times"])) == (40, 600, 2)
        assert plain["ratio_to_published"] == pytest.approx(published["median"] / plain["median"], rel=1e-4)
        assert 0 < plain["floor_h100"] < plain["floor"]
        assert plain["counts"]["flops"] < plain["counts"]["joined"]
    assert rows(content, size="water-24", quantity="forces", path="plain")[0]["status"] == "ok"
    assert not rows(content, size="water-24", path="published")
    assert "vs published" in shown
    assert "cloud-40" in shown


def test_model_memory_is_measured_in_children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def fake(case: dict[str, Any], path: str, quantity: str, threads: int, timeout: float) -> dict[str, Any]:
        asked.append((Case(**case).size, path))
        return {"bytes": 1000, "method": "made up"} if path == "plain" else {"error": "killed"}

    monkeypatch.setattr("egnn_md_benchmarks.model.measure_in_child", fake)
    words = ("--sizes", "cloud-40", "--paths", "plain,published", "--quantities", "forward", "--repeats", "1")
    content, _ = bench(tmp_path / "model", "model", *words)
    assert asked == [("cloud-40", "plain"), ("cloud-40", "published")]
    assert content["rows"][0]["peak_memory"] == 1000
    assert content["rows"][1]["note"] == "memory not measured: killed"


def test_md(tmp_path: Path) -> None:
    words = ("--sizes", "water-24", "--engines", "ase,openmm-python", "--paths", "plain", "--steps", "3")
    content, _ = bench(tmp_path / "md", "md", *words)
    assert [row["engine"] for row in content["rows"]] == ["ase", "openmm-python"]
    for row in content["rows"]:
        assert sum(row["parts"].values()) == pytest.approx(row["step"], rel=1e-4)
        assert all(seconds > 0 for seconds in row["parts"].values())
        assert row["overhead"] == pytest.approx(1 - row["parts"]["model"] / row["step"], abs=1e-3)
        assert row["ns_per_day"] == pytest.approx(0.5e-6 * 86400 / row["step"], rel=1e-4)
        assert row["list_updates"] >= 3
        assert len(row["windows"]) == 3


def test_neighbors(tmp_path: Path) -> None:
    words = ("--sizes", "water-24,nbody", "--backends", "vesin,brute", "--repeats", "1")
    content, _ = bench(tmp_path / "neighbors", "neighbors", *words)
    for size in ("water-24", "nbody"):
        one, other = rows(content, size=size)
        assert one["pairs"] == other["pairs"] > 0
        assert "note" not in one


def test_count(tmp_path: Path) -> None:
    content, _ = bench(tmp_path / "count", "count", "--sizes", "fluid113k,water-192")
    forward, step = rows(content, size="fluid113k")
    assert (forward["edges"], forward["quantity"], step["quantity"]) == (1_706_973, "forward", "step")
    # an edge costs 4 F² in its two square maps, in each of four layers; the published first map 4 F² more
    assert forward["gflop"] > 4 * 4 * 64**2 * 1_706_973 / 1e9
    assert forward["joined"] - forward["gflop"] > 0.9 * 4 * 4 * 64**2 * (1_706_973 - 113_140) / 1e9
    assert {row["quantity"] for row in rows(content, size="water-192")} == {"forward", "forces", "step"}


def test_growth(tmp_path: Path) -> None:
    words = ("--sizes", "30,60", "--paths", "plain", "--quantities", "forward", "--repeats", "1", "--no-memory")
    content, shown = bench(tmp_path / "growth", "growth", *words)
    (fit,) = content["fits"]
    assert (fit["points"], fit["from"], fit["to"]) == (2, 30, 60)
    assert "time grows as N^" in shown


def test_peers_with_a_made_up_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ase.io
    from ase.calculators.singlepoint import SinglePointCalculator

    from egnn_md_benchmarks.water import water_box

    def build(wanted: Any) -> Any:
        assert (wanted.cutoff, wanted.elements, wanted.dtype) == (5.0, [1, 8], "float32")
        return (lambda atoms: (0.0, np.zeros((len(atoms), 3)))), 7, "zero"

    monkeypatch.setitem(peers.PEERS, "mace", peers.Peer("mace", "json", "mace-torch", build))
    atoms = water_box(24)
    atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.full((24, 3), 2.0))
    ase.io.write(tmp_path / "labels.extxyz", atoms)
    (tmp_path / "file").write_bytes(b"x")
    words = ("--sizes", "water-24", "--peer-model", f"mace={tmp_path / 'file'}", "--repeats", "1")
    content, _ = bench(tmp_path / "peers", "peers", *words, "--labels", str(tmp_path / "labels.extxyz"))
    timed, errors = rows(content, peer="mace")
    assert timed["ratio"] == pytest.approx(timed["median"] / rows(content, peer="egnn_md")[0]["median"], rel=1e-3)
    assert (errors["force_rmse"], errors["force_mae"]) == (2, 2)
    assert len(rows(content, peer="egnn_md")) == 2


def test_peers_that_are_not_there_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda _: False)
    content, shown = bench(tmp_path / "peers", "peers", "--sizes", "water-24", "--repeats", "1")
    assert len(rows(content, status="unavailable")) == 3
    assert "pip install mace-torch" in shown


@pytest.mark.parametrize(
    ("words", "kind", "text"),
    [
        (("model", "--sizes", "nobody"), InputError, "unknown size 'nobody'"),
        (("model", "--paths", "quick"), InputError, "unknown path 'quick'"),
        (("model", "--quantities", "all"), InputError, "unknown quantity 'all'"),
        (("model", "--device", "cuda:99"), InputError, "cuda:99 is not there"),
        (("model", "--dtype", "half"), InputError, "float32, float64"),
        (("model", "--repeats", "0"), InputError, "--repeats must be at least 1"),
        (("model", "--sizes", "nbody", "--quantities", "forces"), InputError, "forces are a potential's"),
        (("model", "--sizes", "water-192", "--paths", "published"), InputError, "have no published path"),
        (("growth", "--sizes", "cloud-100000000000"), InputError, "numbers of particles"),
        (("growth", "--sizes", "100000000000"), InputError, "needs about"),
        (("growth", "--quantities", "forces"), InputError, "no forces"),
        (("md", "--engines", "gromacs"), InputError, "known: ase, openmm-torch, openmm-python"),
        (("md", "--paths", "published"), InputError, "no path of dynamics"),
        (("md", "--sizes", "nbody"), InputError, "unknown size 'nbody'"),
        (("md", "--steps", "0"), InputError, "--steps must be at least 1"),
        (("neighbors", "--backends", "cells"), InputError, "unknown backend 'cells'"),
        (("peers", "--peer", "schnet"), InputError, "unknown peer 'schnet'"),
        (("peers", "--labels", "nowhere.xyz"), InputError, "nowhere.xyz"),
    ],
)
def test_refusals(tmp_path: Path, words: tuple[str, ...], kind: type[EgnnMdError], text: str) -> None:
    with pytest.raises(kind, match=text.replace(".", r"\.")):
        bench(tmp_path, *words)
    assert not (tmp_path / "results.json").exists()


def test_a_named_peer_that_is_missing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda _: False)
    with pytest.raises(MissingDependencyError, match="pip install egnn-md torchmd-net"):
        bench(tmp_path, "peers", "--peer", "tensornet")


def test_a_plugin_that_cannot_be_loaded_spares_the_others() -> None:
    own = typer.Typer()
    own.command("good")(lambda: print("fine"))
    register_plugin(own, EntryPoint("bad", "no_such_module_at_all:register", "egnn_md.commands"))
    register_plugin(own, EntryPoint("worse", "json:nothing", "egnn_md.commands"))
    assert "fine" in CliRunner().invoke(own, ["good"]).output
    found = CliRunner().invoke(own, ["bad", "--some", "words"]).exception
    assert isinstance(found, MissingDependencyError)
    assert "no_such_module_at_all" in str(found)
    assert isinstance(CliRunner().invoke(own, ["worse"]).exception, EgnnMdError)
