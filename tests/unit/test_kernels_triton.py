"""The Triton kernels against plain torch, value and gradient, in Triton's interpreter on the CPU.

Triton reads TRITON_INTERPRET when a kernel is decorated, so all cases run in one child process that has it set from
its start, and this process never imports triton. Run as a script, the file is that child: it prints the errors.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

#: of the largest magnitude of the tensor compared. Sums of up to some hundred terms in float64, a few hundred ulps
DOUBLE = 1e-11
#: float32 against float64 plain torch on the same numbers: eight ulps of the largest element ...
SINGLE = 1e-6
#: ... and this many times the error of plain torch in float32: sums that cancel lose digits by any path
OWN = 3.0
#: bfloat16 keeps 8 bits of an operand, rounded errors of 2e-3 through three maps
COARSE = (1e-4, 1e-1)
TIMEOUT = 300
TOLERANCE = {"float64": DOUBLE, "float32": SINGLE}

EDGE_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "shifts": {"shifts": True},
    "features-1": {"features": 1},
    "features-3-shifts": {"features": 3, "shifts": True},
    "gate": {"gate": True},
    "tanh": {"tanh": True},
    "small-tanh": {"tanh": True, "last": 1e-3},
    "normalize": {"normalize": True, "shifts": True},
    "all": {"gate": True, "tanh": True, "normalize": True, "shifts": True, "features": 2},
    "hidden-1": {"hidden": 1, "gate": True},
    "hidden-7": {"hidden": 7, "gate": True, "features": 1},
    "hidden-64": {"hidden": 64, "gate": True},
    "hidden-100": {"hidden": 100, "edges": 20},
    "hidden-256": {"hidden": 256, "nodes": 5, "edges": 20},
    "many-edges": {"nodes": 5, "edges": 400},
    "few-edges": {"nodes": 70, "edges": 30},
    "one-node": {"nodes": 1, "edges": 0},
    "one-node-images": {"nodes": 1, "edges": 6, "shifts": True},
    "no-edges": {"edges": 0, "features": 1, "shifts": True},
    "no-nodes": {"nodes": 0, "edges": 0},
    "no-feature-columns": {"features": 0},
    "forces-only": {"need": False, "gate": True, "features": 1, "shifts": True},
}
VIRTUAL_CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "gate": {"gate": True},
    "tanh": {"tanh": True},
    "one-channel": {"channels": 1, "graphs": 1},
    "graphs": {"graphs": 4, "nodes": 70},
    "shuffled": {"graphs": 4, "nodes": 70, "shuffled": True, "gate": True},
    "shared-slot": {"graphs": 2, "nodes": 70, "slot_bytes": 1},
    "graph-without-particles": {"graphs": 3, "used": 2},
    "periodic": {"graphs": 1, "is_open": [0.0], "gate": True, "tanh": True},
    "mixed": {"graphs": 3, "is_open": [1.0, 0.0, 1.0], "nodes": 20},
    "coincident": {"coincident": True},
    "hidden-7": {"hidden": 7, "graphs": 2, "gate": True},
    "hidden-64": {"hidden": 64},
    "hidden-100": {"hidden": 100, "gate": True, "nodes": 6, "channels": 2},
    "one-node": {"nodes": 1},
    "no-nodes": {"nodes": 0},
    "forces-only": {"need": False, "gate": True},
}
KINDS = {"edge": EDGE_CASES, "virtual": VIRTUAL_CASES}
NAMES = [f"{kind}/{name}/{dtype}" for kind, cases in KINDS.items() for name in cases for dtype in TOLERANCE]


class Numbers:
    """Random tensors that need gradients; float32 values exactly, whatever the type, so that types can be compared."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.generator = torch.Generator().manual_seed(5)
        self.dtype = dtype

    def __call__(self, *shape: int, scale: float = 1.0) -> Tensor:
        drawn = torch.randn(shape, generator=self.generator) * scale
        return drawn.to(self.dtype).requires_grad_()

    def index(self, high: int, size: int) -> Tensor:
        return torch.randint(0, max(high, 1), (size,), generator=self.generator)


def map_weights(numbers: Numbers, hidden: int, last: float = 1.0) -> list[Tensor]:
    """Two biased maps' worth of weights ending in a vector: F × F, F, F."""
    scale = hidden**-0.5
    return [numbers(hidden, hidden, scale=scale), numbers(hidden), numbers(hidden, scale=scale * last)]


def message_weights(numbers: Numbers, hidden: int, gate: bool) -> list[Tensor | None]:
    weight, bias, gate_w = map_weights(numbers, hidden)
    return [weight, bias, gate_w if gate else None, numbers(1) if gate else None]


def relative(ours: Tensor | None, theirs: Tensor | None) -> float:
    """Largest difference, as a fraction of the largest magnitude; infinite where shape or absence differ."""
    if ours is None or theirs is None:
        return 0.0 if ours is theirs else float("inf")
    if ours.shape != theirs.shape or not bool(ours.isfinite().all()):
        return float("inf")
    if ours.numel() == 0:
        return 0.0
    ours, theirs = ours.detach(), theirs.detach()
    largest = float(theirs.abs().max())
    return float((ours.double() - theirs.double()).abs().max()) / (largest if largest > 0 else 1.0)


class Reference:
    """What plain torch gives for the same numbers.

    ``outputs``, random ``gradients`` of them and the ``inputs``' gradients in float64; ``own``, the errors of plain
    torch in float32, in the order of outputs and inputs.
    """

    def __init__(self, function: Any, inputs: list[Tensor | None], rest: list[Any]) -> None:
        self.gradients: list[Tensor] = []
        self.outputs, self.inputs = self._run(function, inputs, rest, torch.float64)
        rough = self._run(function, inputs, rest, torch.float32)
        self.own = [relative(x, y) for i, exact in enumerate((self.outputs, self.inputs))
                    for x, y in zip(rough[i], exact, strict=True)]  # fmt: skip

    def _run(self, function: Any, inputs: list[Tensor | None], rest: list[Any], dtype: torch.dtype) -> Any:
        given = [None if t is None else t.detach().to(dtype).requires_grad_(t.requires_grad) for t in inputs]
        outputs = function(*given, *rest)
        if not self.gradients:
            generator = torch.Generator().manual_seed(6)
            self.gradients = [torch.randn(output.shape, generator=generator) for output in outputs]
        wanted = [t for t in given if t is not None and t.requires_grad]
        into = [gradient.to(dtype) for gradient in self.gradients]
        found = iter(torch.autograd.grad(outputs, wanted, into, allow_unused=True, materialize_grads=True))
        return list(outputs), [None if t is None or not t.requires_grad else next(found) for t in given]

    def errors(self, names: str, ours: list[Tensor | None], skipped: tuple[str, ...]) -> dict[str, float]:
        """Error of each output and gradient by name; ``skipped`` ones must be None. float32's lose what is granted."""
        found = {}
        for name, mine, theirs, own in zip(names.split(), ours, self.outputs + self.inputs, self.own, strict=True):
            error = relative(mine, None if name in skipped else theirs)
            single = mine is not None and mine.dtype == torch.float32
            found[name] = max(0.0, error - OWN * own) if single else error
        return found


def edge_case(
    dtype: torch.dtype, precision: str = "ieee", *, nodes: int = 12, edges: int = 60, hidden: int = 16,
    features: int | None = None, shifts: bool = False, gate: bool = False, tanh: bool = False,
    normalize: bool = False, last: float = 1.0, need: bool = True,
) -> dict[str, float]:  # fmt: skip
    from egnn_md.kernels.plain import edge_messages
    from egnn_md.kernels.triton_edges import edge_backward, edge_forward

    numbers = Numbers(dtype)
    # the last receivers have no edges
    receivers = numbers.index(nodes - 2, edges).sort().values
    senders = numbers.index(nodes, edges)
    row_start = torch.searchsorted(receivers, torch.arange(nodes + 1))
    inputs = [numbers(nodes, 3), numbers(edges, 3) if shifts else None, numbers(nodes, hidden), numbers(nodes, hidden),
              None if features is None else numbers(edges, features), numbers(1 + (features or 0), hidden, scale=0.3),
              *message_weights(numbers, hidden, gate), *map_weights(numbers, hidden, last)]  # fmt: skip
    rest = [normalize, tanh]
    expected = Reference(edge_messages, inputs, [receivers, senders, *rest])
    given = [gradient.to(dtype) for gradient in expected.gradients]
    ours = edge_forward(*inputs, row_start, senders, *rest, precision)
    back = edge_backward(*given, *inputs, row_start, senders, *rest, need, need, need, precision)
    names = "step pooled positions shifts a b edge_features geometry_map w2 b2 gate_w gate_b w3 b3 w4"
    optional = tuple(name for name in names.split()[3:] if name not in ("a", "b"))
    errors = expected.errors(names, [*ours, *back], () if need else optional)
    alone = row_start[1:] == row_start[:-1]
    errors["empty receivers"] = float(ours[0][alone].abs().sum() + ours[1][alone].abs().sum())
    return errors


def virtual_case(
    dtype: torch.dtype, precision: str = "ieee", *, nodes: int = 12, graphs: int = 2, used: int | None = None,
    channels: int = 3, hidden: int = 16, gate: bool = False, tanh: bool = False, is_open: list[float] | None = None,
    shuffled: bool = False, coincident: bool = False, slot_bytes: int | None = None, need: bool = True,
) -> dict[str, float]:  # fmt: skip
    from egnn_md.kernels import triton_virtual
    from egnn_md.kernels.plain import virtual_messages

    numbers = Numbers(dtype)
    batch = numbers.index(used or graphs, nodes)
    batch = batch if shuffled else batch.sort().values
    opened = torch.ones(graphs) if is_open is None else torch.tensor(is_open)
    inputs = [numbers(nodes, 3), numbers(graphs, channels, 3), opened.to(dtype), numbers(nodes, hidden),
              numbers(graphs, channels, hidden), numbers(hidden), *message_weights(numbers, hidden, gate),
              *map_weights(numbers, hidden), *map_weights(numbers, hidden)]  # fmt: skip
    if coincident:
        with torch.no_grad():
            inputs[1][batch[0], 1] = inputs[0][0]
    expected = Reference(virtual_messages, inputs, [batch, tanh])
    given = [gradient.to(dtype) for gradient in expected.gradients]
    limit = triton_virtual.SLOT_BYTES
    triton_virtual.SLOT_BYTES = limit if slot_bytes is None else slot_bytes
    try:
        ours = triton_virtual.virtual_forward(*inputs, batch, tanh, precision)
        back = list(triton_virtual.virtual_backward(*given, *inputs, batch, tanh, need, precision))
    finally:
        triton_virtual.SLOT_BYTES = limit
    back.insert(2, None)
    names = ("step pooled virtual message positions places is_open a of_virtual distance_map w2 b2 gate_w gate_b "
             "w3 b3 w4 w5 b5 w6")  # fmt: skip
    return expected.errors(names, [*ours, *back], () if need else tuple(names.split()[9:]))


def refusals() -> dict[str, str]:
    """Messages of the errors for what the kernels cannot serve."""
    from egnn_md.errors import InputError
    from egnn_md.kernels.triton_common import check
    from egnn_md.kernels.triton_edges import edge_forward

    ones = {"hidden": torch.zeros(2, 257), "precision": torch.zeros(2, 4), "double": torch.zeros(2, 4).double()}
    messages = {}
    for name, a in ones.items():
        try:
            check(a, "fp8" if name == "precision" else "tf32")
        except InputError as error:
            messages[name] = str(error)
    vector, square, index = torch.zeros(4), torch.zeros(4, 4), torch.zeros(3, dtype=torch.long)
    weights = [square, vector, None, None, square, vector, vector]
    for name, shifts, senders in (("shifts", torch.zeros(1, 3), index), ("senders", None, index.int())):
        try:
            edge_forward(torch.zeros(2, 3), shifts, torch.zeros(2, 4), torch.zeros(2, 4), None, vector[None], *weights,
                         index, senders, False, False)  # fmt: skip
        except InputError as error:
            messages[name] = str(error)
    return messages


def child() -> None:
    torch.set_num_threads(1)
    runs = {"edge": edge_case, "virtual": virtual_case}
    errors = {}
    for name in NAMES:
        kind, case, dtype = name.split("/")
        errors[name] = runs[kind](getattr(torch, dtype), **KINDS[kind][case])
    for kind, run in runs.items():
        for precision in ("bf16", "tf32", "tf32x3"):
            errors[f"{kind}/{precision}"] = run(torch.float32, precision, gate=True)
    json.dump({"errors": errors, "refusals": refusals()}, sys.stdout)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    ran = subprocess.run(
        [sys.executable, __file__], env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_plain_torch(results: dict[str, Any], name: str) -> None:
    tolerance = TOLERANCE[name.split("/")[-1]]
    assert {tensor: error for tensor, error in results["errors"][name].items() if not error <= tolerance} == {}


@pytest.mark.parametrize("kind", KINDS)
def test_bfloat16_products_are_used_only_when_asked_for(results: dict[str, Any], kind: str) -> None:
    worst = max(results["errors"][f"{kind}/bf16"].values())
    assert COARSE[0] < worst < COARSE[1]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
@pytest.mark.parametrize("kind", KINDS)
def test_tf32_is_accepted(results: dict[str, Any], kind: str, precision: str) -> None:
    """The interpreter multiplies exactly whatever the option: that it is heeded shows in the compiled code."""
    assert max(results["errors"][f"{kind}/{precision}"].values()) <= SINGLE


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("hidden", "use the plain path"),
        ("precision", "choose one of ieee"),
        ("double", "use the plain path"),
        ("shifts", "shifts is (1, 3)"),
        ("senders", "senders is torch.int32"),
    ],
)
def test_what_the_kernels_cannot_serve_is_refused_with_a_remedy(
    results: dict[str, Any], name: str, says: str
) -> None:
    assert says in results["refusals"][name]


if __name__ == "__main__":
    child()
