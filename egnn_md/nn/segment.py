"""Sums and means of rows that belong together (edges of a receiver, particles of a graph), and exact constants."""

from typing import List, Optional, Tuple  # noqa: UP035 - TorchScript reads argument types from here

import torch
from torch import Tensor


def double_vector(values: List[float], device: torch.device) -> Tensor:  # noqa: UP006
    """(n,) float64 tensor of Python numbers, exact.

    TorchScript's ``torch.tensor(values, dtype=torch.float64)`` and item assignment pass through float32
    and round reference energies of hundreds of eV by 1e-5 eV; ``fill_`` does not.
    """
    out = torch.zeros(len(values), dtype=torch.float64, device=device)
    for index, value in enumerate(values):
        out.narrow(0, index, 1).fill_(value)
    return out


def segment_sum(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum rows of ``values`` (E, ...) into ``size`` rows by ``index`` (E,); rows without entry are zero."""
    out = torch.zeros([size] + list(values.shape[1:]), dtype=values.dtype, device=values.device)  # noqa: RUF005
    return out.index_add(0, index, values)


def segment_counts(index: Tensor, size: int, like: Tensor) -> Tensor:
    """(size,) number of entries of each row, in the dtype and on the device of ``like``."""
    return torch.zeros(size, dtype=like.dtype, device=like.device).index_add(
        0, index, torch.ones(index.shape[0], dtype=like.dtype, device=like.device)
    )


def segment_mean(values: Tensor, index: Tensor, size: int, counts: Optional[Tensor] = None) -> Tensor:  # noqa: UP045
    """Mean of rows by ``index``; zero for rows without entry. ``counts`` (size,) are those of ``segment_counts``."""
    if counts is None:
        counts = segment_counts(index, size, values)
    return segment_sum(values, index, size) / counts.clamp(min=1.0).reshape([size] + [1] * (values.dim() - 1))


def sorted_by_receiver(
    edge_index: Tensor, shifts: Optional[Tensor], edge_features: Optional[Tensor]  # noqa: UP045
) -> Tuple[Tensor, Optional[Tensor], Optional[Tensor]]:  # noqa: UP006, UP045
    """The same edges (2, E) in the order of their receivers, with what belongs to them (E, ...)."""
    receivers = edge_index[0]
    # on a GPU to look would be to wait for it, which costs more than a sort and breaks the capture of a CUDA graph
    if receivers.device.type == "cpu" and bool((receivers[1:] >= receivers[:-1]).all()):
        return edge_index, shifts, edge_features
    order = torch.sort(receivers, stable=True)[1]
    if shifts is not None:
        shifts = shifts.index_select(0, order)
    if edge_features is not None:
        edge_features = edge_features.index_select(0, order)
    return edge_index.index_select(1, order), shifts, edge_features


def row_starts(counts: Tensor) -> Tensor:
    """(N + 1,) int64: where each receiver's edges begin in a sorted list, and where the last one's end."""
    return torch.nn.functional.pad(counts.to(torch.int64).cumsum(0), [1, 0])
