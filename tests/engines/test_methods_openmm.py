"""Methods that OpenMM brings: several time steps and metadynamics around a potential, with known answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from openmm_cases import energy_and_forces, make_context, topology
from scipy.integrate import quad
from torch import Tensor

from egnn_md.errors import InputError
from egnn_md.models import HarmonicTether
from egnn_md.models.base import Potential
from egnn_md.nn.segment import segment_sum
from egnn_md.units import BOLTZMANN_EV_PER_K, KJ_PER_MOL_PER_EV

openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")

from openmm import app, unit  # noqa: E402
from openmm.mtsintegrator import MTSIntegrator, MTSLangevinIntegrator  # noqa: E402

from egnn_md_openmm import create_system, multiple_time_step_system  # noqa: E402

KT = BOLTZMANN_EV_PER_K * 300.0  # eV
SPRING = HarmonicTether(10.0, 1.27, 3.0)  # 17 kT at 300 K before a bond breaks
MOLECULES = 8
#: The curvature of SPRING at its minimum is 5.53 eV/Å² = 53,400 kJ/mol/nm²; a force field never knows it exactly.
CHEAP_STIFFNESS = 47_500.0


def positions() -> np.ndarray:
    """(16, 3) nm: HCl molecules that do not feel each other, with bonds a little stretched."""
    rng = np.random.default_rng(4)
    axes = rng.normal(size=(MOLECULES, 3))
    axes *= rng.uniform(0.131, 0.136, (MOLECULES, 1)) / np.linalg.norm(axes, axis=1, keepdims=True)
    sites = np.arange(MOLECULES)[:, None] * [0.8, 0.0, 0.0]
    return np.stack([sites, sites + axes], axis=1).reshape(-1, 3)


def hcl() -> Any:
    return topology(["Cl", "H"] * MOLECULES, None, per_residue=2, bonded=True)


def cheap(stiffness: float = CHEAP_STIFFNESS) -> Any:
    system = openmm.System()
    bonds = openmm.HarmonicBondForce()
    for index in range(MOLECULES):
        system.addParticle(35.45)
        system.addParticle(1.008)
        bonds.addBond(2 * index, 2 * index + 1, 0.127, stiffness)
    system.addForce(bonds)
    system.addForce(openmm.CMMotionRemover())
    return system


def split(other: Any = None) -> Any:
    return multiple_time_step_system(
        hcl(), SPRING, cheap() if other is None else other, implementation="python", dtype="float64",
        remove_cm_motion=False, cheap_options={"dtype": "float64"},
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["force field", "model"])
def test_the_two_groups_add_up_to_the_network(kind: str) -> None:
    system = split(cheap() if kind == "force field" else HarmonicTether(9.0, 1.27, 3.0))
    whole = create_system(hcl(), SPRING, implementation="python", dtype="float64")
    energy, forces = energy_and_forces(make_context(whole, positions()))
    context = make_context(system, positions())
    found = energy_and_forces(context)
    assert found[0] == pytest.approx(energy, rel=1e-9)
    np.testing.assert_allclose(found[1], forces, atol=1e-6 * np.abs(forces).max())
    inner, outer = (energy_and_forces(context, groups=1 << group) for group in (1, 2))
    np.testing.assert_allclose(inner[1] + outer[1], forces, atol=1e-6 * np.abs(forces).max())
    assert np.abs(outer[1]).max() < 0.5 * np.abs(inner[1]).max()  # what is left is softer
    bonds = energy_and_forces(make_context(cheap(), positions()))
    if kind == "force field":
        np.testing.assert_allclose(inner[1], bonds[1], atol=1e-6 * np.abs(forces).max())


def fluctuation(system: Any, integrator: Any, steps: int) -> float:
    """Standard deviation of the total energy in kJ/mol, of a start at rest with stretched bonds."""
    context = make_context(system, positions(), integrator=integrator)
    totals = []
    for _ in range(steps):
        integrator.step(1)
        state = context.getState(energy=True)
        totals.append((state.getPotentialEnergy() + state.getKineticEnergy())._value)
    return float(np.std(totals))


def test_energy_is_conserved_with_the_square_of_the_outer_step() -> None:
    """The inner step is 0.5 fs in both, so what is left is the outer's error; one step of that length is far worse."""
    errors = {
        femtoseconds: fluctuation(
            split(), MTSIntegrator(femtoseconds * 1e-3, [(2, 1), (1, 2 * femtoseconds)]), 600 // femtoseconds
        )
        for femtoseconds in (2, 4)
    }
    assert 2.5 < errors[4] / errors[2] < 6.0
    whole = create_system(hcl(), SPRING, implementation="python", dtype="float64", remove_cm_motion=False)
    single = openmm.CustomIntegrator(0.004)  # velocity Verlet; OpenMM's own has velocities half a step behind
    single.addComputePerDof("v", "v + 0.5*dt*f/m")
    single.addComputePerDof("x", "x + dt*v")
    single.addComputePerDof("v", "v + 0.5*dt*f/m")
    assert fluctuation(whole, single, 150) > 4 * errors[4]


def test_averages_are_those_of_the_network() -> None:
    """⟨U⟩ a bond from ∫ U r² exp(-U/kT) dr; bonds as soft as the force field's would give a third more."""

    def energy(r: float) -> float:
        return 0.5 * SPRING.stiffness * (r - SPRING.length) ** 2 * (1 - (r / SPRING.cutoff) ** 2) ** 3

    def weight(r: float) -> float:
        return r * r * float(np.exp(-energy(r) / KT))

    expected = quad(lambda r: energy(r) * weight(r), 0.7, 2.0)[0] / quad(weight, 0.7, 2.0)[0]
    integrator = MTSLangevinIntegrator(
        300 * unit.kelvin, 20 / unit.picosecond, 4e-3 * unit.picosecond, [(2, 1), (1, 4)]
    )
    integrator.setRandomNumberSeed(7)
    context = make_context(split(cheap(40_000.0)), positions(), integrator=integrator)
    context.setVelocitiesToTemperature(300, 3)
    integrator.step(100)
    values = []
    for _ in range(800):
        integrator.step(4)
        x = context.getState(positions=True).getPositions(asNumpy=True)._value.reshape(MOLECULES, 2, 3) * 10.0
        # of the bonds as they are: the mean energy of a wrong total would be about kT/2 as well
        values.append(np.mean([energy(r) for r in np.linalg.norm(x[:, 1] - x[:, 0], axis=1)]))
    blocks = np.array([block.mean() for block in np.array_split(np.array(values), 16)])
    error = blocks.std(ddof=1) / 4
    assert error < 0.06 * expected
    assert abs(blocks.mean() - expected) < 4 * error


def test_what_cannot_be_split_is_refused() -> None:
    with pytest.raises(InputError, match="inner_group and outer_group are both 3"):
        multiple_time_step_system(hcl(), SPRING, cheap(), inner_group=3, outer_group=3, implementation="python")
    rigid = cheap()
    rigid.addConstraint(0, 1, 0.127)
    with pytest.raises(InputError, match=r"has 1 constraints.*rigidWater=False"):
        split(rigid)
    more = cheap()
    more.addParticle(1.0)
    with pytest.raises(InputError, match="has 17 particles, the topology 16"):
        split(more)
    pushed = cheap()
    pushed.addForce(openmm.MonteCarloBarostat(1.0, 300.0))
    with pytest.raises(InputError, match="holds a MonteCarloBarostat; add it to the system"):
        split(pushed)
    empty = openmm.System()
    for _ in range(2 * MOLECULES):
        empty.addParticle(1.0)
    with pytest.raises(InputError, match="has no forces"):
        split(empty)


class DoubleWell(Potential):
    """Two atoms with E = height ((d/width)² - 1)², d their distance less ``middle``, Å."""

    def __init__(self, height: float, middle: float, width: float) -> None:
        super().__init__(20.0, [])
        self.height, self.middle, self.width = float(height), float(middle), float(width)

    def forward(
        self,
        positions: Tensor,
        species: Tensor,
        edge_index: Tensor,
        shifts: Tensor,
        batch: Tensor,
        periodic: Tensor,
    ) -> Tensor:
        """(N,) eV."""
        pair = (positions.index_select(0, edge_index[0]) - positions.index_select(0, edge_index[1])).to(torch.float64)
        d = (pair.pow(2).sum(1).sqrt() - self.middle) / self.width
        return segment_sum(0.5 * self.height * (d * d - 1.0) ** 2, edge_index[0], positions.shape[0])


@pytest.mark.slow
def test_metadynamics_finds_the_free_energy_of_a_double_well() -> None:
    """F(r) = U(r) - 2 kT ln r. The bias grows, both wells are seen, and F comes out to a fraction of kT."""
    pytest.importorskip("openmmtorch", reason="the OpenMM plugin is missing: pip install 'egnn-md[openmm]'")
    model = DoubleWell(0.16, 3.2, 0.7)  # a barrier of 6 kT between 2.5 and 3.9 Å
    system = create_system(
        topology(["Ar", "Ar"], None), model, implementation="torch", dtype="float64", remove_cm_motion=False
    )
    distance = openmm.CustomBondForce("r")
    distance.addBond(0, 1)
    variable = app.BiasVariable(distance, 0.20, 0.45, 0.012, periodic=False, gridWidth=101)
    meta = app.Metadynamics(system, [variable], 300.0, biasFactor=8, height=0.6, frequency=40)
    integrator = openmm.LangevinMiddleIntegrator(300.0, 10.0, 0.01)
    integrator.setRandomNumberSeed(5)
    simulation = app.Simulation(
        topology(["Ar", "Ar"], None), system, integrator, openmm.Platform.getPlatformByName("Reference")
    )
    simulation.context.setPositions([[0, 0, 0], [0.25, 0, 0]])
    simulation.context.setVelocitiesToTemperature(300.0, 2)
    meta.step(simulation, 4000)
    early = np.ptp(meta.getFreeEnergy()._value)
    meta.step(simulation, 56_000)
    free = meta.getFreeEnergy()._value / KJ_PER_MOL_PER_EV
    assert np.ptp(meta.getFreeEnergy()._value) > 1.5 * early > 0
    r = np.linspace(2.0, 4.5, len(free))
    exact = 0.16 * (((r - 3.2) / 0.7) ** 2 - 1) ** 2 - 2 * KT * np.log(r)
    near = exact - exact.min() < 7 * KT
    difference = (free - exact)[near]
    difference -= difference.mean()
    assert np.sqrt(np.mean(difference**2)) < 0.6 * KT
    wells = [free[(r > low) & (r < high)].min() for low, high in ((2.2, 2.8), (3.6, 4.2))]
    expected = [exact[(r > low) & (r < high)].min() for low, high in ((2.2, 2.8), (3.6, 4.2))]
    assert wells[1] - wells[0] == pytest.approx(expected[1] - expected[0], abs=0.6 * KT)
