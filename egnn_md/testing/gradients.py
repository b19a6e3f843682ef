"""Derivatives and smoothness: forces, stress and curvature against differences, and no jumps anywhere.

All of it in float64: a difference of float32 energies shows the rounding, not the model.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from ase import Atoms

from egnn_md.errors import InputError
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import whole_cells
from egnn_md.testing.probe import ask, copy_of, energy_of, graph_of, in_float64
from egnn_md.testing.result import (
    CURVATURE_DIFFERENCE_TOLERANCE,
    ENERGY_JUMP_TOLERANCE,
    FORCE_DIFFERENCE_TOLERANCE,
    FORCE_JUMP_TOLERANCE,
    LARGEST_FORCE,
    STRESS_DIFFERENCE_TOLERANCE,
    CheckResult,
    measured,
    scale,
)
from egnn_md.testing.structures import spacing

STEP = 5e-4  # Å; h⁴ of the five-point formula against 1e-13 eV of rounding
STRAIN_STEP = 1e-4
JUMP_STEP = 2e-5  # Å; small enough for steep neighbours, large against the rounding of distances
_CLEARANCE = 0.02  # Å that other pairs keep from the cutoff while one pair crosses it
#: Six independent symmetric strains, Voigt order.
_VOIGT = ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))


def five_point(function: Callable[[float], float | np.ndarray], step: float) -> float | np.ndarray:
    """f'(0) from f(±h), f(±2h): the error is h⁴ f⁽⁵⁾ / 30."""
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return (8.0 * near - far) / (12.0 * step)


def check_forces(model: Potential, atoms: Atoms, *, seed: int = 0) -> list[CheckResult]:
    """Forces are minus the energy's slope: every atom, in one random direction each, and all together."""
    model = in_float64(model)
    rng = np.random.default_rng(seed)
    result = ask(model, atoms, torch.float64)
    forces = result.forces.numpy()
    directions = [np.zeros((len(atoms), 3)) for _ in range(len(atoms))]
    for index, direction in enumerate(directions):
        direction[index] = rng.normal(size=3)
    directions.append(rng.normal(size=(len(atoms), 3)))
    errors = []
    for direction in directions:
        unit = direction / np.linalg.norm(direction)

        def moved(length: float, unit: np.ndarray = unit) -> float:
            displaced = atoms.copy()
            displaced.positions = atoms.positions + length * unit
            return energy_of(model, displaced, torch.float64)

        errors.append(abs(float(five_point(moved, STEP)) + float((forces * unit).sum())))
    tolerance = FORCE_DIFFERENCE_TOLERANCE * scale(result.largest_force)
    return [measured("forces = -dE/dx", float(np.max(errors)), tolerance, "eV/Å")]


def check_stress(model: Potential, atoms: Atoms) -> list[CheckResult]:
    """Stress is dE/dstrain / volume, positive under tension, and symmetric; a 3D-periodic cell is needed."""
    model = in_float64(model)
    result = ask(model, atoms, torch.float64)
    assert result.stress is not None, "stress needs a cell that is periodic in three directions"
    volume = atoms.get_volume()
    errors = [float((result.stress - result.stress.T).abs().max())]
    for i, j in _VOIGT:
        shape = np.zeros((3, 3))
        shape[i, j] = shape[j, i] = 0.5 if i != j else 1.0

        def strained(size: float, shape: np.ndarray = shape) -> float:
            deformed = atoms.copy()
            deformed.set_cell(atoms.cell.array @ (np.eye(3) + size * shape), scale_atoms=True)
            return energy_of(model, deformed, torch.float64)

        # shape holds both halves of a shear, so the slope is the stress component itself
        errors.append(abs(float(five_point(strained, STRAIN_STEP)) / volume - float(result.stress[i, j])))
    tolerance = STRESS_DIFFERENCE_TOLERANCE * scale(result.largest_force)
    # numpy's max keeps a NaN; Python's may drop it
    return [measured("stress = dE/dε/V", float(np.max(errors)), tolerance, "eV/Å³")]


def check_second_derivatives(model: Potential, atoms: Atoms, *, seed: int = 0) -> list[CheckResult]:
    """Force training works here: derivatives of forces are finite and agree with differences of forces.

    Both by the positions and by every weight are taken, through a second reverse pass.
    """
    model = copy_of(model, torch.float64)  # the weights' requires_grad is switched on below
    graph = graph_of(model, atoms, torch.float64)
    positions = graph.positions.clone().requires_grad_()
    weights = [weight.requires_grad_() for weight in model.parameters()]
    arguments = [positions, graph.species, graph.edge_index, graph.shifts(), graph.batch, graph.periodic]
    if model.needs_cell:
        arguments.append(whole_cells(graph.cell, graph.pbc))
    energy = model(*arguments).sum()
    (slope,) = torch.autograd.grad(energy, positions, create_graph=True)
    direction = torch.as_tensor(np.random.default_rng(seed).normal(size=(len(atoms), 3)))
    direction = direction / direction.norm()
    targets: list[torch.Tensor] = [positions, *weights]
    second: list[torch.Tensor | None] = [None] * len(targets)
    if slope.requires_grad:  # an energy linear in the positions has none
        second = list(torch.autograd.grad((slope * direction).sum(), targets, allow_unused=True))
    broken = sum(int((~torch.isfinite(value)).sum()) for value in [slope, *second] if value is not None)
    rows = [measured("second derivatives finite", broken, 0, "count")]

    def forces(length: float) -> np.ndarray:
        displaced = atoms.copy()
        displaced.positions = atoms.positions + length * direction.numpy()
        return ask(model, displaced, torch.float64).forces.numpy()

    curvature = np.zeros((len(atoms), 3)) if second[0] is None else second[0].detach().cpu().numpy()
    error = np.abs(five_point(forces, STEP) + curvature)
    tolerance = CURVATURE_DIFFERENCE_TOLERANCE * max(1.0, float(np.abs(curvature).max()))
    rows.append(measured("second derivatives = -dF/dx", float(error.max()), tolerance, "eV/Å²"))
    return rows


def _jump(sample: Callable[[float], np.ndarray]) -> np.ndarray:
    """f(0+) - f(0-), each side extrapolated quadratically from three points of its own."""
    h = JUMP_STEP
    sides = [3 * sample(s * h) - 3 * sample(2 * s * h) + sample(3 * s * h) for s in (1, -1)]
    return sides[0] - sides[1]


def _energy_and_forces(model: Potential, atoms: Atoms) -> np.ndarray:
    result = ask(model, atoms, torch.float64)
    return np.concatenate([[result.energy], result.forces.numpy().ravel()])


def _jump_rows(name: str, jumps: list[np.ndarray]) -> list[CheckResult]:
    """The tolerances are absolute: a jump is a flaw of the model whatever the other forces are."""
    table = np.abs(np.asarray(jumps))
    return [
        measured(f"{name}: energy", float(table[:, 0].max()), ENERGY_JUMP_TOLERANCE, "eV"),
        measured(f"{name}: forces", float(table[:, 1:].max()), FORCE_JUMP_TOLERANCE, "eV/Å"),
    ]


def _near_cutoff(
    model: Potential, pair: tuple[int, int], periodic: bool, rng: np.random.Generator
) -> tuple[Atoms, np.ndarray]:
    """Four atoms, the last at exactly the cutoff from the first, no other pair there; and its direction.

    Distances are as short as the forces allow: the pair at the cutoff matters most among strong neighbours.
    """
    numbers = [pair[0], pair[1], pair[0], pair[1]]
    nearest = spacing(pair, model.cutoff)
    upper = np.triu_indices(4, 1)
    evaluations = 0
    while evaluations < 100:
        way = rng.normal(size=3)
        way /= np.linalg.norm(way)
        sides = rng.normal(size=(2, 3))
        sides *= 1.2 * nearest / np.linalg.norm(sides, axis=1)[:, None]
        end = model.cutoff * way
        points = np.array([np.zeros(3), sides[0], end + sides[1], end])
        distances = np.linalg.norm(points[:, None] - points, axis=-1)[upper]
        others = np.delete(distances, 2)  # pair (0, 3) is the one that crosses
        if distances.min() < nearest or np.abs(others - model.cutoff).min() < _CLEARANCE:
            continue
        atoms = Atoms(numbers=numbers, positions=points)
        if periodic:  # so wide that images stay beyond the cutoff
            atoms.cell = np.eye(3) * 5 * model.cutoff
            atoms.pbc = True
        if ask(model, atoms, torch.float64).largest_force <= LARGEST_FORCE:
            return atoms, way
        evaluations += 1
        nearest = min(1.05 * nearest, 0.6 * model.cutoff)
    raise InputError(
        f"no arrangement of {numbers} around the cutoff of {model.cutoff} Å has forces below "
        f"{LARGEST_FORCE} eV/Å"
    )


def check_cutoff(model: Potential, *, seed: int = 0, most_pairs: int = 6) -> list[CheckResult]:
    """Energy and forces have no jump where a pair of atoms passes the cutoff, among other atoms.

    Every pair of the model's elements (at most ``most_pairs``), in an open and in a wide periodic system.

    Raises:
        InputError: every arrangement tried has forces that are too large, or not numbers.
    """
    model = in_float64(model)
    rng = np.random.default_rng(seed)
    elements = list(model.elements) or [1, 8]
    pairs = list(itertools.islice(itertools.combinations_with_replacement(elements, 2), most_pairs))
    jumps = []
    for pair, periodic in itertools.product(pairs, (False, True)):
        atoms, way = _near_cutoff(model, pair, periodic, rng)

        def sample(offset: float, atoms: Atoms = atoms, way: np.ndarray = way) -> np.ndarray:
            moved = atoms.copy()
            moved.positions[3] = atoms.positions[3] + offset * way
            return _energy_and_forces(model, moved)

        jumps.append(_jump(sample))
    return _jump_rows("no jump at the cutoff", jumps)


def check_boundary(model: Potential, atoms: Atoms) -> list[CheckResult]:
    """Energy and forces have no jump where an atom leaves the cell and comes back on the other side."""
    model = in_float64(model)
    jumps = []
    for axis in np.flatnonzero(atoms.pbc):
        lattice = atoms.cell.array[axis]
        unit = lattice / np.linalg.norm(lattice)
        start = atoms.copy()  # moved as a whole until its first atom lies on the face
        start.positions -= start.get_scaled_positions(wrap=False)[0, axis] * lattice
        first = start.positions[0].copy()
        start.wrap()
        start.positions[0] = first

        def sample(
            offset: float, start: Atoms = start, unit: np.ndarray = unit, lattice: np.ndarray = lattice
        ) -> np.ndarray:
            moved = start.copy()
            moved.positions[0] = start.positions[0] + offset * unit + (lattice if offset < 0 else 0.0)
            return _energy_and_forces(model, moved)

        jumps.append(_jump(sample))
    return _jump_rows("no jump at the cell boundary", jumps)
