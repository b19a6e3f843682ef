"""Systems, models and owners of the tests that split one system, and how its parts are put together again."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from ranks import on_ranks
from torch import Tensor, nn

from egnn_md.distributed.part import communicating, part_of_graph
from egnn_md.distributed.wire import Wire
from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate, available
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import evaluate
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig
from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
from egnn_md.neighbors import neighbor_list

#: Largest difference to one process over the largest value. The parts add up the same numbers in another order, which
#: costs some units in the last place a layer: 1e-15 and 1e-6; a row that is missing or wrong shows at 1e-3 or more.
RELATIVE = {torch.float64: 1e-10, torch.float32: 1e-5}
#: A gradient that cancels to nearly nothing is compared at this part of the largest one.
CANCELS = 1e-4
CUTOFF = 3.0  # Å

Values = dict[str, Tensor]
#: Of a model, the graph or a part of it, the wire and the numbers (n,) of the particles that are here.
Work = Callable[[Any, ParticleGraph, Wire, Tensor], Values]


def _grid(count: int, spacing: float, random: torch.Generator) -> Tensor:
    """Positions (count, 3) around a cubic grid, in no order, none nearer to another than half of ``spacing``."""
    side = round(count ** (1 / 3) + 0.499)
    axis = torch.arange(side, dtype=torch.float64)
    points = torch.cartesian_prod(axis, axis, axis)[torch.randperm(side**3, generator=random)[:count]]
    return spacing * (points + 0.5 * (torch.rand(count, 3, generator=random, dtype=torch.float64) - 0.5))


def graph_of(
    positions: Tensor, cell: Tensor, pbc: Sequence[bool], cutoff: float, random: torch.Generator
) -> ParticleGraph:
    """One graph with random elements, velocities, features, attributes, edge features and labels."""
    edge_index, steps = neighbor_list(positions, cell, torch.tensor(pbc), cutoff, backend="brute")
    count, edges = len(positions), edge_index.shape[1]

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    return ParticleGraph(
        positions=positions,
        species=torch.tensor([1, 8])[torch.randint(0, 2, (count,), generator=random)],
        edge_index=edge_index,
        cell_shifts=steps,
        cell=cell[None],
        pbc=torch.tensor([list(pbc)]),
        batch=torch.zeros(count, dtype=torch.int64),
        velocities=0.3 * draw(count, 3),
        node_features=draw(count, 2),
        node_attributes=draw(count, 1),
        edge_features=draw(edges, 2),
        labels={"energy": draw(1), "forces": draw(count, 3), "stress": draw(1, 3, 3), "target": draw(count, 3)},
    ).validate()


def system(name: str, count: int = 24, cutoff: float = CUTOFF) -> ParticleGraph:
    """One of ``SYSTEMS``, float64, always the same."""
    random = torch.Generator().manual_seed(11)
    if name == "batch":  # one of them has no edges at all
        several = [graph_of(_grid(1, 2.0, random), torch.zeros(3, 3).double(), [False] * 3, cutoff, random)]
        several += [system("triclinic", 11, cutoff), system("open", 9, cutoff), system("slab", 8, cutoff)]
        return ParticleGraph.join(several)
    if name == "own-images":  # a cell smaller than the cutoff: a particle is its own neighbour, several times
        cell = torch.tensor([[2.4, 0.0, 0.0], [0.3, 2.5, 0.0], [0.0, 0.2, 2.7]]).double()
        return graph_of(_grid(4, 1.2, random), cell, [True] * 3, cutoff, random)
    if name == "no-edges":
        return graph_of(_grid(count, 4 * cutoff, random), torch.zeros(3, 3).double(), [False] * 3, cutoff, random)
    side = 2.0 * round(count ** (1 / 3) + 0.499)
    positions = _grid(count, 2.0, random) + (0.0 if name == "open" else side / 3)  # some outside of the cell
    cell = torch.diag(torch.tensor([side, side + 0.3, side + 0.6])).double()
    if name == "triclinic":
        cell = cell + torch.tensor([[0.0, 0.0, 0.0], [1.1, 0.0, 0.0], [-0.7, 0.9, 0.0]]).double()
    pbc = {"open": [False] * 3, "slab": [True, False, True]}.get(name, [True] * 3)
    return graph_of(positions, torch.zeros_like(cell) if name == "open" else cell, pbc, cutoff, random)


#: A molecule in the open, crystals, a slab, a cell with images of itself, several graphs, particles out of reach.
SYSTEMS = ("open", "orthorhombic", "triclinic", "slab", "own-images", "batch", "no-edges")


def owners(count: int, size: int, seed: int = 0) -> Tensor:
    """(N,) a rank for each particle, drawn: halos of everybody with everybody."""
    return torch.randint(0, size, (count,), generator=torch.Generator().manual_seed(seed))


def stirred(model: nn.Module, amount: float = 0.1) -> Any:
    """``model`` in float64 with weights that do something: maps that start tiny or at zero are moved away from it."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount * torch.randn_like(parameter))
    return model.double()


def potential(**changes: Any) -> FastEGNNPotential:
    """A small one, always the same."""
    torch.manual_seed(3)
    options: dict[str, Any] = {
        "elements": (1, 8),
        "atomic_energies": (-0.5, 0.7),
        "cutoff": CUTOFF,
        "hidden": 8,
        "layers": 3,
        "virtual_nodes": 2,
        "vector_channels": 2,
        "basis": 4,
        "mean_neighbors": 2.0,
    }
    return stirred(FastEGNNPotential(PotentialConfig(**{**options, **changes})), 0.3)


def propagator(**changes: Any) -> FastEGNNPropagator:
    """A small one, always the same."""
    torch.manual_seed(4)
    options: dict[str, Any] = {
        "frame_interval": 0.1,
        "stride": 0.2,
        "species": (1, 8),
        "length_scale": 1.5,
        "cutoff": CUTOFF,
        "hidden": 8,
        "layers": 2,
        "virtual_nodes": 2,
    }
    return stirred(FastEGNNPropagator(PropagatorConfig(**{**options, **changes})))


def split(
    model: nn.Module,
    graph: ParticleGraph,
    owner: Tensor,
    size: int,
    work: Work,
    *,
    mode: str = "exact",
) -> Values:
    """What ``work`` gives on all ranks together.

    Args:
        model: every rank gets a copy.
        graph: the whole.
        owner: (N,).
        size: number of ranks.
        work: what it names with a first word ``own`` has a row for every own particle, ``all`` is the same on every
            rank, ``sum`` is to be added up.
        mode: ``exact`` or ``paper``.
    """

    def rank(wire: Wire) -> tuple[Tensor, Values]:
        mine = copy.deepcopy(model)
        part, piece = part_of_graph(graph, owner, wire, mode=mode)
        with communicating(mine, part.parts):
            return part.own, work(mine, piece, wire, part.own)

    found = on_ranks(size, rank, limit=20.0)
    order = torch.argsort(torch.cat([own for own, _ in found]))
    assert len(order) == graph.num_nodes
    together: Values = {}
    for name in found[0][1]:
        values = [answer[name] for _, answer in found]
        kind = name.split()[0]
        if kind == "own":
            together[name] = torch.cat(values)[order]
        elif kind == "sum":
            together[name] = torch.stack(values).sum(0)
        else:
            assert kind == "all"
            # a decision taken from it must be the same everywhere: not only nearly so
            assert all(torch.equal(value, values[0]) for value in values), name
            together[name] = values[0]
    return together


def alone(model: nn.Module, graph: ParticleGraph, work: Work) -> Values:
    """What one process gives, with nothing of the splitting in it."""
    return work(copy.deepcopy(model), graph, Wire(), torch.arange(graph.num_nodes))


def parameter_gradients(model: nn.Module, loss: Tensor, name: str, *, keep: bool = False) -> Values:
    """Gradients of the sum of all ranks' ``loss``, each rank's share of them."""
    found = torch.autograd.grad(
        loss, list(model.parameters()), allow_unused=True, materialize_grads=True, retain_graph=keep
    )
    names = [name for name, _ in model.named_parameters()]
    return {f"sum {name} by {parameter}": gradient for parameter, gradient in zip(names, found, strict=True)}


def physics(model: Potential, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
    """Energy, energies, forces, stress."""
    found = evaluate(model, graph, forces=True, stress=True)
    return {
        "all energy": found["energy"],
        "all stress": found["stress"],
        "own energies": found["energies"],
        "own forces": found["forces"],
    }


def training(model: Potential, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
    """Parameter gradients of the energy, of losses on forces, on stress, and on energy, forces and stress."""
    found = evaluate(model, graph, forces=True, stress=True, training=True)
    labels = graph.labels
    # what has been added up is on every rank: each brings its share of it, and its own particles in full
    share = 1.0 / wire.size
    of_forces = (found["forces"] - labels["forces"]).square().sum()
    of_stress = share * (found["stress"] - labels["stress"]).square().sum()
    of_all = of_forces + share * (found["energy"] - labels["energy"]).square().sum() + of_stress
    weights = torch.linspace(1.0, 2.0, graph.num_graphs).double()
    return {
        "sum loss": of_all.detach(),
        **parameter_gradients(model, share * (weights * found["energy"]).sum(), "energy", keep=True),
        **parameter_gradients(model, found["energies"].square().sum(), "energies", keep=True),
        **parameter_gradients(model, of_forces, "forces", keep=True),
        **parameter_gradients(model, of_stress, "stress", keep=True),
        **parameter_gradients(model, of_all, "all"),
    }


def largest_difference(found: Values, expected: Values) -> tuple[float, str]:
    """Largest difference over the largest value of what it is in, in units of ``RELATIVE``, and its name."""
    assert list(found) == list(expected)
    gradients = [float(value.abs().max()) for name, value in expected.items() if " by " in name and value.numel()]
    worst = (0.0, "nothing")
    for name, value in expected.items():
        assert (found[name].shape, found[name].dtype) == (value.shape, value.dtype), name
        if value.numel() == 0:
            continue
        assert bool(torch.isfinite(value).all()), name
        assert bool(torch.isfinite(found[name]).all()), name
        difference = float((found[name] - value).abs().max())
        size = max(float(value.abs().max()), CANCELS * max(gradients) if " by " in name else 0.0)
        if difference:
            single = "float32" in name
            tolerance = RELATIVE[torch.float32 if single else torch.float64]
            worst = max(worst, (difference / size / tolerance if size else float("inf"), name))
    return worst


def assert_same(found: Values, expected: Values) -> None:
    """Equal to rounding: of single precision what is named float32, of double the rest."""
    difference, name = largest_difference(found, expected)
    assert difference <= 1.0, f"{name} differs by {difference:.1e} times what rounding may do"


def physics_and_training(model: Potential, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
    """Both."""
    return {**physics(model, graph, wire, own), **training(model, graph, wire, own)}


def each(work: Work) -> Work:
    """``work`` of every model of a ModuleDict: one group of ranks serves them all, each in its own dtype."""

    def of_all(models: nn.ModuleDict, graph: ParticleGraph, wire: Wire, own: Tensor) -> Values:
        found: Values = {}
        for kind, model in models.items():
            dtype = next((p.dtype for p in model.parameters()), torch.float64)
            for name, value in work(model, graph.to(dtype=dtype), wire, own).items():
                found[f"{name}, {kind}"] = value
        return found

    return of_all


def on_both_paths(model: nn.Module, *dtypes: torch.dtype) -> nn.ModuleDict:
    """``model`` with plain and, where there is a compiler, fused kernels, in each of ``dtypes``."""
    paths = ("plain", "fused") if available() else ("plain",)
    return nn.ModuleDict(
        {
            f"{path} {dtype}".replace("torch.", ""): accelerate(copy.deepcopy(model).to(dtype), path)
            for path in paths
            for dtype in dtypes or (torch.float64,)
        }
    )


def without_cut_edges(graph: ParticleGraph, owner: Tensor) -> ParticleGraph:
    """The graph that paper mode computes: edges between ranks are gone."""
    kept = owner[graph.edge_index[0]] == owner[graph.edge_index[1]]
    return replace(
        graph,
        edge_index=graph.edge_index[:, kept],
        cell_shifts=graph.cell_shifts[kept],
        edge_features=None if graph.edge_features is None else graph.edge_features[kept],
    )
