"""The Triton kernels of the smooth network against plain torch, and compiled for an H100.

As in test_kernels_triton.py (values and gradients in Triton's interpreter) and test_kernels_triton_compile.py, child
processes do it: one with TRITON_INTERPRET set from its start, one without. Run as a script, the file is a child.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from test_kernels_triton import COARSE, SINGLE, TOLERANCE, Numbers, Reference

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

TIMEOUT = 300
COMPILE_TIMEOUT = 900
#: of an H100, a block of threads
SHARED_MEMORY = 227 * 1024
#: bytes a thread may keep in memory for want of registers: at the shipped sizes, which blocks are chosen for, elsewhere
SPILL_CHOSEN, SPILL = 512, 2048

SMOOTH_CASES: dict[str, dict[str, Any]] = {
    "odd": {"hidden": 7},
    "shipped": {"hidden": 64, "basis": 8, "count": 8},
    "one-of-each": {"hidden": 1, "basis": 1, "count": 1},
    "most": {"hidden": 64, "basis": 32, "count": 32, "nodes": 5, "edges": 40},
    "hidden-100": {"hidden": 100, "nodes": 4, "edges": 40},
    "hidden-256": {"hidden": 256, "nodes": 4, "edges": 8},
    "many-edges": {"nodes": 5, "edges": 150},
    "few-edges": {"nodes": 40, "edges": 20},
    "one-node": {"nodes": 1, "edges": 0},
    "one-node-images": {"nodes": 1, "edges": 6},
    "no-edges": {"edges": 0},
    "no-nodes": {"nodes": 0, "edges": 0},
    "strided": {"strided": True},
    "forces-only": {"need": False},
    "forces-only-wide": {"need": False, "hidden": 100, "nodes": 4, "edges": 8},
}
RADIAL_CASES: dict[str, dict[str, Any]] = {
    "shipped": {"basis": 8},
    "odd": {"basis": 5, "cutoff": 5.3},
    "one": {"basis": 1},
    "most": {"basis": 32},
    "short": {"cutoff": 0.7, "scale": 0.3},
    "beyond": {"scale": 50.0},
    "no-edges": {"edges": 0},
    "one-edge": {"edges": 1},
}
NAMES = [
    *(f"smooth/{name}/{layer}/{dtype}" for name in SMOOTH_CASES for layer in ("first", "later") for dtype in TOLERANCE),
    *(f"radial/{name}/{dtype}" for name in RADIAL_CASES for dtype in TOLERANCE),
]
INPUTS = "unit radial a b vectors radial_map geometry_map w2 b2 filter_map vector_map"


def drawn(
    numbers: Numbers, *, nodes: int = 12, edges: int = 60, hidden: int = 16, basis: int = 5, count: int = 3,
    first: bool = False,
) -> tuple[list[Any], list[Any]]:  # fmt: skip
    """The kernels' tensors; receivers, row_start and senders. The last receivers have no edges."""
    receivers = numbers.index(nodes - 2, edges).sort().values
    scale = hidden**-0.5
    tensors = [
        numbers(edges, 3), numbers(edges, basis), numbers(nodes, hidden), numbers(nodes, hidden),
        None if first else numbers(nodes, 3, count), numbers(basis, hidden, scale=0.3),
        None if first else numbers(3 * count, hidden, scale=0.2), numbers(hidden, hidden, scale=scale),
        numbers(hidden), numbers(basis, hidden), numbers(count if first else 2 * count, hidden, scale=scale),
    ]  # fmt: skip
    return tensors, [receivers, torch.searchsorted(receivers, torch.arange(nodes + 1)), numbers.index(nodes, edges)]


def smooth_case(
    dtype: torch.dtype, precision: str = "ieee", *, strided: bool = False, need: bool = True, **sizes: Any
) -> dict[str, float]:
    from egnn_md.kernels.plain import smooth_messages
    from egnn_md.kernels.triton_smooth import smooth_backward, smooth_forward

    tensors, (receivers, row_start, senders) = drawn(Numbers(dtype), **sizes)
    expected = Reference(smooth_messages, tensors, [receivers, senders])
    given = [gradient.to(dtype) for gradient in expected.gradients]
    if strided:
        tensors = [None if t is None else t.detach().t().contiguous().t() if t.dim() == 2 else t for t in tensors]
        given = [torch.stack([g, g], -1)[..., 0] for g in given]
    ours = smooth_forward(*tensors, row_start, senders, precision)
    back = smooth_backward(*given, *tensors, row_start, senders, need, precision)
    maps = tuple(INPUTS.split()[5:])
    errors = expected.errors(f"step pooled {INPUTS}", [*ours, *back], () if need else maps)
    alone = row_start[1:] == row_start[:-1]
    errors["empty receivers"] = float(ours[0][alone].abs().sum() + ours[1][alone].abs().sum())
    return errors


def radial_case(
    dtype: torch.dtype, *, edges: int = 300, basis: int = 8, cutoff: float = 5.0, scale: float = 2.0
) -> dict[str, float]:
    from egnn_md.kernels.plain import radial_functions
    from egnn_md.kernels.triton_radial import radial_backward, radial_forward

    pair = Numbers(dtype)(edges, 3, scale=scale)
    expected = Reference(radial_functions, [pair], [basis, cutoff])
    given = [gradient.to(dtype) for gradient in expected.gradients]
    ours = radial_forward(pair, basis, cutoff)
    errors = expected.errors("unit radial pair", [*ours, radial_backward(*given, pair, basis, cutoff)], ())
    outside = pair.detach().norm(dim=1) > cutoff
    unlit = radial_backward(torch.zeros_like(given[0]), given[1], pair, basis, cutoff)[outside]
    errors["beyond the cutoff"] = float(ours[1][outside].abs().sum() + unlit.abs().sum())
    return errors


def refusals() -> dict[str, str]:
    """Messages of the errors for what the kernels cannot serve."""
    from egnn_md.errors import InputError
    from egnn_md.kernels.triton_radial import radial_backward, radial_forward
    from egnn_md.kernels.triton_smooth import smooth_backward, smooth_forward

    messages = {}

    def attempt(name: str, function: Any, *args: Any) -> None:
        try:
            function(*args)
        except InputError as error:
            messages[name] = str(error)

    tensors, (_, row_start, senders) = drawn(Numbers(torch.float32))
    changes = {
        "one-none": (4, None), "w2": (7, torch.zeros(16, 8)), "type": (9, tensors[9].double()),
        "unit": (0, torch.zeros(59, 3)), "vectors": (4, torch.zeros(12, 3, 4)),
    }  # fmt: skip
    for name, (place, value) in changes.items():
        attempt(name, smooth_forward, *tensors[:place], value, *tensors[place + 1 :], row_start, senders)
    attempt("senders", smooth_forward, *tensors, row_start, senders.int())
    attempt("grad_step", smooth_backward, torch.zeros(12, 3, 2), tensors[2], *tensors, row_start, senders, True)
    many = drawn(Numbers(torch.float32), count=33)[0]
    attempt("count", smooth_forward, *many, row_start, senders)
    pair = torch.ones(4, 3)
    attempt("pair", radial_forward, torch.ones(4, 2), 8, 5.0)
    attempt("basis", radial_forward, pair, 33, 5.0)
    attempt("cutoff", radial_forward, pair, 8, 0.0)
    attempt("g_radial", radial_backward, pair, torch.ones(4, 7), pair, 8, 5.0)
    return messages


def interpreted() -> dict[str, Any]:
    errors = {}
    for name in NAMES:
        kind, case, *layer, dtype = name.split("/")
        if kind == "smooth":
            errors[name] = smooth_case(getattr(torch, dtype), first=layer == ["first"], **SMOOTH_CASES[case])
        else:
            errors[name] = radial_case(getattr(torch, dtype), **RADIAL_CASES[case])
    for precision in ("bf16", "tf32", "tf32x3"):
        errors[precision] = smooth_case(torch.float32, precision)
    return {"errors": errors, "refusals": refusals()}


def compiled(
    name: str, hidden: int = 64, precision: str = "ieee", first: bool = False, weights: bool = True, basis: int = 8,
    count: int = 8,
) -> dict[str, Any]:  # fmt: skip
    """Compile one kernel with the blocks that its host function chooses; what the assembler says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from egnn_md.kernels import triton_radial, triton_smooth
    from egnn_md.kernels.triton_common import STAGES, Blocks

    blocks = Blocks(hidden, precision, backward=name.endswith("backward"))
    if name.startswith("smooth"):
        module, warps = triton_smooth, blocks.warps
        sizes = triton_smooth.constants(hidden, basis, count, first)
        constants: dict[str, Any] = {
            **sizes, "WIDTH": blocks.width, "CHUNK": blocks.chunk, "RECEIVERS": 8, "EDGES": blocks.rows,
            "IN_REGISTERS": blocks.in_registers, "PRECISION": precision,
            "THIN_IN_REGISTERS": triton_smooth.thin_in_registers(blocks.width, sizes),
        }  # fmt: skip
    else:
        module, warps = triton_radial, triton_radial.WARPS
        constants = triton_radial.constants(basis, 5.0)
    kernel = getattr(module, f"{name}_kernel")
    absent = {"vectors", "geometry_map", "g_vectors"} if first else set()
    absent |= set() if weights else {"partial"}
    constants |= dict.fromkeys(absent)
    constants = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
    signature = {}
    for argument in kernel.arg_names:
        pointer = "*i64" if argument in ("row_start", "senders") else "*fp32"
        number = argument in ("nodes", "pairs")
        signature[argument] = "constexpr" if argument in constants else "i32" if number else pointer
    # as torch allocates them
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": STAGES},
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(made.asm["ptx"])
        said = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    return {
        "shared": made.metadata.shared,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "tensor cores": sorted(set(re.findall(r"(?:mma|wgmma)\S*\.(tf32|bf16|f16)\.", made.asm["ptx"]))),
    }


def in_child(task: list[dict[str, Any]] | None, timeout: float) -> Any:
    """What a child process gives: the kernels of ``task`` compiled, or with None all cases in the interpreter."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    with tempfile.TemporaryDirectory() as cache:
        # a fresh cache: a kernel compiled before would be taken from it
        environment.update({"TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"})
        if task is None:
            environment["TRITON_INTERPRET"] = "1"
        ran = subprocess.run(
            [sys.executable, __file__, json.dumps(task)],
            env=environment, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


@pytest.fixture(scope="module")
def results() -> dict[str, Any]:
    return in_child(None, TIMEOUT)


@pytest.mark.parametrize("name", NAMES)
def test_values_and_gradients_are_those_of_plain_torch(results: dict[str, Any], name: str) -> None:
    tolerance = TOLERANCE[name.split("/")[-1]]
    assert {tensor: error for tensor, error in results["errors"][name].items() if not error <= tolerance} == {}


def test_bfloat16_products_are_used_only_when_asked_for(results: dict[str, Any]) -> None:
    assert COARSE[0] < max(results["errors"]["bf16"].values()) < COARSE[1]


@pytest.mark.parametrize("precision", ["tf32", "tf32x3"])
def test_tf32_is_accepted(results: dict[str, Any], precision: str) -> None:
    """The interpreter multiplies exactly whatever the option: that it is heeded shows in the compiled code."""
    assert max(results["errors"][precision].values()) <= SINGLE


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("one-none", "one of vectors and geometry_map is None"),
        ("w2", "w2 is (16, 8)"),
        ("type", "filter_map is torch.float64"),
        ("unit", "unit is (59, 3)"),
        ("vectors", "vectors is (12, 3, 4)"),
        ("senders", "senders is torch.int32"),
        ("grad_step", "grad_step is (12, 3, 2)"),
        ("count", "use the plain path"),
        ("pair", "pair is (4, 2)"),
        ("basis", "use the plain path"),
        ("cutoff", "a cutoff above zero"),
        ("g_radial", "g_radial is (4, 7)"),
    ],
)
def test_what_the_kernels_cannot_serve_is_refused(results: dict[str, Any], name: str, says: str) -> None:
    assert says in results["refusals"][name]


def assert_fits(found: dict[str, Any], spill: int) -> None:
    assert found["shared"] <= SHARED_MEMORY
    assert found["spilled"] <= spill


def test_exact_float32_compiles_at_the_shipped_sizes_and_uses_no_tensor_cores() -> None:
    kernels = ("smooth_forward", "smooth_backward", "radial_forward", "radial_backward")
    found = in_child([{"name": name} for name in kernels], COMPILE_TIMEOUT)
    for one in found:
        assert_fits(one, SPILL_CHOSEN)
        assert one["tensor cores"] == []
    assert [one["spilled"] for one in found[2:]] == [0, 0]


@pytest.mark.slow
@pytest.mark.timeout(COMPILE_TIMEOUT)
@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16"])
def test_lower_precision_uses_the_tensor_cores_asked_for(precision: str) -> None:
    tasks = [{"name": name, "precision": precision} for name in ("smooth_forward", "smooth_backward")]
    for one in in_child(tasks, COMPILE_TIMEOUT):
        assert_fits(one, SPILL)
        assert one["tensor cores"] == [precision.removesuffix("x3")]


@pytest.mark.slow
@pytest.mark.timeout(COMPILE_TIMEOUT)
@pytest.mark.parametrize(
    "sizes",
    [{"hidden": 7, "basis": 5, "count": 3}, {"hidden": 128}, {"hidden": 256}, {"basis": 32, "count": 32},
     {"first": True}, {"weights": False}, {"first": True, "weights": False}, {"hidden": 128, "precision": "tf32"}],
    ids=str,
)  # fmt: skip
def test_every_size_and_layer_compiles(sizes: dict[str, Any]) -> None:
    tasks = [{"name": name, **sizes} for name in ("smooth_forward", "smooth_backward")]
    for one in in_child(tasks, COMPILE_TIMEOUT):
        assert_fits(one, SPILL)


if __name__ == "__main__":
    torch.set_num_threads(1)
    asked = json.loads(sys.argv[1])
    json.dump(interpreted() if asked is None else [compiled(**one) for one in asked], sys.stdout)
