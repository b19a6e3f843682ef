"""Both devices' kernels take the operators' arguments alike: Triton's (in its interpreter) and the compiled ones."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest

from egnn_md.kernels import available

SCRIPT = """
import json, torch
from tests.unit.kernel_cases import edge_case, radial_case, smooth_case, virtual_case
from egnn_md.kernels import native_calls, ops, triton_calls

f64 = torch.float64
cases = {
    "edge_messages": edge_case(f64, nodes=10, edges=30, hidden=16, gate=True, shifts=True, normalize=True, tanh=True),
    "virtual_messages": virtual_case(f64, nodes=9, channels=2, graphs=2, hidden=16, gate=True, periodic=(1,)),
    "smooth_messages": smooth_case(f64, nodes=8, edges=20, hidden=16, basis=3, vectors=2),
    "radial_functions": radial_case(f64, edges=12),
}
seen = {}
for name in cases:
    def spy(tensors, *rest, name=name, forward=getattr(native_calls, name + "_forward")):
        seen[name] = (tensors, rest)
        return forward(tensors, *rest)
    setattr(native_calls, name + "_forward", spy)
worst = {}
for fused in ops.ALL:
    case = cases[fused.name]
    values = case.fused(*case.tensors)
    tensors, rest = seen[fused.name]
    found = getattr(triton_calls, fused.name + "_forward")(tensors, *rest)
    gradients = [torch.randn_like(value) for value in values]
    needs = [t is not None and not name.startswith("is_open") for name, t in zip(fused.variables, tensors)]
    pairs = list(zip(values, found))
    for mask in (needs, [need and place < ops.WEIGHTS for place, need in enumerate(needs)]):
        ours = getattr(native_calls, fused.name + "_backward")(gradients, tensors, *rest, mask)
        theirs = getattr(triton_calls, fused.name + "_backward")(gradients, tensors, *rest, mask)
        assert len(ours) == len(theirs) == len(fused.variables)
        pairs += [(a, b) for a, b, need in zip(ours, theirs, mask) if need]
    worst[fused.name] = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
print(json.dumps(worst))
"""


@pytest.mark.skipif(not available(), reason="no C++ compiler: there are no compiled kernels to compare with")
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_triton_and_compiled_kernels_agree_on_arguments_and_order() -> None:
    # the interpreter is chosen when triton decorates its functions: in a process of its own
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    worst = json.loads(done.stdout.splitlines()[-1])
    assert set(worst) == {"edge_messages", "virtual_messages", "smooth_messages", "radial_functions"}
    assert max(worst.values()) < 1e-11, worst
