"""Minimisation of an OpenMM context for learned potentials.

OpenMM's ``LocalEnergyMinimizer`` may try positions that are far away before it comes back. A force field's repulsion
sends it back; a learned potential may know nothing about overlapping atoms, and a deep hollow there or a NaN ends the
run. So positions move by ASE's FIRE2, at most 0.2 Å an iteration. Only systems with constraints, which FIRE2 would not
keep, are left to OpenMM.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, all_changes
from ase.optimize import FIRE2

from egnn_md.simulation.engine import Observation
from egnn_md.units import KJ_PER_MOL_PER_EV

if TYPE_CHECKING:
    import openmm

ANGSTROM_PER_NM = 10.0
STRETCH = 25  # iterations of OpenMM's minimiser between looks at signals and forces


class Relaxing(Protocol):
    """What of the engine is needed here."""

    context: openmm.Context

    def observe(self, *, full: bool = True) -> Observation:
        """Positions (Å), energy (eV) and forces (eV/Å) now."""


class _ContextCalculator(Calculator):
    """A context's energy and forces for ASE's optimisers."""

    implemented_properties = ["energy", "forces"]  # noqa: RUF012 - ASE's convention

    def __init__(self, engine: Relaxing, faults: Callable[[], AbstractContextManager[None]]) -> None:
        super().__init__()
        self._engine, self._faults = engine, faults

    def calculate(self, atoms: Atoms | None = None, properties: Any = None, system_changes: Any = all_changes) -> None:
        super().calculate(atoms, properties, system_changes)
        assert self.atoms is not None
        with self._faults():
            self._engine.context.setPositions(self.atoms.positions / ANGSTROM_PER_NM)
        seen = self._engine.observe()
        self.results = {"energy": seen.energy, "forces": seen.forces}


def relax(engine: Relaxing, steps: int, force: float, stop: Callable[[], bool], faults: Callable[[], Any]) -> int:
    """FIRE2 with bounded steps; no constraints.

    Args:
        engine: its context's positions are moved.
        steps: most iterations.
        force: eV/Å, of the largest force at which it ends.
        stop: ends it early.
        faults: context manager that turns OpenMM's errors into ours.

    Returns:
        The number of iterations.
    """
    seen = engine.observe()
    atoms = Atoms(numbers=np.ones(len(seen.positions), int), positions=seen.positions)  # FIRE2 asks for no element
    atoms.calc = _ContextCalculator(engine, faults)
    optimizer = FIRE2(atoms, logfile=None)  # type: ignore[arg-type]
    for converged in optimizer.irun(fmax=force, steps=steps):
        if converged or stop():
            break
    return int(optimizer.nsteps)


def relax_constrained(
    engine: Relaxing, steps: int, force: float, stop: Callable[[], bool], faults: Callable[[], Any]
) -> int:
    """OpenMM's L-BFGS, which keeps constraints; arguments as :func:`relax`.

    Iterations are counted by stretches, the last of which may be shorter.
    """
    import openmm

    # In stretches and without OpenMM's reporter, which keeps the Python lock that a TorchForce needs.
    tolerance = 0.1 * force * KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM
    done, last = 0, np.inf
    while True:
        seen = engine.observe()
        assert seen.forces is not None
        assert seen.energy is not None
        stuck = seen.energy > last - 1e-7 * len(seen.forces)
        relaxed = np.linalg.norm(seen.forces, axis=1).max() < force
        if done >= steps or stuck or relaxed or stop():
            return done
        last = seen.energy
        stretch = min(STRETCH, steps - done)
        with faults():
            openmm.LocalEnergyMinimizer.minimize(engine.context, tolerance, stretch)
        done += stretch
