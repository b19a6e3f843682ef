"""The compiled inner loop. Importing it imports numba: reach it through ``physics.simulate``.

No fast mathematics: every operation is an IEEE one in a fixed order, so a trajectory has the same bits on every
machine, with any number of threads and in any company of other systems. The loops over ``j`` without a sum are
the ones the compiler turns into vector instructions.
"""

from __future__ import annotations

import math

import numba


@numba.njit(nogil=True, error_model="numpy")
def advance(x, v, q, force, pair, steps, timestep, strength, max_force):
    """Advance one system in place; see ``physics.py`` for the equations.

    Args:
        x, v: (3, N) positions and velocities, changed.
        q: (N,) charges.
        force, pair: (3, N) scratch.
        steps: number of time steps.
        timestep, strength, max_force: of ``Law``.
    """
    count = x.shape[1]
    for _ in range(steps):
        for c in range(3):
            for j in range(count):
                force[c, j] = 0.0
        for i in range(1, count):
            xi, yi, zi, qi = x[0, i], x[1, i], x[2, i], strength * q[i]
            for j in range(i):
                dx, dy, dz = xi - x[0, j], yi - x[1, j], zi - x[2, j]
                squared = dx * dx + dy * dy + dz * dz
                scale = qi * q[j] / (squared * math.sqrt(squared))
                pair[0, j] = scale * dx
                pair[1, j] = scale * dy
                pair[2, j] = scale * dz
            fx, fy, fz = 0.0, 0.0, 0.0
            for j in range(i):
                fx += pair[0, j]
                fy += pair[1, j]
                fz += pair[2, j]
            for j in range(i):
                force[0, j] -= pair[0, j]
                force[1, j] -= pair[1, j]
                force[2, j] -= pair[2, j]
            force[0, i] += fx
            force[1, i] += fy
            force[2, i] += fz
        for c in range(3):
            for j in range(count):
                v[c, j] += timestep * min(max(force[c, j], -max_force), max_force)
                x[c, j] += timestep * v[c, j]
