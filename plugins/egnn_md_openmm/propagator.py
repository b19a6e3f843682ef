"""A trained propagator in place of an OpenMM integrator.

Units. A model in Å and fs (or nm, ps) is converted to OpenMM's nm and ps by :mod:`egnn_md.units`. A model without
units (N-body), or in metres and seconds (SPH), keeps its numbers: one length is 1 Å (or ``unit_length``), so 0.1 nm,
and one time 1 fs; energies and temperatures that OpenMM derives from them mean nothing.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.errors import InputError
from egnn_md.rollout.guards import Guards, RolloutError
from egnn_md.rollout.state import State
from egnn_md.rollout.stepper import Stepper, config_of
from egnn_md.rollout.topology import check_cell, make_topology
from egnn_md.rollout.units import EngineUnits, are_elements, engine_units, particle_masses
from egnn_md_openmm.dependencies import import_openmm
from egnn_md_openmm.topology import atomic_numbers

import_openmm()  # says how to install it
import openmm  # noqa: E402
from openmm import app, unit  # noqa: E402

if TYPE_CHECKING:
    from torch import nn

ANGSTROM_PER_NM, FS_PER_PS = 10.0, 1000.0
SINGLE = 1e-6  # of the largest number: what platforms with single precision may change in one
EXACT_PLATFORMS = ("Reference",)
POSITIONS, VELOCITIES, START_TIME = "model_positions", "model_velocities", "model_start_time"

Array = NDArray[Any]


class StrideIntegrator(openmm.CustomIntegrator):
    """An integrator whose step is a stride of a propagator; its step size is the stride.

    Its variables hold the exact state in model units beside the context's in nm and ps, so that checkpoints and
    saved states, which contain them, go on without rounding.

    Args:
        stepper: of one system.
        units: of the model.
    """

    def __init__(self, stepper: Stepper, units: EngineUnits) -> None:
        super().__init__(stepper.config.stride * units.time / FS_PER_PS)
        self.addPerDofVariable(POSITIONS, 0.0)
        self.addPerDofVariable(VELOCITIES, 0.0)
        self.addGlobalVariable(START_TIME, 0.0)
        self.stepper = stepper
        self.units = units
        self._context: Any = None
        self._mirror: dict[str, Any] = {}
        self._tolerance = 0.0

    def attach(self, context: openmm.Context) -> None:
        """Put the stepper's state on ``context``."""
        self._context = weakref.ref(context)
        exact = context.getPlatform().getName() in EXACT_PLATFORMS
        self._tolerance = 0.0 if exact else SINGLE
        self.show()

    def step(self, steps: int) -> None:
        """Advance by ``steps`` strides.

        Raises:
            RolloutError: a guard stopped the rollout; the context holds the last good state.
        """
        for _ in range(int(steps)):
            self.take_over()
            try:
                self.stepper.step()
            except RolloutError as error:
                step = error.failure.last_good_step
                raise RolloutError(error.failure, f"{error.failure}. The context holds the state of step {step}") from (
                    error
                )
            self.show()

    @property
    def _length(self) -> float:
        return self.units.length / ANGSTROM_PER_NM

    @property
    def _velocity(self) -> float:
        return self.units.velocity / ANGSTROM_PER_NM * FS_PER_PS

    def _picoseconds(self, start_time: float, step: int) -> float:
        return (start_time + step * self.stepper.config.stride) * (self.units.time / FS_PER_PS)

    def show(self) -> None:
        """Put the state on the context."""
        context, state = self._context(), self.stepper.states[0]
        context.setPositions(state.positions * self._length)
        context.setVelocities(state.velocities * self._velocity)
        if state.cell is not None:
            context.setPeriodicBoxVectors(*_box(state.cell, self._length))
        context.setStepCount(state.step)
        context.setTime(self._picoseconds(state.start_time, state.step))
        self.setPerDofVariableByName(POSITIONS, state.positions)
        self.setPerDofVariableByName(VELOCITIES, state.velocities)
        self.setGlobalVariableByName(START_TIME, state.start_time)
        self._mirror = self._now()

    def _now(self) -> dict[str, Any]:
        state = self._context().getState(positions=True, velocities=True)
        return {
            "positions": state.getPositions(asNumpy=True).value_in_unit(unit.nanometer),
            "velocities": state.getVelocities(asNumpy=True).value_in_unit(unit.nanometer / unit.picosecond),
            "box": state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer),
            "time": state.getTime().value_in_unit(unit.picosecond),
            "step": state.getStepCount(),
        }

    def take_over(self) -> None:
        """Adopt what the context holds if it is not what the last stride left: a loaded state or a user's change."""
        now, mirror = self._now(), self._mirror
        if all(np.array_equal(now[name], mirror[name]) for name in now):
            return
        stepper, state, step = self.stepper, self.stepper.states[0], int(now["step"])
        start_time = float(self.getGlobalVariableByName(START_TIME))
        expected = self._picoseconds(start_time, step)
        if not np.isclose(now["time"], expected, rtol=1e-9, atol=1e-12):
            start_time = now["time"] * (FS_PER_PS / self.units.time) - step * stepper.config.stride
        changes: dict[str, Any] = {
            "positions": self._exact(POSITIONS, now["positions"], self._length),
            "velocities": self._exact(VELOCITIES, now["velocities"], self._velocity),
            "step": step,
            "start_time": start_time,
        }
        if state.cell is not None and not np.array_equal(now["box"], mirror["box"]):
            changes["cell"] = now["box"] / self._length
        stepper.adopt(0, **changes)
        self._mirror = now

    def _exact(self, name: str, values: Array, factor: float) -> Array:
        """Context values in model units: the integrator's exact ones where they are the same particle's."""
        stored = np.array(self.getPerDofVariableByName(name), dtype=np.float64)
        theirs = stored * factor
        # "not within" and not "beyond", so that a NaN that somebody set is seen
        changed = ~(np.abs(values - theirs) <= self._tolerance * np.abs(theirs).max())
        return np.where(np.any(changed, axis=1, keepdims=True), values / factor, stored)


def _box(cell: Array, length: float) -> list[openmm.Vec3]:
    """Box vectors in nm. What rounding left above the diagonal is cleared: OpenMM refuses it."""
    return [openmm.Vec3(*row) for row in np.tril(cell * length).tolist()]


def _checked_box(state: State, units: EngineUnits) -> list[openmm.Vec3]:
    """:func:`_box` of a state with a cell. Raises InputError for one that OpenMM does not know."""
    check_cell(state, "OpenMM")
    assert state.cell is not None
    rows = _box(state.cell, units.length / ANGSTROM_PER_NM)
    try:
        openmm.System().setDefaultPeriodicBoxVectors(*rows)
    except openmm.OpenMMException as error:
        raise InputError(
            f"OpenMM does not take the cell {[list(row) for row in rows]} nm ({error}); start from reduced lattice "
            "vectors (|b_x|, |c_x| at most a_x/2, |c_y| at most b_y/2), or use ASE or no engine"
        ) from error
    return rows


def _numbers(values: Any, wanted: Any, name: str) -> Array:
    if unit.is_quantity(values):
        values = values.value_in_unit(wanted)
    array = np.array(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 3:
        raise InputError(f"{name} have shape {array.shape}, but (particles, 3) is needed")
    return array


class PropagatorSimulation(app.Simulation):
    """An OpenMM simulation whose steps are strides of a propagator.

    ``step``, ``runForClockTime``, reporters, ``saveState``, ``loadState``, ``saveCheckpoint``, ``loadCheckpoint`` and
    ``context.getState`` work as with any simulation: positions, velocities, time and step count are those of the
    rollout. The system has no forces, so the potential energy reads 0; the kinetic energy is ½ Σ m v². Positions are
    not wrapped into the box unless a reporter asks for it (``enforcePeriodicBox=True``).

    Positions, velocities, box, time or step count that you set on the context count from the next step on; particles
    that you leave alone go on with the model's exact numbers. On ``Reference``, which keeps doubles, loading a
    checkpoint or state continues bit by bit; other platforms round what reporters see, never what the model sees.

    Args:
        topology: its elements are the particle types unless ``species`` is given; its box makes the system periodic.
        model: a propagator; its device and precision are used.
        positions: (N, 3) with units, or in nm.
        velocities: (N, 3) with units, or in nm/ps.
        species: (N,) particle types.
        features: (N, F) given inputs.
        masses: (N,) in amu; of the elements, or 1, if None.
        periodic: False to take no notice of the topology's box.
        platform: name of the OpenMM platform.
        platform_properties: of the platform.
        skin: of the neighbour list, in the model's length unit; see :class:`egnn_md.rollout.Stepper`.
        guards: see :class:`egnn_md.rollout.Stepper`.
        seed: of random edge dropping.
        unit_length: Å that one length of a model without units stands for; 1 if None.

    Attributes:
        stepper: the :class:`egnn_md.rollout.Stepper`; ``stepper.states[0]`` is the exact state in model units.

    Raises:
        InputError: not a propagator, ``velocity: forward``, shapes or types that do not fit, an unknown platform.
    """

    def __init__(
        self,
        topology: app.Topology,
        model: nn.Module,
        positions: Any,
        velocities: Any,
        *,
        species: Any = None,
        features: Any = None,
        masses: Any = None,
        periodic: bool | None = None,
        platform: str = "Reference",
        platform_properties: dict[str, str] | None = None,
        skin: float | None = None,
        guards: Guards | bool = True,
        seed: int = 0,
        unit_length: float | None = None,
    ) -> None:
        config = config_of(model)
        units = engine_units(config, unit_length)
        length = units.length / ANGSTROM_PER_NM
        if species is None:
            species = atomic_numbers(topology)
        box = topology.getPeriodicBoxVectors()
        boxed = box is not None if periodic is None else periodic
        if boxed and box is None:
            raise InputError("periodic=True, but the topology has no box; call topology.setPeriodicBoxVectors(...)")
        start = State(
            positions=_numbers(positions, unit.nanometer, "positions") / length,
            velocities=_numbers(velocities, unit.nanometer / unit.picosecond, "velocities")
            / (units.velocity / ANGSTROM_PER_NM * FS_PER_PS),
            species=np.asarray(species, dtype=np.int64),
            features=features,
            cell=np.array(box.value_in_unit(unit.nanometer)) / length if boxed else None,
            pbc=(boxed, boxed, boxed),
        )
        if topology.getNumAtoms() != len(start):
            raise InputError(f"the topology has {topology.getNumAtoms()} atoms, but there are {len(start)} types")
        stepper = Stepper(model, start, skin=skin, guards=guards, seed=seed)
        self._begin(topology, stepper, units, masses, platform, platform_properties)

    @classmethod
    def from_stepper(
        cls,
        stepper: Stepper,
        *,
        topology: app.Topology | None = None,
        masses: Any = None,
        platform: str = "Reference",
        platform_properties: dict[str, str] | None = None,
        unit_length: float | None = None,
    ) -> PropagatorSimulation:
        """A simulation that goes on with the exact state of a :class:`egnn_md.rollout.Stepper` of one system.

        Args:
            stepper: of one system.
            topology: one with generic names if None.
            masses, platform, platform_properties, unit_length: as for the class.

        Raises:
            InputError: several systems, or a box that OpenMM does not know.
        """
        if len(stepper) != 1:
            raise InputError(f"the stepper moves {len(stepper)} systems; PropagatorSimulation needs one")
        units = engine_units(stepper.config, unit_length)
        state = stepper.states[0]
        if topology is None:
            topology = make_topology(state, units).to_openmm()
            if state.cell is not None:
                topology.setPeriodicBoxVectors(_checked_box(state, units) * unit.nanometer)
        simulation = cls.__new__(cls)
        simulation._begin(topology, stepper, units, masses, platform, platform_properties)
        return simulation

    def _begin(
        self,
        topology: app.Topology,
        stepper: Stepper,
        units: EngineUnits,
        masses: Any,
        platform: str,
        platform_properties: dict[str, str] | None,
    ) -> None:
        state = stepper.states[0]
        weights = particle_masses(state.species, units) if masses is None else np.asarray(masses, dtype=np.float64)
        if weights.shape != (len(state),):
            raise InputError(f"masses have shape {weights.shape}, but ({len(state)},) is needed")
        system = openmm.System()
        for mass in weights.tolist():
            system.addParticle(mass)
        if state.cell is not None:
            system.setDefaultPeriodicBoxVectors(*_checked_box(state, units))
        try:
            chosen = openmm.Platform.getPlatformByName(platform)
        except openmm.OpenMMException as error:
            known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
            raise InputError(
                f"platform {platform!r} is not available here (available: {', '.join(known)})"
            ) from error
        integrator = StrideIntegrator(stepper, units)
        super().__init__(topology, system, integrator, chosen, platform_properties)
        self.stepper = stepper
        integrator.attach(self.context)

    def minimizeEnergy(self, *args: Any, **kwargs: Any) -> None:  # noqa: N802 - OpenMM's name
        """Refused.

        Raises:
            InputError: a propagator has no energy.
        """
        raise InputError("a propagator has no energy to minimise; relax the start with a potential")


class OpenMMRollout:
    """The engine ``openmm`` of ``egnn-md rollout``; see :class:`egnn_md.rollout.engine.RolloutEngine`."""

    def __init__(self, stepper: Stepper, units: EngineUnits) -> None:
        length = None if units.physical else units.length
        # names are not asked for: the command writes its own files
        topology = app.Topology()
        residue = topology.addResidue("UNK", topology.addChain())
        elements = are_elements(stepper.states[0].species, units)
        for kind in stepper.states[0].species.tolist():
            element = app.Element.getByAtomicNumber(kind) if elements else None
            topology.addAtom(str(kind), element, residue)
        self.simulation = PropagatorSimulation.from_stepper(stepper, topology=topology, unit_length=length)

    def advance(self) -> None:
        """One stride. Raises RolloutError."""
        self.simulation.step(1)

    def describe(self) -> dict[str, Any]:
        """JSON values for the record."""
        return {
            "engine": "OpenMM",
            "version": openmm.__version__,
            "platform": self.simulation.context.getPlatform().getName(),
            "integrator": "PropagatorSimulation",
        }


def rollout_engine(stepper: Stepper, units: EngineUnits) -> OpenMMRollout:
    """Entry point ``openmm`` of ``egnn_md.rollout_engines``."""
    return OpenMMRollout(stepper, units)
