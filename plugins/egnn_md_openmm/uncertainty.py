"""A committee's spread in OpenMM: for a State or Context at any time, and as a reporter of a Simulation."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import torch

from egnn_md.errors import InputError, SimulationError
from egnn_md.models.committee import Spread
from egnn_md.simulation.files import writing
from egnn_md.simulation.spread import SpreadEvaluator
from egnn_md.units import length_in_angstrom
from egnn_md_openmm.topology import atomic_numbers, choose_atoms, molecule_tree

if TYPE_CHECKING:
    import openmm
    from openmm import app

ANGSTROM_PER_NM = length_in_angstrom("nanometer")
COLUMNS = ("step", "time_ps", "energy_std_eV", "max_force_std_eV_A", "atom", "element")


class CommitteeSpread:
    """``spread(state_or_context)`` for the atoms that a committee acts on, whatever force computes their dynamics.

    It is separate from the force: a ``TorchForce`` gives an energy and nothing else, and this way the dynamics does not
    notice. A call costs one evaluation of the committee.

    Args:
        topology: of the system; its box decides whether the model is periodic.
        model: a committee: an object, or the name or path of its model file.
        atoms: indices of the atoms that it acts on, as given to ``add_potential``; None means all.
        periodic: None follows the topology.
        device: ``cpu``, ``cuda``...
        dtype: ``float32`` or ``float64``.
        molecule: the atoms are one molecule that the model sees whole and without images although there is a box, as
            :func:`egnn_md_openmm.create_mixed_system` shows it a single molecule. Goes with ``periodic`` None or False.

    Raises:
        InputError: a model that is no committee, impossible atoms, ``molecule`` for atoms that the topology's bonds do
            not connect.
        UnknownElementError: an element that the members do not know.
        ModelFileError: the model cannot be read.
    """

    def __init__(
        self,
        topology: app.Topology,
        model: Any,
        *,
        atoms: Iterable[int] | None = None,
        periodic: bool | None = None,
        device: str = "cpu",
        dtype: str = "float32",
        molecule: bool = False,
    ) -> None:
        from egnn_md.checkpoint import load_model
        from egnn_md_openmm.whole import Whole

        everyone = atomic_numbers(topology)
        self.atoms = choose_atoms(topology, atoms)
        self.symbols = [atom.element.symbol if atom.element is not None else "?" for atom in topology.atoms()]
        boxed = topology.getPeriodicBoxVectors() is not None
        if molecule and periodic:
            raise InputError("molecule=True means a molecule without images; leave periodic=True out")
        self._whole = Whole(molecule_tree(topology, self.atoms)) if molecule and boxed else None
        self.periodic = boxed and not molecule if periodic is None else periodic
        numbers = everyone if self.atoms is None else [everyone[index] for index in self.atoms]
        committee = load_model(model) if isinstance(model, str | Path) else model
        pbc = np.full(3, self.periodic)
        self._evaluate = SpreadEvaluator(committee, numbers, pbc, device=device, dtype=dtype)

    def __call__(self, source: openmm.State | openmm.Context) -> Spread:
        """The spread in eV and eV/Å; rows are the atoms that the committee acts on.

        Raises:
            InputError: a state without positions.
        """
        import openmm
        from openmm import unit

        state = source.getState(positions=True) if isinstance(source, openmm.Context) else source
        try:
            positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
        except openmm.OpenMMException as error:
            raise InputError("the state holds no positions; make it with getState(positions=True)") from error
        x = np.array(positions) * ANGSTROM_PER_NM
        x = x if self.atoms is None else x[self.atoms]
        box = None
        if self.periodic or self._whole is not None:
            box = np.array(state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)) * ANGSTROM_PER_NM
        if self._whole is not None:
            x, box = self._whole(torch.from_numpy(x), torch.from_numpy(box)).numpy(), None
        return self._evaluate(x, box)

    def worst(self, spread: Spread) -> tuple[int, str, float]:
        """Particle, element and value (eV/Å) of the largest force spread."""
        place, value = spread.worst()
        particle = place if self.atoms is None else self.atoms[place]
        return particle, self.symbols[particle], value


class UncertaintyReporter:
    """Writes a committee's spread as CSV every so many steps, and can end the simulation.

    ``simulation.reporters.append(UncertaintyReporter("spread.csv", 20, CommitteeSpread(topology, model)))``

    Args:
        file: path, or a file that is open for writing.
        reportInterval: steps.
        spread: the evaluator.
        max_uncertainty: eV/Å of the force spread of an atom; above it ``step`` raises. None never does.
        append: go on with a file that is there.

    Raises:
        InputError: an interval that is not positive.
        OutputError: the file cannot be written.
        SimulationError: in ``report``, above ``max_uncertainty``; the state is that of the report.
    """

    def __init__(
        self,
        file: str | Path | IO[str],
        reportInterval: int,
        spread: CommitteeSpread,
        *,
        max_uncertainty: float | None = None,
        append: bool = False,
    ) -> None:
        if reportInterval < 1:
            raise InputError(f"reportInterval must be at least 1 step, not {reportInterval}")
        self.interval = int(reportInterval)
        self.spread = spread
        self.limit = max_uncertainty
        self._owned = isinstance(file, str | Path)
        if isinstance(file, str | Path):
            with writing(Path(file)):
                begun = append and Path(file).exists() and Path(file).stat().st_size > 0
                self._file: IO[str] = open(file, "a" if append else "w")  # noqa: SIM115 - closed by close()
        else:
            begun, self._file = append, file
        if not begun:
            self._file.write(",".join(COLUMNS) + "\n")
            self._file.flush()

    def describeNextReport(self, simulation: app.Simulation) -> dict[str, Any]:  # noqa: N802
        """What OpenMM is to hand over, and when."""
        steps = self.interval - simulation.currentStep % self.interval
        return {"steps": steps, "periodic": None, "include": ["positions"]}

    def report(self, simulation: app.Simulation, state: openmm.State) -> None:
        """Write a row. Raises SimulationError above ``max_uncertainty``."""
        from openmm import unit

        found = self.spread(state)
        particle, symbol, value = self.spread.worst(found)
        step, time = simulation.currentStep, state.getTime().value_in_unit(unit.picosecond)
        deviation = float(found.energy_std[0])
        self._file.write(f"{step},{time:.6f},{deviation:.9f},{value:.9f},{particle},{symbol}\n")
        self._file.flush()
        if self.limit is not None and not value <= self.limit:
            raise SimulationError(
                f"the members of the committee disagree by {value:.3g} eV/Å about the force on atom {particle} "
                f"({symbol}) at step {step} (max_uncertainty {self.limit:g}); label this structure and train on it"
            )

    def close(self) -> None:
        """Close a file that was opened here."""
        if self._owned:
            self._file.close()
