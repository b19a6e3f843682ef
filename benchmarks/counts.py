"""What a network must compute and move: operations, bytes, and the two times that nothing can beat.

**Operations.** A linear map from ``i`` to ``o`` numbers of ``r`` rows is 2 r i o operations (a multiplication and an
addition each). The published network's first map of a pair, [h_i, h_j, |x_i - x_j|², e_ij] of 2F + 1 + D numbers, is a
sum of a part of i, a part of j and a part of the pair, so it *must* be done only once a particle for the first two:

    joined   2 E (2F + 1 + D) F
    split    2 · 2 N F² + 2 E (1 + D) F            joined - split = 4 (E - N) F²

and likewise for messages to virtual nodes (``N C`` of them). ``joined`` counts the published way, ``split`` the floor.
SiLU is counted as 4 operations (exponential, addition, division, product), which flatters every processor.

**Passes.** Forward: 1. Backward through a map: the gradient of its weight (2 r i o) and of those inputs that have one.
Forces: inputs that depend on positions only. A loss on forces differentiates that again: two more for each such input.
What the loss of the published network cannot see (φ_h and φ_s of the last layer) has no backward pass.

**Bytes.** Weights are read once a layer, rows of particles once (features and positions read and written, the sender's
part of the first map written and read); a pair's two indices (int64) and its features once a layer; nothing of a pair
between its two ends is stored. ``gather`` instead counts a sender's row once a pair: what moves if no row is ever found
in a cache twice. Backward reads and writes as much again for gradients, and needs the pairs' intermediates back: with
nothing stored that is ``recompute`` more operations, which is not in the floor since memory could be spent instead.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

SILU = 4
INDEX_BYTES = 8
QUANTITIES = ("forward", "forces", "step")


@dataclass(frozen=True)
class Shape:
    """Sizes of a network and of what it is called with.

    ``nodes`` N and ``edges`` E are those of all ``graphs`` G; ``hidden`` F, ``virtual`` C, ``edge_features`` D,
    ``vectors`` K and ``basis`` B (potential only: zero makes it the published network).
    """

    nodes: int
    edges: int
    graphs: int = 1
    hidden: int = 64
    layers: int = 4
    virtual: int = 3
    edge_features: int = 2
    node_features: int = 2
    vectors: int = 0
    basis: int = 0
    weights: int = 0

    @property
    def potential(self) -> bool:
        """Whether it is the smooth potential's network."""
        return self.vectors > 0


@dataclass(frozen=True)
class Map:
    """A linear map of ``rows`` rows; ``force`` and ``train``: inputs that get a gradient for forces and in training."""

    name: str
    rows: int
    inputs: int
    outputs: int
    force: int = 0
    train: int = 0
    weight: bool = True
    pair: bool = False
    needed: bool = True

    @property
    def flops(self) -> int:
        """Of the forward pass."""
        return 2 * self.rows * self.inputs * self.outputs

    def passes(self, quantity: str) -> int:
        """Operations of ``quantity``, forward included."""
        one = 2 * self.rows * self.outputs
        forces = self.flops + one * self.force
        if quantity == "forward":
            return self.flops
        if quantity == "forces":
            return forces
        return forces + one * (2 * self.force + self.train + (self.inputs if self.weight else 0))


def published_maps(shape: Shape, *, joined: bool) -> list[Map]:
    """Linear maps of the published network: all that torch does (``joined``), or all that must be done."""
    n, e, g, f, c, d = shape.nodes, shape.edges, shape.graphs, shape.hidden, shape.virtual, shape.edge_features
    nc, gc = n * c, g * c
    maps = [Map("embedding", n, shape.node_features, f)]

    def add(name: str, rows: int, inputs: int, outputs: int, train: int | None = None, **more: Any) -> None:
        maps.append(Map(name, rows, inputs, outputs, train=inputs if train is None else train, **more))

    for layer in range(shape.layers):
        first, last = layer == 0, layer == shape.layers - 1
        if joined:
            add("φ_e first", e, 2 * f + 1 + d, f, pair=True)
        else:
            add("φ_e first, of i", n, f, f)
            add("φ_e first, of j", n, f, f)
            # distances of the first layer come from the input
            add("φ_e first, of the pair", e, 1 + d, f, 0 if first else 1, pair=True)
        add("φ_e second", e, f, f, pair=True)
        add("φ_x first", e, f, f, pair=True)
        add("φ_x last", e, f, 1, pair=True)
        add("φ_vel first", n, f, f)
        add("φ_vel last", n, f, 1)
        if c:
            # Z starts as the mean of the input: no gradient in the first layer
            maps.append(Map("M", gc, 3, c, train=0 if first else 6, weight=False))
            if joined:
                add("φ_v first", nc, 2 * f + 1 + c, f, pair=True)
            else:
                add("φ_v first, of i", n, f, f)
                add("φ_v first, of c", gc, f, f)
                add("φ_v first, of M", gc, c, f, 0 if first else c)
                add("φ_v first, of the distance", nc, 1, f, 0 if first else 1, pair=True)
            add("φ_v second", nc, f, f, pair=True)
            for name in ("φ_xv", "φ_Z"):
                add(f"{name} first", nc, f, f, pair=True)
                add(f"{name} last", nc, f, 1, pair=True)
            seen = {"train": 0, "weight": False} if last else {}
            add("φ_s first", gc, 2 * f, f, **seen)
            add("φ_s last", gc, f, f, **seen)
        seen = {"train": 0, "weight": False} if last else {}
        add("φ_h first", n, (3 if c else 2) * f, f, **seen)
        add("φ_h last", n, f, f, **seen)
    return maps


def potential_maps(shape: Shape) -> list[Map]:
    """Linear maps of the smooth potential in a periodic cell; those whose result is zero there are not needed."""
    n, e, g, f, c = shape.nodes, shape.edges, shape.graphs, shape.hidden, shape.virtual
    k, b = shape.vectors, shape.basis
    nc, gc = n * c, g * c
    maps: list[Map] = []

    def add(name: str, rows: int, inputs: int, outputs: int, force: int | None = None, **more: Any) -> None:
        force = inputs if force is None else force
        more.setdefault("train", inputs)
        maps.append(Map(name, rows, inputs, outputs, force=force, **more))

    for layer in range(shape.layers):
        first = layer == 0
        of_features = 0 if first else f  # the embedding knows no positions
        add("of i", n, f, f, of_features)
        add("of j", n, f, f, of_features)
        # the radial functions have no parameters behind them
        add("of the distance", e, b, f, train=0, pair=True)
        add("filter", e, b, f, train=0, pair=True)
        if not first:
            add("of the geometry", e, 3 * k, f, pair=True)
        add("second", e, f, f, pair=True)
        add("φ_x, φ_V", e, f, k if first else 2 * k, pair=True)
        add("A, B", 3 * n, k, 2 * k)
        if c:
            add("virtual, M", gc, 3, c, 0, train=0, weight=False, needed=False)
            add("virtual, of i", n, f, f, of_features)
            add("virtual, of c", gc, f, f, of_features)
            add("virtual, of the geometry", nc, 1 + c, f, 0, train=0, needed=False)
            add("virtual, second", nc, f, f, of_features, pair=True)
            add("virtual, vectors", nc, f, k, 0, train=0, needed=False)
            add("virtual, steps of vectors", 3 * n, c, k, 0, train=0, weight=False, needed=False)
            add("virtual, places", nc, f, 1, 0, train=0, needed=False)
            add("virtual, update first", gc, 2 * f, f, 2 * of_features)
            add("virtual, update last", gc, f, f, of_features)
        add("φ_h first", n, (3 if c else 2) * f + k, f, f + k if first else None)
        add("φ_h last", n, f, f)
        add("φ_vel", n, f, k)
    add("readout first", n, f, f // 2 or 1)
    add("readout last", n, f // 2 or 1, 1)
    return maps


def linear_maps(shape: Shape, *, joined: bool = False) -> list[Map]:
    """The maps of either network."""
    return potential_maps(shape) if shape.potential else published_maps(shape, joined=joined)


def matmul_flops(maps: Iterable[Map], quantity: str = "forward") -> int:
    """Operations of the linear maps."""
    return sum(item.passes(quantity) for item in maps)


def elementwise_flops(shape: Shape) -> int:
    """All but the linear maps, forward: distances (8), sums of parts, biases, SiLU, steps, reductions."""
    f, k, b = shape.hidden, shape.vectors, shape.basis
    pairs = shape.nodes * shape.virtual
    if shape.potential:
        edge = 2 * SILU * f + 3 * f + f + f + 3 * k * (5 + 4 + 1)
        return shape.layers * (
            shape.edges * edge + pairs * (2 * SILU * f + 3 * f) + shape.nodes * (SILU * f + 4 * f)
        ) + shape.edges * (8 + 12 * b)
    edge = 8 + 3 * f + SILU * 3 * f + 2 * f + 6 + f
    virtual = 8 + 3 * f + SILU * 4 * f + 3 * f + 12 + 2 * f
    return shape.layers * (shape.edges * edge + pairs * virtual + shape.nodes * (2 * SILU * f + 6 * f))


def bytes_moved(shape: Shape, itemsize: int = 4) -> dict[str, dict[str, int]]:
    """``forward``, ``forces``, ``step`` → ``once`` and ``gather`` bytes (see the module)."""
    f, vectors = shape.hidden, 3 * shape.vectors
    # a row: features, positions (and velocities, or K displacement vectors)
    row = f + (3 + vectors if shape.potential else 6)
    sent = f + (vectors + 3 if shape.potential else 3)
    extra = 3 if shape.potential else shape.edge_features  # shifts, or e_ij
    pairs = shape.edges * (2 * INDEX_BYTES + extra * itemsize)
    nodes = shape.nodes * (2 * row + 2 * f) * itemsize
    weights = shape.weights * itemsize
    again = shape.edges * sent * itemsize - shape.nodes * sent * itemsize
    forward = shape.layers * (pairs + nodes) + weights
    # gradients of rows are read and written beside the rows, and the pairs are gone through once more
    reverse = shape.layers * (pairs + 2 * nodes)
    passes = {
        "forward": (forward, 1),
        "forces": (forward + reverse + weights, 2),
        "step": (forward + reverse + 2 * weights, 2),
    }
    if shape.potential:
        passes["step"] = (forward + 3 * reverse + 4 * weights, 4)
    return {
        name: {"once": total, "gather": total + visits * shape.layers * max(again, 0)}
        for name, (total, visits) in passes.items()
    }


def count(shape: Shape, quantity: str, itemsize: int = 4) -> dict[str, int]:
    """``flops`` that must be done, ``joined`` (as published), ``recompute``, ``bytes``, ``gather`` of ``quantity``."""
    needed = [item for item in linear_maps(shape) if item.needed]
    times = {"forward": 1, "forces": 2, "step": 6 if shape.potential else 3}[quantity]
    elementwise = elementwise_flops(shape)
    moved = bytes_moved(shape, itemsize)[quantity]
    out = {
        "flops": matmul_flops(needed, quantity) + times * elementwise,
        "recompute": 0 if quantity == "forward" else sum(item.flops for item in needed if item.pair) + elementwise,
        "bytes": moved["once"],
        "gather": moved["gather"],
    }
    if not shape.potential:
        out["joined"] = matmul_flops(published_maps(shape, joined=True), quantity) + times * elementwise
    return out


@dataclass(frozen=True)
class Peak:
    """What a machine does at best: operations a second, bytes a second."""

    name: str
    flops: float
    bandwidth: float
    source: str = "measured"


H100 = Peak("H100, float32", 67e12, 3.35e12, "stated: float32 without tensor cores, HBM3")
H100_TF32 = Peak("H100, tf32", 494e12, 3.35e12, "stated: dense tf32 on tensor cores, HBM3")
STATED = (H100, H100_TF32)


def floors(counted: dict[str, int], peaks: Iterable[Peak]) -> dict[str, dict[str, float]]:
    """Seconds below which nothing gets, by name of the peak: ``compute``, ``memory``, and ``floor``, the larger one."""
    out = {}
    for peak in peaks:
        compute, memory = counted["flops"] / peak.flops, counted["bytes"] / peak.bandwidth
        out[peak.name] = {"compute": compute, "memory": memory, "floor": max(compute, memory)}
    return out
