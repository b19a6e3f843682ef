"""Every kind of message: symmetry, the periodic rule, batches, fields, layers, edge cases, TorchScript."""

from __future__ import annotations

import itertools

import pytest
import torch

from egnn_md.errors import InputError
from egnn_md.nn import FastEGNN, FastEGNNConfig
from egnn_md.nn.perceptron import SplitPerceptron

KINDS = ("egnn", "radial-field", "continuous-filter")
#: float64 sums over tens of terms in three layers, on values of order one
TIGHT = 1e-11
#: central differences over 1e-6: their rounding is 1e-9, a lost path between the layers is 1e-5
NUMERICAL = 1e-7
LAYERS = 3


def network(messages: str = "egnn", **options: object) -> FastEGNN:
    """A small network whose coordinate maps do something: they are born near zero, symmetric by absence."""
    torch.manual_seed(3)
    settings = {"node_features": 2, "edge_features": 1, "hidden": 8, "layers": LAYERS, "fields": 2, **options}
    made = FastEGNN(FastEGNNConfig(messages=messages, **settings)).double()
    with torch.no_grad():
        for name, value in made.named_parameters():
            if "coord_mlp.2" in name or "position_mlp.2" in name:
                value.copy_(torch.randn_like(value))
    return made


def all_pairs(nodes: int, first: int = 0) -> torch.Tensor:
    pairs = list(itertools.permutations(range(first, first + nodes), 2))
    return torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T


class System:
    """Inputs of a network by name; sizes are the particles of each graph."""

    def __init__(self, *sizes: int, seed: int = 5, fields: int = 2, edges: bool = True) -> None:
        generator = torch.Generator().manual_seed(seed)
        nodes = sum(sizes)

        def draw(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.node_features, self.positions, self.velocities = draw(nodes, 2), draw(nodes, 3), draw(nodes, 3)
        starts = [sum(sizes[:i]) for i in range(len(sizes))]
        pairs = [all_pairs(n, start) for n, start in zip(sizes, starts, strict=True)]
        self.edge_index = torch.cat(pairs, 1) if edges else torch.zeros(2, 0, dtype=torch.long)
        self.batch = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        self.num_graphs = len(sizes)
        self.edge_features = draw(self.edge_index.shape[1], 1)
        self.node_attributes: torch.Tensor | None = None
        self.shifts = torch.zeros(self.edge_index.shape[1], 3, dtype=torch.float64)
        self.periodic = torch.zeros(len(sizes), dtype=torch.bool)
        self.fields = draw(nodes, 3, fields) if fields else None

    def run(self, model: torch.nn.Module, method: str = "forward") -> tuple:
        return getattr(model, method)(**vars(self))


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().abs().max()) if wanted.numel() else 0.0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [{"virtual_nodes": 3}, {"virtual_nodes": 0}, {"attention": True, "normalize": True, "tanh": True}],
    ids=["virtual", "no-virtual", "options"],
)
def test_rotation_reflection_translation(kind: str, options: dict) -> None:
    model, system = network(kind, **options), System(5, 3)
    positions, virtual, features = system.run(model)
    assert distance(positions, system.positions) > 0.05, "it moves something"
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)).double())
    turn = turn * -torch.linalg.det(turn).sign()  # a reflection too
    push = torch.tensor([3.0, -2.0, 1.0], dtype=torch.float64)
    system.positions = system.positions @ turn.T + push
    system.velocities = system.velocities @ turn.T
    system.fields = torch.einsum("de,nek->ndk", turn, system.fields)
    turned, turned_virtual, turned_features = system.run(model)
    assert distance(turned, positions @ turn.T + push) < TIGHT
    assert distance(turned_virtual, torch.einsum("de,gec->gdc", turn, virtual) + push[:, None]) < TIGHT
    assert distance(turned_features, features) < TIGHT


@pytest.mark.parametrize("kind", KINDS)
def test_another_image_of_a_particle_is_the_same_particle(kind: str) -> None:
    model, system = network(kind), System(6)
    system.periodic[0] = True
    steps, virtual, features = system.run(model, "layer_positions")
    assert distance(virtual, system.positions.mean(0)[None, :, None].expand(1, 3, 3)) < TIGHT
    lattice = torch.tensor([7.0, 0.5, -1.0], dtype=torch.float64)
    system.positions = system.positions.clone()
    system.positions[2] += lattice
    receivers, senders = system.edge_index
    # x_i - x_j + shift is what it was
    system.shifts = (senders == 2).double()[:, None] * lattice - (receivers == 2).double()[:, None] * lattice
    moved = torch.zeros_like(system.positions)
    moved[2] = lattice
    other_steps, _, other_features = system.run(model, "layer_positions")
    for step, other in zip(steps, other_steps, strict=True):
        assert distance(other, step + moved) < TIGHT
    assert distance(other_features, features) < TIGHT
    system.periodic[0] = False
    opened, _, _ = system.run(model)
    assert distance(opened, steps[-1] + moved) > 1e-3, "in an open graph the virtual nodes must notice"


@pytest.mark.parametrize("kind", KINDS)
def test_periodic_virtual_nodes_carry_features_and_nothing_else(kind: str) -> None:
    """Without edges: what one particle is reaches the others' features; where it is and goes reaches nobody."""
    model, system = network(kind), System(4, edges=False)
    system.periodic[0] = True
    positions, _, features = system.run(model)
    system.positions, system.velocities = system.positions.clone(), system.velocities.clone()
    system.positions[0] += 1.5
    system.velocities[0] += 1.0  # moves the centre of mass between the layers
    elsewhere, _, same_features = system.run(model)
    assert distance(elsewhere[1:], positions[1:]) < TIGHT
    assert distance(same_features, features) < TIGHT
    if kind == "radial-field":
        return  # no features are exchanged
    system.node_features = system.node_features.clone()
    system.node_features[0] += 1.0
    _, _, after = system.run(model)
    assert distance(after[1:], features[1:]) > 1e-6


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_its_graphs(kind: str) -> None:
    model, together = network(kind), System(4, 1, 5)
    together.periodic = torch.tensor([False, False, True])
    positions, virtual, features = together.run(model)
    start = edge = 0
    for graph, size in enumerate((4, 1, 5)):
        alone, pairs = System(size), size * (size - 1)
        rows, edges = slice(start, start + size), slice(edge, edge + pairs)
        for name in ("node_features", "positions", "velocities", "fields"):
            setattr(alone, name, getattr(together, name)[rows])
        alone.edge_features, alone.periodic = together.edge_features[edges], together.periodic[graph : graph + 1]
        own_positions, own_virtual, own_features = alone.run(model)
        assert distance(positions[rows], own_positions) < TIGHT
        assert distance(virtual[graph], own_virtual[0]) < TIGHT
        assert distance(features[rows], own_features) < TIGHT
        start, edge = start + size, edge + pairs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [0, 2])
def test_scripted_is_eager_and_forward_is_the_last_layer(kind: str, channels: int) -> None:
    model = network(kind, virtual_nodes=channels, node_attributes=1, attention=True)
    scripted = torch.jit.script(model)
    system = System(4, 3)
    system.node_attributes = torch.linspace(-1, 1, 7).double()[:, None]
    system.periodic = torch.tensor([True, False])
    outputs, again = system.run(model), system.run(scripted)
    for value, other in zip(outputs, again, strict=True):
        assert distance(value, other) < TIGHT
    steps, virtual, features = system.run(scripted, "layer_positions")
    assert len(steps) == LAYERS
    assert distance(steps[0], steps[-1]) > 0
    for value, other in zip(outputs, (steps[-1], virtual, features), strict=True):
        assert distance(value, other) < TIGHT


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [0, 3])
def test_gradients_are_finite_and_right(kind: str, channels: int) -> None:
    """Against finite differences, to second order: the in-place sums must not spoil what autograd keeps."""
    model, system = network(kind, virtual_nodes=channels, hidden=4, layers=2), System(3)

    def predicted(positions: torch.Tensor, edge_features: torch.Tensor, fields: torch.Tensor) -> torch.Tensor:
        system.positions, system.edge_features, system.fields = positions, edge_features, fields
        return system.run(model)[0]

    inputs = tuple(
        value.clone().requires_grad_() for value in (system.positions, system.edge_features, system.fields)
    )
    assert torch.autograd.gradcheck(predicted, inputs, atol=NUMERICAL, fast_mode=True)
    assert torch.autograd.gradgradcheck(predicted, inputs, atol=NUMERICAL, fast_mode=True)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["one particle", "no edges", "same place"])
def test_edge_cases_stay_finite(kind: str, case: str) -> None:
    model = network(kind)
    system = System(1) if case == "one particle" else System(3, edges=case != "no edges")
    if case == "same place":
        system.positions[1] = system.positions[0]
    system.velocities.zero_()
    for value in (system.positions, system.velocities):
        value.requires_grad_()
    positions, virtual, features = system.run(model)
    (positions.sum() + virtual.sum() + features.sum()).backward()
    for value in (positions, virtual, features, system.positions.grad, system.velocities.grad):
        assert torch.isfinite(value).all()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_fields_push_by_their_map() -> None:
    """φ_f set to the constants (2, -1): every layer adds 2 f_i1 - f_i2."""
    model, system = network(), System(4)
    without = network(fields=0)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if "field_mlp" not in k})
    for layer in model.layers:
        torch.nn.init.zeros_(layer.field_mlp[2].weight)
        layer.field_mlp[2].bias.data = torch.tensor([2.0, -1.0], dtype=torch.float64)
    first = system.run(model, "layer_positions")[0][0]
    push = 2 * system.fields[:, :, 0] - system.fields[:, :, 1]
    fields, system.fields = system.fields, None
    assert distance(first, system.run(without, "layer_positions")[0][0] + push) < TIGHT
    with pytest.raises(InputError, match="has 2 fields a particle, got 0"):
        system.run(model)
    system.fields = fields[:, :, :1]
    with pytest.raises(InputError, match="has 2 fields a particle, got 1"):
        system.run(model)
    with pytest.raises(InputError, match="has 0 fields a particle, got 1"):
        system.run(without)


@pytest.mark.parametrize("kind", ["radial-field", "continuous-filter"])
def test_baseline_layers_by_hand(kind: str) -> None:
    """One layer as its equations say, edge by edge."""
    model, system = network(kind, layers=1, virtual_nodes=0, fields=0), System(4, fields=0)
    # who receives and who sends are not the same: particle 0 receives one edge and sends three
    system.edge_index, system.shifts = system.edge_index[:, 2:], system.shifts[2:]
    system.edge_features = system.edge_features[2:]
    found, _, features = system.run(model)
    layer, h = model.layers[0], model.embedding(system.node_features)
    pooled = torch.zeros_like(h)
    for i in range(4):
        x, v = system.positions[i], system.velocities[i]
        own = [e for e in range(system.edge_index.shape[1]) if int(system.edge_index[0, e]) == i]
        moved = x.clone()
        for e in own:
            j, extra = int(system.edge_index[1, e]), system.edge_features[e]
            other = system.positions[j]
            if kind == "radial-field":
                scale = layer.coord_mlp(torch.stack([(x - other) @ (x - other), extra[0]]))
                assert abs(float(scale)) < 1, "bounded by the Tanh"
            else:
                message = layer.sender_map.weight @ h[j] * layer.filter_mlp(torch.stack([(x - other).norm(), extra[0]]))
                scale = layer.coord_mlp(message)
                pooled[i] = pooled[i] + message / len(own)
            moved = moved + (x - other) * scale / len(own)
        read = v.norm().reshape(1) if kind == "radial-field" else h[i]
        assert distance(found[i], moved + layer.velocity_mlp(read) * v) < TIGHT
    wanted = h if kind == "radial-field" else h + layer.node_mlp(torch.cat([h, pooled], 1))
    assert distance(features, wanted) < TIGHT


def test_split_perceptron_is_the_perceptron_of_the_joined_input() -> None:
    torch.manual_seed(0)
    split = SplitPerceptron(6, 2).double()
    a, b, geometry = torch.randn(5, 6).double(), torch.randn(5, 6).double(), torch.randn(5, 2).double()
    silu = torch.nn.functional.silu
    wanted = silu(split.second(silu(split.first(torch.cat([a, b, geometry], 1)))))
    assert distance(split(split.part_a(a) + split.part_b(b) + geometry @ split.geometry_map()), wanted) < 1e-14
