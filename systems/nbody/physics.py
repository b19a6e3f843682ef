"""Physics of the charged-particle benchmark (Fuchs et al. 2020 and Satorras et al. 2021 for 5 particles; 100 here).

Units: none. Masses are 1.

| equation | symbol → variable |
| --- | --- |
| ``F_i = k Σ_j q_i q_j (x_i - x_j) / |x_i - x_j|³`` | ``k`` → ``Law.strength``, ``q`` → ``charges`` |
| every component of ``F_i`` clipped to ``[-F_max, F_max]`` | ``F_max`` → ``Law.max_force`` |
| ``v_i ← v_i + F_i dt``, then ``x_i ← x_i + v_i dt`` | ``dt`` → ``Law.timestep`` |
| start: ``x`` normal, standard deviation ``(N/5)^(1/3) + 0.1``; ``v`` of random direction and length 0.5; | ``SPEED`` |
| ``q`` +1 or -1 with equal odds | ``charges`` |

Like charges repel. The integrator is the symplectic (semi-implicit) Euler method, of first order. Pair forces obey
Newton's third law, so momentum is conserved to rounding; clipping acts on the sum of each particle's forces, so
wherever it acts (opposite charges that pass at less than about 0.1) momentum and energy are not conserved. No system
is rejected. A stored velocity is the one that led to the stored position.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from egnn_md.errors import InputError, MissingDependencyError, SimulationError

SPEED = 0.5
INSTALL = "pip install 'egnn-md[systems]'"

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Law:
    """Constants of the published benchmark; ``steps_per_frame`` time steps lie between two stored frames."""

    strength: float = 1.0
    max_force: float = 100.0
    timestep: float = 0.001
    steps_per_frame: int = 100


PUBLISHED = Law()


def position_spread(particles: int) -> float:
    """Standard deviation of each start coordinate: grows with N so that the density stays about the same."""
    return float((particles / 5) ** (1 / 3) + 0.1)


def starting_states(particles: int, keys: Sequence[Sequence[int]], seed: int) -> tuple[Array, Array, Array]:
    """Draw one state for each key: the same key and seed give the same state, whatever else is drawn.

    Args:
        particles: N.
        keys: S sequences of whole numbers, such as (part, number of the system).
        seed: of the data set.

    Returns:
        positions (S, N, 3), velocities (S, N, 3), charges (S, N).
    """
    positions = np.empty((len(keys), particles, 3))
    velocities = np.empty_like(positions)
    charges = np.empty((len(keys), particles))
    for s, key in enumerate(keys):
        random = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=tuple(key)))
        charges[s] = random.choice([-1.0, 1.0], size=particles)
        positions[s] = random.normal(scale=position_spread(particles), size=(particles, 3))
        direction = random.normal(size=(particles, 3))
        velocities[s] = SPEED * direction / np.linalg.norm(direction, axis=1, keepdims=True)
    return positions, velocities, charges


def net_forces(positions: ArrayLike, charges: ArrayLike, law: Law = PUBLISHED) -> Array:
    """Clipped force on every particle: the plain form of what the compiled loop does, for tests and figures.

    Args:
        positions: (S, N, 3) or (N, 3).
        charges: (S, N) or (N,).

    Returns:
        As ``positions``.
    """
    x, q = np.asarray(positions, dtype=np.float64), np.asarray(charges, dtype=np.float64)
    pair = x[..., :, None, :] - x[..., None, :, :]
    squared = np.sum(pair * pair, axis=-1)
    diagonal = np.arange(x.shape[-2])
    squared[..., diagonal, diagonal] = 1.0  # a particle does not act on itself: its pair vector is zero
    scale = law.strength * q[..., :, None] * q[..., None, :] / squared**1.5
    return np.clip(np.sum(scale[..., None] * pair, axis=-2), -law.max_force, law.max_force)


def energies(positions: ArrayLike, velocities: ArrayLike, charges: ArrayLike, law: Law = PUBLISHED) -> Array:
    """Kinetic plus Coulomb energy (without clipping) of each system: ``Σ v²/2 + k Σ_{i<j} q_i q_j / r_ij``.

    Args:
        positions, velocities: (..., N, 3).
        charges: (..., N), broadcast against the leading dimensions of ``positions``.

    Returns:
        The leading dimensions.
    """
    x, v, q = (np.asarray(a, dtype=np.float64) for a in (positions, velocities, charges))
    i, j = np.triu_indices(x.shape[-2], 1)
    distance = np.linalg.norm(x[..., i, :] - x[..., j, :], axis=-1)
    potential = law.strength * np.sum(q[..., i] * q[..., j] / distance, axis=-1)
    return np.asarray(0.5 * np.sum(v * v, axis=(-1, -2)) + potential)


def simulate(
    positions: ArrayLike,
    velocities: ArrayLike,
    charges: ArrayLike,
    frames: int,
    *,
    warm_up: int = 0,
    law: Law = PUBLISHED,
    threads: int = 1,
) -> tuple[Array, Array]:
    """Trajectories of S independent systems; frame 0 is the state that is given (after ``warm_up`` time steps).

    Args:
        positions, velocities: (S, N, 3), or (N, 3) for one system.
        charges: (S, N) or (S, N, 1); (N,) or (N, 1) for one system.
        frames: T.
        warm_up: time steps before frame 0; the published data sets take 1 from the start they draw.
        law: constants.
        threads: systems that run at the same time; the numbers do not depend on it.

    Returns:
        positions and velocities (S, T, N, 3) float64; (T, N, 3) for one system.

    Raises:
        InputError: shapes that do not agree, values that are not finite, particles at the same place.
        SimulationError: two particles met exactly, so that a state is not finite.
        MissingDependencyError: numba is not installed.
    """
    advance = _load_kernel()
    x, v, q = _check(positions, velocities, charges, frames, threads)
    systems, particles, _ = x.shape
    out_x, out_v = np.empty((2, systems, frames, particles, 3))

    def run(s: int) -> None:
        state, speed = np.ascontiguousarray(x[s].T), np.ascontiguousarray(v[s].T)
        scratch = np.empty((2, 3, particles))
        for frame in range(frames):
            steps = law.steps_per_frame if frame else warm_up
            constants = float(law.timestep), float(law.strength), float(law.max_force)
            advance(state, speed, q[s], scratch[0], scratch[1], steps, *constants)
            out_x[s, frame], out_v[s, frame] = state.T, speed.T

    if threads == 1:
        for s in range(systems):
            run(s)
    else:
        with ThreadPoolExecutor(threads) as pool:  # the compiled loop lets go of the interpreter's lock
            list(pool.map(run, range(systems)))
    finite = np.isfinite(out_x[:, -1]).all(axis=(1, 2))
    if not finite.all():
        s = int(np.argmin(finite))
        frame = int(np.argmin(np.isfinite(out_x[s]).all(axis=(1, 2))))
        raise SimulationError(f"system {s}: positions are not finite from frame {frame} on; two particles met")
    single = np.ndim(positions) == 2
    return (out_x[0], out_v[0]) if single else (out_x, out_v)


def _load_kernel() -> Any:
    try:
        from egnn_md_systems.nbody.kernel import advance
    except ImportError as error:
        if not (error.name or "").startswith(("numba", "llvmlite")):
            raise
        raise MissingDependencyError(f"the N-body generator needs numba ({error}): {INSTALL}") from error
    return advance


def _check(
    positions: ArrayLike, velocities: ArrayLike, charges: ArrayLike, frames: int, threads: int
) -> tuple[Array, Array, Array]:
    """(S, N, 3), (S, N, 3) and (S, N) float64, contiguous."""
    x, v = np.asarray(positions, dtype=np.float64), np.asarray(velocities, dtype=np.float64)
    q = np.asarray(charges, dtype=np.float64)
    if x.ndim not in (2, 3) or x.shape[-1] != 3 or 0 in x.shape:
        raise InputError(f"positions are {x.shape}, but (systems, particles, 3) or (particles, 3) is needed")
    if v.shape != x.shape:
        raise InputError(f"velocities are {v.shape}, but positions {x.shape}; they must agree")
    if q.shape not in (x.shape[:-1], (*x.shape[:-1], 1)):
        raise InputError(f"charges are {q.shape}, but {x.shape[:-1]} is needed for positions {x.shape}")
    if frames < 1 or threads < 1:
        raise InputError(f"frames is {frames} and threads {threads}; both must be at least 1")
    x, v = (a.reshape(-1, *a.shape[-2:]) for a in (x, v))
    q = np.ascontiguousarray(q.reshape(x.shape[:-1]))
    for name, values in (("positions", x), ("velocities", v), ("charges", q)):
        bad = np.argwhere(~np.isfinite(values))
        if len(bad):
            raise InputError(f"{name}[{', '.join(map(str, bad[0]))}] is {values[tuple(bad[0])]}; it must be finite")
    for s, places in enumerate(x):
        _, first, counts = np.unique(places, axis=0, return_index=True, return_counts=True)
        if (counts > 1).any():
            i = int(first[np.argmax(counts > 1)])
            j = next(k for k in range(len(places)) if k != i and (places[k] == places[i]).all())
            raise InputError(f"system {s}: particles {i} and {j} are at the same place, where the force is infinite")
    return x, v, q
