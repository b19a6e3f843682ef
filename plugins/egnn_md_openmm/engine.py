"""The engine ``openmm`` of ``egnn-md md``: OpenMM's integrators and barostat around one potential.

nve: velocity Verlet, so that stored positions and velocities belong to the same time (OpenMM's own
``VerletIntegrator`` keeps velocities half a step behind). nvt and npt: ``LangevinMiddleIntegrator``, or
``NoseHooverIntegrator``; npt adds the Monte Carlo barostat, which moves molecules as wholes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_md.errors import InputError, SimulationError
from egnn_md.simulation.driver import DriveOptions, RunResult, drive
from egnn_md.simulation.engine import Engine, EngineError, Observation
from egnn_md.simulation.models import check_model, closing_models, open_model
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.structure import Structure
from egnn_md.simulation.uncertainty import UncertaintyWatch, watched
from egnn_md.units import KJ_PER_MOL_PER_EV
from egnn_md_openmm.minimizer import relax, relax_constrained

if TYPE_CHECKING:
    import openmm
    from openmm import app

    from egnn_md.models.base import Potential

ANGSTROM_PER_NM = 10.0
FS_PER_PS = 1000.0
CONSTRAINT_TOLERANCE = 1e-6  # relative
BAROSTAT_INTERVAL = 25  # steps between attempted changes of the volume


def openmm_topology(structure: Structure, *, bonds: bool = True) -> app.Topology:
    """OpenMM topology with residues, names, cell and, of the bonds, those that form finite molecules."""
    from openmm import Vec3, app, unit

    topology = app.Topology()
    chains: dict[int, Any] = {}
    residues = []
    for name, chain in zip(structure.residue_names, structure.chains.tolist(), strict=True):
        if chain not in chains:
            chains[chain] = topology.addChain()
        residues.append(topology.addResidue(str(name), chains[chain]))
    atoms = [
        topology.addAtom(str(name), app.Element.getByAtomicNumber(int(z)), residues[r])
        for name, z, r in zip(structure.names, structure.numbers, structure.residues, strict=True)
    ]
    if bonds:
        molecules = structure.molecules
        for i, j in structure.bonds.tolist():
            # an endless network is no molecule that a barostat could move as a whole
            if not molecules.endless[molecules.labels[i]]:
                topology.addBond(atoms[i], atoms[j])
    if structure.periodic:
        rows = structure.cell / ANGSTROM_PER_NM
        topology.setPeriodicBoxVectors([Vec3(*row) for row in rows.tolist()] * unit.nanometer)
    return topology


def velocity_verlet(timestep: float, *, constrained: bool = False) -> openmm.CustomIntegrator:
    """Velocity Verlet with a time step in ps, RATTLE if ``constrained``; one evaluation of the forces a step."""
    import openmm

    integrator = openmm.CustomIntegrator(timestep)
    integrator.addUpdateContextState()
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
    if not constrained:
        integrator.addComputePerDof("x", "x + dt*v")
        integrator.addComputePerDof("v", "v + 0.5*dt*f/m")
        return integrator
    integrator.addPerDofVariable("free", 0)  # where the atoms would be without constraints
    integrator.addComputePerDof("x", "x + dt*v")
    integrator.addComputePerDof("free", "x")
    integrator.addConstrainPositions()
    integrator.addComputePerDof("v", "v + 0.5*dt*f/m + (x - free)/dt")
    integrator.addConstrainVelocities()
    return integrator


def make_integrator(request: MDRequest) -> openmm.Integrator:
    """The integrator that ``request`` asks for."""
    import openmm

    timestep = request.timestep / FS_PER_PS
    if request.ensemble == "nve":
        integrator: Any = velocity_verlet(timestep, constrained=request.constraints != "none")
    elif request.thermostat == "nose-hoover":
        integrator = openmm.NoseHooverIntegrator(request.temperature, FS_PER_PS / request.thermostat_time, timestep)
    else:
        integrator = openmm.LangevinMiddleIntegrator(request.temperature, request.friction, timestep)
        integrator.setRandomNumberSeed(request.seed + 1)
    integrator.setConstraintTolerance(CONSTRAINT_TOLERANCE)
    return integrator


class OpenMMEngine:
    """A context; see :class:`egnn_md.simulation.engine.Engine`."""

    def __init__(self, structure: Structure, request: MDRequest, system: openmm.System, callback: Any) -> None:
        import openmm

        self.request = request
        self.watch: UncertaintyWatch | None = None
        self._callback = callback
        for index, mass in enumerate(structure.masses.tolist()):
            system.setParticleMass(index, mass)
        self._barostat: openmm.MonteCarloBarostat | None = None
        if request.ensemble == "npt":
            # it counts from the last checkpoint (see settle), so it must come to its turn before the next
            interval = min(BAROSTAT_INTERVAL, request.checkpoint_interval)
            self._barostat = openmm.MonteCarloBarostat(request.pressure, request.temperature, interval)
            self._barostat.setRandomNumberSeed(request.seed + 1)
            system.addForce(self._barostat)
        if request.ensemble != "nve" and request.thermostat == "nose-hoover" and system.getNumParticles() > 1:
            # it tells the integrator, too, that the momentum is no degree of freedom of the temperature
            system.addForce(openmm.CMMotionRemover())
        self._system = system
        self.integrator = make_integrator(request)
        platform = choose_platform(request)
        with _faults():
            self.context = openmm.Context(system, self.integrator, platform, platform_properties(request, platform))
        self.platform = platform.getName()

    def describe(self) -> dict[str, Any]:
        """JSON values for the run record."""
        import openmm

        platform = self.context.getPlatform()
        names = set(platform.getPropertyNames()) & {"Precision", "Threads", "DeviceName", "DeviceIndex"}
        return {
            "engine": "OpenMM",
            "version": openmm.__version__,
            "platform": self.platform,
            "platform_properties": {n: platform.getPropertyValue(self.context, n) for n in sorted(names)},
            "integrator": self._integrator_name(),
            "force": "TorchForce" if self.request.implementation == "torch" else "PythonForce",
            "device": self.request.device,
            "precision": self.request.dtype,
        }

    def _integrator_name(self) -> str:
        if self.request.ensemble == "nve":
            return "velocity Verlet"
        barostat = "" if self._barostat is None else ", MonteCarloBarostat"
        return type(self.integrator).__name__ + barostat

    def minimize(self, steps: int, force: float, stop: Callable[[], bool]) -> int:
        """FIRE2, or L-BFGS where there are constraints; see the protocol and :mod:`egnn_md_openmm.minimizer`."""
        chosen = relax_constrained if self._system.getNumConstraints() else relax
        return chosen(self, steps, force, stop, _faults)

    def constrain(self, pairs: np.ndarray, lengths: np.ndarray) -> None:
        """SHAKE or its like by the platform; see the protocol."""
        if not len(pairs):
            return
        for (first, second), length in zip(pairs.tolist(), lengths.tolist(), strict=True):
            self._system.addConstraint(first, second, length / ANGSTROM_PER_NM)
        with _faults():
            self.context.reinitialize()

    def place(self, positions: np.ndarray, velocities: np.ndarray, cell: np.ndarray) -> None:
        """Set the state, brought onto the constraints."""
        if np.any(cell):
            self.context.setPeriodicBoxVectors(*(cell / ANGSTROM_PER_NM).tolist())
        self.context.setPositions(positions / ANGSTROM_PER_NM)
        self.context.setVelocities(velocities / ANGSTROM_PER_NM * FS_PER_PS)
        if self._system.getNumConstraints():
            self.context.applyConstraints(CONSTRAINT_TOLERANCE)
            self.context.applyVelocityConstraints(CONSTRAINT_TOLERANCE)

    def step(self, count: int) -> None:
        """Advance. Raises EngineError where OpenMM or the model refuses."""
        with _faults():
            self.integrator.step(count)

    def observe(self, *, full: bool = True) -> Observation:
        """The state now; forces and energy, which cost an evaluation, if ``full``."""
        from openmm import unit

        with _faults():
            state = self.context.getState(positions=True, velocities=True, forces=full, energy=full)
        energy_unit = unit.kilojoule_per_mole
        forces = energy = None
        if full:
            forces = state.getForces(asNumpy=True).value_in_unit(energy_unit / unit.nanometer)
            forces = np.array(forces) / (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM)
            energy = state.getPotentialEnergy().value_in_unit(energy_unit) / KJ_PER_MOL_PER_EV
        periodic = self.context.getSystem().usesPeriodicBoundaryConditions()
        box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
        velocities = state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond)
        return Observation(
            positions=np.array(state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)) * ANGSTROM_PER_NM,
            velocities=np.array(velocities) * ANGSTROM_PER_NM / FS_PER_PS,
            cell=np.array(box) * ANGSTROM_PER_NM if periodic else np.zeros((3, 3)),
            forces=forces,
            energy=energy,
        )

    def save(self) -> bytes:
        """OpenMM's checkpoint with the platform and version it belongs to."""
        import openmm

        head = f"{self.platform} {openmm.__version__}\n".encode()
        return head + bytes(self.context.createCheckpoint())

    def restore(self, state: bytes) -> None:
        """Go back. Raises ValueError for a checkpoint of another platform or version of OpenMM."""
        import openmm

        head, _, blob = state.partition(b"\n")
        here = f"{self.platform} {openmm.__version__}"
        if head.decode(errors="replace") != here:
            raise ValueError(f"it was made by {head.decode(errors='replace')[:40]!r}, this is {here!r}")
        try:
            self.context.loadCheckpoint(blob)
        except openmm.OpenMMException as error:
            raise ValueError(str(error)) from error

    def settle(self) -> None:
        """Go on as a restored run begins: fresh neighbour list, invalid forces, a barostat that starts anew.

        OpenMM's checkpoints leave out how far the barostat has adapted its moves, so where making a context
        is cheap it is made anew here too, which makes a resumed run equal an uninterrupted one bit by bit.
        """
        if self._callback is not None:
            self._callback.forget()
        if self._barostat is not None and self.platform in ("Reference", "CPU"):
            self.context.reinitialize(preserveState=True)
        else:
            self.context.loadCheckpoint(self.context.createCheckpoint())


@contextmanager
def _faults() -> Iterator[None]:
    """Errors inside a force, and OpenMM's own about NaN, as EngineError; others stay what they are."""
    import openmm

    from egnn_md_openmm.failures import readable_errors

    try:
        with readable_errors():
            yield
    except SimulationError as error:
        raise EngineError(str(error)) from error
    except openmm.OpenMMException as error:
        if "nan" in str(error).lower() or "infinite" in str(error).lower():
            raise EngineError(f"OpenMM stopped: {error}") from error
        raise


def choose_platform(request: MDRequest) -> openmm.Platform:
    """The platform that was asked for; else CUDA for a CUDA device and CPU for all others.

    Raises:
        InputError: OpenMM does not have it here; the message lists those it has.
    """
    import openmm

    name = request.platform or ("CUDA" if request.device.startswith("cuda") else "CPU")
    known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    for candidate in known:
        if candidate.lower() == name.lower():
            return openmm.Platform.getPlatformByName(candidate)
    hint = "; for CUDA: pip install 'egnn-md[openmm-cuda]'" if name.upper() == "CUDA" else ""
    raise InputError(f"--platform {name} is not available here (available: {', '.join(known)}){hint}")


def platform_properties(request: MDRequest, platform: openmm.Platform) -> dict[str, str]:
    """Precision to suit the model's, and the number of the GPU."""
    properties: dict[str, str] = {}
    names = platform.getPropertyNames()
    if "Precision" in names:
        properties["Precision"] = "double" if request.dtype == "float64" else "mixed"
    _, _, index = request.device.partition(":")
    if "DeviceIndex" in names and index:
        properties["DeviceIndex"] = index
    return properties


def run_md(
    request: MDRequest,
    run: RunDirectory,
    *,
    options: DriveOptions | None = None,
    model: Potential | None = None,
) -> RunResult:
    """Run ``request`` in ``run`` with OpenMM (entry point ``openmm`` of ``egnn_md.engines``).

    Args:
        request: what to simulate.
        run: where to write.
        options: resume, overwrite, console.
        model: potential to use instead of the one that ``request.model`` names.

    Raises:
        MissingDependencyError: OpenMM or its plugin is not installed.
        See also :func:`egnn_md.simulation.driver.drive`.
    """
    from egnn_md_openmm.dependencies import import_openmm
    from egnn_md_openmm.system import create_system

    import_openmm()

    def build(structure: Structure, request: MDRequest) -> tuple[Engine, dict[str, Any]]:
        if structure.pbc.any() and not structure.periodic:
            raise InputError(
                f"the structure is periodic in some directions only (pbc {structure.pbc.tolist()}), "
                "which OpenMM does not know; use --engine ase"
            )
        choose_platform(request)
        potential, description = open_model(request, model)
        check_model(note(potential) if model is None else potential, structure)
        potential, watch = watched(potential, structure, request)
        system = create_system(
            openmm_topology(structure),
            potential,
            implementation=request.implementation,
            periodic=structure.periodic,
            dtype=request.dtype,
            device=request.device,
            remove_cm_motion=False,  # it would act as a hidden thermostat on what conserves momentum anyway
        )
        engine = OpenMMEngine(structure, request, system, next(iter(system.callbacks), None))
        engine.watch = watch
        return engine, description

    with closing_models() as note:
        return drive(build, request, run, options or DriveOptions())
