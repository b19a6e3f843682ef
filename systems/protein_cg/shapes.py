"""Superposition and the quantities that compare two ensembles of one chain."""

from __future__ import annotations

import numpy as np


def superposed(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """``frames`` (F, N, 3) laid on ``reference`` (N, 3) with the least squared distance.

    Kabsch 1976, Acta Cryst. A32, 922: the rotation from the singular values of the covariance, reflections excluded.
    """
    centred = frames - frames.mean(axis=1, keepdims=True)
    target = reference - reference.mean(axis=0)
    left, _, right = np.linalg.svd(np.einsum("fni,nj->fij", centred, target))
    left[:, :, 2] *= np.sign(np.linalg.det(left) * np.linalg.det(right))[:, None]
    return np.asarray(centred @ (left @ right)) + reference.mean(axis=0)


def superposed_rmsd(frames: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Root mean square distance to ``reference`` after superposition, (F,), in the unit of the positions."""
    difference = superposed(frames, reference) - reference
    return np.asarray(np.sqrt((difference**2).sum(axis=-1).mean(axis=-1)))


def mean_structure(frames: np.ndarray, rounds: int = 5) -> np.ndarray:
    """(N, 3) average of frames laid on it, found by iterating from the first frame."""
    mean = frames[0]
    for _ in range(rounds):
        mean = superposed(frames, mean).mean(axis=0)
    return np.asarray(mean)


def fluctuations(frames: np.ndarray, reference: np.ndarray | None = None) -> np.ndarray:
    """Root mean square fluctuation of each particle around the mean structure, (N,); frames laid on it first.

    ``reference`` (N, 3) is laid on instead of the mean structure, and the fluctuation is then about it.
    """
    mean = mean_structure(frames) if reference is None else reference
    return np.asarray(np.sqrt(((superposed(frames, mean) - mean) ** 2).sum(-1).mean(0)))


def gyration(frames: np.ndarray) -> np.ndarray:
    """Radius of gyration of equal masses, (F,)."""
    centred = frames - frames.mean(axis=1, keepdims=True)
    return np.asarray(np.sqrt((centred**2).sum(-1).mean(-1)))


def distances(frames: np.ndarray, separation: int) -> np.ndarray:
    """(F, P) distances of the pairs at least ``separation`` apart along the chain."""
    first, second = np.triu_indices(frames.shape[1], separation)
    return np.asarray(np.linalg.norm(frames[:, first] - frames[:, second], axis=-1))


def overlap(one: np.ndarray, other: np.ndarray, width: float = 0.25) -> float:
    """Mean over columns of the common area of two normalised histograms: 1 for equal, 0 for disjoint ones."""
    low, high = min(one.min(), other.min()), max(one.max(), other.max())
    edges = np.arange(low, high + 2 * width, width)
    common = []
    for a, b in zip(one.T, other.T, strict=True):
        p, q = (np.histogram(values, edges)[0] / len(values) for values in (a, b))
        common.append(np.minimum(p, q).sum())
    return float(np.mean(common))
