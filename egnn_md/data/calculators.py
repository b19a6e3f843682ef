"""Reference methods by name: built-in ones, and any that another package registers.

A third party adds a teacher through the entry-point group ``egnn_md.calculators``; the entry is a
callable that takes keyword options and returns an ASE calculator.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from ase.calculators.calculator import Calculator

from egnn_md.data.structures import CHARGE_KEY
from egnn_md.errors import InputError, MissingDependencyError

ENTRY_POINT_GROUP = "egnn_md.calculators"


def _check_options(name: str, calculator: type[Calculator], options: dict[str, Any]) -> None:
    """ASE calculators swallow a misspelt option in silence; reference labels must not."""
    known = sorted(calculator.default_parameters)
    for key in options:
        if key not in known:
            raise InputError(f"the reference method {name} has no option {key!r}; it has: {', '.join(known)}")


def _xtb(method: str) -> Callable[..., Calculator]:
    def make(**options: Any) -> Calculator:
        try:
            from tblite.ase import TBLite
        except ImportError as error:
            raise MissingDependencyError(
                f"the reference method {method} needs tblite: pip install 'egnn-md[label]'"
            ) from error
        _check_options(method, TBLite, options)
        # tblite's own restart between different structures can steer the SCF; each one starts fresh.
        return TBLite(method=method, verbosity=0, cache_api=False, **options)

    return make


def _lennard_jones(**options: Any) -> Calculator:
    from ase.calculators.lj import LennardJones

    _check_options("lj", LennardJones, options)
    return LennardJones(**options)


def _emt(**options: Any) -> Calculator:
    from ase.calculators.emt import EMT

    _check_options("emt", EMT, options)
    return EMT(**options)


def _openmm(**options: Any) -> Calculator:
    from egnn_md.data.openmm_calculator import OpenMMForceField

    return OpenMMForceField(**options)


_BUILT_IN: dict[str, Callable[..., Calculator]] = {
    "gfn1-xtb": _xtb("GFN1-xTB"),
    "gfn2-xtb": _xtb("GFN2-xTB"),
    "lj": _lennard_jones,
    "emt": _emt,
    "openmm": _openmm,
}


def set_total_charge(calculator: Calculator, name: str, charge: int | None) -> int:
    """Make ``calculator`` compute the state of that total charge (e), and return the charge it will take.

    A calculator takes it through its option ``charge``. One that reads ``atoms.info["charge"]`` or the initial
    charges by itself says so by an attribute ``reads_total_charge = True``.

    Args:
        calculator: from :func:`make_calculator`.
        name: of the method, for the error.
        charge: of the structure; None where the structure names none, so that the calculator's own option holds.

    Raises:
        InputError: the method has no total charge, or its option names another one than the structure.
    """
    if CHARGE_KEY in getattr(calculator, "default_parameters", {}):
        own = calculator.parameters.get(CHARGE_KEY)
        if own is None:
            calculator.set(**{CHARGE_KEY: charge or 0})
        elif charge is not None and own != charge:
            raise InputError(
                f"the structure has the total charge {charge}, but the option {CHARGE_KEY} of {name} is {own}; "
                "remove the option: every structure names its own charge"
            )
        return round(float(calculator.parameters[CHARGE_KEY]))
    if charge and not getattr(calculator, "reads_total_charge", False):
        raise InputError(
            f"the structure has the total charge {charge}, and the reference method {name} knows no total charge; "
            "take another method"
        )
    return charge or 0


def available_calculators() -> list[str]:
    """Names that :func:`make_calculator` accepts in this environment."""
    return sorted({*_BUILT_IN, *(e.name for e in entry_points(group=ENTRY_POINT_GROUP))})


def make_calculator(name: str, **options: Any) -> Calculator:
    """Build the ASE calculator registered under ``name`` (case does not matter).

    Raises:
        InputError: no calculator has that name; the message lists those that exist.
        MissingDependencyError: the package behind it is not installed.
    """
    key = name.lower()
    if key in _BUILT_IN:
        return _BUILT_IN[key](**options)
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        if entry.name.lower() == key:
            return entry.load()(**options)
    raise InputError(
        f"unknown reference method {name!r}; known here: {', '.join(available_calculators())}. "
        f"Another package can add one through the entry-point group {ENTRY_POINT_GROUP!r}."
    )
