"""What a validator answers, and the tolerances that they share, each with its reason."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

# Exact laws (symmetries, joined graphs, copies of a cell) hold up to rounding. A sum over some hundred
# neighbours and a few layers loses two to four digits of the dtype: float64 keeps better than 1e-11 of
# values of order 1, float32 better than 1e-5. Rounding grows with the interactions, so each number is
# multiplied by the largest force component in eV/Å, held between 1 and LARGEST_FORCE (see scale()): a hard
# collision is no false alarm, and no free pass either. Total energies are compared an atom.
#: eV/Å. The structures of the tests stay below it: beyond, rounding and curvature decide, not the model.
LARGEST_FORCE = 10.0
#: Energy an atom, eV, by dtype.
ENERGY_TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-5}
#: A force component, eV/Å, by dtype.
FORCE_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}
#: A stress component, eV/Å³, by dtype. A cell of the tests holds at least one atom in 100 Å³.
STRESS_TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

#: Forces against five-point differences in float64, eV/Å. The formula's own error with its step of
#: 5e-4 Å is below 1e-9 (rounding 1e-13/h, truncation h⁴), plus about 1e-7 where a pair crosses a cutoff
#: whose third derivative jumps.
FORCE_DIFFERENCE_TOLERANCE = 1e-6
#: Stress against five-point differences of the strain in float64, eV/Å³: the same reasoning, divided by
#: a volume of at least some 30 Å³.
STRESS_DIFFERENCE_TOLERANCE = 1e-7
#: Second derivatives against differences of forces, eV/Å². A cutoff with two continuous derivatives has a
#: kink in its second one, which a pair within a step of the cutoff sees.
CURVATURE_DIFFERENCE_TOLERANCE = 1e-4
#: A jump, extrapolated from both sides, eV. Extrapolation errors are h³ E''', below 1e-10 with h = 2e-5 Å.
ENERGY_JUMP_TOLERANCE = 1e-7
#: A jump of a force component, eV/Å, extrapolated from both sides: h³ F''', below 1e-9.
FORCE_JUMP_TOLERANCE = 1e-6
#: float32 against float64: a few hundred float32 roundings. Energy an atom, eV.
PRECISION_ENERGY_TOLERANCE = 5e-5
#: float32 against float64, a force component, eV/Å.
PRECISION_FORCE_TOLERANCE = 5e-4


def scale(largest_force: float) -> float:
    """Factor of every tolerance: the largest force component, between 1 and LARGEST_FORCE."""
    return min(max(1.0, largest_force), LARGEST_FORCE)


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: what was checked, for example ``rotation: forces``.
        passed: ``value`` is finite and within ``tolerance``.
        value: largest deviation seen, in ``unit``.
        tolerance: largest deviation allowed here, in ``unit``.
        unit: ``eV/atom``, ``eV/Å``, ``eV/Å³``, ``count``.
        note: on which structure, or why it failed.
    """

    name: str
    passed: bool
    value: float
    tolerance: float
    unit: str
    note: str = ""

    @property
    def severity(self) -> float:
        """How much of the tolerance is used: above 1 fails; infinite when the value is not a number."""
        if not math.isfinite(self.value):
            return math.inf
        if self.tolerance == 0:
            return 0.0 if self.value == 0 else math.inf
        return self.value / self.tolerance

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; a value that is not a number becomes None."""
        return {
            "name": self.name,
            "passed": self.passed,
            "value": self.value if math.isfinite(self.value) else None,
            "tolerance": self.tolerance,
            "unit": self.unit,
            "note": self.note,
        }


def measured(name: str, value: float, tolerance: float, unit: str, note: str = "") -> CheckResult:
    """A result that passes when ``value`` is a number and at most ``tolerance``."""
    value = float(value)
    return CheckResult(name, math.isfinite(value) and value <= tolerance, value, tolerance, unit, note)


def failed(name: str, note: str) -> CheckResult:
    """A check that could not be carried out counts as failed; the note says why."""
    return CheckResult(name, False, math.nan, 0.0, "", note)


def worst_by_name(results: Iterable[tuple[str, CheckResult]]) -> list[CheckResult]:
    """One result a name: the worst over all structures, which the note then names.

    Args:
        results: pairs of (structure, result).
    """
    chosen: dict[str, CheckResult] = {}
    for place, result in results:
        known = chosen.get(result.name)
        if (
            known is None
            or (known.passed and not result.passed)
            or (known.passed == result.passed and result.severity > known.severity)
        ):
            note = f"{place}; {result.note}" if place and result.note else place or result.note
            chosen[result.name] = replace(result, note=note)
    return list(chosen.values())
