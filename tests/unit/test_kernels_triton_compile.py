"""The Triton kernels compile for an H100, fit its memory and its registers, and use tensor cores only when asked.

No GPU is needed: the compiler is told the target. As in test_kernels_triton.py a child process does it, so that this
one never imports triton; run as a script, the file is that child and prints what it found.
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

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")

CAPABILITY = 90
#: bytes that one block of threads can have on an H100
SHARED_MEMORY = 227 * 1024
#: bytes a thread may keep in memory for want of registers (it has 1020 bytes of them): at F = 64 in exact float32 and
#: TF32, which the block sizes are chosen for, and elsewhere
SPILL_CHOSEN, SPILL = 512, 2048
TIMEOUT = 900
PASSES = ["edge_forward", "edge_backward", "virtual_forward", "virtual_backward"]
#: pointers to integers, and arguments that may be None, by name
INDICES = {"row_start", "senders", "batch"}
NUMBERS = {"nodes", "graphs", "slots"}
OPTIONS = {"shifts": "shifts", "g_shifts": "shifts", "edge_features": "features", "g_edge_features": "features",
           "gate_w": "gate", "gate_b": "gate", "partial": "weights"}  # fmt: skip


def compiled(name: str, hidden: int, precision: str, options: list[str]) -> dict[str, Any]:
    """Compile one kernel with the blocks that its host function chooses; what the assembler says of it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from egnn_md.kernels import triton_edges, triton_virtual
    from egnn_md.kernels.triton_common import STAGES, Blocks

    of_edges = name.startswith("edge")
    kernel = getattr(triton_edges if of_edges else triton_virtual, f"{name}_kernel")
    blocks = Blocks(hidden, precision, backward=name.endswith("backward"), squares=2 if of_edges else 3)
    full = "all" in options
    constants: dict[str, Any] = {
        "OFFSET": 1e-8, "HIDDEN": hidden, "WIDTH": blocks.width, "CHUNK": blocks.chunk, "RECEIVERS": 4 if full else 16,
        "EDGES": blocks.rows, "ROWS": blocks.rows, "CHANNELS": 3, "FEATURES": 2 if full else 0, "NORMALIZE": full,
        "TANH": full, "IN_REGISTERS": blocks.in_registers, "PRECISION": precision,
    }  # fmt: skip
    absent = {argument for argument, option in OPTIONS.items() if not full and option not in options}
    constants = {argument: constants[argument] for argument in kernel.arg_names if argument in constants}
    constants.update({argument: None for argument in kernel.arg_names if argument in absent})
    signature = {}
    for argument in kernel.arg_names:
        pointer = "*i64" if argument in INDICES else "*fp32"
        signature[argument] = "constexpr" if argument in constants else "i32" if argument in NUMBERS else pointer
    # as torch allocates them
    aligned = {(i,): [["tt.divisibility", 16]] for i, kind in enumerate(signature.values()) if kind.startswith("*")}
    made = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", CAPABILITY, 32),
        options={"num_warps": blocks.warps, "num_stages": STAGES},
    )
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(made.asm["ptx"])
        said = subprocess.run(
            [triton.knobs.nvidia.ptxas.path, "-v", f"--gpu-name=sm_{CAPABILITY}a", "kernel.ptx", "-o", "kernel.cubin"],
            cwd=folder, capture_output=True, text=True, check=True,
        ).stderr  # fmt: skip
    code = made.asm["ptx"]
    return {
        "cubin": len(made.asm["cubin"]),
        "shared": made.metadata.shared,
        "registers": int(re.findall(r"Used (\d+) registers", said)[0]),
        "spilled": int(re.findall(r"(\d+) bytes spill stores", said)[0]),
        "tensor cores": sorted(set(re.findall(r"(?:mma|wgmma)\S*\.(tf32|bf16|f16)\.", code))),
    }


def refusal() -> str:
    """The message for tensors on the CPU, outside the interpreter."""
    from egnn_md.errors import InputError
    from egnn_md.kernels.triton_common import check

    try:
        check(torch.zeros(2, 4), "ieee")
    except InputError as error:
        return str(error)
    return ""


def in_child(*cases: tuple[str, int, str, list[str]]) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("TRITON_")}
    with tempfile.TemporaryDirectory() as cache:
        # a fresh cache: a kernel compiled before would be taken from it
        environment.update({"TRITON_CACHE_DIR": cache, "OMP_NUM_THREADS": "1"})
        ran = subprocess.run(
            [sys.executable, __file__, json.dumps(cases)],
            env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-4000:]
    return json.loads(ran.stdout)


def assert_fits(found: dict[str, Any], spill: int) -> None:
    assert found["cubin"] > 0
    assert found["shared"] <= SHARED_MEMORY
    assert found["spilled"] <= spill


@pytest.fixture(scope="module")
def exact() -> dict[str, Any]:
    return in_child(*[(name, 64, "ieee", ["weights"]) for name in PASSES])


@pytest.mark.parametrize("name", PASSES)
def test_exact_float32_compiles_and_uses_no_tensor_cores(exact: dict[str, Any], name: str) -> None:
    found = exact[f"{name}/64/ieee/weights"]
    assert_fits(found, SPILL_CHOSEN)
    assert found["tensor cores"] == []


def test_tensors_on_the_cpu_are_refused(exact: dict[str, Any]) -> None:
    assert "use the plain path" in exact["refusal"]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("precision", ["tf32", "tf32x3", "bf16"])
def test_lower_precision_uses_the_tensor_cores_asked_for(precision: str) -> None:
    found = in_child(*[(name, 64, precision, ["weights"]) for name in PASSES])
    for name in PASSES:
        one = found[f"{name}/64/{precision}/weights"]
        assert_fits(one, SPILL_CHOSEN if precision == "tf32" else SPILL)
        assert one["tensor cores"] == [precision.removesuffix("x3")]


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("precision", ["ieee", "tf32"])
@pytest.mark.parametrize("hidden", [7, 16, 128, 256])
def test_every_size_compiles(hidden: int, precision: str) -> None:
    for one in in_child(*[(name, hidden, precision, ["weights"]) for name in PASSES]).values():
        if isinstance(one, dict):
            assert_fits(one, SPILL)


@pytest.mark.slow
@pytest.mark.timeout(TIMEOUT)
@pytest.mark.parametrize("options", [["all"], ["gate"], ["shifts", "gate", "weights"]])
def test_every_option_compiles(options: list[str]) -> None:
    for one in in_child(*[(name, 64, "ieee", options) for name in PASSES]).values():
        if isinstance(one, dict):
            assert_fits(one, SPILL)


if __name__ == "__main__":
    report: dict[str, Any] = {
        f"{name}/{hidden}/{precision}/{'+'.join(options)}": compiled(name, hidden, precision, options)
        for name, hidden, precision, options in json.loads(sys.argv[1])
    }
    json.dump({**report, "refusal": refusal()}, sys.stdout)
