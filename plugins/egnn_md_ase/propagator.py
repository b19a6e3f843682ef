"""A trained propagator in place of an ASE integrator.

Units. A model in Å and fs (or nm, ps) is converted to ASE's Å and Å √(amu/eV) by :mod:`egnn_md.units`. A model
without units (N-body), or in metres and seconds (SPH), keeps its numbers: one length is 1 Å (or ``unit_length``) and
one time 1 fs; energies and temperatures that ASE derives from them mean nothing.
"""

from __future__ import annotations

from typing import IO, TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError
from ase.md.md import MolecularDynamics
from ase.units import fs

from egnn_md.errors import InputError
from egnn_md.rollout.guards import Guards, RolloutError
from egnn_md.rollout.starts import state_from_atoms
from egnn_md.rollout.state import State
from egnn_md.rollout.stepper import Stepper, config_of
from egnn_md.rollout.topology import to_atoms
from egnn_md.rollout.units import EngineUnits, engine_units

if TYPE_CHECKING:
    from torch import nn


class NoPotential(Calculator):
    """Stands where loggers look for an energy: a propagator has none, so the energy reads NaN and nothing is stored."""

    implemented_properties = ["energy"]  # noqa: RUF012 - ASE's own declaration
    name = "propagator"

    def get_property(self, name: str, atoms: Atoms | None = None, allow_calculation: bool = True) -> Any:
        """NaN for the energy; None where nothing may be calculated (trajectory files).

        Raises:
            PropertyNotImplementedError: forces, stress and all else.
        """
        if name not in ("energy", "free_energy"):
            raise PropertyNotImplementedError(f"a propagator has no {name}: it predicts positions and velocities")
        return np.nan if allow_calculation else None

    def calculation_required(self, atoms: Atoms, properties: list[str]) -> bool:
        """True: nothing is ever stored."""
        return True


class PropagatorDynamics(MolecularDynamics):
    """ASE dynamics whose steps are strides of a propagator.

    Observers (``attach``), ``Trajectory``, ``MDLogger``, ``run``, ``irun`` and ``get_time`` work as with any
    dynamics of ASE. Atoms without a calculator are given :class:`NoPotential`, so that a logger writes the kinetic
    energy and NaN for the potential one.

    What you change on the atoms between steps counts: positions, momenta and cell that differ from what the last
    stride left are taken over, for those particles that differ; all others go on with the model's exact numbers.
    Constraints act on positions and momenta after each stride.

    Args:
        atoms: with momenta, or with an array ``velocities`` in Å/fs (extended XYZ), which becomes momenta. Particle
            types are the array ``particle_type`` if there is one, else the atomic numbers; given inputs are the
            array ``node_features`` (N, F).
        model: a propagator; its device and precision are used.
        trajectory: file or Trajectory to write, every ``loginterval`` strides.
        logfile: file that an ``MDLogger`` writes, every ``loginterval`` strides.
        loginterval: see above.
        skin: of the neighbour list, in the model's length unit; see :class:`egnn_md.rollout.Stepper`.
        guards: see :class:`egnn_md.rollout.Stepper`.
        seed: of random edge dropping.
        unit_length: Å that one length of a model without units stands for; 1 if None.
        stepper: go on with this one (of one system) instead; ``atoms`` then take its state.
        kwargs: of :class:`ase.md.md.MolecularDynamics`.

    Attributes:
        stepper: the :class:`egnn_md.rollout.Stepper`; ``stepper.states[0]`` is the exact state in model units.

    Raises:
        InputError: not a propagator, ``velocity: forward``, atoms without momenta, unknown types.
    """

    def __init__(
        self,
        atoms: Atoms,
        model: nn.Module,
        trajectory: Any = None,
        logfile: IO[str] | str | None = None,
        loginterval: int = 1,
        *,
        skin: float | None = None,
        guards: Guards | bool = True,
        seed: int = 0,
        unit_length: float | None = None,
        stepper: Stepper | None = None,
        **kwargs: Any,
    ) -> None:
        config = config_of(model)
        self.units: EngineUnits = engine_units(config, unit_length)
        if stepper is None:
            state = state_from_atoms(atoms, config, self.units, name="the atoms")
            stepper = Stepper(model, state, skin=skin, guards=guards, seed=seed)
            given = atoms.has("momenta")
        elif len(stepper) != 1 or len(stepper.states[0]) != len(atoms):
            raise InputError(
                f"the stepper moves {[len(state) for state in stepper.states]} particles, the atoms are {len(atoms)}; "
                "PropagatorDynamics needs one system of the same size"
            )
        else:
            given = False
        self.stepper = stepper
        if atoms.calc is None:
            atoms.calc = NoPotential()
        super().__init__(
            atoms,
            config.stride * self.units.time * fs,
            trajectory=trajectory,
            logfile=logfile,
            loginterval=loginterval,
            **kwargs,
        )
        self._mirror = self._now()
        if not given:
            atoms.arrays.pop("velocities", None)  # it would be out of date after the first stride
            self._show(stepper.states[0])

    def todict(self) -> dict[str, Any]:
        """What a trajectory file tells about the dynamics."""
        config = self.stepper.config
        return {
            "type": "molecular-dynamics",
            "md-type": type(self).__name__,
            "timestep": self.dt,
            "system": config.system,
            "stride": config.stride,
            "units": dict(config.units),
        }

    def get_time(self) -> float:
        """Time since this dynamics was made, in ASE's unit."""
        return float(self.nsteps * self.dt)

    def irun(self, steps: int = 50) -> Any:
        """Advance by ``steps`` strides, yielding after each; observers are called at the start and after each.

        Raises:
            RolloutError: a guard stopped the rollout; the atoms hold the last good state.
        """
        # not the parent's loop, which asks for forces
        self.max_steps = self.nsteps + steps
        if self.nsteps == 0:
            self.call_observers()
        yield self.nsteps == self.max_steps
        while self.nsteps < self.max_steps:
            self.step()
            self.nsteps += 1
            self.call_observers()
            yield self.nsteps == self.max_steps

    def step(self) -> None:
        """One stride. Raises RolloutError; the atoms then keep the last good state."""
        self._take_over()
        try:
            self.stepper.step()
        except RolloutError as error:
            raise RolloutError(
                error.failure, f"{error.failure}. The atoms hold the state of step {error.failure.last_good_step}"
            ) from error
        self._show(self.stepper.states[0])

    def _now(self) -> dict[str, np.ndarray]:
        atoms = self.atoms
        return {
            "positions": atoms.get_positions(),
            "momenta": atoms.get_momenta(),
            "cell": atoms.cell.array.copy(),
            "pbc": np.array(atoms.pbc),
        }

    def _show(self, state: State) -> None:
        """Put the state on the atoms, and take over what their constraints made of it."""
        atoms, units = self.atoms, self.units
        positions = state.positions * units.length
        momenta = state.velocities * (units.velocity / fs) * atoms.get_masses()[:, None]
        atoms.set_positions(positions)
        atoms.set_momenta(momenta)
        self._mirror = {**self._now(), "positions": positions, "momenta": momenta}
        self._take_over()

    def _take_over(self) -> None:
        """Adopt what differs from the last stride's result: the user's changes, and those of constraints."""
        now, mirror, units = self._now(), self._mirror, self.units
        state = self.stepper.states[0]
        changes: dict[str, Any] = {}
        moved = (now["positions"] != mirror["positions"]).any(axis=1)
        if moved.any():
            changes["positions"] = np.where(moved[:, None], now["positions"] / units.length, state.positions)
        pushed = (now["momenta"] != mirror["momenta"]).any(axis=1)
        if pushed.any():
            velocities = now["momenta"] / self.atoms.get_masses()[:, None] / (units.velocity / fs)
            changes["velocities"] = np.where(pushed[:, None], velocities, state.velocities)
        if (now["cell"] != mirror["cell"]).any() or (now["pbc"] != mirror["pbc"]).any():
            flags = [bool(flag) for flag in now["pbc"]]
            changes["pbc"] = (flags[0], flags[1], flags[2])
            changes["cell"] = now["cell"] / units.length if any(flags) else None
        if changes:
            self.stepper.adopt(0, **changes)
            self._mirror = now


class ASERollout:
    """The engine ``ase`` of ``egnn-md rollout``; see :class:`egnn_md.rollout.engine.RolloutEngine`."""

    def __init__(self, stepper: Stepper, units: EngineUnits) -> None:
        self.atoms = to_atoms(stepper.states[0], units)
        length = None if units.physical else units.length
        self.dynamics = PropagatorDynamics(self.atoms, stepper.model, stepper=stepper, unit_length=length)

    def advance(self) -> None:
        """One stride. Raises RolloutError."""
        self.dynamics.run(1)

    def describe(self) -> dict[str, Any]:
        """JSON values for the record."""
        import ase

        return {"engine": "ASE", "version": ase.__version__, "integrator": "PropagatorDynamics"}


def rollout_engine(stepper: Stepper, units: EngineUnits) -> ASERollout:
    """Entry point ``ase`` of ``egnn_md.rollout_engines``."""
    return ASERollout(stepper, units)
