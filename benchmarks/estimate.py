"""Peak memory of a path, estimated before it is tried: numbers that stand beside each other, a pair and a particle.

``F`` is the hidden size. The numbers were counted in the code of each path and held against measured peaks; they are
meant to be near, and a little high.
"""

from __future__ import annotations

from egnn_md_benchmarks.counts import Shape


def peak_bytes(shape: Shape, path: str, quantity: str, itemsize: int = 4) -> int:
    """Bytes above inputs and weights.

    Args:
        shape: of network and input.
        path: of :data:`egnn_md_benchmarks.paths.PATHS`.
        quantity: ``forward``, ``forces`` or ``step``.
        itemsize: bytes of a number.
    """
    f, k, b = shape.hidden, shape.vectors, shape.basis
    pairs = shape.nodes * max(shape.virtual, 1)
    layers = shape.layers
    if path.startswith("fused"):
        kept = 1 if quantity == "forward" else layers
        times = {"forward": 1, "forces": 2, "step": 6 if shape.potential else 1}[quantity]
        edge, virtual = (2 * b + 12 if shape.potential else 8 if quantity == "forward" else 40), 2 * f
        return times * itemsize * (shape.edges * edge + kept * (pairs * virtual + shape.nodes * 12 * f))
    if shape.potential:
        once, saved = 4 * f + 16 * k + 6 * b, 5 * f + 20 * k + 4 * b
        edge = {"forward": once, "forces": layers * saved + 4 * f, "step": 11 * layers * saved // 3}[quantity]
        node = {"forward": 8 * f, "forces": layers * 16 * f, "step": layers * 48 * f}[quantity]
        return itemsize * (shape.edges * edge + (pairs + shape.nodes) * node)
    joined = path == "published"
    if quantity == "forward":
        edge, virtual = (8 * f + 32, 8 * f) if joined else (4 * f + 16, 5 * f)
        return itemsize * (shape.edges * edge + pairs * virtual + shape.nodes * 8 * f)
    edge, virtual, during = (9 * f + 16, 14 * f, 6 * f) if joined else (6 * f + 28, 11 * f, 4 * f)
    return itemsize * (layers * (shape.edges * edge + pairs * virtual + shape.nodes * 14 * f) + shape.edges * during)
