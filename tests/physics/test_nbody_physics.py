"""Charged particles: what the generator must obey whatever the recorded numbers say."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("numba")
from scipy.spatial.transform import Rotation

from egnn_md.errors import InputError, SimulationError
from egnn_md_systems.nbody.physics import (
    PUBLISHED,
    SPEED,
    Law,
    energies,
    net_forces,
    position_spread,
    simulate,
    starting_states,
)

REST = np.zeros((2, 3))


def pair(distance: float) -> np.ndarray:
    return np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]])


def calm(systems: int, particles: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States on a jittered grid of spacing 2: no two particles come close in the time of a few frames."""
    random = np.random.default_rng(5)
    grid = 2.0 * np.stack(np.meshgrid(*[np.arange(3)] * 3), axis=-1).reshape(-1, 3)[:particles]
    x = grid + random.uniform(-0.3, 0.3, size=(systems, particles, 3))
    v = random.normal(scale=0.3, size=(systems, particles, 3))
    return x, v, random.choice([-1.0, 1.0], size=(systems, particles))


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_like_charges_repel_with_coulombs_force(sign: float):
    force = net_forces(pair(2.0), [1.0, 3.0 * sign])
    assert force == pytest.approx(sign * np.array([[-0.75, 0, 0], [0.75, 0, 0]]), abs=1e-15)
    x, v = simulate(pair(2.0), REST, np.array([1.0, 3.0 * sign]), 2)
    assert np.sign(v[1, :, 0]).tolist() == [-sign, sign]
    assert (x[1, 1, 0] - x[1, 0, 0] > 2.0) == (sign > 0)


def test_a_bound_pair_circles_in_keplers_period():
    """Opposite charges at distance 1: ``v² / (1/2) = 1``, so both go around in ``2π · 0.5 / v``."""
    speed = np.sqrt(0.5)
    frames = 10
    law = Law(timestep=2 * np.pi * 0.5 / speed / 20_000, steps_per_frame=2_000)
    v = np.array([[0, -speed, 0], [0, speed, 0.0]])
    x, _ = simulate(pair(1.0), v, np.array([1.0, -1.0]), frames + 1, law=law)
    assert np.linalg.norm(x[:, 1] - x[:, 0], axis=1) == pytest.approx(1.0, abs=1e-3)
    assert x[frames] == pytest.approx(x[0], abs=2e-3)  # first order: some time steps of 2e-4
    assert x[frames // 2] == pytest.approx(x[0][::-1], abs=2e-3)


def test_forces_are_symmetric_and_momentum_is_conserved():
    x, v, q = calm(4)
    force = net_forces(x, q)
    assert np.abs(force).max() > 0.1
    assert np.abs(force.sum(axis=1)).max() < 1e-14
    _, velocities = simulate(x, v, q, 6)
    momentum = velocities.sum(axis=2)
    assert np.abs(velocities[:, -1] - velocities[:, 0]).max() > 0.1
    assert np.abs(momentum - momentum[:, :1]).max() < 1e-12  # 500 steps of rounding


def test_each_component_of_the_sum_is_clipped():
    x = np.array([[0, 0, 0], [0.05, 0.001, 0], [0, 0, 1.0]])
    q = np.array([1.0, -1.0, 1.0])
    force = net_forces(x, q)
    assert force[0, 0] == PUBLISHED.max_force
    assert force[1, 0] == -PUBLISHED.max_force
    assert 0 < abs(force[0, 1]) < PUBLISHED.max_force  # this component is small, and left alone
    _, v = simulate(x, np.zeros((3, 3)), q, 1, warm_up=1)
    assert v[0] == pytest.approx(PUBLISHED.timestep * force, abs=1e-15)
    wide = Law(max_force=1e9)
    assert abs(net_forces(x, q, wide)[0, 0]) > 399


def test_clipping_can_break_momentum():
    """Two partners pull one particle beyond the bound: it is clipped at 100 while they feel 80 each. As published."""
    distance = 1 / np.sqrt(80.0)
    x = np.array([[0, 0, 0], [distance, 1e-3, 0], [distance, -1e-3, 0]])
    total = net_forces(x, [1.0, -1.0, -1.0]).sum(axis=0)
    assert abs(total[0]) > 50


def test_energy_error_is_of_first_order_in_the_time_step():
    """Symplectic Euler: half the time step, half the error; a wrong force law would leave an error that stays."""
    x, v, q = calm(6)
    q = np.ones_like(q)  # all repel, so nobody comes close, where the error is not yet of first order
    errors = []
    for halvings in range(3):
        law = Law(timestep=0.002 / 2**halvings, steps_per_frame=100 * 2**halvings)
        positions, velocities = simulate(x, v, q, 6, law=law)
        energy = energies(positions, velocities, q[:, None], law)
        errors.append(np.abs(energy - energy[:, :1]).max())
    assert errors[0] < 0.05
    assert 1.7 < errors[0] / errors[1] < 2.3
    assert 1.7 < errors[1] / errors[2] < 2.3


def test_rotated_and_moved_starts_give_rotated_and_moved_trajectories():
    x, v, q = calm(3)
    turn = Rotation.from_rotvec([0.3, -1.1, 0.7]).as_matrix()
    away = np.array([3.0, -1.0, 0.5])
    positions, velocities = simulate(x, v, q, 5)
    turned, turned_velocities = simulate(x @ turn.T + away, v @ turn.T, q, 5)
    assert turned == pytest.approx(positions @ turn.T + away, abs=1e-11)
    assert turned_velocities == pytest.approx(velocities @ turn.T, abs=1e-11)
    order = np.random.default_rng(0).permutation(x.shape[1])
    shuffled, _ = simulate(x[:, order], v[:, order], q[:, order], 5)
    assert shuffled == pytest.approx(positions[:, :, order], abs=1e-11)


def test_systems_and_threads_do_not_touch_each_others_bits():
    x, v, q = starting_states(20, [(0, i) for i in range(5)], 1)
    together = simulate(x, v, q, 4, warm_up=1)
    threaded = simulate(x, v, q, 4, warm_up=1, threads=3)
    assert all(np.array_equal(a, b) for a, b in zip(together, threaded, strict=True))
    alone = simulate(x[3], v[3], q[3][:, None], 4, warm_up=1)
    assert all(np.array_equal(a[3], b) for a, b in zip(together, alone, strict=True))


def test_inputs_are_left_as_they_were():
    x, v, q = calm(2)
    before = [array.copy() for array in (x, v, q)]
    positions, velocities = simulate(x, v, q, 3)
    assert all(np.array_equal(a, b) for a, b in zip((x, v, q), before, strict=True))
    assert np.array_equal(positions[:, 0], x)
    assert np.array_equal(velocities[:, 0], v)


@pytest.mark.parametrize("particles", [5, 100])
def test_starts_follow_the_published_law(particles: int):
    x, v, q = starting_states(particles, [(0, i) for i in range(300)], 0)
    numbers = x.size
    assert position_spread(100) == pytest.approx(2.814417616659490)
    assert abs(x.std() / position_spread(particles) - 1) < 5 / np.sqrt(2 * numbers)
    assert abs(x.mean()) < 5 * position_spread(particles) / np.sqrt(numbers)
    assert np.linalg.norm(v, axis=-1) == pytest.approx(SPEED, abs=1e-15)
    assert np.abs(v.mean(axis=(0, 1))).max() < 5 * SPEED / np.sqrt(3 * 300 * particles)  # no direction is favoured
    assert set(np.unique(q)) == {-1.0, 1.0}
    assert abs(q.mean()) < 5 / np.sqrt(q.size)


def test_a_start_depends_on_its_key_and_the_seed_only():
    x, v, q = starting_states(10, [(0, 0), (0, 1), (1, 0)], 7)
    again = starting_states(10, [(1, 0)], 7)
    assert all(np.array_equal(a[2], b[0]) for a, b in zip((x, v, q), again, strict=True))
    assert not np.array_equal(x[0], x[1])
    assert not np.array_equal(x[0], x[2])
    assert not np.array_equal(starting_states(10, [(1, 0)], 8)[0], again[0])


def test_bad_states_are_refused_with_the_place():
    x, v, q = calm(2)
    with pytest.raises(InputError, match=r"velocities are \(1, 12, 3\), but positions \(2, 12, 3\)"):
        simulate(x, v[:1], q, 2)
    with pytest.raises(InputError, match=r"charges are \(12,\), but \(2, 12\)"):
        simulate(x, v, q[0], 2)
    with pytest.raises(InputError, match="positions are"):
        simulate(x[..., :2], v[..., :2], q, 2)
    with pytest.raises(InputError, match="frames is 0"):
        simulate(x, v, q, 0)
    broken = x.copy()
    broken[1, 4, 2] = np.nan
    with pytest.raises(InputError, match=r"positions\[1, 4, 2\] is nan"):
        simulate(broken, v, q, 2)
    broken = x.copy()
    broken[1, 7] = broken[1, 3]
    with pytest.raises(InputError, match="system 1: particles 3 and 7 are at the same place"):
        simulate(broken, v, q, 2)


def test_particles_that_meet_exactly_are_told():
    # heading for each other without a force: after 100 steps both are at the same place, and 0/0 follows
    x, v = pair(0.5), np.array([[0.25, 0, 0], [-0.25, 0, 0.0]])
    law = Law(timestep=2.0**-4, steps_per_frame=16, strength=0.0)
    with pytest.raises(SimulationError, match=r"system 0: .* from frame 2 on"):
        simulate(x, v, np.ones(2), 4, law=law)
