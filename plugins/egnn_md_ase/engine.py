"""The engine ``ase`` of ``egnn-md md``: ASE's integrators around :class:`FastEGNNCalculator`.

nve: velocity Verlet. With the Langevin thermostat: BAOAB (Leimkuhler & Matthews, J. Chem. Phys. 138, 174102, 2013),
npt with a Langevin piston on the volume (Quigley & Probert, J. Chem. Phys. 120, 11432, 2004); with constraints ASE's
``Langevin``, which knows RATTLE. With Nosé-Hoover chains: :mod:`egnn_md_ase.thermostats`.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import ase
import numpy as np
from ase import units
from ase.constraints import FixBondLengths
from ase.md.langevin import Langevin
from ase.md.langevinbaoab import LangevinBAOAB
from ase.md.verlet import VelocityVerlet
from ase.optimize import FIRE2

from egnn_md.errors import DeviceError, EgnnMdError
from egnn_md.simulation.constraints import degrees_of_freedom
from egnn_md.simulation.driver import DriveOptions, RunResult, drive
from egnn_md.simulation.engine import Engine, EngineError, Observation
from egnn_md.simulation.models import check_model, closing_models, open_model
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.structure import Structure
from egnn_md.simulation.uncertainty import UncertaintyWatch, watched
from egnn_md.units import BAR_PER_EV_PER_CUBIC_ANGSTROM
from egnn_md_ase.thermostats import NoseHooverChain, NoseHooverPiston

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator
    from ase.md.md import MolecularDynamics

    from egnn_md.models.base import Potential

FS = units.fs  # ASE's time unit is sqrt(amu Å²/eV), 10.18 fs
CONSTRAINT_TOLERANCE = 1e-10  # of FixBondLengths, relative
BAROSTAT_FS = 1000.0  # period of the cell's motion; the piston's mass follows from it


class ASEEngine:
    """A structure, a calculator and an integrator; see :class:`egnn_md.simulation.engine.Engine`."""

    def __init__(self, structure: Structure, request: MDRequest, calculator: Calculator) -> None:
        self.request = request
        self.watch: UncertaintyWatch | None = None
        self.atoms = structure.to_atoms()
        self.atoms.calc = calculator
        self._rng = np.random.default_rng([request.seed, 1])  # 0 draws the velocities
        self._dynamics: MolecularDynamics | None = None

    def describe(self) -> dict[str, Any]:
        """JSON values for the run record."""
        return {
            "engine": "ASE",
            "version": ase.__version__,
            "integrator": self._integrator_name(),
            "device": self.request.device,
            "precision": self.request.dtype,
        }

    def _integrator_name(self) -> str:
        request = self.request
        if request.ensemble == "nve":
            return "velocity Verlet"
        if request.thermostat == "nose-hoover":
            npt = ", Martyna-Tobias-Klein barostat (isotropic)"
            return "Nosé-Hoover chain" + (npt if request.ensemble == "npt" else "")
        if request.constraints != "none":
            return "Langevin (Vanden-Eijnden and Ciccotti)"
        return "Langevin BAOAB" + (" with Langevin piston (isotropic)" if request.ensemble == "npt" else "")

    def _start_dynamics(self) -> MolecularDynamics:
        request = self.request
        timestep = request.timestep * FS
        if request.ensemble == "nve":
            return VelocityVerlet(self.atoms, timestep)
        if request.thermostat == "nose-hoover":
            return self._nose_hoover(timestep)
        if request.constraints != "none":
            return Langevin(
                self.atoms,
                timestep,
                temperature_K=request.temperature,
                friction=request.friction / (1000.0 * FS),
                fixcm=False,
                rng=self._rng,
            )
        options: dict[str, Any] = {}
        if request.ensemble == "npt":
            options = {
                "externalstress": -request.pressure / BAR_PER_EV_PER_CUBIC_ANGSTROM,
                "hydrostatic": True,
                "P_tau": BAROSTAT_FS * FS,
            }
        with warnings.catch_warnings():  # it announces the mass that it derives from P_tau
            warnings.simplefilter("ignore")
            return LangevinBAOAB(
                self.atoms,
                timestep,
                temperature_K=request.temperature,
                T_tau=1000.0 / request.friction * FS,
                rng=self._rng,
                **options,
            )

    def _nose_hoover(self, timestep: float) -> MolecularDynamics:
        request = self.request
        options: dict[str, Any] = {
            "temperature_K": request.temperature,
            "tdamp": request.thermostat_time * FS,
            "degrees_of_freedom": degrees_of_freedom(request, len(self.atoms)),
        }
        if request.ensemble == "nvt":
            return NoseHooverChain(self.atoms, timestep, **options)
        pressure = request.pressure / BAR_PER_EV_PER_CUBIC_ANGSTROM
        return NoseHooverPiston(self.atoms, timestep, pressure_au=pressure, pdamp=BAROSTAT_FS * FS, **options)

    def minimize(self, steps: int, force: float, stop: Callable[[], bool]) -> int:
        """FIRE; see the protocol."""
        optimizer = FIRE2(self.atoms, logfile=None)  # type: ignore[arg-type]
        for converged in optimizer.irun(fmax=force, steps=steps):
            if converged or stop():
                break
        self._dynamics = None
        return int(optimizer.nsteps)

    def constrain(self, pairs: np.ndarray, lengths: np.ndarray) -> None:
        """RATTLE; see the protocol."""
        if len(pairs):
            fixed = FixBondLengths(pairs, tolerance=CONSTRAINT_TOLERANCE, bondlengths=lengths)
            self.atoms.set_constraint(fixed)
        self._dynamics = None

    def place(self, positions: np.ndarray, velocities: np.ndarray, cell: np.ndarray) -> None:
        """Set the state, brought onto the constraints; the integrator starts anew."""
        self.atoms.set_cell(cell, apply_constraint=False)
        # the first to have directions along which the second brings bonds to their lengths
        self.atoms.set_positions(positions, apply_constraint=False)
        if self.atoms.constraints:
            self.atoms.set_positions(positions)
        self.atoms.set_velocities(velocities / FS)
        self._dynamics = None

    @property
    def dynamics(self) -> MolecularDynamics:
        """The integrator, made when it is first needed, because some evaluate forces at once."""
        if self._dynamics is None:
            self._dynamics = self._start_dynamics()
        return self._dynamics

    def step(self, count: int) -> None:
        """Advance. Raises EngineError where the model refuses the structure or gives no number."""
        try:
            dynamics = self.dynamics
            for _ in range(count):
                dynamics.step()  # type: ignore[attr-defined]
        except DeviceError:
            raise  # no fault of the system: the run can go on
        except EgnnMdError as error:
            raise EngineError(str(error)) from error

    def observe(self, *, full: bool = True) -> Observation:
        """The state now; forces and energy are already there and cost nothing."""
        try:
            # of the model alone, as OpenMM gives them; what constraints add is not a force of it
            forces, energy = self.atoms.get_forces(apply_constraint=False), float(self.atoms.get_potential_energy())
        except DeviceError:
            raise  # no fault of the system: the run can go on
        except EgnnMdError as error:
            raise EngineError(str(error)) from error
        return Observation(
            positions=self.atoms.get_positions(),
            velocities=self.atoms.get_velocities() * FS,
            cell=self.atoms.cell.array.copy(),
            forces=np.array(forces),
            energy=energy,
        )

    def save(self) -> bytes:
        """State as JSON; doubles survive it exactly."""
        state: dict[str, Any] = {
            "positions": self.atoms.get_positions().tolist(),
            "momenta": self.atoms.get_momenta().tolist(),
            "cell": self.atoms.cell.array.tolist(),
            "random": self._rng.bit_generator.state,
        }
        integrator = self._memory()
        if integrator:
            state["integrator"] = integrator
        return json.dumps(state).encode()

    def restore(self, state: bytes) -> None:
        """Go back. Raises ValueError if ``state`` is no state of this engine."""
        try:
            saved = json.loads(state)
            # as they were: constraints would move them in the last digit
            self.atoms.set_cell(np.array(saved["cell"]), apply_constraint=False)
            self.atoms.set_positions(np.array(saved["positions"]), apply_constraint=False)
            self.atoms.set_momenta(np.array(saved["momenta"]), apply_constraint=False)
            self._rng.bit_generator.state = saved["random"]
            old = saved.get("cell_momentum")  # before there were chains
            memory = saved.get("integrator", {} if old is None else {"p_eps": old})
        except (UnicodeDecodeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a state of the ase engine: {error}") from error
        self._begin_anew(memory)

    def settle(self) -> None:
        """Recompute forces from a fresh neighbour list, as a restored run does."""
        self._begin_anew(self._memory())

    def _memory(self) -> dict[str, Any]:
        """What the integrator knows beside positions, momenta and cell."""
        dynamics = self._dynamics
        if isinstance(dynamics, NoseHooverChain | NoseHooverPiston):
            return dynamics.state()
        if isinstance(dynamics, LangevinBAOAB) and hasattr(dynamics, "p_eps"):
            # its force on the cell is of the moment before the last half kick
            return {"p_eps": float(dynamics.p_eps), "force_eps": float(dynamics.force_eps)}
        return {}

    def _begin_anew(self, memory: dict[str, Any]) -> None:
        self._dynamics = None
        self._forget_forces()
        if not memory:
            return
        dynamics = self.dynamics
        if isinstance(dynamics, NoseHooverChain | NoseHooverPiston):
            dynamics.set_state(memory)
        elif isinstance(dynamics, LangevinBAOAB):
            dynamics.p_eps = memory["p_eps"]
            dynamics.force_eps = memory.get("force_eps", dynamics.force_eps)

    def _forget_forces(self) -> None:
        """Let forces depend on the positions alone, so that a run resumed here is the same bit by bit."""
        self.atoms.calc.forget()


def run_md(
    request: MDRequest,
    run: RunDirectory,
    *,
    options: DriveOptions | None = None,
    model: Potential | None = None,
) -> RunResult:
    """Run ``request`` in ``run`` with ASE (entry point ``ase`` of ``egnn_md.engines``).

    Args:
        request: what to simulate.
        run: where to write.
        options: resume, overwrite, console.
        model: potential to use instead of the one that ``request.model`` names.

    Raises:
        See :func:`egnn_md.simulation.driver.drive`.
    """

    def build(structure: Structure, request: MDRequest) -> tuple[Engine, dict[str, Any]]:
        from egnn_md_ase.calculator import FastEGNNCalculator

        potential, description = open_model(request, model)
        check_model(note(potential) if model is None else potential, structure)
        potential, watch = watched(potential, structure, request)
        calculator = FastEGNNCalculator(
            potential, device=request.device, dtype=request.dtype, uncertainty_interval=0
        )
        engine = ASEEngine(structure, request, calculator)
        engine.watch = watch
        return engine, description

    with closing_models() as note:
        return drive(build, request, run, options or DriveOptions())
