"""Small operations on tensors that may be None."""

from __future__ import annotations

from torch import Tensor


def there(tensor: Tensor | None) -> Tensor:
    """One that is never None here."""
    assert tensor is not None
    return tensor


def gathered(tensor: Tensor | None, index: Tensor) -> Tensor | None:
    """Rows by ``index``."""
    return None if tensor is None else tensor.index_select(0, index)


def sliced(tensor: Tensor | None, rows: slice) -> Tensor | None:
    """A block of rows."""
    return None if tensor is None else tensor[rows]


def plus(*terms: Tensor | None) -> Tensor | None:
    """Sum of those that are there."""
    total: Tensor | None = None
    for term in terms:
        if term is not None:
            total = term if total is None else total + term
    return total


def minus(tensor: Tensor | None) -> Tensor | None:
    """The negative."""
    return None if tensor is None else -tensor
