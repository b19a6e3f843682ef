"""Holes: does the model give a distorted structure, or one that a proton has left, less energy than it costs?

Hydrogens are given to other atoms, bonds pulled and pushed, one atom at a time, in frames of the model's own run that
it has relaxed; then the model relaxes a moved hydrogen and what is around it, because it is the bottom of a hole that
holds a run. The reference method says what each costs against the frame that it was made from.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from ase import Atoms
from scipy.optimize import minimize

from egnn_md.errors import LabellingError, SimulationError
from egnn_md.simulation.files import write_json
from egnn_md.validation.context import Context
from egnn_md.validation.distortions import Distortion, distortions
from egnn_md.validation.parity import parity_figure
from egnn_md.validation.report_part import PartReport, Skipped
from egnn_md.validation.request import TEACHER_SHARES

FRAMES = 2
COUNT = 24  # distortions of each frame
FEWEST = 6
FRAME_STEPS = 60  # of relaxation: the heat of a frame would hide what a distortion costs
RELAX_STEPS = 20
RELAX_ROOM = 0.5  # Å that a coordinate may go
WALL = 1e3  # eV
SETTLED = 0.05  # eV/Å
#: eV above the frame that a run may come to by itself, by the model's own words.
WITHIN_REACH = 1.0
HOLE = 0.5  # eV that such a structure lies below what the reference method says


def measure(context: Context) -> PartReport:
    """The part ``holes``."""
    teacher = context.need_teacher("holes: what a distorted structure costs")
    seconds = context.teacher_seconds(small=True)
    allowed = int(60 * context.plan.teacher_minutes * TEACHER_SHARES["holes"] / seconds / FRAMES) - 1
    if allowed < FEWEST:
        needed = (FEWEST + 1) * FRAMES * seconds / 60 / TEACHER_SHARES["holes"]
        raise Skipped(
            f"holes: an evaluation of {teacher.method} takes {seconds:.3g} s, so that fewer than {FEWEST} distortions "
            f"of a frame fit in; give --teacher-minutes {np.ceil(needed):.0f}, or a smaller --teacher-structure"
        )
    count = min(COUNT, allowed)
    frames = context.frames(context.temperature, FRAMES, small=True)
    context.say(f"holes: {count} distortions of {len(frames)} frames by {teacher.method}")
    rows, failed = [], 0
    for number, atoms in enumerate(frames):
        found = _frame(context, number, atoms, count)
        rows += [row for row in found if "reference" in row]
        failed += sum("reference" not in row for row in found)
    if not rows:
        raise LabellingError(f"{teacher.method} failed for all {failed} distorted structures")
    return _report(context, rows, failed)


def _frame(context: Context, number: int, atoms: Atoms, count: int) -> list[dict[str, Any]]:
    """Energies (eV) of one frame's distortions above the frame's own; each is kept as soon as it is there."""
    teacher = context.teacher
    assert teacher is not None
    path = context.work / f"holes-{number}.json"
    stored: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    start = _relax(context, atoms, FRAME_STEPS)
    if "start" not in stored:
        stored["start"] = teacher.results(atoms)["energy"]
    rng = np.random.default_rng([context.request.seed, number])
    for index, distortion in enumerate(distortions(atoms, rng)):
        if index >= count:
            break
        if index < len(stored["rows"]):
            continue
        row: dict[str, Any] = {"frame": number, "kind": distortion.kind, "what": distortion.words(atoms)}
        try:
            moved, energy = _settled(context, distortion, atoms)
            row["model"] = energy - start
            row["reference"] = teacher.results(moved)["energy"] - stored["start"]
        except (LabellingError, SimulationError) as error:
            row["error"] = str(error)
        stored["rows"].append(row)
        write_json(path, stored)
    rows: list[dict[str, Any]] = stored["rows"]
    return rows


def _settled(context: Context, distortion: Distortion, atoms: Atoms) -> tuple[Atoms, float]:
    """The distorted structure, a moved hydrogen's relaxed by the model, and the model's energy of it in eV."""
    moved = distortion.applied(atoms)
    if distortion.kind == "moved":
        return moved, _relax(context, moved, RELAX_STEPS)
    return moved, context.energy_and_forces(moved)[0]


def _relax(context: Context, atoms: Atoms, steps: int) -> float:
    """Move the atoms downhill, at most :data:`RELAX_ROOM`; the model's energy where they come to rest, eV.

    Raises:
        SimulationError: the energy or a force of the structure as it is given is no number.
    """
    start, forces = context.energy_and_forces(atoms)
    if not (np.isfinite(start) and np.isfinite(forces).all()):
        raise SimulationError("the model gave a distorted structure an energy or a force that is no number")

    def slope(x: np.ndarray) -> tuple[float, np.ndarray]:
        moved: Atoms = atoms.copy()
        moved.positions = x.reshape(-1, 3)
        energy, forces = context.energy_and_forces(moved)
        if not (np.isfinite(energy) and np.isfinite(forces).all()):
            return WALL, np.zeros_like(x)  # a line search looked too far: it is turned back
        return energy - start, -forces.ravel()

    x = atoms.positions.ravel()
    bounds = np.stack([x - RELAX_ROOM, x + RELAX_ROOM], axis=1)
    options = {"maxiter": steps, "gtol": SETTLED}
    found = minimize(slope, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    atoms.positions = found.x.reshape(-1, 3)
    return start + float(found.fun)


def _report(context: Context, rows: list[dict[str, Any]], failed: int) -> PartReport:
    assert context.teacher is not None
    report = PartReport("holes")
    model, reference = (np.array([row[key] for row in rows]) for key in ("model", "reference"))
    below = reference - model
    holes = (model < WITHIN_REACH) & (below > HOLE)
    # what lies far out of reach is wrong by more, and holds no run
    near = model < WITHIN_REACH
    deepest = float(below[near].max(initial=0.0))
    value = f"{int(holes.sum())} of {len(rows)}"
    reading = f"distorted structures that the model puts within {WITHIN_REACH:g} eV of the frame are more than "
    reading += f"{HOLE:g} eV lower than {context.teacher.method} says; the deepest by {deepest:.2g} eV"
    if holes.any():
        worst = rows[int(np.argmax(np.where(near, below, -np.inf)))]
        reading += f" ({worst['what']}). A run may fall into it: label such structures and train on them"
    report.verdict("Holes", value, reading, "look" if holes.any() else "good")
    report.number("holes", int(holes.sum()), "structures", of=f"{len(rows)} distorted")
    report.number("deepest_hole", deepest, "eV")
    table = []
    for kind in ("compressed", "stretched", "moved"):
        chosen = np.array([row["kind"] == kind for row in rows])
        if not chosen.any():
            continue
        error = float(np.sqrt((below[chosen] ** 2).mean()))
        report.number("distortion_energy_rmse", error, "eV", of=kind)
        spread = f"{reference[chosen].min():.2f} to {reference[chosen].max():.2f}"
        table.append([kind, str(int(chosen.sum())), spread, f"{error:.3g}", f"{below[chosen].max():+.3g}"])
    head = ["", "structures", "reference's energies / eV", "RMSE / eV", "most that the model is too low / eV"]
    note = "Energies above the relaxed frame that was distorted. Moved hydrogens were relaxed by the model first; "
    note += "one that went back counts as it came to rest."
    if failed:
        note += f" {failed} more could not be evaluated; work/holes-*.json says why."
    report.table("Distorted structures", head, table, note)
    report.card |= {"holes": value, "deepest_hole_eV": deepest}
    picture = f"{report.name}-parity.png"
    title = "Energies of distorted structures"
    figure = parity_figure(title, "energy above the frame / eV", reference, model, context.folder / picture)
    report.figure(title, "Points far below the line, at the bottom, are holes.", figure, picture)
    return report
