"""The published network against recorded outputs and gradients of the authors' implementation (float64)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egnn_md import FastEGNN, FastEGNNConfig, import_authors_checkpoint
from egnn_md.checkpoint import config_from_weights, rename_authors_parameter
from egnn_md.training.mmd import mmd_loss

DATA = Path(__file__).parent / "data"
CASES = ("plain", "batch", "normalize", "attention_tanh", "gravity", "single_virtual")
#: Sums in float64 over tens of terms and four layers: rounding stays orders of magnitude under this.
RELATIVE = 1e-10
#: float32 network of two layers: some hundred roundings of 6e-8 on values of order one.
FLOAT32 = 2e-6


class Case:
    """One recorded case: inputs, weights, outputs."""

    def __init__(self, name: str) -> None:
        self.arrays = np.load(DATA / f"{name}.npz", allow_pickle=False)
        self.meta = json.loads(str(self.arrays["meta"]))
        weights = {
            rename_authors_parameter(key.removeprefix("param/")): torch.tensor(self.arrays[key])
            for key in self.arrays.files
            if key.startswith("param/")
        }
        gravity = self.meta.get("gravity")
        self.config = config_from_weights(
            weights,
            residual=self.meta.get("residual", True),
            normalize=self.meta.get("normalize", False),
            tanh=self.meta.get("tanh", False),
            gravity=tuple(gravity) if gravity else None,
        )
        self.network = FastEGNN(self.config).double()
        self.network.load_state_dict(weights)

    def tensor(self, name: str) -> torch.Tensor | None:
        return torch.tensor(self.arrays[name]) if name in self.arrays else None

    def run(self, network: Callable[..., Any], positions: torch.Tensor) -> Any:
        return network(
            self.tensor("in/node_feat"),
            positions,
            self.tensor("in/vel"),
            self.tensor("in/edge_index"),
            self.tensor("in/batch"),
            len(self.meta["graph_sizes"]),
            self.tensor("in/edge_attr"),
            self.tensor("in/node_attr"),
        )


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    found = found.detach()
    return float((found - wanted).abs().max() / wanted.abs().max().clamp_min(1e-300))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_outputs(name: str, scripted: bool) -> None:
    case = Case(name)
    network = torch.jit.script(case.network) if scripted else case.network
    positions, virtual, _ = case.run(network, case.tensor("in/pos"))
    assert relative(positions, case.tensor("out/pos")) < RELATIVE
    assert relative(virtual, case.tensor("out/virtual_pos")) < RELATIVE


@pytest.mark.parametrize("name", CASES)
def test_every_layer(name: str) -> None:
    case = Case(name)
    seen: list[tuple[torch.Tensor, ...]] = []
    for layer in case.network.layers:
        layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    case.run(case.network, case.tensor("in/pos"))
    assert len(seen) == case.meta["layers"]
    for index, output in enumerate(seen):
        for value, field in zip(output[:4], ("node_feat", "pos", "virtual_feat", "virtual_pos"), strict=True):
            assert relative(value, case.tensor(f"layer{index}/{field}")) < RELATIVE, (index, field)
    steps, _, _ = case.run(case.network.layer_positions, case.tensor("in/pos"))
    for index, positions in enumerate(steps):
        assert relative(positions, case.tensor(f"layer{index}/pos")) < RELATIVE, index


@pytest.mark.parametrize("name", CASES)
def test_loss_and_gradients(name: str) -> None:
    case = Case(name)
    positions = case.tensor("in/pos").requires_grad_()
    predicted, virtual, _ = case.run(case.network, positions)
    target, batch = case.tensor("in/target"), case.tensor("in/batch")
    mse = (predicted - target).pow(2).mean()
    mmd = mmd_loss(virtual, target, batch, sigma=case.meta["mmd_sigma"])
    loss = mse + case.meta["mmd_weight"] * mmd
    assert relative(mse.detach(), case.tensor("out/mse")) < RELATIVE
    assert relative(mmd.detach(), case.tensor("out/mmd")) < RELATIVE
    assert relative(loss.detach(), case.tensor("out/loss")) < RELATIVE
    loss.backward()
    assert relative(positions.grad, case.tensor("grad/pos")) < RELATIVE
    checked = 0
    for key in case.arrays.files:
        if key.startswith("grad_param/"):
            name_here = rename_authors_parameter(key.removeprefix("grad_param/"))
            found = case.network.get_parameter(name_here).grad
            wanted = case.tensor(key)
            # a weight that the output does not depend on has no gradient here and a zero one there
            found = torch.zeros_like(wanted) if found is None else found
            scale = max(float(wanted.abs().max()), 1e-12)
            assert float((found - wanted).abs().max()) / scale < RELATIVE, key
            checked += 1
    assert checked == len(list(case.network.parameters()))


def test_authors_checkpoint() -> None:
    network = import_authors_checkpoint(DATA / "authors_checkpoint.pth")
    assert network.config.normalize, "the option is read from the checkpoint's own configuration"
    io = np.load(DATA / "authors_checkpoint_io.npz")
    inputs = {key: torch.tensor(io[key]) for key in io.files}
    positions, virtual, _ = network(
        inputs["node_feat"],
        inputs["pos"],
        inputs["vel"],
        inputs["edge_index"],
        torch.zeros(len(inputs["pos"]), dtype=torch.long),
        1,
        inputs["edge_attr"],
    )
    assert relative(positions, inputs["out_pos"]) < FLOAT32
    assert relative(virtual, inputs["out_virtual_pos"]) < FLOAT32


def test_without_virtual_nodes_is_egnn() -> None:
    """C = 0 leaves out all that is virtual; particles in different graphs then share nothing."""
    torch.manual_seed(1)
    network = FastEGNN(FastEGNNConfig(node_features=2, hidden=8, layers=2, virtual_nodes=0)).double()
    positions, velocities = torch.randn(5, 3).double(), torch.randn(5, 3).double()
    features = torch.randn(5, 2).double()
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 0, 3, 2, 2]])
    batch = torch.zeros(5, dtype=torch.long)
    moved, virtual, _ = network(features, positions, velocities, edges, batch)
    assert virtual.shape == (1, 3, 0)
    far = positions.clone()
    far[:2] += 100.0
    again, _, _ = network(features, far, velocities, edges, batch)
    # the first two only talk to each other: moving both moves nothing else
    assert torch.allclose(again[2:], moved[2:], rtol=0, atol=1e-12)
    assert torch.allclose(again[:2] - 100.0, moved[:2], rtol=0, atol=1e-10)
