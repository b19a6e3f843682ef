"""Pieces of the training: loss, metrics, schedule, average, derivatives, order of the data, logs."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from training_cases import argon, tiny

from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.kernels.fast_silu import FastSiLU, use_fast_silu
from egnn_md.models import FastEGNNPotential, LennardJones, PotentialConfig, evaluate
from egnn_md.training.config import LossSection
from egnn_md.training.logs import CsvLog, read_csv
from egnn_md.training.loss import potential_loss
from egnn_md.training.metrics import measure_errors
from egnn_md.training.module import PotentialModule, moving_average
from egnn_md.training.schedule import CosineSchedule
from egnn_md.training.stream import BatchStream


def graphs(
    count: int = 4, *, periodic: bool = True, dtype: torch.dtype = torch.float64
) -> list[ParticleGraph]:
    return [graph_from_atoms(a, 5.0, dtype=dtype, labels=True) for a in argon(count, periodic=periodic)]


def teacher() -> LennardJones:
    return LennardJones(0.05, 3.4, 5.0)


def small_potential(dtype: torch.dtype = torch.float64) -> FastEGNNPotential:
    torch.manual_seed(0)
    config = PotentialConfig(
        elements=(18,), hidden=8, layers=2, virtual_nodes=1, vector_channels=2, basis=4, mean_neighbors=10
    )
    return FastEGNNPotential(config).to(dtype)


def test_fast_silu_has_the_derivatives_of_silu() -> None:
    x = torch.linspace(-6, 6, 13, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(FastSiLU(), (x,))
    assert torch.autograd.gradgradcheck(FastSiLU(), (x,))
    assert torch.equal(FastSiLU()(x), nn.functional.silu(x))


def test_fast_silu_gives_the_same_training_gradients() -> None:
    plain, fast = small_potential(), small_potential()
    assert use_fast_silu(fast) > 4
    assert use_fast_silu(fast) == 0
    batch = ParticleGraph.join(graphs())
    for model in (plain, fast):
        result = evaluate(model, batch, training=True, stress=True)
        potential_loss(result, batch, LossSection(stress=1.0))["loss"].backward()
    for (name, one), two in zip(plain.named_parameters(), fast.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-10, atol=1e-12, msg=name)


def test_loss_is_the_documented_sum() -> None:
    batch = ParticleGraph.join([*graphs(2), *graphs(1, periodic=False)])
    energy = batch.labels["energy"] + torch.tensor([0.6, -1.2, 0.0])
    prediction = {
        "energy": energy,
        "forces": batch.labels["forces"] + 0.5,
        "stress": torch.nan_to_num(batch.labels["stress"]) + 0.1,
    }
    parts = potential_loss(prediction, batch, LossSection(energy=3.0, forces=2.0, stress=5.0))
    assert float(parts["energy"]) == pytest.approx((0.1**2 + 0.2**2) / 3)
    assert float(parts["forces"]) == pytest.approx(0.25)
    assert float(parts["stress"]) == pytest.approx(0.01)  # the open graph does not enter
    assert float(parts["loss"]) == pytest.approx(3 * (0.1**2 + 0.2**2) / 3 + 2 * 0.25 + 5 * 0.01)
    huber = potential_loss(prediction, batch, LossSection(energy=0, kind="huber", huber_delta=0.1))
    assert float(huber["loss"]) == pytest.approx(0.1 * (2 * 0.5 - 0.1))


def test_energy_loss_keeps_millielectronvolts_of_kiloelectronvolts() -> None:
    graph = graphs(1, dtype=torch.float32)[0]
    labels = {**graph.labels, "energy": torch.tensor([-40_000.0], dtype=torch.float64)}
    graph = ParticleGraph(**{**vars(graph), "labels": labels})
    prediction = {"energy": torch.tensor([-39_999.999], dtype=torch.float64)}
    loss = potential_loss(prediction, graph, LossSection(energy=1.0, forces=0.0))["loss"]
    assert float(loss) == pytest.approx((1e-3 / 6) ** 2, rel=1e-6)


def test_measured_errors_of_a_known_model() -> None:
    exact = teacher()
    data = []
    for index, graph in enumerate(graphs(5)):
        result = evaluate(exact, graph, stress=True)
        labels = {
            "energy": result["energy"] - 0.006 - (0.012 if index == 0 else 0.0),
            "forces": result["forces"] + 0.02,
            "stress": result["stress"],
        }
        data.append(ParticleGraph(**{**vars(graph), "labels": labels}))
    errors = measure_errors(exact, data, batch_size=2)
    assert errors["energy_offset"] == pytest.approx(1.0 + 2.0 / 5)
    assert errors["energy_mae"] == pytest.approx(1.4)
    assert errors["energy_rmse"] == pytest.approx(math.sqrt((3**2 + 4 * 1) / 5))
    assert errors["energy_rmse_centred"] == pytest.approx(math.sqrt((1.6**2 + 4 * 0.4**2) / 5))
    assert errors["force_mae"] == pytest.approx(20.0)
    assert errors["force_rmse"] == pytest.approx(20.0)
    assert errors["stress_rmse"] == pytest.approx(0.0, abs=1e-9)
    assert errors["structures"] == 5
    assert "stress_rmse" not in measure_errors(exact, graphs(2, periodic=False))
    with pytest.raises(InputError, match="no structure"):
        measure_errors(exact, [])


def test_schedule_by_steps_and_by_time() -> None:
    steps = CosineSchedule(warmup_steps=10, floor=0.1, max_steps=110)
    assert steps.factor(0, 0) == pytest.approx(0.1)
    assert steps.factor(10, 1e9) == pytest.approx(1.0)
    assert steps.factor(60, 0) == pytest.approx(0.55)
    assert steps.factor(110, 0) == pytest.approx(0.1)
    assert not steps.finished(109, 1e9)
    assert steps.finished(110, 0)
    time = CosineSchedule(warmup_steps=0, floor=0.0, budget_seconds=60)
    assert time.factor(5, 30) == pytest.approx(0.5)
    assert time.factor(5, 90) == pytest.approx(0.0)
    assert time.finished(1, 60)
    assert not time.finished(10**9, 59)


def test_average_ramps_up_and_then_follows_slowly() -> None:
    model = nn.Linear(1, 1, bias=False)
    averaged = AveragedModel(model, multi_avg_fn=moving_average(0.9))
    expected = 0.0
    for step, value in enumerate([1.0, 2.0, 5.0, -3.0]):
        with torch.no_grad():
            model.weight.fill_(value)
        averaged.update_parameters(model)
        decay = min(0.9, (1 + step) / (10 + step))
        expected = value if step == 0 else decay * expected + (1 - decay) * value
        assert averaged.module.weight.item() == pytest.approx(expected, rel=1e-5)


def test_weight_decay_acts_on_matrices_only(tmp_path: Path) -> None:
    module = PotentialModule(small_potential(), tiny(tmp_path), CosineSchedule(0, 0.0, 10), "digest")
    decayed, free = module.configure_optimizers().param_groups
    assert decayed["weight_decay"] == 1e-3
    assert free["weight_decay"] == 0.0
    assert all(p.ndim == 2 for p in decayed["params"])
    free_ids = {id(p) for p in free["params"]}
    assert id(module.potential.network.embedding.weight) in free_ids
    assert len(decayed["params"]) + len(free["params"]) == len(list(module.potential.parameters()))


def test_stream_sees_everything_once_an_epoch_and_depends_on_seed_and_step_only() -> None:
    def stream(seed: int, step: int = 0) -> BatchStream:
        return BatchStream([None] * 10, 4, seed, (6, 4), lambda: step)  # type: ignore[list-item]

    first = stream(3)
    drawn = [index for step in range(5) for index in first.indices(step)]
    assert sorted(drawn[:10]) == sorted(drawn[10:]) == list(range(10))
    assert drawn[:10] != drawn[10:]
    assert stream(3).indices(4) == drawn[16:]
    assert stream(3).indices(2) != stream(4).indices(2)


def test_stream_rounds_end_at_every_period() -> None:
    data = graphs(3)
    position = 0
    stream = BatchStream(data, 2, 0, (6, 4), lambda: position)
    lengths = []
    while position < 12:
        length = len(list(stream))
        lengths.append(length)
        position += length
    assert lengths == [4, 2, 2, 4]


def test_csv_log_forgets_what_will_be_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log = CsvLog(path, ["step", "loss"])
    for step in range(1, 6):
        log.append({"step": step, "loss": step / 3, "unknown": 1.0})
    with path.open("a") as file:
        file.write("6,0.")  # a kill in mid-write
    CsvLog(path, ["step", "loss"], resume_at=3).append({"step": 4, "loss": 9.0})
    assert [row["step"] for row in read_csv(path)] == ["1", "2", "3", "4"]
    assert read_csv(path)[3]["loss"] == "9"
