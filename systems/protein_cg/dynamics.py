"""Langevin dynamics of the beads in OpenMM: the prior's forces, and the network as a ``TorchForce`` on top."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError, SimulationError

from . import prior_path
from .all_atom import TEMPERATURE
from .chain import bead_masses, bead_topology
from .prior import Prior

TIMESTEP = 10.0  # fs; the fastest vibration of the chain takes about 60 fs
FRICTION = 1.0  # 1/ps
STRIDE = 50  # steps between frames: 0.5 ps
TORN = 100.0  # Å; a bead further from the centre of its chain than this has flown away
SPACING = 100.0  # Å between copies at the start


def bead_system(
    residues: Sequence[str], prior: Prior | None, model: Any = None, *, copies: int = 1, **options: Any
) -> Any:
    """An OpenMM system of beads: the prior's terms (None: without) and the network (None: without).

    Args:
        residues: three-letter names along the chain.
        prior: the network was trained to be added to it.
        copies: chains, which do not feel each other while they are further apart than the network's cutoff: ten
            beads are so few that more of them cost nearly the same time. Needs a network without virtual nodes.
        model: a potential, its file or the name of a shipped one; ``options`` go to
            :func:`egnn_md_openmm.add_potential`.

    Raises:
        As :func:`egnn_md_openmm.add_potential`; InputError for an unknown residue, or copies of a network with
            virtual nodes.
    """
    import openmm

    from egnn_md import load_model

    system = openmm.System()
    for mass in np.tile(bead_masses(residues), copies):
        system.addParticle(mass)
    if prior is not None:
        for copy in range(copies):
            prior.add_to(system, first=copy * len(residues))
    if model is not None:
        from egnn_md_openmm import add_potential

        potential = load_model(model) if isinstance(model, str | Path) else model
        if copies > 1 and potential.long_range:
            raise InputError(f"{copies} copies would feel each other through the network's virtual nodes; make one")
        add_potential(system, bead_topology(residues, copies), potential, **options)
    return system


@dataclass(frozen=True)
class Trajectory:
    """``positions`` (copies, frames, beads, 3) in Å, ``STRIDE`` steps apart; steps a second of all copies."""

    positions: NDArray[np.float64]
    steps_per_second: float


def simulate(
    system: Any, start: NDArray[np.floating], steps: int, seed: int, *, temperature: float = TEMPERATURE
) -> Trajectory:
    """Langevin dynamics of every copy from ``start`` (beads, 3) in Å, on a grid of ``SPACING``.

    Raises:
        SimulationError: a position is not finite or the chain is torn.
    """
    import openmm

    integrator = openmm.LangevinMiddleIntegrator(temperature, FRICTION, TIMESTEP * 1e-3)
    integrator.setRandomNumberSeed(seed)
    # on ten beads the Reference platform is the fastest one, and the same seed gives the same trajectory
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    beads = len(start)
    copies = system.getNumParticles() // beads
    side = math.ceil(copies ** (1 / 3) - 1e-9)
    grid = SPACING * np.array([np.unravel_index(copy, (side,) * 3) for copy in range(copies)])
    context.setPositions(0.1 * (np.asarray(start) + grid[:, None]).reshape(-1, 3))
    context.setVelocitiesToTemperature(temperature, seed)
    frames = []
    began = time.perf_counter()
    for frame in range(steps // STRIDE):
        integrator.step(STRIDE)
        positions = 10.0 * context.getState(getPositions=True).getPositions(asNumpy=True)._value.reshape(-1, beads, 3)
        size = np.linalg.norm(positions - positions.mean(axis=1, keepdims=True), axis=-1).max()
        if not np.isfinite(size) or size > TORN:
            raise SimulationError(
                f"seed {seed}: after {(frame + 1) * STRIDE} steps a bead is {size} Å from the centre of its chain; the "
                f"timestep ({TIMESTEP} fs) is too long or the model has left what it knows"
            )
        drift = np.linalg.norm(positions.mean(axis=1) - start.mean(axis=0) - grid, axis=-1).max()
        if copies > 1 and drift > SPACING / 4:
            raise SimulationError(
                f"seed {seed}: a chain went {drift:.0f} Å and may meet its neighbour; run fewer steps"
            )
        frames.append(positions)
    speed = copies * len(frames) * STRIDE / (time.perf_counter() - began)
    return Trajectory(np.array(frames).swapaxes(0, 1), speed)


def shipped_prior() -> Prior:
    """The prior that the shipped network was trained with."""
    return Prior.load(prior_path())
