"""All validators on one model: what ``egnn-md check`` prints, and what every model is tested with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from ase import Atoms

from egnn_md.errors import InputError
from egnn_md.models.base import Potential
from egnn_md.testing import consistency, gradients, symmetry
from egnn_md.testing.probe import ask, copy_of
from egnn_md.testing.result import ENERGY_TOLERANCE, CheckResult, failed, measured, worst_by_name
from egnn_md.testing.structures import centred_structure, random_structure, relaxed_apart

Rows = list[CheckResult]
ATOMS = 8  # a structure; enough for every kind of neighbourhood, few enough for seconds in all


def make_structures(model: Potential, seed: int = 0) -> dict[str, Atoms]:
    """The structures of :func:`run_checks` by name: ``cluster``, ``centred``, ``slab`` and ``crystal``.

    ``crystal`` is a small triclinic cell, ``slab`` is periodic in two directions, ``centred`` has an atom
    at the mean of all positions.
    """

    def largest_force(atoms: Atoms) -> float:
        return ask(model, atoms).largest_force

    elements, cutoff = model.elements, model.cutoff
    made = {
        "cluster": random_structure(elements, cutoff, count=ATOMS, seed=seed),
        "centred": centred_structure(elements, cutoff),
        "slab": random_structure(elements, cutoff, count=ATOMS, pbc=(True, True, False), seed=seed + 1),
        "crystal": random_structure(elements, cutoff, count=ATOMS, pbc=(True, True, True), seed=seed + 2),
    }
    return {name: relaxed_apart(atoms, largest_force) for name, atoms in made.items()}


def run_checks(
    model: Potential,
    dtype: torch.dtype = torch.float64,
    *,
    seed: int = 0,
    structures: dict[str, Atoms] | None = None,
    progress: Callable[[str], None] | None = None,
) -> list[CheckResult]:
    """Run every validator; one result a law, the worst over all structures.

    Args:
        model: any potential; it is copied, never changed.
        dtype: float64 (default) or float32, of the exact laws. Derivatives and jumps are always float64.
        seed: of the random structures, rotations and directions; the same seed gives the same numbers.
        structures: in place of :func:`make_structures`, by name; open, partly and fully periodic ones mixed.
        progress: called with the name of each check before it runs.

    Returns:
        Results in the order of the checks. A check that raises counts as failed, with the error as its note.

    Raises:
        InputError: a dtype without tolerances.
    """
    if dtype not in ENERGY_TOLERANCE:
        raise InputError(f"checks know float64 and float32, not {dtype}")
    exact, double = copy_of(model, dtype), copy_of(model, torch.float64)
    found: list[tuple[str, CheckResult]] = []

    def run(title: str, place: str, check: Callable[[], Rows]) -> None:
        if progress is not None:
            progress(title)
        try:
            found.extend((place, row) for row in check())
        except Exception as error:  # whatever a model raises here, the other checks still run
            found.append((place, failed(title, f"{type(error).__name__}: {error}")))

    if structures is None:
        try:
            structures = make_structures(double, seed)
        except Exception as error:
            return [failed("test structures", f"{type(error).__name__}: {error}")]
    places = list(structures.items())
    periodic = [(name, atoms) for name, atoms in places if atoms.pbc.any()]
    crystals = [(name, atoms) for name, atoms in places if atoms.pbc.all()]

    def over(chosen: Sequence[tuple[str, Atoms]], title: str, check: Callable[[Atoms], Rows]) -> None:
        for place, atoms in chosen:
            run(title, place, lambda atoms=atoms: check(atoms))  # type: ignore[misc]

    def respond() -> Rows:
        deaf = [place for place, atoms in places if ask(double, atoms).largest_force == 0.0]
        note = f"no force at all in: {', '.join(deaf)}; the other checks show nothing there" if deaf else ""
        return [measured("structures feel forces", len(deaf), 0, "count", note)]

    run("structures feel forces", "", respond)
    over(places, "rotation", lambda a: symmetry.check_rotation(exact, a, dtype=dtype, seed=seed))
    over(places, "reflection", lambda a: symmetry.check_reflection(exact, a, dtype=dtype, seed=seed))
    over(places, "translation", lambda a: symmetry.check_translation(exact, a, dtype=dtype, seed=seed))
    over(places, "permutation", lambda a: symmetry.check_permutation(exact, a, dtype=dtype, seed=seed))
    over(periodic, "lattice moves", lambda a: symmetry.check_lattice_moves(exact, a, dtype=dtype, seed=seed))
    over(periodic, "2×2×2 copies", lambda a: symmetry.check_copies(exact, a, dtype=dtype))
    over(places, "net force", lambda a: symmetry.check_balance(exact, a, dtype=dtype))
    over(places, "forces = -dE/dx", lambda a: gradients.check_forces(double, a, seed=seed))
    over(crystals, "stress = dE/dε/V", lambda a: gradients.check_stress(double, a))
    over(places, "second derivatives", lambda a: gradients.check_second_derivatives(double, a, seed=seed))
    run("no jump at the cutoff", "", lambda: gradients.check_cutoff(double, seed=seed))
    over(periodic, "no jump at the cell boundary", lambda a: gradients.check_boundary(double, a))
    run("one atom", "", lambda: consistency.check_one_atom(exact, dtype=dtype))
    run("no edges", "", lambda: consistency.check_no_edges(exact, dtype=dtype))
    everything = [atoms for _, atoms in places]
    run(
        "joined graphs",
        "",
        lambda: consistency.check_joined(exact, [*everything, everything[0][:1]], dtype=dtype),
    )
    over(places, "pairs beyond the cutoff", lambda a: consistency.check_extra_pairs(exact, a, dtype=dtype))
    over(places, "float32 = float64", lambda a: consistency.check_precision(double, a))
    over(places, "backends", lambda a: consistency.check_backends(exact, a, dtype=dtype))
    run("unknown element", "", lambda: consistency.check_unknown_element(double))
    return worst_by_name(found)
