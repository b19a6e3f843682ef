"""Inputs and networks by name, and the calls that are measured: forward, energy and forces, training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from egnn_md.devices import find_device, find_dtype
from egnn_md.errors import InputError
from egnn_md_benchmarks.clouds import Cloud, CloudSize, cloud_size, make_cloud, network_config
from egnn_md_benchmarks.counts import Shape
from egnn_md_benchmarks.paths import on_path, switched
from egnn_md_benchmarks.water import water_atoms_count, water_graph

#: quantity → networks that have it
QUANTITIES = {"forward": ("published", "potential"), "forces": ("potential",), "step": ("published", "potential")}
TINY = {"published": "cloud-64", "potential": "water-24"}


@dataclass(frozen=True)
class Case:
    """What is built: JSON values, so that a child process can build the same."""

    size: str
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 0
    model: str = "water"
    hidden: int = 64
    layers: int = 4
    virtual_nodes: int = 3

    @property
    def network(self) -> str:
        """``potential`` for boxes of water, ``published`` for clouds."""
        return "potential" if self.size.startswith("water-") else "published"

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def tiny(self) -> Case:
        """The same on a tiny input."""
        return Case(**{**self.to_dict(), "size": TINY[self.network]})


def check_quantities(names: Sequence[str]) -> list[str]:
    """The names, each once. Raises InputError for an unknown one."""
    for name in names:
        if name not in QUANTITIES:
            raise InputError(f"unknown quantity {name!r}; known: {', '.join(QUANTITIES)}")
    return list(dict.fromkeys(names))


def check_size(name: str) -> str:
    """The name of a cloud or box (a number is a box of water). Raises InputError for an unknown one."""
    if name.isdigit():
        name = f"water-{name}"
    if name.startswith("water-"):
        return f"water-{water_atoms_count(name)}"
    return cloud_size(name).name


def shared(network: nn.Module) -> nn.Module:
    """Another object with the same parameters: what is done to it leaves the first one alone."""
    return copy.deepcopy(network, {id(item): item for item in network.parameters()})


class PublishedWork:
    """The published network on a cloud."""

    def __init__(self, case: Case) -> None:
        from egnn_md.nn.fast_egnn import FastEGNN

        self.case = case
        self.size: CloudSize = cloud_size(case.size)
        device, dtype = find_device(case.device), find_dtype(case.dtype)
        config = network_config(self.size, case.hidden, case.layers, case.virtual_nodes)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(case.seed)
            self.module = FastEGNN(config).to(device=device, dtype=dtype)
        self.cloud: Cloud = make_cloud(self.size, case.seed, dtype).to(device)
        self.shape = published_shape(case, self.module)

    def call(self, path: str, quantity: str) -> Callable[[], Any]:
        """What is timed. Raises Unavailable where the path or the quantity does not exist."""
        from egnn_md.training.mmd import mmd_loss

        network = on_path(shared(self.module), path)
        inputs, cloud, size = self.cloud.inputs(), self.cloud, self.size

        def forward() -> Any:
            with torch.no_grad():
                return network(**inputs)

        def step() -> Any:
            network.zero_grad(set_to_none=True)
            positions, places, _ = network(**inputs)
            loss = (positions - cloud.target).pow(2).mean()
            if self.case.virtual_nodes:
                generator = torch.Generator().manual_seed(self.case.seed)
                loss = loss + size.mmd * mmd_loss(
                    places, cloud.target, cloud.batch, sigma=size.sigma, samples=size.samples, generator=generator
                )
            loss.backward()
            return loss

        return forward if quantity == "forward" else step


class PotentialWork:
    """A potential on a box of water."""

    def __init__(self, case: Case) -> None:
        from egnn_md.checkpoint import load_model
        from egnn_md.models.potential import FastEGNNPotential

        self.case = case
        device, dtype = find_device(case.device), find_dtype(case.dtype)
        model = load_model(case.model)
        if not isinstance(model, FastEGNNPotential):
            raise InputError(f"--model {case.model} is a {type(model).__name__}, no FastEGNN potential")
        model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
        self.module = switched(model, "plain")
        self.graph = water_graph(water_atoms_count(case.size), model.cutoff, dtype, case.seed).to(device)
        config = model.config
        self.shape = Shape(
            nodes=self.graph.num_nodes,
            edges=self.graph.num_edges,
            hidden=config.hidden,
            layers=config.layers,
            virtual=config.virtual_nodes,
            vectors=config.vector_channels,
            basis=config.basis,
            weights=sum(item.numel() for item in model.parameters()),
        )

    def call(self, path: str, quantity: str) -> Callable[[], Any]:
        """What is timed; a training step differentiates SiLU as training does. Raises Unavailable."""
        from egnn_md.kernels.fast_silu import use_fast_silu
        from egnn_md.models.evaluate import evaluate
        from egnn_md.training.config import LossSection
        from egnn_md.training.loss import potential_loss

        graph = self.graph
        if quantity != "step":
            model = on_path(shared(self.module), path)
            return lambda: evaluate(model, graph, forces=quantity == "forces")
        trained = copy.deepcopy(self.module).requires_grad_(True)
        if path != "compiled":
            use_fast_silu(trained)
        model, settings = on_path(trained, path), LossSection()

        def step() -> Any:
            model.zero_grad(set_to_none=True)
            loss = potential_loss(evaluate(model, graph, training=True), graph, settings)["loss"]
            loss.backward()
            return loss

        return step


Work = PublishedWork | PotentialWork


def make_work(case: Case) -> Work:
    """Network and input of a case.

    Raises:
        InputError: an unknown size, a device that is not there, a model that is none.
        ModelFileError: the model cannot be read.
    """
    return PotentialWork(case) if case.network == "potential" else PublishedWork(case)


def published_shape(case: Case, module: nn.Module | None = None) -> Shape:
    """Sizes of a cloud's case, known without making it."""
    size = cloud_size(case.size)
    config = network_config(size, case.hidden, case.layers, case.virtual_nodes)
    return Shape(
        nodes=size.nodes * size.graphs,
        edges=size.edges * size.graphs,
        graphs=size.graphs,
        hidden=case.hidden,
        layers=case.layers,
        virtual=case.virtual_nodes,
        edge_features=config.edge_features,
        node_features=config.node_features,
        weights=0 if module is None else sum(item.numel() for item in module.parameters()),
    )


def expected_shape(case: Case) -> Shape:
    """Sizes of any case before anything of it is made: a box's pairs come from its density (0.1 atoms per Å³)."""
    if case.network == "published":
        return published_shape(case)
    from egnn_md.checkpoint import read_header

    header = read_header(case.model)
    config = header["config"]
    atoms = water_atoms_count(case.size)
    return Shape(
        nodes=atoms,
        edges=int(atoms * 0.1 * 4.19 * config["cutoff"] ** 3),
        hidden=config["hidden"],
        layers=config["layers"],
        virtual=config["virtual_nodes"],
        vectors=config["vector_channels"],
        basis=config["basis"],
    )
