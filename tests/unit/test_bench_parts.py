"""Benchmarks: inputs, interleaving, memory, devices, fits, splits, and what is written."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from egnn_md.devices import find_device
from egnn_md.errors import ConfigError, InputError, MissingDependencyError
from egnn_md.neighbors import neighbor_list
from egnn_md_benchmarks import peers, timing
from egnn_md_benchmarks.clouds import PAPER, cloud_size, make_cloud
from egnn_md_benchmarks.common import Options
from egnn_md_benchmarks.counts import Shape
from egnn_md_benchmarks.estimate import peak_bytes
from egnn_md_benchmarks.growth import exponent
from egnn_md_benchmarks.md import fit_line, slopes
from egnn_md_benchmarks.md_parts import PARTS, split
from egnn_md_benchmarks.memory import measure_in_child, peak_of
from egnn_md_benchmarks.model import add_ratios, case_of, plan
from egnn_md_benchmarks.paths import Unavailable, check_paths, on_path
from egnn_md_benchmarks.results import Column, Record, say, write
from egnn_md_benchmarks.water import water_atoms_count, water_box, water_graph
from egnn_md_benchmarks.workloads import Case, check_quantities, check_size, expected_shape, make_work, shared


@pytest.mark.parametrize("name", ["nbody", "protein", "water3d"])
def test_clouds_have_exactly_the_papers_numbers(name: str) -> None:
    cloud = make_cloud(cloud_size(name), 3)
    assert (len(cloud.positions), cloud.edge_index.shape[1]) == (PAPER[name].nodes, PAPER[name].edges)
    assert bool((cloud.edge_index[0].diff() >= 0).all())
    assert not bool((cloud.edge_index[0] == cloud.edge_index[1]).any())
    assert len(torch.unique(cloud.edge_index, dim=1)[0]) == PAPER[name].edges


def test_the_largest_size_is_the_papers() -> None:
    assert (PAPER["fluid113k"].nodes, PAPER["fluid113k"].edges) == (113_140, 1_706_973)


def test_clouds_keep_the_shortest_edges_and_repeat() -> None:
    size = cloud_size("cloud-60")
    one, two, other = make_cloud(size, 0), make_cloud(size, 0), make_cloud(size, 1)
    assert torch.equal(one.positions, two.positions)
    assert torch.equal(one.edge_index, two.edge_index)
    assert not torch.equal(one.positions, other.positions)
    longest = float(one.edge_features[:, 0].max())
    distance = torch.cdist(one.positions, one.positions)
    assert int((distance < longest * (1 - 1e-6)).sum()) - 60 <= one.edge_index.shape[1]


def test_a_batch_joins_clouds_without_edges_between_them() -> None:
    cloud = make_cloud(cloud_size("nbody:3"), 0)
    assert (cloud.num_graphs, len(cloud.positions), cloud.edge_index.shape[1]) == (3, 300, 29_700)
    assert torch.equal(cloud.batch[cloud.edge_index[0]], cloud.batch[cloud.edge_index[1]])


@pytest.mark.parametrize("name", ["nobody", "nbody:0", "nbody:x", "cloud-9", "water-100", "water-81000"])
def test_unknown_sizes_are_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(InputError, match="known: "):
        check_size(name)


def test_numbers_are_boxes_of_water() -> None:
    assert [check_size(name) for name in ("192", "water-648", "384")] == ["water-192", "water-648", "water-384"]


@pytest.mark.parametrize("count", [192, 648, 1536, 24])
def test_boxes_of_water_have_its_density_and_no_overlaps(count: int) -> None:
    assert water_atoms_count(f"water-{count}") == count
    atoms = water_box(count)
    assert len(atoms) == count
    assert (np.array(atoms.numbers).reshape(-1, 3) == [8, 1, 1]).all()
    density = atoms.get_masses().sum() / atoms.get_volume() * 1.66054
    assert density == pytest.approx(0.997, abs=0.002)
    edges, steps = neighbor_list(atoms.positions, atoms.cell.array, atoms.pbc, 1.9)
    pair = atoms.positions[edges[0]] - atoms.positions[edges[1]] + steps.numpy() @ atoms.cell.array
    other = (edges[0] // 3 != edges[1] // 3).numpy()
    assert np.linalg.norm(pair, axis=1)[other].min(initial=9) > 1.4
    assert np.array_equal(atoms.positions, water_box(count).positions)


def test_the_expected_pairs_of_a_box_are_near() -> None:
    assert expected_shape(Case("water-192")).edges == pytest.approx(
        water_graph(192, 5.0, torch.float32).num_edges, rel=0.05
    )


def test_repeats_are_interleaved_and_rotated() -> None:
    order: list[str] = []
    calls = {name: (lambda name=name: order.append(name)) for name in "abc"}
    times = timing.interleaved(calls, 3, warmup=1)
    assert {name: len(values) for name, values in times.items()} == {"a": 3, "b": 3, "c": 3}
    rounds = ["".join(order[k : k + 3]) for k in range(0, 12, 3)]
    assert rounds == ["cab", "abc", "bca", "cab"]
    assert timing.rotation([], 3) == []


def test_a_summary_is_the_median_and_the_quartiles() -> None:
    found = timing.summary([4.0, 1.0, 2.0, 3.0, 5.0])
    assert (found["median"], found["low"], found["high"]) == (3.0, 2.0, 4.0)
    assert found["spread"] == pytest.approx(2 / 3)
    assert timing.summary([2.0])["spread"] == 0


def test_threads_are_given_back() -> None:
    before = torch.get_num_threads()
    with timing.torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(InputError, match="--threads is 0"), timing.torch_threads(0):
        pass


def test_ratios_are_how_many_times_faster() -> None:
    rows = [{"path": "published", "median": 6.0}, {"path": "plain", "median": 3.0}, {"path": "fused", "median": 1.0}]
    add_ratios(rows)
    assert rows[2] == {"path": "fused", "median": 1.0, "ratio_to_plain": 3.0, "ratio_to_published": 6.0}


@pytest.mark.parametrize(
    ("name", "text"), [("cuda:77", "not there"), ("mps", "not supported"), ("gpu", "unknown device")]
)
def test_devices_that_are_not_there(name: str, text: str) -> None:
    with pytest.raises(InputError, match=text):
        find_device(name)


def test_a_size_that_does_not_fit_is_refused_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("egnn_md_benchmarks.device.available_memory", lambda _: 10**9)
    monkeypatch.setattr("egnn_md_benchmarks.common.available_memory", lambda _: 10**9)
    named = Options(sizes=("fluid113k",), paths=("published",))
    case = case_of("fluid113k", named)
    with pytest.raises(InputError, match=r"fluid113k.*needs about .* GB, and 1\.0 GB .*--sizes.*--paths"):
        plan([case], ["published"], ["forward"], named)
    # what is there by default is left out and said
    skipped = plan([case], ["published", "plain"], ["step"], Options())
    assert set(skipped) == {("fluid113k", "published", "step"), ("fluid113k", "plain", "step")}
    assert "of the 1.0 GB" in skipped["fluid113k", "plain", "step"]
    with pytest.raises(InputError, match="needs about"):
        plan([case], ["plain"], ["step"], Options(sizes=("fluid113k",)))


def test_forces_are_a_potentials() -> None:
    with pytest.raises(InputError, match="forces are a potential's"):
        plan([case_of("nbody", Options())], ["plain"], ["forces"], Options())


def test_estimates_grow_with_what_is_kept() -> None:
    shape = Shape(nodes=855, edges=55_107)
    forward, step = (peak_bytes(shape, "published", quantity) for quantity in ("forward", "step"))
    assert forward < step
    assert peak_bytes(shape, "plain", "step") < step
    assert peak_bytes(shape, "fused", "step") < peak_bytes(shape, "plain", "step")
    assert peak_bytes(shape, "plain", "step", 8) == 2 * peak_bytes(shape, "plain", "step")


def test_peak_memory_sees_a_short_peak() -> None:
    def call() -> None:
        torch.zeros(40_000_000, dtype=torch.uint8).add_(1)

    size, method = peak_of(call, "cpu")
    assert method
    assert 35e6 < size < 80e6


def test_the_child_measures_and_reports() -> None:
    case = Case("cloud-3000", hidden=32, layers=2)
    found = measure_in_child(case.to_dict(), "plain", "forward", 1, 120)
    assert "error" not in found
    expected = peak_bytes(expected_shape(case), "plain", "forward")
    assert 0.4 * expected < found["bytes"] < 2.5 * expected
    broken = measure_in_child({"size": "nobody"}, "plain", "forward", 1, 120)
    assert "unknown size 'nobody'" in broken["error"]


def test_unknown_paths_and_quantities() -> None:
    with pytest.raises(InputError, match="unknown path 'quick'; known: published, plain, fused, compiled"):
        check_paths(["plain", "quick"])
    with pytest.raises(InputError, match="unknown quantity 'backward'; known: forward, forces, step"):
        check_quantities(["backward"])


def test_paths_share_parameters_and_agree() -> None:
    work = make_work(Case("cloud-30", hidden=16, layers=2))
    copy = shared(work.module)
    assert all(a is b for a, b in zip(copy.parameters(), work.module.parameters(), strict=True))
    assert copy.layers is not work.module.layers
    plain = work.call("plain", "forward")()[0]
    torch.testing.assert_close(work.call("published", "forward")()[0], plain, rtol=1e-5, atol=1e-5)
    try:
        fused = work.call("fused", "forward")
    except Unavailable as reason:
        pytest.skip(f"no fused path here: {reason}")
    torch.testing.assert_close(fused()[0], plain, rtol=1e-5, atol=1e-5)


def test_a_path_that_is_not_to_be_had_says_why() -> None:
    with pytest.raises(Unavailable, match="never published"):
        on_path(make_work(Case("water-24")).module, "published")


@pytest.mark.parametrize("power", [1.0, 1.37])
def test_the_exponent_of_made_up_times(power: float) -> None:
    sizes = np.array([1e3, 1e4, 1e5, 1e6])
    found, error = exponent(sizes, 3e-6 * sizes**power)
    assert found == pytest.approx(power, abs=1e-9)
    assert error == pytest.approx(0, abs=1e-9)
    noisy, error = exponent(sizes, 3e-6 * sizes**power * np.array([1.1, 0.9, 1.1, 0.9]))
    assert abs(noisy - power) < 3 * error
    assert np.isnan(exponent(sizes[:1], sizes[:1])[0])


def test_slopes_of_a_soak() -> None:
    rows = [{"step": k, "memory": 1e6 + 5 * k, "seconds": 0.01 * (1 + 1e-5 * k)} for k in range(0, 2000, 100)]
    found = slopes(rows)
    assert found["memory_slope"] == pytest.approx(5)
    assert found["pace"] == pytest.approx(0.01, rel=0.02)
    assert fit_line(np.array([0.0, 1.0]), np.array([1.0, 3.0])).slope == 2


def test_the_parts_of_a_step_sum_to_it() -> None:
    parts = split(10.0, 8.0, 6.0, 1.5)
    assert parts == {"list": 1.5, "model": 6.0, "copies": 0.5, "integrator": 2.0}
    assert sum(parts[name] for name in PARTS) == 10.0


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (0.0123, "time", "12.3 ms"),
        (2e-7, "time", "0.2 µs"),
        (1.5e9, "bytes", "1.5 GB"),
        (None, "time", "–"),
        (None, "text", ""),
        (float("nan"), "number", "–"),
        (0.123, "percent", "12.3 %"),
        (12345, "count", "12,345"),
    ],
)
def test_numbers_for_a_reader(value: float | None, kind: str, text: str) -> None:
    assert say(value, kind) == text


def test_what_is_written_is_strict_json_and_an_escaped_page(tmp_path: Path) -> None:
    record = Record("model", {"sizes": ["a"]}, {"processor": "<b>x</b>"})
    record.add(size="a", median=float("nan"))
    record.add("failed", size="b", reason="<script>alert(1)</script>")
    page, numbers = write(record, [Column("size", "size"), Column("note", "")], [], tmp_path / "out")
    content = json.loads(numbers.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (content["schema"], content["rows"][0]["median"]) == (1, None)
    text = page.read_text()
    assert "<script>alert" not in text
    assert "failed: &lt;script&gt;" in text
    assert "<b>x</b>" not in text


def test_a_missing_peer_says_how_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "installed", lambda _: False)
    for name, package in (("mace", "mace-torch"), ("tensornet", "torchmd-net"), ("nequip", "nequip")):
        with pytest.raises(MissingDependencyError, match=f"pip install egnn-md {package}"):
            peers.require(name)
    with pytest.raises(InputError, match="unknown peer 'schnet'; known: mace, tensornet, nequip"):
        peers.require("schnet")


def test_files_of_peers(tmp_path: Path) -> None:
    file = tmp_path / "trained.model"
    file.write_bytes(b"")
    assert peers.peer_files([f"mace={file}"]) == {"mace": file}
    with pytest.raises(ConfigError, match="NAME=PATH"):
        peers.peer_files(["schnet=x"])
    with pytest.raises(InputError, match="there is no file"):
        peers.peer_files(["mace=nowhere"])


def test_a_calculator_becomes_a_call() -> None:
    from egnn_md_benchmarks.peer_models import through_calculator

    fake = SimpleNamespace(results={"energy": 1.5, "forces": [[0, 0, 1]]}, calculate=lambda *_: None)
    energy, forces = through_calculator(fake)(None)
    assert energy == 1.5
    assert forces.shape == (1, 3)
