"""Public validators: every potential, ours or yours, can be run through them.

    from egnn_md.testing import run_checks
    bad = [result for result in run_checks(model) if not result.passed]

Single checks take a model and an ASE structure and return :class:`CheckResult` rows.
"""

from egnn_md.testing.consistency import (
    check_backends,
    check_extra_pairs,
    check_joined,
    check_no_edges,
    check_one_atom,
    check_precision,
    check_unknown_element,
)
from egnn_md.testing.gradients import (
    check_boundary,
    check_cutoff,
    check_forces,
    check_second_derivatives,
    check_stress,
)
from egnn_md.testing.models import random_potential
from egnn_md.testing.result import CheckResult
from egnn_md.testing.structures import centred_structure, random_structure
from egnn_md.testing.suite import make_structures, run_checks
from egnn_md.testing.symmetry import (
    check_balance,
    check_copies,
    check_lattice_moves,
    check_permutation,
    check_reflection,
    check_rotation,
    check_translation,
)

__all__ = [
    "CheckResult",
    "centred_structure",
    "check_backends",
    "check_balance",
    "check_boundary",
    "check_copies",
    "check_cutoff",
    "check_extra_pairs",
    "check_forces",
    "check_joined",
    "check_lattice_moves",
    "check_no_edges",
    "check_one_atom",
    "check_permutation",
    "check_precision",
    "check_reflection",
    "check_rotation",
    "check_second_derivatives",
    "check_stress",
    "check_translation",
    "check_unknown_element",
    "make_structures",
    "random_potential",
    "random_structure",
    "run_checks",
]
