"""Alanine dipeptide: geometry, biases, the swarm's dynamics, free energies, and the committed labels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import mdtraj
import numpy as np
import pytest
import torch
from ase import Atoms

from egnn_md.data.structures import graph_from_atoms, read_frames
from egnn_md.errors import InputError
from egnn_md.models import FastEGNNPotential, PotentialConfig, evaluate
from egnn_md.units import BOLTZMANN_EV_PER_K
from egnn_md_systems.alanine_dipeptide import structure_path
from egnn_md_systems.alanine_dipeptide.molecule import (
    C7AX,
    C7EQ,
    DIHEDRALS,
    PHI,
    PSI,
    SYMBOLS,
    build,
    dihedral,
    has_right_bonds,
    is_left_handed_amino_acid,
)
from egnn_md_systems.alanine_dipeptide.surface import (
    Samples,
    basin_difference,
    effective_fraction,
    free_energy_map,
    jackknife,
    perturbed,
    unbiased_weights,
    within,
)
from egnn_md_systems.alanine_dipeptide.swarm import Swarm, dihedral_gradient, masses, model_evaluator, umbrella

DATA = Path(__file__).parents[2] / "systems" / "alanine_dipeptide" / "data"
POINTS = [(-80.0, 70.0), (65.0, -60.0), (-170.0, 175.0), (10.0, -95.0)]


def rattled(count: int, size: float = 0.08) -> np.ndarray:
    rng = np.random.default_rng(3)
    return np.array([build(*POINTS[i % 4]).positions + rng.normal(scale=size, size=(22, 3)) for i in range(count)])


def test_shipped_structure_has_the_names_that_mdtraj_and_amber_know() -> None:
    structure = mdtraj.load(str(structure_path()))
    assert [a.element.symbol for a in structure.topology.atoms] == list(SYMBOLS)
    assert [r.name for r in structure.topology.residues] == ["ACE", "ALA", "NME"]
    positions = 10.0 * structure.xyz.astype(float)
    for known, four in ((mdtraj.compute_phi, PHI), (mdtraj.compute_psi, PSI)):
        indices, angles = known(structure)
        assert indices.tolist() == [list(four)]
        assert np.degrees(angles[0, 0]) == pytest.approx(dihedral(positions[0], four), abs=0.01)
    assert within(dihedral(positions, PHI), dihedral(positions, PSI), C7EQ).all()
    assert has_right_bonds(positions[0])
    assert is_left_handed_amino_acid(positions[0])


def test_amber_takes_the_shipped_structure() -> None:
    app = pytest.importorskip("openmm.app", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    topology = app.PDBFile(str(structure_path())).topology
    assert topology.getNumBonds() == 21
    assert app.ForceField("amber14-all.xml").createSystem(topology).getNumParticles() == 22


@pytest.mark.parametrize("name", DIHEDRALS)
def test_dihedrals_are_mdtrajs(name: str) -> None:
    positions = rattled(12)
    topology = mdtraj.load(str(structure_path())).topology
    trajectory = mdtraj.Trajectory(positions * 0.1, topology)
    theirs = np.degrees(mdtraj.compute_dihedrals(trajectory, [DIHEDRALS[name]])[:, 0])
    away = (dihedral(positions, DIHEDRALS[name]) - theirs + 180.0) % 360.0 - 180.0
    assert np.abs(away).max() < 1e-3  # theirs is in single precision


@pytest.mark.parametrize(("phi", "psi"), POINTS)
def test_builder_gives_the_angles_and_the_hand_asked_for(phi: float, psi: float) -> None:
    positions = build(phi, psi, omega1=170.0, omega2=-160.0).positions
    angles = [float(dihedral(positions, four)) for four in DIHEDRALS.values()]
    assert angles == pytest.approx([phi, psi, 170.0, -160.0])
    assert has_right_bonds(positions)
    assert is_left_handed_amino_acid(positions)
    assert not is_left_handed_amino_acid(positions * [1.0, 1.0, -1.0])
    far = positions.copy()
    far[0] *= 1.5
    assert not has_right_bonds(far)


def test_gradient_of_a_dihedral_and_force_of_the_bias() -> None:
    """Against central differences; 1e-5 Å leaves an error of the third derivative, 1e-10 of these sizes."""
    positions, step = rattled(4), 1e-5
    centres = np.array([[-60.0, 120.0], [170.0, -170.0], [-175.0, 10.0], [0.0, 0.0]])
    forces = umbrella(positions, centres, 0.3)[1]
    gradient = dihedral_gradient(positions, PSI)
    for atom in range(22):
        for axis in range(3):
            moved = np.zeros((22, 3))
            moved[atom, axis] = step
            energy = [umbrella(positions + sign * moved, centres, 0.3)[0] for sign in (1, -1)]
            np.testing.assert_allclose(forces[:, atom, axis], (energy[1] - energy[0]) / (2 * step), atol=1e-7)
            turned = dihedral(positions + moved, PSI) - dihedral(positions - moved, PSI)
            known = gradient[:, PSI.index(atom), axis] if atom in PSI else np.zeros(4)
            turned = np.radians((turned + 180.0) % 360.0 - 180.0)
            np.testing.assert_allclose(turned / (2 * step), known, atol=1e-7)


def test_bias_holds_a_force_field_run_near_its_centre() -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_systems.alanine_dipeptide.sampling import Run, force_field_trajectory

    centre = (0.0, 100.0)  # the top of a barrier, where no free run stays
    run = Run(300.0, centre, {"phi": centre[0], "psi": centre[1]}, strength=200.0, perturb=True, seed=5)
    frames = list(force_field_trajectory(run, 10, 0.1, 0.2))
    positions = np.array([frame.positions for frame in frames])
    assert all(frame.symbols.get_chemical_formula() == "C6H12N2O2" for frame in frames)
    # the force field pulls with tens of kJ/mol/rad; a spring of 200 gives way by less than 20 degrees
    assert np.abs(dihedral(positions, PHI) - centre[0]).max() < 30.0
    assert np.abs(dihedral(positions, PSI) - centre[1]).max() < 30.0
    again = list(force_field_trajectory(run, 1, 0.1, 0.2))
    assert np.array_equal(again[0].positions, positions[0]), "the same seed gives the same structure"


def test_sets_are_tagged() -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    from egnn_md_systems.alanine_dipeptide import structures

    first = next(structures.grid_structures(frames=1))
    assert first.info["kind"] == "grid"
    assert abs(first.info["phi"] + 165.0) < 40.0
    np.testing.assert_allclose(first.positions.mean(0), 0.0, atol=1e-12)


def test_swarm_samples_the_boltzmann_distribution_of_a_harmonic_potential() -> None:
    """Independent springs: variance kT / k. BAOAB is exact for positions in it at any stable timestep.

    400 copies, 22 atoms, 3 axes, four times: 105,600 values, so the mean of their squares is known to about 0.5 %.
    """
    stiffness = 5.0

    def springs(positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return 0.5 * stiffness * (positions**2).sum((1, 2)), -stiffness * positions

    start = np.zeros((400, 22, 3))
    swarm = Swarm(springs, start, 300.0, timestep=2.0, friction=0.05, heavy_hydrogens=True, seed=2)
    swarm.run(150)
    squares = []
    for _ in range(4):
        swarm.run(60)
        squares.append((swarm.positions**2).mean())
    wanted = BOLTZMANN_EV_PER_K * 300.0 / stiffness
    assert np.mean(squares) == pytest.approx(wanted, rel=0.025)
    kinetic = (swarm.mass * swarm.velocities**2).mean()
    assert kinetic == pytest.approx(BOLTZMANN_EV_PER_K * 300.0, rel=0.05)
    assert np.allclose(swarm.energies, springs(swarm.positions)[0])


def test_heavy_hydrogens_keep_the_total_mass() -> None:
    light, heavy = masses(), masses(heavy_hydrogens=True)
    assert heavy.sum() == pytest.approx(light.sum())
    assert heavy[[s == "H" for s in SYMBOLS]].tolist() == [4.0] * 12
    assert heavy.min() > 3.0


@pytest.mark.parametrize("virtual_nodes", [0, 2])
def test_swarm_evaluates_each_molecule_as_if_alone(virtual_nodes: int) -> None:
    """One graph of all molecules and all pairs: the envelope cuts what the neighbour list cuts."""
    config = PotentialConfig(elements=(1, 6, 7, 8), cutoff=4.0, hidden=16, layers=2, virtual_nodes=virtual_nodes)
    model = FastEGNNPotential(config).double()
    positions = rattled(3)
    energies, forces = model_evaluator(model)(positions)
    for index, frame in enumerate(positions):
        alone = evaluate(model, graph_from_atoms(Atoms("".join(SYMBOLS), frame), 4.0, dtype=torch.float64))
        assert energies[index] == pytest.approx(float(alone["energy"][0]), abs=1e-9)
        np.testing.assert_allclose(forces[index], alone["forces"].numpy(), atol=1e-8)


def test_a_swarm_refuses_other_shapes() -> None:
    evaluator = model_evaluator(FastEGNNPotential(PotentialConfig(elements=(1, 6, 7, 8), hidden=8, layers=1)))
    with pytest.raises(InputError, match="a swarm needs"):
        Swarm(evaluator, np.zeros((2, 21, 3)), 300.0)
    with pytest.raises(InputError, match="2 molecules need that many"):
        Swarm(evaluator, rattled(2), 300.0, centres=np.zeros((3, 2)))


TILT = 0.08  # eV; of the made-up surface


def made_up(times: int = 40, seed: int = 0) -> Samples:
    """Exact draws from U = TILT [1 - cos(phi - 65°)] + TILT [1 - cos(psi + 60°)] under the bias of each window.

    Bias and surface add up to one cosine in each angle, so each window is a von Mises distribution.
    """
    grid = np.arange(-165.0, 180.0, 30.0)
    centres = np.array([(phi, psi) for phi in grid for psi in grid])
    rng, kt, strength = np.random.default_rng(seed), BOLTZMANN_EV_PER_K * 300.0, 0.25
    angles = []
    for column, middle in enumerate(C7AX):
        vector = strength * np.exp(1j * np.radians(centres[:, column])) + TILT * np.exp(1j * np.radians(middle))
        drawn = rng.vonmises(np.angle(vector)[:, None], (np.abs(vector) / kt)[:, None], (len(centres), times))
        angles.append(np.degrees(drawn))
    return Samples(angles[0], angles[1], centres, strength, 300.0)


def exact_difference(tilt: float) -> float:
    """C7ax minus C7eq of the made-up surface by a fine grid, kcal/mol."""
    grid = np.arange(-180.0, 180.0, 0.5) + 0.25
    phi, psi = (a.ravel() for a in np.meshgrid(grid, grid))
    kt = BOLTZMANN_EV_PER_K * 300.0
    weight = np.exp(tilt / kt * (np.cos(np.radians(phi - C7AX[0])) + np.cos(np.radians(psi - C7AX[1]))))
    populations = [weight[within(phi, psi, centre)].sum() for centre in (C7EQ, C7AX)]
    return float(-kt * 23.0605478 * np.log(populations[1] / populations[0]))


def test_free_energies_of_a_surface_that_is_known() -> None:
    samples = made_up()
    weights = unbiased_weights(samples)
    assert weights.sum() == pytest.approx(1.0)

    def difference(kept: np.ndarray) -> np.ndarray:
        part = samples.block(kept)
        return np.array([basin_difference(part, unbiased_weights(part))])

    value, error = jackknife(samples, difference, blocks=3)
    assert exact_difference(TILT) < -3.0
    assert 0.01 < error[0] < 0.4
    assert value[0] == pytest.approx(exact_difference(TILT), abs=4 * error[0])
    surface = free_energy_map(samples, weights)
    assert surface.shape == (36, 36)
    assert surface.min() == 0.0
    # the map is the surface itself, up to a constant; a bin holds some 4 of 5,760 snapshots, so it scatters by kT / 2
    middle = np.radians(np.arange(-175.0, 180.0, 10.0))
    phi, psi = np.cos(middle - np.radians(C7AX[0]))[:, None], np.cos(middle - np.radians(C7AX[1]))[None]
    away = (surface + 23.0605478 * TILT * (phi + psi))[np.isfinite(surface)]
    assert away.size > 1200
    assert np.abs(away - np.median(away)).mean() < 0.5


def test_reweighting_gives_the_other_potentials_difference() -> None:
    samples = made_up()
    weights = unbiased_weights(samples)
    more = 0.03
    change = more * (2.0 - np.cos(np.radians(samples.phi - C7AX[0])) - np.cos(np.radians(samples.psi - C7AX[1])))
    changed = perturbed(weights, change + 900.0, samples.kt)
    assert basin_difference(samples, changed) == pytest.approx(exact_difference(TILT + more), abs=0.4)
    assert basin_difference(samples, perturbed(weights, 0 * change, samples.kt)) == pytest.approx(
        basin_difference(samples, weights)
    )
    assert effective_fraction(weights, weights) == pytest.approx(1.0)
    assert 0.2 < effective_fraction(weights, changed) < 0.999
    with pytest.raises(InputError, match="one of each a snapshot"):
        perturbed(weights, change[:, 1:], samples.kt)


def test_effective_fraction_of_a_normal_spread_is_the_known_one() -> None:
    """E' - E normal with standard deviation s: the fraction is exp[-(s / kT)²]."""
    kt, spread = 0.0258, 0.015
    change = np.random.default_rng(0).normal(scale=spread, size=(100, 500))
    weights = np.full(change.shape, 1 / change.size)
    found = effective_fraction(weights, perturbed(weights, change, kt))
    assert found == pytest.approx(np.exp(-((spread / kt) ** 2)), rel=0.03)


def test_basins_and_samples_that_are_missing() -> None:
    assert within(np.array([-80.0, 290.0, -80.0]), np.array([70.0, 70.0, -20.0]), C7EQ).tolist() == [True, True, False]
    samples = made_up(4)
    nowhere = Samples(samples.phi * 0 + 170, samples.psi, samples.centres, samples.strength, 300.0)
    with pytest.raises(InputError, match="no snapshot lies in the basin C7eq"):
        basin_difference(nowhere, np.full(samples.phi.shape, 1.0))
    with pytest.raises(InputError, match="sample longer"):
        jackknife(samples, lambda kept: np.zeros(1))


@pytest.fixture(scope="module")
def committed() -> dict[str, list[Atoms]]:
    return {name: read_frames(DATA / f"{name}.extxyz.xz") for name in ("train", "test")}


def test_committed_structures_are_whole(committed: dict[str, list[Atoms]]) -> None:
    for name, frames in committed.items():
        assert {tuple(frame.symbols) for frame in frames} == {SYMBOLS}, name
        positions = np.array([frame.positions for frame in frames])
        forces = np.array([frame.get_forces() for frame in frames])
        energies = np.array([frame.get_potential_energy() for frame in frames])
        assert np.isfinite(positions).all()
        assert np.isfinite(forces).all()
        assert np.isfinite(energies).all()
        # nothing outside pulls or turns the molecule; forces are rounded to 1e-5
        assert np.abs(forces.sum(1)).max() < 2e-3
        assert np.abs(np.cross(positions, forces).sum(1)).max() < 2e-2
        assert is_left_handed_amino_acid(positions).all()
        noted = np.array([frame.info["phi"] for frame in frames])
        assert np.abs((dihedral(positions, PHI) - noted + 180) % 360 - 180).max() < 0.1
        assert len(np.unique(positions.reshape(len(frames), -1), axis=0)) == len(frames)
    temperatures = [frame.info["temperature"] for frame in committed["test"]]
    assert (temperatures.count(300.0), temperatures.count(500.0)) == (200, 200)
    runs = [{frame.info["seed"] for frame in committed[name]} for name in ("train", "test")]
    assert not runs[0] & runs[1]


def test_training_covers_the_whole_plane(committed: dict[str, list[Atoms]]) -> None:
    positions = np.array([frame.positions for frame in committed["train"]])
    cells = np.histogram2d(dihedral(positions, PHI), dihedral(positions, PSI), 12, [[-180, 180]] * 2)[0]
    assert (cells > 0).mean() > 0.99  # of 144
    turned = np.abs(dihedral(positions, DIHEDRALS["omega1"]))
    assert (turned < 60).any()
    assert ((turned > 60) & (turned < 120)).any()


@pytest.mark.parametrize("name", ["train", "test"])
def test_labels_are_the_reference_methods(name: str, committed: dict[str, list[Atoms]]) -> None:
    """Three labels anew. Positions are kept to 1e-6 Å, which moves stiff bonds' forces by up to 1e-4 eV/Å."""
    pytest.importorskip("tblite", reason="tblite is not installed: pip install 'egnn-md[label]'")
    from egnn_md.data.calculators import make_calculator

    frames = committed[name]
    for index in (0, len(frames) // 2, len(frames) - 1):
        again = Atoms(frames[index].symbols, frames[index].positions, calculator=make_calculator("gfn2-xtb"))
        assert again.get_potential_energy() == pytest.approx(frames[index].get_potential_energy(), abs=1e-4)
        np.testing.assert_allclose(again.get_forces(), frames[index].get_forces(), atol=2e-4)


def test_windows_that_matter_are_those_near_low_free_energy() -> None:
    from egnn_md_systems.alanine_dipeptide.free_energy import low_windows, windows

    energy = np.full((36, 36), 20.0)
    energy[10, 25] = 3.0  # phi -80 to -70, psi 70 to 80: the window of -75, 75
    energy[0, 0] = np.inf
    assert windows()[low_windows(energy, 9.0)].tolist() == [[-75.0, 75.0]]
    spacing = {round(b - a) for a, b in pairwise(sorted(set(windows()[:, 0])))}
    assert spacing == {30}


def test_snapshots_of_two_models_are_not_mixed(tmp_path: Path) -> None:
    from egnn_md_systems.alanine_dipeptide.free_energy import check_origin

    check_origin(tmp_path / "run", {"sampler": "a", "seed": 1})
    check_origin(tmp_path / "run", {"sampler": "a", "seed": 1})
    with pytest.raises(InputError, match="sampler = a, but this call has b; choose another --output"):
        check_origin(tmp_path / "run", {"sampler": "b", "seed": 1})
