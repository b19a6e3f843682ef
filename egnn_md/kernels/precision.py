"""How the GPU kernels multiply float32: exactly, unless lower precision is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from egnn_md.errors import InputError

#: How a product of two float32 numbers is formed: exactly, by three TF32 products (exact to about 1e-6), by one TF32
#: product (10 bits of fraction), or from bfloat16 operands (7 bits). Sums are float32 in every case.
PRECISIONS = ("ieee", "tf32x3", "tf32", "bf16")
_chosen = ["ieee"]


def current() -> str:
    """The precision in use."""
    return _chosen[-1]


@contextmanager
def gpu_precision(name: str) -> Iterator[None]:
    """Within it the GPU kernels multiply in this precision; the CPU's never change.

    Args:
        name: ``ieee`` (exact float32 products, the default), ``tf32x3``, ``tf32`` or ``bf16``; see ``PRECISIONS``.
            A backward pass must run within it as well.

    Raises:
        InputError: another name.
    """
    if name not in PRECISIONS:
        raise InputError(f"the precision must be one of {', '.join(PRECISIONS)}, not {name!r}")
    _chosen.append(name)
    try:
        yield
    finally:
        _chosen.pop()
