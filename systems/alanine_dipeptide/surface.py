"""Free energies in the (phi, psi) plane from umbrella sampling, and their change to another potential.

=========================================  ====================================================
symbol                                     variable
=========================================  ====================================================
w_n, Σ w_n = 1                             ``weights`` (n,), of the unbiased ensemble (MBAR:
                                           Shirts and Chodera, J. Chem. Phys. 129, 124105, 2008)
w'_n ∝ w_n exp[-(E'_n - E_n) / kT]         :func:`perturbed`, of the potential E' (Zwanzig, 1954)
F(bin) = -kT ln Σ_{n in bin} w_n           :func:`free_energy_map`
ΔF = -kT ln (Σ_{n in C7ax} / Σ_{n in C7eq})  :func:`basin_difference`
=========================================  ====================================================

Energies are in eV inside and in kcal/mol in what is reported.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.units import BOLTZMANN_EV_PER_K, KCAL_PER_MOL_PER_EV

from .molecule import C7AX, C7EQ

Array = NDArray[np.float64]
HALF_WIDTH = 45.0  # degrees; a basin is the square of twice this around its minimum
BINS = 36  # of 10 degrees


@dataclass(frozen=True)
class Samples:
    """Snapshots of all windows.

    Attributes:
        phi, psi: (W, T), degrees: W windows with T snapshots each, in order of time.
        centres: (W, 2), degrees.
        strength: k of the umbrella, eV.
        temperature: K.
    """

    phi: Array
    psi: Array
    centres: Array
    strength: float
    temperature: float

    @property
    def kt(self) -> float:
        """Thermal energy, eV."""
        return BOLTZMANN_EV_PER_K * self.temperature

    def block(self, kept: NDArray[np.bool_]) -> Samples:
        """Those of the times (T,) that are kept."""
        return Samples(self.phi[:, kept], self.psi[:, kept], self.centres, self.strength, self.temperature)


def within(phi: Array, psi: Array, centre: tuple[float, float]) -> NDArray[np.bool_]:
    """Whether angles lie in the basin around ``centre``, across the edge of the plane too."""
    inside = np.ones(np.shape(phi), bool)
    for angle, middle in ((phi, centre[0]), (psi, centre[1])):
        inside &= np.abs((angle - middle + 180.0) % 360.0 - 180.0) <= HALF_WIDTH
    return inside


def unbiased_weights(samples: Samples) -> Array:
    """(W, T) weights of the unbiased ensemble, by MBAR over all windows.

    Raises:
        MissingDependencyError: pymbar is not installed.
    """
    from egnn_md.errors import MissingDependencyError

    try:
        from pymbar import MBAR
    except ImportError as error:
        raise MissingDependencyError("free energies need pymbar: pip install 'egnn-md[systems]'") from error

    windows, times = samples.phi.shape
    reduced = np.zeros((windows, windows * times))
    for angle, centre in ((samples.phi, samples.centres[:, 0]), (samples.psi, samples.centres[:, 1])):
        reduced += 1.0 - np.cos(np.radians(angle.reshape(1, -1) - centre[:, None]))
    reduced *= samples.strength / samples.kt
    # its first choice, a general root finder, takes minutes for a hundred windows; Newton steps take a second
    mbar = MBAR(reduced, np.full(windows, times), solver_protocol="robust")
    # the unbiased state is one more, without samples: w_n ∝ 1 / Σ_k N_k exp(f_k - u_k(n))
    log = -_log_sum(mbar.f_k[:, None] - reduced + np.log(times))
    weights = np.exp(log - log.max())
    return np.asarray((weights / weights.sum()).reshape(windows, times))


def _log_sum(values: Array) -> Array:
    highest = values.max(0)
    return np.asarray(highest + np.log(np.exp(values - highest).sum(0)))


def perturbed(weights: Array, energy_change: Array, kt: float) -> Array:
    """Weights of the ensemble whose potential is higher by ``energy_change`` (eV), in the same shape."""
    if weights.shape != energy_change.shape:
        raise InputError(f"weights have shape {weights.shape}, energies {energy_change.shape}; one of each a snapshot")
    log = np.log(np.maximum(weights, np.finfo(float).tiny)) - energy_change / kt
    out = np.exp(log - log.max())
    return np.asarray(out / out.sum())


def effective_fraction(weights: Array, changed: Array) -> float:
    """Kish's effective sample size of the change of ensemble, over the number of snapshots: 1 is no change."""
    ratio = changed / np.maximum(weights, np.finfo(float).tiny)
    # snapshots as the unbiased ensemble draws them
    mean, square = np.sum(weights * ratio), np.sum(weights * ratio**2)
    return float(mean**2 / square)


def free_energy_map(samples: Samples, weights: Array) -> Array:
    """(BINS, BINS) free energy in kcal/mol above its minimum, phi along rows; infinite where nothing was sampled."""
    edges = np.linspace(-180.0, 180.0, BINS + 1)
    filled, _, _ = np.histogram2d(samples.phi.ravel(), samples.psi.ravel(), [edges, edges], weights=weights.ravel())
    with np.errstate(divide="ignore"):
        energy = -samples.kt * KCAL_PER_MOL_PER_EV * np.log(filled)
    return np.asarray(energy - energy.min())


def basin_difference(samples: Samples, weights: Array) -> float:
    """Free energy of C7ax minus that of C7eq, kcal/mol.

    Raises:
        InputError: a basin holds no snapshot.
    """
    total = {}
    for name, centre in (("C7eq", C7EQ), ("C7ax", C7AX)):
        total[name] = float(weights[within(samples.phi, samples.psi, centre)].sum())
        if total[name] <= 0.0:
            raise InputError(f"no snapshot lies in the basin {name} around {centre}; sample its windows")
    return -samples.kt * KCAL_PER_MOL_PER_EV * float(np.log(total["C7ax"] / total["C7eq"]))


def half_plane_difference(samples: Samples, weights: Array) -> float:
    """Free energy of phi in (0, 130) minus that of the rest, kcal/mol: basins that no choice of box enters."""
    right = (samples.phi > 0.0) & (samples.phi < 130.0)
    return -samples.kt * KCAL_PER_MOL_PER_EV * float(np.log(weights[right].sum() / weights[~right].sum()))


def jackknife(samples: Samples, figures: Callable[[NDArray[np.bool_]], Array], blocks: int = 5) -> tuple[Array, Array]:
    """Value and standard error of ``figures`` by leaving out one block of time, in all windows, after the other.

    Args:
        samples: of which times are left out.
        figures: numbers (n,) from the times (T,) that are kept.
        blocks: longer than the correlation time, so that they are independent.
    """
    times = samples.phi.shape[1]
    if times < blocks:
        raise InputError(f"{times} snapshots a window cannot be divided into {blocks} blocks; sample longer")
    block_of = np.arange(times) * blocks // times
    whole = figures(np.ones(times, bool))
    partial = np.array([figures(block_of != block) for block in range(blocks)])
    variance = (blocks - 1) / blocks * ((partial - partial.mean(0)) ** 2).sum(0)
    return whole, np.sqrt(variance)
