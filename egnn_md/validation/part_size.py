"""Larger cells: the errors there beside those in the cell that runs were made in, and what a mere copy changes.

Copies of a frame are pushed apart a little, so that they are not the same; the reference method labels both cells.
"""

from __future__ import annotations

import json

import numpy as np
from ase import Atoms
from ase.build import make_supercell

from egnn_md.simulation.files import write_json
from egnn_md.training.metrics import MEV
from egnn_md.validation.context import Context
from egnn_md.validation.report_part import PartReport, Skipped
from egnn_md.validation.request import TEACHER_SHARES

RATTLE = 0.02  # Å, standard deviation; the thermal motion of a hydrogen atom is ten times that
GROWTH = 2.5  # a reference method's cost grows as the size to about this power
RATIO = 1.5  # of the force errors; above, size costs accuracy
ADDITIVE = 1e-3  # meV/atom that a copy may change beyond rounding in float32


def larger_cells(copies: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """The cell asked for, then smaller ones to fall back on."""
    found = [copies]
    while found[-1] != (1, 1, 1):
        a, b, c = found[-1]
        biggest = max(a, b, c)
        place = 2 - [c, b, a].index(biggest)
        found.append(tuple(n - (i == place) for i, n in enumerate((a, b, c))))  # type: ignore[arg-type]
    return found[:-1]


def affordable(context: Context) -> tuple[int, int, int] | None:
    """The largest cell whose label fits into the time, decided once; None if none does."""
    path = context.work / "size-plan.json"
    if path.exists():
        stored = json.loads(path.read_text())["copies"]
        return stored[0], stored[1], stored[2]
    seconds = context.teacher_seconds(small=True)
    allowed = 60 * context.plan.teacher_minutes * TEACHER_SHARES["size"]
    chosen = None
    for copies in larger_cells(context.plan.copies):
        if 2 * seconds * (1 + float(np.prod(copies)) ** GROWTH) <= allowed:  # each cell rattled and exact
            chosen = copies
            break
    if chosen is not None:
        write_json(path, {"copies": chosen, "seconds": seconds})
    return chosen


def rattled(atoms: Atoms, seed: int) -> Atoms:
    """A copy, every coordinate moved by :data:`RATTLE`."""
    moved: Atoms = atoms.copy()
    moved.positions += np.random.default_rng(seed).normal(scale=RATTLE, size=moved.positions.shape)
    return moved


def measure(context: Context) -> PartReport:
    """The part ``size``."""
    context.needs_cell("larger cells")
    if context.request.charge:
        raise Skipped("larger cells: copies of a charged cell are another system")
    report = PartReport("size")
    small = context.frames(context.temperature, 1, small=True)[0]
    copies = context.plan.copies
    affords = None
    if context.teacher is not None:
        affords = affordable(context)
        if affords is None:
            seconds = context.teacher_seconds(small=True)
            report.reason = (
                f"a step of {context.teacher.method} with {len(small)} atoms takes {seconds:.3g} s; no larger cell "
                "fits into the time, so only the model's own consistency is measured. Give --teacher-minutes or a "
                "smaller --teacher-structure"
            )
        copies = affords or copies
    large = make_supercell(small, np.diag(copies))
    _copy_alone(report, context, small, large, copies)
    if affords is not None:
        _errors(report, context, small, large, copies)
    return report


def _copy_alone(
    report: PartReport, context: Context, small: Atoms, large: Atoms, copies: tuple[int, int, int]
) -> None:
    """What an exact copy changes: nothing, for an energy that is a sum over atoms of their surroundings."""
    one, many = context.energy_and_forces(small)[0] / len(small), context.energy_and_forces(large)[0] / len(large)
    change = MEV * (many - one)
    name = "x".join(map(str, copies))
    fine = abs(change) <= ADDITIVE + 1e-7 * MEV * abs(one)
    report.verdict(
        f"Energy an atom in a {name} copy", f"{change:+.2g} meV/atom",
        f"{len(small)} to {len(large)} atoms: "
        + ("the model is additive, as the same crystal must be" if fine else "the same crystal has another energy: the "
        "model is not additive, or its memory of the cell reaches far"),
        "good" if fine else "look",
    )  # fmt: skip
    report.number("copy_energy_change", change, "meV/atom", of=name)
    rows = [["model", f"{change:+.3g}"]]
    report.table("Energy an atom of an exact copy, less the small cell's / (meV/atom)", ["", name], rows)


def _errors(
    report: PartReport, context: Context, small: Atoms, large: Atoms, copies: tuple[int, int, int]
) -> None:
    """Errors in both cells, and the reference method's own change in a copy."""
    teacher = context.teacher
    assert teacher is not None
    name = "x".join(map(str, copies))
    context.say(f"size: {len(large)} atoms ({name}) by {teacher.method}")
    path = context.work / "size-errors.json"
    if path.exists():
        stored = json.loads(path.read_text())
    else:
        stored = {"copy": 0.0, "cells": []}
        exact = [teacher.results(atoms)["energy"] / len(atoms) for atoms in (small, large)]
        stored["copy"] = MEV * (exact[1] - exact[0])
        for atoms in (small, large):
            moved = rattled(atoms, context.request.seed)
            energy, forces = context.energy_and_forces(moved)
            truth = teacher.results(moved)
            error = forces - truth["forces"]
            stored["cells"].append(
                {
                    "atoms": len(moved),
                    "energy": MEV * (energy - truth["energy"]) / len(moved),
                    "force": MEV * float(np.sqrt((error**2).mean())),
                    "largest": MEV * float(np.abs(error).max()),
                }
            )
        write_json(path, stored)
    cells = stored["cells"]
    own = f"{teacher.method} (a small cell at one k-point is not converged)"
    report.tables[-1]["rows"].append([own, f"{stored['copy']:+.3g}"])
    ratio = cells[1]["force"] / cells[0]["force"] if cells[0]["force"] > 1e-9 else 1.0
    gap = cells[1]["energy"] - cells[0]["energy"]
    report.verdict(
        f"Force RMSE in the {name} cell over the small one's", f"{ratio:.3g}",
        f"{cells[1]['force']:.4g} and {cells[0]['force']:.4g} meV/Å on one rattled frame; the energy error an atom "
        f"changes by {gap:+.2g} meV, of which {stored['copy']:+.2g} is the reference method's own",
        "good" if ratio <= RATIO else "look",
    )  # fmt: skip
    report.number("force_rmse_ratio", ratio, "", of=name)
    report.card |= {"larger_cell": name, "larger_cell_force_rmse_ratio": ratio}
    rows = [[f"{c['atoms']} atoms", f"{c['energy']:.4g}", f"{c['force']:.4g}", f"{c['largest']:.4g}"] for c in cells]
    for cell in cells:
        report.number("force_rmse", cell["force"], "meV/Å", of=f"{cell['atoms']} atoms")
        report.number("energy_error", cell["energy"], "meV/atom", of=f"{cell['atoms']} atoms")
    report.table("One frame, rattled", ["", "energy error / (meV/atom)", "force RMSE / (meV/Å)", "largest"], rows)
