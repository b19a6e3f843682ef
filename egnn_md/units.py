"""CODATA 2018 constants and the conversions that cross an engine's edge. Model units: Å, eV, fs.

The only place where a conversion factor is written; every other module imports it from here.
"""

from __future__ import annotations

from egnn_md.errors import InputError

ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact
AVOGADRO = 6.02214076e23  # 1/mol, exact
BOLTZMANN_EV_PER_K = 8.617333262145178e-5  # eV/K, exact: k_B / e
ATOMIC_MASS_KG = 1.66053906660e-27  # CODATA 2018

KJ_PER_MOL_PER_EV = ELEMENTARY_CHARGE * AVOGADRO / 1000.0  # 96.485332...
KCAL_PER_MOL_PER_EV = KJ_PER_MOL_PER_EV / 4.184
GPA_PER_EV_PER_CUBIC_ANGSTROM = ELEMENTARY_CHARGE * 1e21  # 160.2176634
BAR_PER_EV_PER_CUBIC_ANGSTROM = GPA_PER_EV_PER_CUBIC_ANGSTROM * 1e4
G_PER_CM3_PER_AMU_PER_CUBIC_ANGSTROM = ATOMIC_MASS_KG * 1e27  # 1.66053906660

#: How many Å make one of the named unit.
LENGTH_IN_ANGSTROM = {"angstrom": 1.0, "nanometer": 10.0, "bohr": 0.529177210903}
#: How many eV make one of the named unit.
ENERGY_IN_EV = {
    "eV": 1.0,
    "meV": 1e-3,
    "kilojoule_per_mole": 1.0 / KJ_PER_MOL_PER_EV,
    "kilocalorie_per_mole": 1.0 / KCAL_PER_MOL_PER_EV,
    "hartree": 27.211386245988,
}
#: How many fs make one of the named unit.
TIME_IN_FS = {"femtosecond": 1.0, "picosecond": 1e3, "nanosecond": 1e6}


def _factor(table: dict[str, float], name: str, quantity: str) -> float:
    if name not in table:
        raise InputError(f"unknown unit of {quantity} {name!r}; known: {', '.join(table)}")
    return table[name]


def length_in_angstrom(unit: str) -> float:
    """Å in one ``unit``. Raises InputError for an unknown name."""
    return _factor(LENGTH_IN_ANGSTROM, unit, "length")


def energy_in_ev(unit: str) -> float:
    """eV in one ``unit``. Raises InputError for an unknown name."""
    return _factor(ENERGY_IN_EV, unit, "energy")


def time_in_fs(unit: str) -> float:
    """fs in one ``unit``. Raises InputError for an unknown name."""
    return _factor(TIME_IN_FS, unit, "time")
