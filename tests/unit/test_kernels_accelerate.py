"""Whole models on the fused path: networks with every option, scripted and eager, potentials, propagators, fallback."""

from __future__ import annotations

import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from egnn_md import kernels
from egnn_md.errors import InputError, MissingDependencyError
from egnn_md.kernels import FallbackWarning, accelerate, accelerated
from egnn_md.kernels.native import build
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
from egnn_md.nn.smooth import SmoothConfig, SmoothFastEGNN

needs_compiler = pytest.mark.skipif(not kernels.available(), reason="no C++ compiler: there are no fused kernels")
RELATIVE = {torch.float64: 1e-11, torch.float32: 2e-5}  # of whole networks, whose layers amplify rounding
OPTIONS = {
    "published": {},
    "attention-tanh": {"attention": True, "tanh": True},
    "normalize-gravity": {"normalize": True, "gravity": (0.0, 0.0, -1.0)},
    "fields-not-residual": {"fields": 2, "residual": False},
    "no-virtual-nodes": {"virtual_nodes": 0},
    "one-virtual-node": {"virtual_nodes": 1, "edge_features": 0},
    "radial-field": {"messages": "radial-field"},
}


def _inputs(config: FastEGNNConfig, dtype: torch.dtype, periodic: bool = True) -> dict[str, object]:
    """Three graphs, one of them periodic, edges in no order, particles without edges."""
    nodes, edges, graphs = 40, 150, 3
    random = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64).to(dtype)

    senders = torch.randint(0, nodes, (edges,), generator=random)
    receivers = (senders + torch.randint(1, nodes // 2, (edges,), generator=random)) % (nodes - 5)
    keep = receivers != senders
    edge_index = torch.stack([receivers, senders])[:, keep]
    count = edge_index.shape[1]
    return {
        "node_features": draw(nodes, config.node_features),
        "positions": draw(nodes, 3),
        "velocities": draw(nodes, 3),
        "edge_index": edge_index,
        "batch": torch.randint(0, graphs, (nodes,), generator=random),
        "num_graphs": graphs,
        "edge_features": draw(count, config.edge_features) if config.edge_features else None,
        "node_attributes": draw(nodes, config.node_attributes),
        "shifts": draw(count, 3),
        "periodic": torch.tensor([periodic, False, False]),
        "fields": draw(nodes, 3, config.fields) if config.fields else None,
    }


def _network(options: dict[str, object], dtype: torch.dtype) -> FastEGNN:
    torch.manual_seed(0)
    config = {"node_features": 2, "edge_features": 2, "node_attributes": 1, "hidden": 20, "layers": 3, **options}
    network = FastEGNN(FastEGNNConfig(**config)).to(dtype)
    with torch.no_grad():
        for parameter in network.parameters():  # a fresh coordinate map is nearly zero and would hide itself
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def _answers(network: nn.Module, inputs: dict[str, object], twice: bool) -> list[Tensor]:
    """Outputs; gradients by positions, shifts and weights; of a loss on those by positions too if ``twice``."""
    given = dict(inputs)
    for name in ("positions", "shifts"):
        value = given[name]
        assert isinstance(value, Tensor)
        given[name] = value.clone().requires_grad_(True)
    outputs = network(**given)
    total = torch.stack([value.square().sum() for value in outputs]).sum()
    wanted = [given["positions"], given["shifts"], *network.parameters()]
    if twice:
        (force,) = torch.autograd.grad(total, given["positions"], create_graph=True)  # type: ignore[arg-type]
        total = total + force.square().sum()
    gradients = torch.autograd.grad(total, wanted, allow_unused=True, materialize_grads=True)  # type: ignore[arg-type]
    return [value.detach() for value in (*outputs, *gradients)]


def _same(found: list[Tensor], expected: list[Tensor], relative: float) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        if theirs.numel():
            assert float((ours - theirs).abs().max()) <= relative * max(float(theirs.abs().max()), 1e-30)


@needs_compiler
@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_published_network(options: dict[str, object], scripted: bool) -> None:
    network = _network(options, torch.float64)
    inputs = _inputs(network.config, torch.float64)
    fused: nn.Module = accelerate(copy.deepcopy(network), "fused")
    assert accelerated(fused)
    if scripted:
        fused = torch.jit.script(fused)
    _same(_answers(fused, inputs, False), _answers(network, inputs, False), RELATIVE[torch.float64])


@needs_compiler
@pytest.mark.parametrize("options", [OPTIONS["published"], OPTIONS["attention-tanh"]], ids=["published", "attention"])
def test_published_network_twice_differentiated(options: dict[str, object]) -> None:
    network = _network(options, torch.float64)
    # the published norm has no second derivative at zero, which every distance of a periodic graph is
    inputs = _inputs(network.config, torch.float64, periodic=False)
    fused = accelerate(copy.deepcopy(network), "fused")
    _same(_answers(fused, inputs, True), _answers(network, inputs, True), RELATIVE[torch.float64])


@needs_compiler
def test_feature_update_that_is_worked_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from egnn_md.kernels import fused as layers

    network = _network({}, torch.float64)
    inputs = _inputs(network.config, torch.float64, periodic=False)
    fused = accelerate(copy.deepcopy(network), "fused")
    monkeypatch.setattr(layers, "RECOMPUTE_PARTICLES", 1)
    for twice in (False, True):
        _same(_answers(fused, inputs, twice), _answers(network, inputs, twice), RELATIVE[torch.float64])


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "scripted"])
def test_smooth_network_with_forces_in_the_loss(scripted: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    network = SmoothFastEGNN(SmoothConfig(species=2, hidden=24, basis=6, vector_channels=3)).to(dtype)
    nodes = 30
    positions = 6.0 * torch.rand(nodes, 3, dtype=dtype)
    edge_index = torch.cartesian_prod(torch.arange(nodes), torch.arange(nodes)).t()
    edge_index = edge_index[:, edge_index[0] != edge_index[1]]
    edge_index = edge_index[:, torch.randperm(edge_index.shape[1])]
    shifts = torch.zeros(edge_index.shape[1], 3, dtype=dtype)

    def answers(model: nn.Module) -> list[Tensor]:
        x = positions.clone().requires_grad_(True)
        batch, periodic = torch.zeros(nodes, dtype=torch.long), torch.tensor([False])
        features = model(torch.arange(nodes) % 2, x, edge_index, shifts, batch, periodic)
        (force,) = torch.autograd.grad(features.sum(), x, create_graph=True)
        gradients = torch.autograd.grad(
            force.square().sum() + features.sum(), [x, *model.parameters()], materialize_grads=True
        )
        return [value.detach() for value in (features, force, *gradients)]

    fused: nn.Module = accelerate(copy.deepcopy(network), "fused")
    if scripted:
        fused = torch.jit.script(fused)
    _same(answers(fused), answers(network), RELATIVE[dtype])


def _changed(**changes: object) -> dict[str, object]:
    return {**_inputs(_network({}, torch.float64).config, torch.float64), **changes}


@needs_compiler
def test_what_a_kernel_would_misread_is_refused() -> None:
    network = accelerate(_network({}, torch.float64), "fused")
    given = _changed()
    edges, features = given["edge_index"], given["edge_features"]
    assert isinstance(edges, Tensor)
    assert isinstance(features, Tensor)
    outside = edges.clone()
    outside[1, 7] = 40
    with pytest.raises(InputError, match=r"has the sender 40, but there are 40 particles"):
        network(**_changed(edge_index=outside))
    outside[1, 7] = -1
    with pytest.raises(InputError, match=r"has the sender -1"):
        network(**_changed(edge_index=outside))
    with pytest.raises(InputError, match=r"\d+ edges, but edge_features of \d+"):
        network(**_changed(edge_features=features[:-1]))
    with pytest.raises(InputError, match=r"geometry_map must be \(2, 20\), not \(3, 20\)"):
        network(**_changed(edge_features=features[:, :1]))
    with pytest.raises(InputError, match=r"is torch.float64 and positions torch.float32"):
        network(**_changed(positions=torch.zeros(40, 3)))
    with pytest.raises(RuntimeError):
        network(**_changed(shifts=torch.zeros(2, 3, dtype=torch.float64)))


@needs_compiler
def test_whole_numbers_of_32_bits_and_one_shift_for_all_edges() -> None:
    network = _network({}, torch.float64)
    given = _changed(shifts=torch.tensor([[0.3, -0.2, 0.1]], dtype=torch.float64))
    edges, batch = given["edge_index"], given["batch"]
    assert isinstance(edges, Tensor)
    assert isinstance(batch, Tensor)
    expected = network(**given)
    fused = accelerate(network, "fused")
    for changes in ({}, {"edge_index": edges.int(), "batch": batch.int()}):
        _same(list(fused(**{**given, **changes})), list(expected), RELATIVE[torch.float64])


@needs_compiler
def test_weights_and_their_names_stay_and_the_plain_path_comes_back() -> None:
    network = _network({}, torch.float32)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    kinds = [type(part) for part in network.modules()]
    accelerate(network, "fused")
    assert [type(part) for part in network.modules()] != kinds
    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    accelerate(network, "plain")
    assert [type(part) for part in network.modules()] == kinds
    assert not accelerated(network)
    assert not network.needs_sorted_edges


def test_environment_variable_chooses_the_plain_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.VARIABLE, "plain")
    assert not accelerated(accelerate(_network({}, torch.float32)))
    monkeypatch.setenv(kernels.VARIABLE, "quick")
    with pytest.raises(InputError, match=r"EGNN_MD_KERNELS must be one of auto, fused, plain, not 'quick'"):
        accelerate(_network({}, torch.float32))


def test_unknown_path() -> None:
    with pytest.raises(InputError, match="path must be one of auto, fused, plain, not 'quick'"):
        accelerate(_network({}, torch.float32), "quick")


def test_missing_compiler_falls_back_and_says_so_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv(kernels.VARIABLE, raising=False)
    build._loaded.cache_clear()
    build.available.cache_clear()
    try:
        with pytest.warns(FallbackWarning, match=r"no C\+\+ compiler was found .*g\+\+"):
            assert not accelerated(accelerate(_network({}, torch.float32)))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert not accelerated(accelerate(_network({}, torch.float32)))
        with pytest.raises(MissingDependencyError, match=r"no C\+\+ compiler"):
            accelerate(_network({}, torch.float32), "fused")
    finally:
        build._loaded.cache_clear()
        build.available.cache_clear()


def test_compiler_that_fails_is_quoted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no space left" >&2; exit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv(build.CACHE_VARIABLE, str(tmp_path / "cache"))
    with pytest.raises(build.KernelUnavailableError, match=r"c\+\+ could not compile the kernels: no space left"):
        build.build()
    assert not list((tmp_path / "cache").iterdir())  # nothing half made stays


@needs_compiler
def test_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("")
    monkeypatch.setenv(build.CACHE_VARIABLE, str(occupied))
    with pytest.raises(build.KernelUnavailableError, match="set EGNN_MD_CACHE to a directory"):
        build.build()


@needs_compiler
def test_library_is_compiled_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.build()
    stamp = first.stat().st_mtime_ns
    assert build.build() == first
    assert first.stat().st_mtime_ns == stamp
    monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-DOTHER"))
    assert build._digest(build.find_compiler()) not in first.name


def test_importing_the_package_compiles_nothing_and_loads_no_kernel() -> None:
    code = (
        "import sys, egnn_md, egnn_md.kernels; from egnn_md.kernels.native import build; "
        "assert build._loaded.cache_info().currsize == 0; assert 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
