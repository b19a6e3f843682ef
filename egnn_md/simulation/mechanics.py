"""Velocities, temperature and density in model units (Å, fs, eV, amu)."""

from __future__ import annotations

import numpy as np

from egnn_md.units import (
    ATOMIC_MASS_KG,
    BOLTZMANN_EV_PER_K,
    ELEMENTARY_CHARGE,
    G_PER_CM3_PER_AMU_PER_CUBIC_ANGSTROM,
)

#: How many eV are in 1 amu Å²/fs²: 1 Å/fs = 1e5 m/s.
EV_PER_AMU_ANGSTROM2_PER_FS2 = ATOMIC_MASS_KG * 1e10 / ELEMENTARY_CHARGE


def kinetic_energy(masses: np.ndarray, velocities: np.ndarray) -> float:
    """½ Σ m v² in eV, from masses (N,) in amu and velocities (N, 3) in Å/fs."""
    return float(0.5 * EV_PER_AMU_ANGSTROM2_PER_FS2 * np.sum(masses[:, None] * velocities**2))


def temperature(kinetic: float, degrees_of_freedom: int) -> float:
    """2 K / (f k_B) in kelvin, from eV; 0 when nothing can move."""
    if degrees_of_freedom == 0:
        return 0.0
    return 2.0 * kinetic / (degrees_of_freedom * BOLTZMANN_EV_PER_K)


def thermal_speed(masses: np.ndarray, kelvin: float) -> np.ndarray:
    """sqrt(k_B T / m) of each atom, Å/fs: the standard deviation of one velocity component."""
    return np.sqrt(BOLTZMANN_EV_PER_K * kelvin / (masses * EV_PER_AMU_ANGSTROM2_PER_FS2))


def remove_drift(masses: np.ndarray, velocities: np.ndarray) -> np.ndarray:
    """Velocities (N, 3) with the centre-of-mass velocity taken out, so that the momentum is zero."""
    return velocities - (masses @ velocities) / masses.sum()


def maxwell_boltzmann(masses: np.ndarray, kelvin: float, rng: np.random.Generator) -> np.ndarray:
    """Maxwell-Boltzmann velocities (N, 3) in Å/fs at ``kelvin`` with zero total momentum.

    They are drawn, not rescaled: the instantaneous temperature scatters about ``kelvin`` as it should.
    A lone atom keeps its velocity, because without it nothing would move.
    """
    velocities = rng.normal(size=(len(masses), 3)) * thermal_speed(masses, kelvin)[:, None]
    return remove_drift(masses, velocities) if len(masses) > 1 else velocities


def density(masses: np.ndarray, volume: float) -> float:
    """g/cm³ of masses (N,) in amu within ``volume`` Å³."""
    return float(masses.sum() / volume * G_PER_CM3_PER_AMU_PER_CUBIC_ANGSTROM)


def acceleration(masses: np.ndarray, forces: np.ndarray) -> np.ndarray:
    """F / m in Å/fs² (N, 3), from amu and eV/Å."""
    return forces / (masses[:, None] * EV_PER_AMU_ANGSTROM2_PER_FS2)
