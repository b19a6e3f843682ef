"""Training with one graph spread over ranks, and groups of such ranks: the run of one process, to rounding."""

from __future__ import annotations

import json
import math
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from training_ranks import (
    asks,
    checkpoint,
    difference,
    on_threads,
    one_at_a_time,
    potential_run,
    propagator_run,
    run,
)

from egnn_md.errors import ConfigError, TrainingError
from egnn_md.kernels import available
from egnn_md.training.config import RunConfig
from egnn_md.training.logs import read_csv
from egnn_md.training.module import TrainingModule
from egnn_md.training.ranks import Ranks

pytestmark = pytest.mark.usefixtures(one_at_a_time.__name__)

#: Weights after 20 steps; parts add up in another order, which Adam passes on as it is: 1e-15 to 1e-13 were seen.
ROUNDING = 1e-10
PRINTED = 2e-6  # logs have seven digits
#: Ranks, and how many of them share a graph.
LAYOUTS = [(2, None), (4, None), (4, 2)]


def assert_same_logs(one: Path, other: Path) -> None:
    """Every column but the clock's."""
    for name in ("train.csv", "valid.csv"):
        first, second = read_csv(one / name), read_csv(other / name)
        assert len(first) == len(second) > 0
        for a, b in zip(first, second, strict=True):
            for key in a.keys() - {"elapsed"}:
                assert float(b[key] or 0) == pytest.approx(float(a[key] or 0), rel=PRINTED, abs=1e-12), (name, key)
    errors = [json.loads((folder / "errors.json").read_text()) for folder in (one, other)]
    for part, values in errors[0].items():
        assert errors[1][part] == pytest.approx(values, rel=PRINTED)


@pytest.mark.parametrize("kernels", [pytest.param("plain", marks=pytest.mark.multirank), "fused"])
def test_potential_of_one_two_and_four_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: str
) -> None:
    """Energy, forces and stress; of the graphs in a batch some have no stress, and they differ in size."""
    if kernels == "fused" and not available():
        pytest.skip("no compiler")
    monkeypatch.setenv("EGNN_MD_KERNELS", kernels)
    run(potential_run(tmp_path, output=str(tmp_path / "one")))
    for devices, together in LAYOUTS:
        folder = tmp_path / f"{devices}-{together}"
        found = run(potential_run(tmp_path, output=str(folder), devices=devices, graph_devices=together))
        assert {result.steps for result in found} == {20}
        assert [result.model is None for result in found] == [False] + [True] * (devices - 1)
        assert difference(tmp_path / "one", folder) < ROUNDING
        assert_same_logs(tmp_path / "one", folder)


@pytest.mark.multirank
def test_propagator_of_one_two_and_four_ranks(tmp_path: Path) -> None:
    """Unrolled, with sampled MMD, noise and random edges."""
    run(propagator_run(tmp_path, output=str(tmp_path / "one")))
    for devices, together in LAYOUTS:
        folder = tmp_path / f"{devices}-{together}"
        run(propagator_run(tmp_path, output=str(folder), devices=devices, graph_devices=together))
        assert difference(tmp_path / "one", folder) < ROUNDING
        assert_same_logs(tmp_path / "one", folder)


@pytest.mark.parametrize(
    "changes",
    [
        # all pairs, which need not be found again from stride to stride, and every target
        {"model": {"hidden": 8, "layers": 2}, "loss": {"mmd": 0.3, "sigma": 1.5}, "noise": {}},
        # half of them never move and do not count
        {"model": {"hidden": 8, "layers": 2, "cutoff": 2.5, "species": [0, 1], "static_species": [1]}, "noise": {}},
        {"model": {"hidden": 8, "layers": 2, "drop": "longest", "drop_fraction": 0.3}, "loss": {"velocity": 1.0}},
        {"model": {"hidden": 8, "layers": 2, "virtual_nodes": 0, "cutoff": 2.5}, "loss": {}, "unroll": {}},
    ],
    ids=["all-pairs", "static", "longest", "local"],
)
def test_other_propagators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]) -> None:
    if "static_species" in changes["model"]:
        import propagator_cases

        original = propagator_cases.attracting

        def two_kinds(*arguments: Any, **options: Any) -> Any:
            found = original(*arguments, **options)
            for trajectory in found:
                trajectory.species[::2] = 1
            return found

        monkeypatch.setattr(propagator_cases, "attracting", two_kinds)
    options = {**changes, "max_steps": 6, "validate_every": 6, "unroll": changes.get("unroll", {"strides": 2})}
    for devices, together in ((1, None), (4, 2)):
        folder = str(tmp_path / f"{devices}")
        run(propagator_run(tmp_path, output=folder, devices=devices, graph_devices=together, **options))
    assert difference(tmp_path / "1", tmp_path / "4") < ROUNDING
    assert_same_logs(tmp_path / "1", tmp_path / "4")


@pytest.mark.parametrize("method", ["random", "k-means", "metis", "spectral"])
def test_ways_to_divide(tmp_path: Path, method: str) -> None:
    options = {"max_steps": 3, "validate_every": 3, "loss": {"energy": 0.0, "kind": "huber", "huber_delta": 0.05}}
    run(potential_run(tmp_path, output=str(tmp_path / "one"), **options))
    run(potential_run(tmp_path, output=str(tmp_path / "two"), devices=2, partition=method, **options))
    assert difference(tmp_path / "one", tmp_path / "two") < ROUNDING


def test_ranks_without_particles(tmp_path: Path) -> None:
    """Seven ranks share graphs of four and six atoms."""
    options = {"max_steps": 3, "validate_every": 3, "ema_decay": 0.0, "keep": "best"}
    run(potential_run(tmp_path, output=str(tmp_path / "one"), **options))
    run(potential_run(tmp_path, output=str(tmp_path / "seven"), devices=7, **options))
    assert difference(tmp_path / "one", tmp_path / "seven") < ROUNDING
    assert_same_logs(tmp_path / "one", tmp_path / "seven")


def test_single_precision(tmp_path: Path) -> None:
    options = {"precision": "float32", "max_steps": 5, "validate_every": 5}
    run(potential_run(tmp_path, output=str(tmp_path / "one"), **options))
    run(potential_run(tmp_path, output=str(tmp_path / "two"), devices=2, **options))
    # Adam's first steps are the sign of a gradient, even of one that cancels to rounding
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-3


def test_paper_mode_is_something_else(tmp_path: Path) -> None:
    """Without edges between ranks the result depends on the division, so it may not change on the way."""
    options = {"max_steps": 4, "validate_every": 4, "checkpoint_every": 4, "mode": "paper"}
    run(potential_run(tmp_path, output=str(tmp_path / "one"), **options))
    run(potential_run(tmp_path, output=str(tmp_path / "two"), devices=2, **options))
    assert difference(tmp_path / "one", tmp_path / "two") > 1e-4
    run(potential_run(tmp_path, output=str(tmp_path / "four"), devices=4, graph_devices=2, **options))
    assert difference(tmp_path / "two", tmp_path / "four") < ROUNDING
    with pytest.raises(ConfigError, match="devices = 2, not 1"):
        run(potential_run(tmp_path, output=str(tmp_path / "two"), **options), resume=True)


@pytest.mark.parametrize("make", [potential_run, propagator_run])
def test_one_rank_told_to_stop_stops_all_and_resumed_is_uninterrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    options = {"devices": 2, "max_steps": 12, "log_every": 3}
    run(make(tmp_path, output=str(tmp_path / "whole"), **options))
    with monkeypatch.context() as patch:
        asks(patch, 1, 6)
        found = run(make(tmp_path, output=str(tmp_path / "parts"), **options))
    assert [(result.steps, result.finished) for result in found] == [(7, False)] * 2
    assert checkpoint(tmp_path / "parts")["global_step"] == 7
    assert [result.finished for result in run(make(tmp_path, output=str(tmp_path / "parts"), **options), resume=True)]
    assert difference(tmp_path / "whole", tmp_path / "parts") == 0.0
    assert_same_logs(tmp_path / "whole", tmp_path / "parts")
    again = run(make(tmp_path, output=str(tmp_path / "parts"), **options), resume=True)  # nothing is left to do
    assert [result.steps for result in again] == [12, 12]


@pytest.mark.parametrize(("before", "after"), [((1, None), (2, None)), ((4, 2), (1, None)), ((2, None), (4, 2))])
def test_resumed_on_another_number_of_devices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: tuple[int, int], after: tuple[int, int]
) -> None:
    run(propagator_run(tmp_path, output=str(tmp_path / "whole"), max_steps=12))

    def part(layout: tuple[int, int]) -> Any:
        devices, together = layout
        folder = str(tmp_path / "parts")
        return propagator_run(tmp_path, output=folder, max_steps=12, devices=devices, graph_devices=together)

    with monkeypatch.context() as patch:
        asks(patch, before[0] - 1, 5)
        assert run(part(before))[0].steps == 6
    assert run(part(after), resume=True)[0].finished
    assert difference(tmp_path / "whole", tmp_path / "parts") < ROUNDING


def test_the_clock_of_rank_0_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run limited by time: the others' clocks say something else, and nothing depends on them."""

    def seconds(self: TrainingModule) -> float:
        return float(self.global_step) if self.ranks.rank == 0 else 1e4 / (1.0 + self.global_step)

    monkeypatch.setattr(TrainingModule, "elapsed", seconds)
    config = potential_run(tmp_path, devices=2, max_steps=None, max_time_minutes=9.5 / 60, checkpoint_every=3)
    found = run(config)
    # the tenth step is settled at 9 s, the eleventh at 10 s
    assert [(result.steps, result.finished) for result in found] == [(11, True)] * 2

    def rate(step: int) -> float:
        return float(read_csv(tmp_path / "run" / "train.csv")[step - 1]["lr"])

    def at(seconds: float) -> Any:
        return pytest.approx(1e-2 * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * seconds / 9.5))), rel=1e-5)

    assert rate(5) == at(3.0)  # as settled in step 4
    # resumed, the first step goes by the checkpoint's clock
    again = config.model_copy(update={"output": str(tmp_path / "again")})
    with monkeypatch.context() as patch:
        asks(patch, 1, 4)
        assert run(again)[0].steps == 5
    assert run(again, resume=True)[0].finished
    assert float(read_csv(tmp_path / "again" / "train.csv")[5]["lr"]) == at(5.0)


def test_early_stop_everywhere(tmp_path: Path) -> None:
    stop = {"early_stopping": {"patience": 2, "min_delta": 1e9}, "max_steps": 100}
    found = run(potential_run(tmp_path, devices=2, validate_every=2, checkpoint_every=2, **stop))
    assert [(result.steps, result.finished) for result in found] == [(6, True)] * 2


def test_the_best_model_is_measured_by_all(tmp_path: Path) -> None:
    """It is in a file that rank 0 wrote, and not what the ranks have at the end."""
    options: dict[str, Any] = {"keep": "best", "optimizer": {"lr": 0.3}, "ema_decay": 0.0, "max_steps": 8}
    options |= {"validate_every": 1, "checkpoint_every": 4}
    run(potential_run(tmp_path, output=str(tmp_path / "one"), **options))
    run(potential_run(tmp_path, output=str(tmp_path / "three"), devices=3, **options))
    assert 0 < checkpoint(tmp_path / "three")["egnn_md"]["best_step"] < 8
    assert_same_logs(tmp_path / "one", tmp_path / "three")


def test_a_loss_that_is_not_finite_stops_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.training_step
    failed: list[str] = []

    def broken(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.global_step == 3 and self.ranks.rank == 1:
            with torch.no_grad():
                next(self.trained.parameters()).fill_(math.nan)
        try:
            return original(self, batch, batch_idx)
        except TrainingError as error:
            failed.append(str(error))
            raise

    monkeypatch.setattr(TrainingModule, "training_step", broken)
    with pytest.raises(TrainingError, match=r"step 3: .* nan"):
        run(potential_run(tmp_path, devices=3))
    assert len(failed) == 3


_watchers: list[Any] = []


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    for watcher in _watchers:
        watcher(event, arguments)


def test_only_rank_0_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ranks: dict[int, int] = {}
    writers: set[int] = set()
    original = Ranks.__init__

    def noted(self: Ranks, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        ranks[threading.get_ident()] = self.rank

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        writes = event in ("os.mkdir", "os.rename", "os.remove")
        if event == "open":
            path, mode, _ = arguments
            writes = isinstance(path, (str, Path)) and isinstance(mode, str) and set(mode) & set("wax+") != set()
        if writes and str(arguments[0]).startswith(str(tmp_path)):
            writers.add(ranks.get(threading.get_ident(), -1))

    config = potential_run(tmp_path, devices=3, tensorboard=True, keep="best", max_steps=6, validate_every=3)
    monkeypatch.setattr(Ranks, "__init__", noted)
    if not _watchers:
        sys.addaudithook(_audit)  # cannot be taken back
    _watchers.append(watch)
    try:
        run(config)
    finally:
        _watchers.clear()
    assert sorted(ranks.values()) == [0, 1, 2]
    assert 0 in writers
    assert not writers & {1, 2}
    assert (tmp_path / "run" / "model.safetensors").exists()
    assert len(list((tmp_path / "run" / "tensorboard").glob("events*"))) == 1


def test_ranks_with_other_settings_or_weights_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from egnn_md.training import train as module

    config = potential_run(tmp_path, devices=3)
    other = config.model_copy(update={"seed": 5})

    def work(ranks: Ranks) -> Any:
        return module.train(other if ranks.rank == 2 else config, ranks=ranks)

    with pytest.raises(TrainingError, match="rank 2 differs from rank 0 in: configuration, starting model"):
        on_threads(config, work)
    assert not (tmp_path / "run").exists()

    original = module.load_data
    turn = threading.local()

    def load(*arguments: Any) -> Any:
        data = original(*arguments)
        if turn.rank == 1:
            data.train.graphs.reverse()
            data.train.digests.reverse()
        return data

    def watched(ranks: Ranks) -> Any:
        turn.rank = ranks.rank
        return module.train(config, ranks=ranks)

    monkeypatch.setattr(module, "load_data", load)
    with pytest.raises(TrainingError, match="rank 1 differs from rank 0 in: data, starting model"):
        on_threads(config, watched)
    assert not (tmp_path / "run").exists()


def test_weights_that_drift_apart_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = TrainingModule.on_train_batch_end

    def drift(self: TrainingModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.ranks.rank == 1:
            with torch.no_grad():
                next(self.trained.parameters()).mul_(1 + 1e-15)
        original(self, outputs, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "on_train_batch_end", drift)
    with pytest.raises(TrainingError, match="rank 1 differs from rank 0 in: weights"):
        run(potential_run(tmp_path, devices=2))


def test_weights_without_a_gradient_stay_without(tmp_path: Path) -> None:
    """An optimizer lets a weight with a zero gradient decay."""
    config: RunConfig = potential_run(tmp_path, devices=2)

    def work(ranks: Ranks) -> list[Any]:
        weights = [torch.nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
        weights[0].grad = torch.full((2, 3), 1.0 + ranks.rank)
        if ranks.rank == 1:
            weights[1].grad = torch.full((2, 3), 5.0)
        ranks.sum_gradients(weights)
        return [None if weight.grad is None else weight.grad.tolist() for weight in weights]

    assert on_threads(config, work) == [[[[3.0] * 3] * 2, [[5.0] * 3] * 2, None]] * 2
