"""Model units of a propagator against those of engines and files (Å and fs).

A model in molecular units is converted by :mod:`egnn_md.units`. A model without units (N-body), or in metres
and seconds (SPH liquids: a metre of 1e10 Å fits no molecular file), has none to convert: one length is written as
``unit_length`` Å (1 unless asked otherwise) and one time as 1 fs, everywhere alike (ASE, OpenMM, DCD, XTC, PDB,
extended XYZ), so that files of one run agree. Energies, temperatures and pressures that an engine derives from
such numbers mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.errors import InputError
from egnn_md.units import LENGTH_IN_ANGSTROM, TIME_IN_FS, length_in_angstrom, time_in_fs

if TYPE_CHECKING:
    from egnn_md.models.propagator import PropagatorConfig

NONE = "none"
METRE, SECOND = "m", "s"  # of continuum liquids: particles are no atoms


@dataclass(frozen=True)
class EngineUnits:
    """Factors from model units to an engine's.

    Attributes:
        length: Å in one length of the model.
        time: fs in one time of the model.
        physical: False where the model has no units, or those of a continuum, and the factors are a convention.
        names: the model's units of length and time.
    """

    length: float
    time: float
    physical: bool
    names: tuple[str, str] = (NONE, NONE)

    @property
    def velocity(self) -> float:
        """Å/fs in one velocity of the model."""
        return self.length / self.time


def engine_units(config: PropagatorConfig, unit_length: float | None = None) -> EngineUnits:
    """Factors for the units that ``config`` declares.

    Args:
        config: of the propagator.
        unit_length: Å that one length of a model without molecular units is written as; 1 if None.

    Raises:
        InputError: an unknown unit, a length without a time, metres without seconds, ``unit_length`` for a model in
            molecular units or not positive.
    """
    length, time = config.units.get("length", NONE), config.units.get("time", NONE)
    if (length == NONE) != (time == NONE):
        raise InputError(f"the model declares length {length!r} and time {time!r}; both or neither must have a unit")
    for what, name, known in (
        ("length", length, (NONE, METRE, *LENGTH_IN_ANGSTROM)),
        ("time", time, (NONE, SECOND, *TIME_IN_FS)),
    ):
        if name not in known:
            raise InputError(f"the model declares the unit of {what} {name!r}; known: {', '.join(known)}")
    if (length == METRE) != (time == SECOND):
        raise InputError(
            f"the model declares length {length!r} and time {time!r}; metres go with seconds, and molecular units "
            "with each other"
        )
    if length in (NONE, METRE):
        chosen = 1.0 if unit_length is None else float(unit_length)
        if not (np.isfinite(chosen) and chosen > 0):
            raise InputError(f"unit_length must be positive, not {unit_length}")
        return EngineUnits(chosen, 1.0, False, (length, time))
    if unit_length is not None:
        raise InputError(
            f"unit_length is for models without units or in metres, but this one is in {length}; leave it out"
        )
    return EngineUnits(length_in_angstrom(length), time_in_fs(time), True, (length, time))


def are_elements(species: np.ndarray[Any, Any], units: EngineUnits) -> bool:
    """True if particle types are atomic numbers: the model has molecular units and every type is an element."""
    return units.physical and bool(((species >= 1) & (species <= 118)).all())


def particle_masses(species: np.ndarray[Any, Any], units: EngineUnits) -> np.ndarray[Any, Any]:
    """(N,) masses in amu of elements; 1 for every particle of any other kind."""
    if not are_elements(species, units):
        return np.ones(len(species))
    from ase.data import atomic_masses

    return np.asarray(atomic_masses[species], dtype=np.float64)
