"""Metrics of rollouts against cases whose answer is known."""

from __future__ import annotations

from pathlib import Path

import ase
import mdtraj
import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation

from egnn_md.errors import InputError
from egnn_md.rollout.density import (
    grid_density_error,
    local_density,
    neighbour_counts,
    sample,
    sinkhorn_divergence,
)
from egnn_md.rollout.metrics import (
    absolute_error,
    centre_of_mass,
    drift,
    find_failure,
    kinetic_energy,
    largest_step,
    mean_velocity,
    outside_walls,
    squared_error,
    stay_still,
    straight_on,
)
from egnn_md.rollout.metrics_molecular import (
    diffusion,
    element_temperatures,
    mean_squared_displacement,
    pair_difference,
    pair_distributions,
    unwrap,
)
from egnn_md.rollout.metrics_protein import (
    bond_violations,
    find_bonds,
    find_topology,
    radius_of_gyration,
    rmsd,
    rmsf,
)
from egnn_md.simulation.mechanics import maxwell_boltzmann

EXACT = 1e-12
SINGLE = 1e-4  # mdtraj computes in single precision
RNG = np.random.default_rng


def rotation(seed: int) -> np.ndarray:
    q, r = np.linalg.qr(RNG(seed).normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q if np.linalg.det(q) > 0 else -q


def test_errors_are_torch_s():
    x, y = RNG(0).normal(size=(2, 4, 7, 3))
    for k in range(4):
        a, b = torch.tensor(x[k]), torch.tensor(y[k])
        assert squared_error(x, y)[k] == pytest.approx(float(torch.nn.functional.mse_loss(a, b)), rel=EXACT)
        assert absolute_error(x, y)[k] == pytest.approx(float(torch.nn.functional.l1_loss(a, b)), rel=EXACT)
    moving = np.arange(7) < 3
    np.testing.assert_allclose(squared_error(x, y, moving), ((x - y)[:, :3] ** 2).mean((1, 2)), rtol=EXACT)
    with pytest.raises(InputError, match=r"\(4, 7, 3\).*\(4, 6, 3\)"):
        squared_error(x, y[:, :6])


def test_linear_is_exact_for_uniform_motion():
    rng = RNG(1)
    x, v = rng.normal(size=(2, 5, 3))
    reference = x + 0.25 * np.arange(9)[:, None, None] * v
    assert squared_error(straight_on(x, v, 0.25, 9), reference).max() < 1e-28
    still = squared_error(stay_still(x, 9), reference)
    np.testing.assert_allclose(still, (0.25 * np.arange(9)) ** 2 * (v**2).mean(), rtol=1e-10)


def test_kinetic_energy_momentum_and_centre_of_mass():
    masses = np.array([1.0, 3.0])
    velocities = np.array([[[2.0, 0, 0], [0, 1.0, 0]], [[2.0, 0, 0], [-2 / 3, 0, 0]]])
    np.testing.assert_allclose(kinetic_energy(velocities, masses), [0.5 * 4 + 1.5, 2 + 1.5 * 4 / 9], rtol=EXACT)
    np.testing.assert_allclose(mean_velocity(velocities, masses), [[0.5, 0.75, 0], [0, 0, 0]], atol=EXACT)
    np.testing.assert_allclose(drift(mean_velocity(velocities, masses)), [0, np.hypot(0.5, 0.75)], rtol=EXACT)
    # from the start, not from the frame before
    np.testing.assert_allclose(drift(np.array([[1.0, 0, 0], [4, 4, 0], [1, 0, 2]])), [0, 5, 2], rtol=EXACT)
    positions = np.array([[[0.0, 0, 0], [4, 0, 0]]])
    np.testing.assert_allclose(centre_of_mass(positions, masses), [[3, 0, 0]], rtol=EXACT)


def test_particles_outside_the_walls_are_counted():
    walls = [[0, 1], [0, 2], [0, 3]]
    positions = np.array([[[0.5, 1, 1], [1.25, 1, 1], [0.5, -0.5, 3.125]], [[0.5, 1, 1]] * 3])
    found = outside_walls(positions, walls)
    assert found.count.tolist() == [2, 0]
    np.testing.assert_allclose(found.worst, [0.5, 0], atol=EXACT)
    assert outside_walls(positions, walls, np.array([True, True, False])).count.tolist() == [1, 0]
    on_wall = np.float32([[[0.5, 1, 3.0000002], [-1e-7, 1, 1], [0.5, -1e-4, 1]]])  # the first two by rounding
    found = outside_walls(on_wall, walls)
    assert (found.count.tolist(), found.worst[0]) == ([1], pytest.approx(1e-4))
    positions[1, 2] = np.nan
    assert outside_walls(positions, walls).worst[1] == np.inf
    with pytest.raises(InputError, match="low below high"):
        outside_walls(positions, [[0, 1], [0, 0], [0, 1]])


def test_failures_are_found_at_their_stride():
    v = np.array([[1.0, 0, 0], [0, 0.5, 0]])
    reference = straight_on(np.zeros((2, 3)), v, 1.0, 8)
    assert largest_step(reference) == pytest.approx(1.0)
    good = find_failure(reference, reference)
    assert (good.not_finite, good.jump, good.worse_than_still, good.broken) == (None, None, None, None)
    thrown = reference.copy()
    thrown[4:, 0, 1] += 5.1  # one stride farther than five times the largest of the reference
    found = find_failure(thrown, reference)
    assert (found.jump, found.not_finite, found.broken) == (4, None, 4)
    assert found.worse_than_still == 4
    thrown[6, 1] = np.nan
    assert find_failure(thrown, reference).not_finite == 6
    assert find_failure(-reference, reference).worse_than_still == 1
    assert found.worse_than_linear is None
    linear = np.full(8, 0.5)
    slow = reference.copy()
    slow[5:, 1, 2] += 2.0  # 4 / 6: nearer than staying, not nearer than straight on
    found = find_failure(slow, reference, linear=linear)
    assert (found.worse_than_linear, found.worse_than_still, found.jump) == (5, None, None)
    assert find_failure(slow, reference, np.array([True, False]), linear).worse_than_linear is None


def test_sinkhorn_of_a_shifted_cloud_is_the_squared_shift():
    rng = RNG(2)
    cloud = rng.normal(size=(60, 3))
    shift = np.array([0.3, -0.2, 5.0])
    found = sinkhorn_divergence(rng.permutation(cloud + shift), cloud)
    assert found.value == pytest.approx(shift @ shift, rel=1e-6)
    assert sinkhorn_divergence(rng.permutation(cloud), cloud).value == pytest.approx(0, abs=1e-9)
    assert found.converged
    # two pairs far apart: the transport is the exact one
    x = np.array([[0.0, 0, 0], [10, 0, 0]])
    y = np.array([[1.0, 0, 0], [9, 0, 0]])
    assert sinkhorn_divergence(x, y, regularisation=0.05).value == pytest.approx(1.0, rel=1e-6)
    # in a cell the way goes through the wall
    cell = np.diag([10.0, 10, 10])
    near = sinkhorn_divergence(np.array([[0.1, 5, 5]]), np.array([[9.9, 5, 5]]), cell=cell)
    assert near.value == pytest.approx(0.04, rel=1e-6)
    # clouds out of each other's sight: no underflow
    far = sinkhorn_divergence(cloud * 1e4, cloud)
    assert np.isfinite(far.value)
    assert far.value == pytest.approx(1e8 * (cloud - cloud.mean(0)).var(0).sum(), rel=0.05)
    with pytest.raises(InputError, match="not finite"):
        sinkhorn_divergence(np.full((3, 3), np.nan), cloud)
    # clouds that are no shift of each other: the optimal assignment, by another library
    other = rng.normal(size=(60, 3)) * [1, 2, 0.5] + shift
    cost = cdist(other, cloud, "sqeuclidean")
    exact = cost[linear_sum_assignment(cost)].mean()
    coarse, fine = (abs(sinkhorn_divergence(other, cloud, regularisation=r).value - exact) for r in (0.5, 0.05))
    assert fine < 0.02 * exact
    assert fine < coarse
    assert sample(10, 20).tolist() == list(range(10))
    assert len(np.unique(sample(1000, 100))) == 100


def test_density_on_a_grid():
    rng = RNG(3)
    cloud = rng.random((400, 3))
    box = [[0, 1]] * 3
    assert grid_density_error(rng.permutation(cloud), cloud, 0.25, bounds=box) == 0
    moved = cloud.copy()
    inside = np.flatnonzero(cloud[:, 0] < 0.25)[:40]
    moved[inside, 0] += 0.25  # 40 of 400 to the next box
    assert grid_density_error(moved, cloud, 0.25, bounds=box) == pytest.approx(0.1, abs=EXACT)
    moved[inside, 0] = np.nan
    assert grid_density_error(moved, cloud, 0.25, bounds=box) == pytest.approx(0.1, abs=EXACT)
    cell = np.diag([1.0, 1, 1])
    assert grid_density_error(cloud + np.array([1, 0, -2]), cloud, 0.25, cell=cell) == pytest.approx(0, abs=0.01)
    with pytest.raises(InputError, match="spacing"):
        grid_density_error(cloud, cloud, 0.0)


def test_local_density_of_a_squeezed_lattice():
    lattice = np.stack(np.meshgrid(*[np.arange(6.0)] * 3), -1).reshape(-1, 3)
    cell = np.diag([6.0, 6, 6])
    counts = neighbour_counts(lattice, 1.1, cell)
    assert counts is not None
    assert (counts == 6).all()
    assert neighbour_counts(lattice, 1.1, cell + np.eye(3, k=1)) is None
    same = local_density(lattice, lattice, 1.1)
    assert same is not None
    assert same.error == 0
    squeezed = local_density(0.7 * lattice, lattice, 1.1, None)  # second neighbours come in: 18 instead of 6 inside
    assert squeezed is not None
    assert squeezed.ratio > 2
    assert squeezed.error > 1
    assert local_density(lattice * np.nan, lattice, 1.1) is None


def protein_like(frames: int = 6, atoms: int = 40, seed: int = 4) -> np.ndarray:
    rng = RNG(seed)
    chain = np.cumsum(rng.normal(size=(atoms, 3)), axis=0)
    return chain + 0.2 * rng.normal(size=(frames, atoms, 3))


def laid_on(frame: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    """(N, 3) centred frame after the best rotation onto the centred target, and their root mean square distance."""
    a, b = frame - frame.mean(0), target - target.mean(0)
    turned = Rotation.align_vectors(b, a)[0].apply(a)
    return turned, float(np.sqrt(((turned - b) ** 2).sum(1).mean()))


def test_rmsd_of_rotated_copies_is_zero():
    reference = protein_like()
    turned = np.stack([frame @ rotation(i).T + [3.0 * i, 100, -7] for i, frame in enumerate(reference)])
    assert rmsd(turned, reference).max() < 2e-3  # single precision: sqrt(1e-6) of the size
    stretched = reference - reference.mean(1, keepdims=True)
    expected = 0.1 * np.sqrt((stretched**2).sum(2).mean(1))
    np.testing.assert_allclose(rmsd(1.1 * stretched, reference), expected, rtol=1e-2)
    # another frame against another algorithm: scipy's rotation
    apart = rmsd(reference[::-1], reference)
    np.testing.assert_allclose(apart, [laid_on(a, b)[1] for a, b in zip(reference[::-1], reference, strict=True)],
                               rtol=1e-3)  # fmt: skip
    turned[2, 5] = np.nan
    found = rmsd(turned, reference)
    assert np.isnan(found[2])
    assert np.isfinite(np.delete(found, 2)).all()


def test_rmsf_of_a_known_oscillation():
    still = protein_like(1)[0]
    phase = 2 * np.pi * np.arange(40) / 40
    positions = np.repeat(still[None], 40, axis=0)
    positions[:, 7, 2] += 0.5 * np.sin(phase)  # its root mean square is 0.5/sqrt(2)
    found = rmsf(positions)
    assert found is not None
    assert found[7] == pytest.approx(0.5 / np.sqrt(2), rel=0.03)  # the fit to the first frame takes a little
    assert np.delete(found, 7).max() < 0.05
    turned = np.stack([frame @ rotation(i).T for i, frame in enumerate(positions)])
    again = rmsf(turned)
    assert again is not None
    np.testing.assert_allclose(again, found, atol=2e-3)
    assert rmsf(positions[:1]) is None
    # about the mean, not about the first frame, which is an extreme one here
    noisy = protein_like(30)
    noisy[0] += 0.5 * RNG(5).normal(size=noisy[0].shape)
    aligned = np.stack([laid_on(frame, noisy[0])[0] for frame in noisy])
    expected = np.sqrt(((aligned - aligned.mean(0)) ** 2).sum(2).mean(0))
    found = rmsf(noisy)
    assert found is not None
    np.testing.assert_allclose(found, expected, rtol=2e-3)


def test_radius_of_gyration():
    positions = protein_like()
    expected = mdtraj.compute_rg(mdtraj.Trajectory(positions, None), np.ones(40))
    np.testing.assert_allclose(radius_of_gyration(positions, np.ones(40)), expected, rtol=SINGLE)
    # about the centre of mass, where mdtraj takes the geometric one: sqrt(m M) d / (m + M)
    pair = np.array([[[7.0, 1, 1], [9, 1, 1]]])
    assert radius_of_gyration(pair, np.array([1.0, 3.0]))[0] == pytest.approx(np.sqrt(3) / 4 * 2, rel=EXACT)


def test_bonds_are_found_and_their_violations_counted(tmp_path: Path):
    ethane = molecule("C2H6")
    bonds, how = find_bonds(ethane.positions / 10, ethane.numbers, None, 10.0)  # nanometers
    assert len(bonds) == 7
    assert "covalent" in how
    ethane.write(tmp_path / "backbone.pdb")
    assert find_topology(tmp_path, 9) is None
    topology = find_topology(tmp_path, 8)
    assert topology is not None
    assert topology.n_atoms == 8
    chain = np.array([[0.0, 0, 0], [3.8, 0, 0], [7.6, 0, 0], [20, 0, 0]])
    bonds, how = find_bonds(chain, np.full(4, 6), None, 1.0)
    assert bonds.tolist() == [[0, 1], [1, 2]]
    assert "successive" in how
    frames = np.stack([chain, chain, chain])
    frames[1, 2, 0] += 0.11
    frames[2, 2, 0] = np.nan
    np.testing.assert_allclose(bond_violations(frames, bonds, np.array([3.8, 3.8]), 0.1), [0, 0.5, 0.5], atol=EXACT)


def test_temperatures_of_the_elements_are_equal_in_equilibrium():
    numbers = np.array([8, 1, 1] * 2000)
    masses = ase.data.atomic_masses[numbers]
    velocities = maxwell_boltzmann(masses, 300.0, RNG(6))[None]
    found = element_temperatures(velocities, numbers, masses)
    assert set(found) == {"H", "O"}
    for symbol, count in (("O", 2000), ("H", 4000)):  # sigma of T is T sqrt(2 / 3N)
        assert abs(found[symbol][0] - 300) < 4 * 300 * np.sqrt(2 / (3 * count))
    velocities[:, numbers == 1] *= 2
    assert element_temperatures(velocities, numbers, masses)["H"][0] == pytest.approx(4 * found["H"][0], rel=1e-9)


def test_diffusion_of_a_random_walk():
    rng = RNG(7)
    steps = rng.normal(scale=0.3, size=(600, 200, 3))
    walk = np.concatenate([np.zeros((1, 200, 3)), np.cumsum(steps, axis=0)])
    expected = 0.3**2 / (2 * 2.0)  # D = sigma² / (2 dt) a component
    found = diffusion(walk + 0.5 * np.arange(601)[:, None, None], 2.0)  # the drift of all is taken out
    assert found is not None
    assert found.error < 0.1 * expected
    assert abs(found.value - expected) < 4 * found.error
    assert found.cm2_per_s == pytest.approx(0.1 * found.value)
    short = walk[:40, :3]
    direct = np.stack([((short[lag:] - short[: 40 - lag]) ** 2).sum(2).mean(0) for lag in range(40)])
    np.testing.assert_allclose(mean_squared_displacement(short), direct, atol=1e-10)
    assert diffusion(walk[:5], 1.0) is None
    with pytest.raises(InputError, match="not finite"):
        diffusion(walk * np.nan, 1.0)


def test_wrapped_positions_are_unwrapped():
    rng = RNG(8)
    cell = np.array([[5.0, 0, 0], [1, 6, 0], [0, -1, 4]])
    path = np.cumsum(rng.normal(scale=0.3, size=(50, 10, 3)), axis=0)
    wrapped = path @ np.linalg.inv(cell) % 1.0 @ cell
    found = unwrap(wrapped, cell)
    np.testing.assert_allclose(found - found[0], path - path[0], atol=1e-10)
    assert unwrap(path, None) is not None


def test_pair_distributions_of_an_ideal_gas_and_of_water():
    rng = RNG(9)
    cell = np.diag([12.0, 12, 12])
    gas = pair_distributions(rng.random((20, 100, 3)) * 12, np.full(100, 18), cell, np.zeros((0, 2), dtype=int))
    assert [pair.name for pair in gas] == ["Ar-Ar"]
    beyond = gas[0].r > 2
    assert gas[0].g[beyond].mean() == pytest.approx(1, abs=0.03)
    assert pair_difference(gas, gas) == {"Ar-Ar": 0.0}
    water = ase.Atoms()
    for i in range(8):
        one = molecule("H2O")
        one.positions += 3.2 * np.array([i % 2, i // 2 % 2, i // 4])
        water += one
    found = pair_distributions(water.positions[None], water.numbers, np.diag([6.4] * 3))
    assert {pair.name for pair in found} == {"O-O", "O-H", "H-H"}
    assert next(pair for pair in found if pair.name == "O-H").bonded == pytest.approx(1.02, abs=0.05)
