"""Speed of models side by side: each repetition measures all of them in turn, so that a busy machine hits all alike."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from egnn_md.data.trajectories import open_trajectories
from egnn_md.devices import find_dtype
from egnn_md.graph import ParticleGraph
from egnn_md.models.propagator import predict_unchecked
from egnn_md.training.batches import WindowBatches
from egnn_md.training.config_file import validate
from egnn_md.training.fit import make_schedule, threads
from egnn_md.training.propagator_build import build_propagator, load_propagator_data
from egnn_md.training.propagator_config import PropagatorTrainConfig
from egnn_md.training.propagator_loss import unrolled_loss
from egnn_md.training.train_propagator import PropagatorModule
from egnn_md_benchmarks.timing import choose_clock, interleaved

REFERENCE = "egnn"
KINDS = ("forward", "step", "edges")


class _Candidate:
    """One model with a batch of its own edges, ready to be timed."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.config = validate(PropagatorTrainConfig, content, content.get("name", "model"))
        dtype = find_dtype(self.config.precision)
        device = torch.device(self.config.device)
        train = open_trajectories(Path(self.config.data.directory), "train")
        model = build_propagator(self.config, train, dtype)
        data = load_propagator_data(self.config, model.config, train, dtype)
        self.model_config = model.config
        batches = WindowBatches(data.train, model.config, cache_bytes=0, device=device)
        self.members = [i % len(batches) for i in range(self.config.batch_size)]
        self.make: Callable[[], ParticleGraph] = lambda: batches.batch(self.members, 0)
        self.batch = self.make()
        module = PropagatorModule(model, self.config, make_schedule(self.config, len(data.train)), "").to(device)
        self.model = module.trained
        self.module = module
        self.optimizer: Any = module.configure_optimizers()

    def forward(self) -> None:
        """The network alone, on a batch whose edges are there."""
        with torch.no_grad():
            predict_unchecked(self.model, self.batch)

    def step(self) -> None:
        """One training step: loss, gradients, optimizer, average."""
        loss = unrolled_loss(self.model, self.batch, self.model_config, self.config.loss, 1)["loss"]
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        if self.module.averaged is not None:
            self.module.averaged.update_parameters(self.model)

    def edges(self) -> None:
        """Reading the frames and finding (and dropping) the edges."""
        self.make()


def measure_speed(contents: dict[str, dict[str, Any]], base: dict[str, Any], repeats: int) -> dict[str, dict[str, Any]]:
    """Median times of each model, measured in turns, and their ratio to EGNN's on the same batch.

    Processor time is taken where torch has one CPU thread (another process on the machine does not count), wall time
    elsewhere.

    Args:
        contents: training configuration of each model by name.
        base: shared configuration, for the EGNN that all are compared with if it is not among them.
        repeats: rounds, after one that is thrown away.

    Returns:
        For each name, and for ``egnn``: ``forward``, ``step``, ``edges`` (seconds a batch), ``forward_ratio``,
        ``step_ratio``, ``num_edges``, ``clock``.
    """
    contents = dict(contents)
    if REFERENCE not in contents:
        from egnn_md_systems.compare import Variant, run_content

        some = next(iter(contents.values()))
        contents[REFERENCE] = run_content(base, Variant(REFERENCE), 1, int(some["seed"]), Path(some["output"]))
    first = validate(PropagatorTrainConfig, next(iter(contents.values())), "configuration")
    with threads(first.threads):
        # models that differ in training settings only are as fast as each other
        distinct: dict[str, str] = {}
        shape_of = {}
        for name, content in contents.items():
            shape = json.dumps([content.get("model", {}), content.get("loss", {}).get("mmd", 0) > 0], sort_keys=True)
            shape_of[name] = distinct.setdefault(shape, name)
        candidates = {name: _Candidate(contents[name]) for name in sorted(set(distinct.values()))}
        clock = choose_clock(first.device)
        calls = {(name, kind): getattr(one, kind) for name, one in candidates.items() for kind in KINDS}
        times = interleaved(calls, repeats, device=first.device, clock=clock)
    medians = {name: {kind: statistics.median(times[name, kind]) for kind in KINDS} for name in candidates}
    reference = medians[shape_of[REFERENCE]]
    out: dict[str, dict[str, Any]] = {}
    for name, like in shape_of.items():
        own = medians[like]
        out[name] = {
            **own,
            "forward_ratio": own["forward"] / reference["forward"],
            "step_ratio": own["step"] / reference["step"],
            "num_edges": candidates[like].batch.num_edges,
            "batch_size": candidates[like].config.batch_size,
            "clock": clock.name,
        }
    return out
