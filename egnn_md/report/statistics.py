"""Averages and drifts of correlated time series, with errors that know of the correlation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A number, its standard error (NaN if it cannot be told) and the standard deviation of the data."""

    value: float
    error: float
    spread: float


@dataclass(frozen=True)
class Drift:
    """Linear fit of an energy: slope and its standard error, line at the start, scatter about the line."""

    slope: float
    error: float
    intercept: float
    scatter: float


def correlation_factor(values: np.ndarray) -> float:
    """Statistical inefficiency g: how many successive values count as one.

    g = 1 + 2 Σ_t (1 - t/N) C(t), summed until the autocorrelation C first reaches zero (Chodera et al.,
    J. Chem. Theory Comput. 3, 26, 2007).
    """
    n = len(values)
    deviation = values - values.mean()
    variance = float(deviation @ deviation) / max(n, 1)
    if n < 3 or variance == 0:
        return 1.0
    padded = np.fft.rfft(deviation, 2 * n)
    correlation = np.fft.irfft(padded * np.conj(padded))[:n] / (variance * np.arange(n, 0, -1))
    below = np.flatnonzero(correlation <= 0)
    end = int(below[0]) if len(below) else n
    lags = np.arange(1, end)
    return float(max(1.0, 1.0 + 2.0 * np.sum((1 - lags / n) * correlation[1:end])))


def average(values: np.ndarray) -> Estimate | None:
    """Mean of the finite values with its error; None without any."""
    values = values[np.isfinite(values)]
    n = len(values)
    if n == 0:
        return None
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    independent = n / correlation_factor(values)
    error = spread / np.sqrt(independent) if n > 1 else float("nan")
    return Estimate(float(values.mean()), float(error), spread)


def drift(times: np.ndarray, values: np.ndarray) -> Drift | None:
    """Least-squares line through ``values``; None for fewer than three. The error counts the correlation."""
    n = len(times)
    if n < 3:
        return None
    centred = times - times.mean()
    slope = float(centred @ values / (centred @ centred))
    intercept = float(values.mean() - slope * times.mean())
    residual = values - intercept - slope * times
    scatter = float(np.sqrt(residual @ residual / (n - 2)))
    error = scatter / np.sqrt(float(centred @ centred)) * np.sqrt(correlation_factor(residual))
    return Drift(slope, float(error), intercept, scatter)


def running_mean(values: np.ndarray, width: int) -> np.ndarray:
    """Mean of ``width`` neighbours about each value (fewer at the ends)."""
    width = max(width, 1)
    total = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    start = np.maximum(index - width // 2, 0)
    stop = np.minimum(index + width // 2 + 1, len(values))
    return (total[stop] - total[start]) / (stop - start)
