"""Telling kernels which gradients a backward pass is for.

Autograd asks an operator for the gradients of everything that may need one; forces want those of positions alone, and
an operator that works out its weights' gradients as well would do half of its work for nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

_state = threading.local()


@contextmanager
def without_weights() -> Iterator[None]:
    """Backward passes that this thread runs inside need no gradient of any weight.

    Only for ``torch.autograd.grad`` by inputs that are not weights: others would miss their gradient. Another thread
    (the one of a CUDA device, say) does not see it and works out all of them, which is slower and never wrong.
    """
    before = weights_wanted()
    _state.wanted = False
    try:
        yield
    finally:
        _state.wanted = before


def weights_wanted() -> bool:
    """False inside :func:`without_weights`."""
    return bool(getattr(_state, "wanted", True))
