"""The parts of a coarse-grained protein: force maps with a known answer, the prior twice over, beads, superposition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from egnn_md.errors import InputError, SimulationError
from egnn_md.units import BOLTZMANN_EV_PER_K, KJ_PER_MOL_PER_EV
from egnn_md_systems.protein_cg import chain, make_data, mapping, prior, shapes

KT = BOLTZMANN_EV_PER_K * 300.0
ATOMS, BEADS = 9, np.array([1, 4, 7])


def spring_network() -> np.ndarray:
    """Stiffness matrix (eV/Å²) of springs between all neighbours and next neighbours, held softly to the origin."""
    rng = np.random.default_rng(1)
    stiffness = 0.5 * np.eye(ATOMS)
    for i in range(ATOMS):
        for j in (i + 1, i + 2):
            if j < ATOMS:
                k = rng.uniform(2.0, 8.0)
                stiffness[[i, j], [i, j]] += k
                stiffness[[i, j], [j, i]] -= k
    return stiffness


def eliminated(stiffness: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Stiffness of the beads' free energy (Schur complement), and the matrix that gives the others' mean positions."""
    rest = np.setdiff1d(np.arange(ATOMS), BEADS)
    follow = -np.linalg.solve(stiffness[np.ix_(rest, rest)], stiffness[np.ix_(rest, BEADS)])
    return stiffness[np.ix_(BEADS, BEADS)] + stiffness[np.ix_(BEADS, rest)] @ follow, follow


def test_every_valid_map_has_the_mean_force_of_a_harmonic_chain() -> None:
    """The free energy of some atoms of a harmonic network is quadratic, with the Schur complement as its matrix."""
    stiffness = spring_network()
    reduced, follow = eliminated(stiffness)
    rest = np.setdiff1d(np.arange(ATOMS), BEADS)
    rng = np.random.default_rng(2)
    held = rng.normal(size=(3, 3))
    frames = 4000
    positions = np.empty((frames, ATOMS, 3))
    positions[:, BEADS] = held
    covariance = KT * np.linalg.inv(stiffness[np.ix_(rest, rest)])
    positions[:, rest] = follow @ held + np.linalg.cholesky(covariance) @ rng.normal(size=(frames, len(rest), 3))
    forces = -np.einsum("ab,fbd->fad", stiffness, positions)
    groups = np.arange(ATOMS)
    residues = np.repeat([0, 1, 2], 3)
    odd = np.eye(ATOMS)[BEADS]
    odd[:, rest] = rng.normal(size=(3, len(rest)))
    maps = [
        mapping.basic_map(BEADS, groups),
        mapping.residue_map(BEADS, groups, residues),
        mapping.ForceMap(BEADS, groups, odd),
    ]
    for force_map in maps:
        mapped = force_map.forces(forces)
        error = mapped.mean(axis=0) + reduced @ held
        assert np.abs(error / (mapped.std(axis=0) / np.sqrt(frames))).max() < 4.5, "27 comparisons of a Gaussian"
        assert mapped.std(axis=0).min() > 0.02, "and this is no test of forces without noise"


def test_the_quietest_map_of_a_harmonic_chain_has_no_noise() -> None:
    stiffness = spring_network()
    reduced, follow = eliminated(stiffness)
    rng = np.random.default_rng(3)
    positions = np.linalg.cholesky(KT * np.linalg.inv(stiffness)) @ rng.normal(size=(10_000, ATOMS, 3))
    forces = -np.einsum("ab,fbd->fad", stiffness, positions)
    exact = -np.einsum("ab,fbd->fad", reduced, positions[:, BEADS])
    for known, tolerance in ((None, 0.05), (0.9 * exact, 0.005)):
        found = mapping.quietest_map(BEADS, np.arange(ATOMS), forces, known)
        free = found.coefficients[:, np.setdiff1d(np.arange(ATOMS), BEADS)]
        np.testing.assert_allclose(free, follow.T, atol=tolerance)
        assert (found.forces(forces) - exact).std() < tolerance * exact.std()
    noise = mapping.basic_map(BEADS, np.arange(ATOMS)).forces(forces) - exact
    assert noise.std() > 0.5 * exact.std(), "the simplest map is no quiet one"


def test_a_map_that_breaks_the_conditions_is_refused() -> None:
    groups = np.arange(ATOMS)
    wrong = np.eye(ATOMS)[BEADS]
    wrong[0, 4] = 0.5
    with pytest.raises(InputError, match="another bead's group"):
        mapping.ForceMap(BEADS, groups, wrong)
    with pytest.raises(InputError, match="tie beads together"):
        mapping.basic_map(BEADS, np.zeros(ATOMS, dtype=np.int64))
    with pytest.raises(InputError, match="too few"):
        mapping.quietest_map(BEADS, groups, np.zeros((5, ATOMS, 3)))


def test_constraints_make_groups() -> None:
    assert mapping.constraint_groups(6, [(4, 1), (1, 3), (5, 2)]).tolist() == [0, 1, 2, 1, 1, 2]


def test_forces_on_constrained_groups_are_mean_forces() -> None:
    """Two carbons with constrained hydrogens in OpenMM: ⟨F · R⟩ = -3 kT and ⟨F · R r²⟩ = -5 kT ⟨r²⟩ (hypervirial).

    They follow by integrating exp(-F/kT) by parts, whatever the free energy is; R is C2 - C1. The hydrogens attract
    each other strongly, so the carbons' own forces are no mean forces.
    """
    openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    system = openmm.System()
    for mass in (12.0, 3.0, 12.0, 3.0):
        system.addParticle(mass)
    system.addConstraint(0, 1, 0.1)
    system.addConstraint(2, 3, 0.1)
    bonds = openmm.HarmonicBondForce()
    bonds.addBond(1, 3, 0.0, 400.0)
    bonds.addBond(0, 2, 0.0, 100.0)
    bonds.addBond(0, 3, 0.0, 200.0)
    system.addForce(bonds)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 5.0, 0.004)
    integrator.setRandomNumberSeed(1)
    context = openmm.Context(system, integrator, openmm.Platform.getPlatformByName("Reference"))
    context.setPositions([[0, 0, 0], [0.1, 0, 0], [0.3, 0, 0], [0.2, 0, 0]])
    context.setVelocitiesToTemperature(300.0, 1)
    integrator.step(1000)
    positions, forces = np.empty((2, 6000, 4, 3))
    for frame in range(len(positions)):
        integrator.step(20)
        state = context.getState(positions=True, forces=True)
        positions[frame] = state.getPositions(asNumpy=True)._value
        forces[frame] = state.getForces(asNumpy=True)._value
    kt = KT * KJ_PER_MOL_PER_EV
    r = positions[:, 2] - positions[:, 0]
    square = (r**2).sum(-1)

    def ratios(groups: np.ndarray) -> np.ndarray:
        """The two averages over their exact values, in 20 blocks."""
        force = mapping.basic_map([0, 2], groups).forces(forces)
        product = ((force[:, 1] - force[:, 0]) / 2 * r).sum(-1)
        first = (product / (-3 * kt)).reshape(20, -1).mean(1)
        second = (product * square).reshape(20, -1).mean(1) / (-5 * kt * square.mean())
        return np.stack([first, second])

    right = ratios(mapping.constraint_groups(4, [(0, 1), (2, 3)]))
    error = right.std(axis=1, ddof=1) / np.sqrt(20)
    assert (error < 0.05).all()
    assert (np.abs(right.mean(axis=1) - 1) < 4 * error).all()
    wrong = ratios(np.arange(4))
    assert (np.abs(wrong.mean(axis=1) - 1) > 5 * wrong.std(axis=1, ddof=1) / np.sqrt(20)).all()


def example_prior() -> prior.Prior:
    return prior.Prior(
        bond_length=(3.8, 3.75, 3.85, 3.8, 3.8),
        bond_stiffness=(8.0, 10.0, 9.0, 8.0, 12.0),
        angle=(1.9, 2.1, 1.7, 2.2),
        angle_stiffness=(1.2, 0.9, 1.5, 1.0),
        dihedral=(1.0, -2.8, 3.0),
        dihedral_strength=(0.15, 0.1, 0.2),
        diameter=4.3,
        kt=KT,
    )


def crumpled(frames: int) -> np.ndarray:
    """Chains of 6 beads in Å, some of whose beads touch."""
    rng = np.random.default_rng(5)
    chains = [np.zeros((frames, 3)), np.tile([3.8, 0.0, 0.0], (frames, 1))]
    for _ in range(4):
        step = chains[-1] - chains[-2] + 3.0 * rng.normal(size=(frames, 3))
        chains.append(chains[-1] + 3.8 * step / np.linalg.norm(step, axis=1, keepdims=True))
    return np.stack(chains, axis=1) + 0.1 * rng.normal(size=(frames, 6, 3))


def test_the_prior_agrees_with_openmm() -> None:
    openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    terms = example_prior()
    system = openmm.System()
    for _ in range(8):
        system.addParticle(100.0)
    with pytest.raises(InputError, match="6 beads from particle 3 on do not fit into 8"):
        terms.add_to(system, first=3)
    terms.add_to(system, first=2)
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), openmm.Platform.getPlatformByName("Reference"))
    frames = crumpled(20)
    energies = terms.energy(torch.from_numpy(frames)).numpy()
    assert np.ptp(energies) > 1.0
    for positions, energy, force in zip(frames, energies, terms.forces(frames), strict=True):
        context.setPositions(0.1 * np.concatenate([[[90, 0, 0], [0, 90, 0]], positions]))
        state = context.getState(energy=True, forces=True)
        assert energy == pytest.approx(state.getPotentialEnergy()._value / KJ_PER_MOL_PER_EV, rel=1e-9)
        theirs = state.getForces(asNumpy=True)._value[2:] / (10 * KJ_PER_MOL_PER_EV)
        np.testing.assert_allclose(force, theirs, rtol=1e-7, atol=1e-7)


def test_the_prior_knows_left_from_right() -> None:
    x = torch.from_numpy(crumpled(5))
    mirrored = x * torch.tensor([1.0, 1.0, -1.0], dtype=x.dtype)
    assert torch.allclose(prior.dihedrals(mirrored), -prior.dihedrals(x))
    assert (example_prior().energy(mirrored) - example_prior().energy(x)).abs().min() > 1e-3
    # looking along the middle bond, the front one turns clockwise onto the rear one by 90 degrees
    turn = torch.tensor([[[1.0, 0, 0], [0, 0, 0], [0, 0, -1.0], [0, -1.0, -1.0]]], dtype=torch.float64)
    assert float(prior.dihedrals(turn)) == pytest.approx(np.pi / 2)


def test_boltzmann_inversion_recovers_a_prior() -> None:
    """A chain sampled with known terms: its distributions give the terms back."""
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_systems.protein_cg import dynamics

    known = example_prior()
    system = dynamics.bead_system(["ALA"] * 6, known)
    run = dynamics.simulate(system, crumpled(1)[0], 400_000, seed=1)
    found = prior.fit_prior(run.positions[0, 200:], 300.0)
    np.testing.assert_allclose(found.bond_length, known.bond_length, atol=0.02)
    np.testing.assert_allclose(found.bond_stiffness, known.bond_stiffness, rtol=0.15)
    np.testing.assert_allclose(found.angle, known.angle, atol=0.05)
    np.testing.assert_allclose(found.angle_stiffness, known.angle_stiffness, rtol=0.2)
    assert np.abs(np.angle(np.exp(1j * (np.array(found.dihedral) - known.dihedral)))).max() < 0.15
    np.testing.assert_allclose(found.dihedral_strength, known.dihedral_strength, rtol=0.2)


def test_a_prior_survives_its_file(tmp_path: Path) -> None:
    example_prior().save(tmp_path / "prior.json")
    assert prior.Prior.load(tmp_path / "prior.json") == example_prior()
    (tmp_path / "other.json").write_text('{"kt": 1.0}')
    with pytest.raises(InputError, match=r"other\.json holds no prior"):
        prior.Prior.load(tmp_path / "other.json")


@pytest.mark.parametrize("resultant", [0.0, 0.3, 0.9, 0.9999])
def test_the_concentration_gives_the_resultant_back(resultant: float) -> None:
    kappa = prior.concentration(resultant)
    angle = np.linspace(-np.pi, np.pi, 20001)
    weight = np.exp(kappa * (np.cos(angle) - 1))
    assert (weight * np.cos(angle)).sum() / weight.sum() == pytest.approx(min(resultant, 0.98995), abs=1e-4)


def test_beads_are_no_elements_of_molecules() -> None:
    assert sorted(chain.NUMBERS.values()) == list(range(97, 117))
    names = ["GLY", "TYR", "TRP"]
    atoms = chain.bead_atoms(names, np.arange(9.0).reshape(3, 3))
    assert atoms.numbers.tolist() == [chain.NUMBERS[name] for name in names]
    assert atoms.get_masses() == pytest.approx([57.05, 163.18, 186.21])
    with pytest.raises(InputError, match="residue 1 is 'HOH'"):
        chain.bead_numbers(["GLY", "HOH"])


def test_topology_of_beads() -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    topology: Any = chain.bead_topology(list(chain.THREE_LETTERS))
    assert [atom.element.atomic_number for atom in topology.atoms()] == list(range(97, 117))
    assert topology.getNumBonds() == 19


def test_superposition_undoes_a_motion_but_no_reflection() -> None:
    rng = np.random.default_rng(6)
    reference = rng.normal(size=(10, 3))
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))
    moved = reference @ turn + 5.0
    mirrored = reference * [1, 1, -1]
    found = shapes.superposed_rmsd(np.stack([moved, mirrored]), reference)
    assert found[0] < 1e-12
    assert found[1] > 0.3


def test_a_torn_chain_is_an_error() -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_systems.protein_cg import dynamics

    with pytest.raises(SimulationError, match=r"seed 1: after .* steps a bead is"):
        dynamics.simulate(dynamics.bead_system(["ALA"] * 2, None), np.array([[0, 0, 0], [3, 0, 0]]), 2_000_000, seed=1)


def test_every_run_is_thinned_by_itself() -> None:
    chosen = make_data.thinned(np.array([1, 1, 1, 1, 2, 2, 2]), 3)
    assert chosen.tolist() == [True, False, False, True, True, False, False]


def test_autocorrelation_of_a_known_process() -> None:
    """Noise that keeps nine tenths of itself a step; its mean does not count."""
    rng = np.random.default_rng(3)
    noise = rng.normal(size=(20_000, 2, 3))
    forces = np.zeros_like(noise)
    for step in range(1, len(noise)):
        forces[step] = 0.9 * forces[step - 1] + noise[step]
    for lag in (0, 1, 5, 40):
        # 120,000 numbers with a memory of ten steps: 0.01
        assert make_data.autocorrelation(forces + 7.0, lag) == pytest.approx(0.9**lag, abs=0.03)
