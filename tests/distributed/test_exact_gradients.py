"""Exact mode: gradients of parameters, of energies and of losses on forces, are those of one process."""

from __future__ import annotations

import pytest
import torch
from cases import (
    Values,
    alone,
    assert_same,
    each,
    on_both_paths,
    owners,
    potential,
    split,
    system,
    training,
)
from torch import Tensor, nn

from egnn_md.distributed.wire import Wire
from egnn_md.graph import ParticleGraph
from egnn_md.models.evaluate import evaluate


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("open", 1, 2),
        ("open", 3, 2),
        ("orthorhombic", 2, 2),
        ("triclinic", 2, 3),
        ("triclinic", 4, 2),
        ("slab", 3, 2),
        ("own-images", 2, 3),
        ("no-edges", 2, 2),
        ("batch", 8, 2),
    ],
)
def test_parameter_gradients(name: str, size: int, layers: int) -> None:
    graph, models, work = system(name), on_both_paths(potential(layers=layers)), each(training)
    expected = alone(models, graph, work)
    # second derivatives that are all zero would agree whatever was forgotten
    slopes = {of: expected[f"sum {of} by network.virtual_features, plain float64"] for of in ("forces", "stress")}
    assert float(slopes["forces"].abs().max()) > 1e-6
    assert float(slopes["stress"].abs().max()) > 1e-6 or not bool(graph.pbc.all(1).any())
    assert_same(split(models, graph, owners(graph.num_nodes, size), size, work), expected)


def test_parameter_gradients_without_virtual_nodes() -> None:
    graph, models = system("batch"), on_both_paths(potential(virtual_nodes=0))
    assert_same(split(models, graph, owners(29, 3), 3, each(training)), alone(models, graph, each(training)))


def test_parameter_gradients_with_fourier_modes() -> None:
    graph, models = system("batch"), on_both_paths(potential(fourier_width=0.9))
    expected = alone(models, graph, each(training))
    for of in ("energy", "forces", "stress"):
        assert float(expected[f"sum {of} by network.charge_map.weight, plain float64"].abs().max()) > 1e-8
    assert_same(split(models, graph, owners(29, 3), 3, each(training)), expected)


def test_descent_with_the_sum_of_the_ranks_gradients() -> None:
    """Some steps of training, each rank with its own copy, stay on the path of one process."""
    graph, model = system("batch"), potential(layers=2)

    def descend(model: nn.Module, piece: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        losses = []
        optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
        for _ in range(3):
            optimizer.zero_grad()
            found = evaluate(model, piece, training=True)  # type: ignore[arg-type]
            loss = (found["forces"] - piece.labels["forces"]).square().sum()
            loss = loss + (found["energy"] - piece.labels["energy"]).square().sum() / wire.size
            loss.backward()
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
            added = wire.total(torch.cat([gradient.reshape(-1) for gradient in gradients]))
            shares = added.split([gradient.numel() for gradient in gradients])
            for parameter, share in zip(model.parameters(), shares, strict=True):
                parameter.grad = share.reshape(parameter.shape)
            optimizer.step()
            losses.append(wire.total(loss.detach()))
        return {"all losses": torch.stack(losses)}

    expected = alone(model, graph, descend)
    assert float(expected["all losses"][-1]) < float(expected["all losses"][0])
    assert_same(split(model, graph, owners(29, 3), 3, descend), expected)
