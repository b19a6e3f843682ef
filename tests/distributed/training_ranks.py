"""Whole trainings on ranks that are threads, and the small runs they make."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from egnn_md.distributed.wire import Wire, open_group
from egnn_md.training import train as potentials
from egnn_md.training import train_propagator as propagators
from egnn_md.training.config import RunConfig, TrainConfig
from egnn_md.training.fit import TrainResult
from egnn_md.training.module import TrainingModule
from egnn_md.training.propagator_config import PropagatorTrainConfig
from egnn_md.training.ranks import Ranks, make_groups
from egnn_md.training.train import train
from egnn_md.training.train_propagator import train_propagator

sys.path.append(str(Path(__file__).parents[1] / "unit"))  # the small runs of the tests in one process

import propagator_cases
import training_cases

LIMIT = 60.0  # seconds of a collective


def ranks_of(config: RunConfig, store: dist.Store, rank: int) -> Ranks:
    """What ``join`` makes of a process, made of a thread."""

    def open_one(name: str, number: int, count: int, computes: bool) -> Wire:
        place = dist.PrefixStore(name, store)
        return Wire(open_group(place, number, count, limit=LIMIT, loopback=True), number, count)

    groups = make_groups(open_one, rank, config.devices, config.graph_size, False)
    return Ranks("cpu", groups, method=config.partition, mode=config.mode, seed=config.seed)


def on_threads(config: RunConfig, work: Callable[[Ranks], Any]) -> list[Any]:
    """What ``work`` gives on each rank. Raises the first error of a rank."""
    if config.devices == 1:
        return [work(Ranks("cpu"))]
    store = dist.HashStore()
    found: list[Any] = [None] * config.devices
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            found[rank] = work(ranks_of(config, store, rank))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(config.devices)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return found


def run(config: TrainConfig | PropagatorTrainConfig, *, resume: bool = False) -> list[TrainResult]:
    """A whole training on as many threads as it has devices."""
    if isinstance(config, PropagatorTrainConfig):
        return on_threads(config, lambda ranks: train_propagator(config, resume=resume, ranks=ranks))
    return on_threads(config, lambda ranks: train(config, resume=resume, ranks=ranks))


@pytest.fixture
def one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Initial weights come from torch's global generator, which threads share: let them draw one after another."""
    lock = threading.Lock()
    for module, name in ((potentials, "build_potential"), (propagators, "build_propagator")):
        original = getattr(module, name)

        def build(*arguments: Any, _original: Any = original, **options: Any) -> Any:
            with lock:
                return _original(*arguments, **options)

        monkeypatch.setattr(module, name, build)


def potential_run(directory: Path, **changes: Any) -> TrainConfig:
    """Energy, forces and stress of argon, some of it without a cell, in double precision."""
    labels = directory / "labels.extxyz"
    if not labels.exists():
        frames = training_cases.argon(12) + training_cases.argon(6, seed=8, atoms=4, periodic=False)
        training_cases.write_labels(labels, frames)
    model = {"cutoff": 5.0, "hidden": 8, "layers": 2, "virtual_nodes": 2, "vector_channels": 2, "basis": 4}
    content: dict[str, Any] = {
        "model": model,
        "loss": {"energy": 10.0, "forces": 1.0, "stress": 100.0},
        "precision": "float64",
        "max_steps": 20,
        "validate_every": 10,
        "checkpoint_every": 10,
        "batch_size": 4,
        "clip_norm": 0.05,  # of nearly every step
        "keep": "last",
    }
    return training_cases.tiny(directory, **{**content, **changes})


#: Noise, sampled MMD, random edges and a growing number of strides; some particles are out of each other's reach.
EVERYTHING: dict[str, Any] = {
    "model": {"hidden": 8, "layers": 2, "virtual_nodes": 2, "drop": "random", "drop_fraction": 0.4, "cutoff": 2.5},
    "loss": {"mmd": 0.3, "sigma": 1.5, "samples": 3, "velocity": 0.5},
    "noise": {"positions": 0.02, "velocities": 0.05},
    "unroll": {"strides": 3, "ramp": 10},
}


def propagator_run(directory: Path, **changes: Any) -> PropagatorTrainConfig:
    """With everything that is random, in double precision."""
    content: dict[str, Any] = {
        **EVERYTHING,
        "precision": "float64",
        "max_steps": 20,
        "validate_every": 10,
        "checkpoint_every": 10,
        "clip_norm": 0.005,
        "keep": "last",
    }
    return propagator_cases.tiny(directory, **{**content, **changes})


def checkpoint(directory: Path) -> dict[str, Any]:
    """``last.ckpt`` of a run."""
    found: dict[str, Any] = torch.load(directory / "last.ckpt", weights_only=True)
    return found


def difference(one: Path, other: Path) -> float:
    """Largest difference of a weight (trained and averaged) of two runs, over the largest weight of its tensor."""
    first, second = checkpoint(one), checkpoint(other)
    assert first["global_step"] == second["global_step"]
    worst = 0.0
    for name, tensor in first["state_dict"].items():
        if tensor.is_floating_point() and tensor.numel():
            scale = max(float(tensor.abs().max()), 1e-3)
            worst = max(worst, float((tensor - second["state_dict"][name]).abs().max()) / scale)
    return worst


def asks(monkeypatch: pytest.MonkeyPatch, rank: int, step: int) -> None:
    """Let one rank be told to stop during a step."""
    original = TrainingModule.training_step

    def asked(self: TrainingModule, batch: Any, batch_idx: int) -> torch.Tensor:
        if self.ranks.rank == rank and self.global_step == step:
            self.stop_requested = True
        return original(self, batch, batch_idx)

    monkeypatch.setattr(TrainingModule, "training_step", asked)
