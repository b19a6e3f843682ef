"""Fourier modes of virtual nodes in a periodic cell: against an Ewald sum, smooth in the cell, and what they reach."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from ase import Atoms

from egnn_md.data.structures import graph_from_atoms
from egnn_md.models.evaluate import evaluate
from egnn_md.models.potential import PotentialConfig
from egnn_md.nn.fourier import LARGEST_Q, FourierResponse, find_waves, modes_of, whole_waves
from egnn_md.testing import random_potential, run_checks
from egnn_md.testing.probe import ask

CELLS = {
    "cube": np.eye(3) * 9.0,
    "triclinic": np.array([[8.0, 0.0, 0.0], [2.5, 9.0, 0.0], [-3.0, 1.0, 10.0]]),
    "needle": np.diag([3.0, 6.0, 21.0]),
}


#: |k| σ so large that the envelope hardly bends what the Gaussian leaves; at 20 it takes 6e-7 off at |k| σ = 4.
FAR, ENVELOPE = 20.0, 1e-5


def charged(cell: np.ndarray, count: int = 7, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Positions, charges that add up to zero, and the cell (1, 3, 3)."""
    random = np.random.default_rng(seed)
    charges = random.normal(size=(count, 1))
    positions = random.uniform(-0.5, 1.5, (count, 3)) @ cell
    return torch.tensor(positions), torch.tensor(charges - charges.mean()), torch.tensor(cell)[None]


def response_of(cell: torch.Tensor, positions: torch.Tensor, charges: torch.Tensor, width: float, largest: float):
    """Potential (N, 1) and field (N, 3, 1) with the radial function q⁻²."""
    batch = torch.zeros(len(positions), dtype=torch.int64)
    waves = find_waves(positions, cell, batch, width, largest)
    nodes = FourierResponse(1, width).double()
    weighted = nodes.weighted(modes_of(charges, waves), waves)
    return nodes.potential(weighted, waves).detach(), nodes.field(weighted, waves).detach()


@pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
def test_all_wave_vectors_are_there_once(cell):
    reach = 2.6
    numbers = whole_waves(torch.tensor(cell)[None], reach)
    found = {tuple(n) for n in numbers.tolist()}
    assert len(found) == len(numbers)
    reciprocal = 2 * math.pi * np.linalg.inv(cell).T
    all_of_them = np.stack(np.meshgrid(*[np.arange(-12, 13)] * 3, indexing="ij"), -1).reshape(-1, 3)
    inside = np.linalg.norm(all_of_them @ reciprocal, axis=1) < reach
    wanted = {tuple(n) for n in all_of_them[inside].tolist()} - {(0, 0, 0)}
    assert found | {tuple(-i for i in n) for n in found} == wanted
    assert len(wanted) == 2 * len(found)


@pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
def test_the_first_radial_function_is_the_long_range_part_of_an_ewald_sum(cell):
    """φ_i = Σ_j q_j Σ_images erf(r / √2 σ) / r, here from an Ewald sum with another width."""
    width, narrow = 1.1, 0.8
    positions, charges, box = charged(cell)
    potential, _ = response_of(box, positions, charges, width, FAR)
    wide = potential[:, 0].numpy() / width  # the definition is in units of 1/σ
    # another width: the reciprocal sum differs by a short-ranged one in real space
    other, _ = response_of(box, positions, charges, narrow, FAR)
    x, q = positions.numpy(), charges[:, 0].numpy()
    steps = np.stack(np.meshgrid(*[np.arange(-6, 7)] * 3, indexing="ij"), -1).reshape(-1, 3) @ cell
    difference = np.zeros(len(q))
    for i in range(len(q)):
        for j in range(len(q)):
            r = np.linalg.norm(x[i] - x[j] + steps, axis=1)
            r = r[(r > 1e-9) & (r < 12.0)]
            erf = np.vectorize(math.erf)
            difference[i] += q[j] * ((erf(r / (math.sqrt(2) * narrow)) - erf(r / (math.sqrt(2) * width))) / r).sum()
        # the limit r → 0, of the particle itself
        difference[i] += q[i] * math.sqrt(2 / math.pi) * (1 / narrow - 1 / width)
    np.testing.assert_allclose(other[:, 0].numpy() / narrow - wide, difference, atol=ENVELOPE)


def test_madelung_constant_of_rock_salt():
    """φ is the electrostatic potential of the lattice once the short-ranged rest is gone: 1.747565 / d."""
    d = 1.0
    charges = torch.tensor([[1.0], [-1.0]]).double()
    positions = torch.tensor([[0.0, 0.0, 0.0], [d, 0.0, 0.0]]).double()
    width = 0.2  # far below the distance: erfc(d / √2 σ) is 6e-7
    box = torch.tensor([[[0.0, d, d], [d, 0.0, d], [d, d, 0.0]]]).double()
    potential, _ = response_of(box, positions, charges, width, FAR)
    own = math.sqrt(2 / math.pi) / width  # a Gaussian in its own potential
    madelung = own - float(potential[0, 0]) / width * float(charges[0, 0])
    # the Gaussian's own potential is 4, of which the envelope takes its share
    assert madelung == pytest.approx(1.747565, abs=4 * ENVELOPE)


def test_the_field_is_the_slope_of_the_potential():
    """Of a probe without a charge of its own: E = -σ ∂φ/∂x."""
    width, step = 1.2, 1e-5
    positions, charges, box = charged(CELLS["triclinic"])
    charges[0] = 0.0
    _, field = response_of(box, positions, charges, width, LARGEST_Q)
    for axis in range(3):
        values = []
        for sign in (1, -1):
            moved = positions.clone()
            moved[0, axis] += sign * step
            values.append(float(response_of(box, moved, charges, width, LARGEST_Q)[0][0, 0]))
        slope = (values[0] - values[1]) / (2 * step)
        assert float(field[0, axis, 0]) == pytest.approx(-width * slope, abs=1e-8)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("width", [1.0, 2.0])
def test_every_validator(width, dtype):
    """Symmetry, images, copies of a cell, derivatives, stress: all of them, of random weights."""
    results = run_checks(random_potential(fourier_width=width, virtual_nodes=3), dtype)
    assert [result for result in results if not result.passed] == []


@pytest.mark.parametrize("change", [[[1, 0, 0], [7, 1, 0], [-5, 9, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, -1]]])
def test_another_choice_of_lattice_vectors_is_the_same_crystal(change: list[list[int]]):
    """Energy, forces and stress of strongly skewed cells: every wave vector is found, whatever its whole numbers."""
    model = random_potential(fourier_width=1.5)
    cell = CELLS["triclinic"]
    atoms = Atoms("OH" * 4, np.random.default_rng(2).uniform(0, 8, (8, 3)), cell=cell, pbc=True)
    skewed = atoms.copy()
    skewed.set_cell(np.array(change) @ cell)
    assert abs(skewed.get_volume()) == pytest.approx(atoms.get_volume())
    found, expected = ask(model, skewed), ask(model, atoms)
    assert found.energy == pytest.approx(expected.energy, rel=1e-10)
    torch.testing.assert_close(found.forces, expected.forces, rtol=0, atol=1e-9 * expected.largest_force)
    torch.testing.assert_close(found.stress, expected.stress, rtol=1e-8, atol=1e-10)


def test_every_part_is_seen():
    """The validators mean something only if each new part changes forces."""
    random = np.random.default_rng(0)
    atoms = Atoms("OH" * 6, random.uniform(0, 8, (12, 3)), cell=CELLS["triclinic"], pbc=True)
    reference = ask(random_potential(fourier_width=1.5), atoms)
    size = reference.largest_force
    for part in ("charge_map", "radial_weight", "from_fourier", "virtual.response", "network.response"):
        silenced = random_potential(fourier_width=1.5)
        hit = [weight for name, weight in silenced.named_parameters() if part in name]
        assert hit, part
        with torch.no_grad():
            for weight in hit:
                weight.zero_()
        assert float((ask(silenced, atoms).forces - reference.forces).abs().max()) > 1e-3 * size, part


def test_the_energy_is_smooth_where_the_cell_lets_wave_vectors_in():
    """As the cell grows, new wave vectors come in; energy and pressure have no jump and no kink."""
    model = random_potential(fourier_width=1.5)
    random = np.random.default_rng(1)
    fractions = random.uniform(0, 1, (6, 3))
    reach = LARGEST_Q / 1.5
    edge = 2 * math.pi * 3 / reach  # where (3, 0, 0) and its like come in

    def at(length: float) -> tuple[float, float]:
        atoms = Atoms("OH" * 3, fractions * length, cell=np.eye(3) * length, pbc=True)
        found = ask(model, atoms)
        return found.energy, float(found.stress.diagonal().sum()) / 3

    counts = [len(whole_waves(torch.eye(3).double()[None] * (edge + side), reach)) for side in (-1e-4, 1e-4)]
    assert counts[1] > counts[0]
    step = 1e-4
    energies, pressures = zip(*[at(edge + n * step) for n in range(-4, 5)], strict=True)
    # second differences of a smooth function; a jump or kink would stand out from its neighbours
    for values in (energies, pressures):
        seconds = np.abs(np.diff(values, n=2))
        assert seconds.max() < 3 * np.median(seconds) + 1e-10


def test_charges_are_felt_beyond_every_edge():
    """Two atoms with no neighbours: features-only nodes feel nothing of their distance, Fourier modes do."""

    def energy(model, distance):
        atoms = Atoms("OH", [[0, 0, 0], [distance, 0, 0]], cell=np.eye(3) * 40.0, pbc=True)
        return ask(model, atoms).energy

    blind = random_potential(virtual_nodes=2)
    assert energy(blind, 8.0) == energy(blind, 14.0)
    seeing = random_potential(virtual_nodes=2, fourier_width=1.5)
    assert abs(energy(seeing, 8.0) - energy(seeing, 14.0)) > 1e-3


def test_open_and_partly_periodic_systems_have_no_modes():
    """There the nodes are what they are without: the same weights give the same energy."""
    with_modes, without = random_potential(fourier_width=1.5), random_potential()
    state = {name: value for name, value in with_modes.state_dict().items() if name in without.state_dict()}
    for name, value in without.state_dict().items():
        if state[name].shape != value.shape:  # two more columns for what the modes give
            state[name] = state[name][:, : value.shape[1]]
    without.load_state_dict(state)
    random = np.random.default_rng(0)
    atoms = Atoms("OH" * 4, random.uniform(0, 6, (8, 3)))
    slab = Atoms("OH" * 4, random.uniform(0, 6, (8, 3)), cell=np.eye(3) * 6, pbc=(True, True, False))
    whole = slab.copy()
    whole.pbc = True
    for structure in (atoms, slab):
        assert ask(with_modes, structure).energy == pytest.approx(ask(without, structure).energy, abs=1e-12)
    assert abs(ask(with_modes, whole).energy - ask(without, whole).energy) > 1e-4


def test_a_batch_of_different_cells_gives_what_each_gives_alone():
    model = random_potential(fourier_width=1.2)
    random = np.random.default_rng(2)
    several = [
        Atoms("OH" * 3, random.uniform(0, 1, (6, 3)) @ cell, cell=cell, pbc=True) for cell in CELLS.values()
    ] + [Atoms("OH", [[0, 0, 0], [1, 0, 0]])]
    graphs = [graph_from_atoms(atoms, model.cutoff, dtype=torch.float64) for atoms in several]
    together = evaluate(model, type(graphs[0]).join(graphs), stress=True)
    for index, graph in enumerate(graphs):
        alone = evaluate(model, graph, stress=True)
        assert float(together["energy"][index]) == pytest.approx(float(alone["energy"][0]), abs=1e-10)
        torch.testing.assert_close(together["stress"][index], alone["stress"][0], atol=1e-12, rtol=1e-10)


def test_what_the_configuration_refuses_and_leaves_as_it_was():
    with pytest.raises(ValueError, match="needs virtual nodes, whose Fourier modes"):
        PotentialConfig(elements=(1,), virtual_nodes=0, fourier_width=1.5)
    # models without modes keep the configuration, and with it the digest, that their files have
    assert "fourier_width" not in PotentialConfig(elements=(1,)).model_dump()
    assert PotentialConfig(elements=(1,), fourier_width=2.0).model_dump()["fourier_width"] == 2.0
