"""The potential as a callback of ``openmm.PythonForce``: no plugin needed, picklable, any device."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from egnn_md.devices import find_device, find_dtype
from egnn_md.errors import InputError, SimulationError
from egnn_md.export.module import far_origin, whole_cells
from egnn_md.graph import ParticleGraph
from egnn_md.kernels import accelerate
from egnn_md.models import Potential, evaluate
from egnn_md.models.evaluate import EvaluatesItself
from egnn_md.neighbors import VerletList
from egnn_md.units import KJ_PER_MOL_PER_EV, length_in_angstrom
from egnn_md_openmm.failures import remember, with_traceback
from egnn_md_openmm.payload import model_from_bytes, model_to_bytes
from egnn_md_openmm.whole import Whole

if TYPE_CHECKING:
    import openmm

ANGSTROM_PER_NM = length_in_angstrom("nanometer")


class PotentialCallback:
    """``callback(state) -> (energy in kJ/mol, forces (particles, 3) in kJ/mol/nm)``.

    Pickling carries the model's bytes, so a serialised system runs in a process that has only this package.

    Args:
        model: potential in ``dtype``, parameters frozen.
        numbers: atomic numbers of the particles that it acts on.
        atoms: their indices among all particles; None means all, in order.
        periodic: read the box of the state at every call.
        device: where the model computes.
        dtype: floating type of the model.
        skin: of the Verlet list, Å, or ``auto`` (``neighbors.statistics.skin`` tells what was found).
        kernels: ``auto``, ``fused`` or ``plain``; see :func:`egnn_md.kernels.accelerate`.
        molecule: of a molecule that lies in a periodic box and sees no images of itself: the tree of its bonds
            (:func:`egnn_md_openmm.whole.bond_tree`), along which it is made whole at every call.
    """

    def __init__(
        self,
        model: Potential,
        numbers: Sequence[int],
        *,
        atoms: Sequence[int] | None = None,
        periodic: bool = False,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | str = torch.float32,
        skin: float | str = "auto",
        kernels: str = "auto",
        molecule: Sequence[int] | None = None,
    ) -> None:
        self.dtype = find_dtype(dtype)
        self.device = find_device(device)
        self.kernels = kernels
        # one that evaluates itself computes where it wants to
        self.model: Any = model if isinstance(model, EvaluatesItself) else accelerate(model.to(self.device), kernels)
        self.numbers = [int(z) for z in numbers]
        self.atoms = None if atoms is None else [int(i) for i in atoms]
        self.periodic = bool(periodic)
        self.whole = None if molecule is None else Whole(molecule)
        self.neighbors = VerletList(model.cutoff, skin, dtype=self.dtype)
        self.calls = 0
        self.last_error: Exception | None = None
        self._stored: dict[str, Any] | None = None
        self._species = torch.tensor(self.numbers, device=self.device)
        self._pbc = torch.full((3,), self.periodic, device=self.device)
        self._batch = torch.zeros_like(self._species)
        self._cell = torch.zeros(3, 3, dtype=torch.float64, device=self.device)
        self._box = np.zeros((3, 3))  # Å, what ``_cell`` was made of

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if isinstance(self.model, EvaluatesItself):
            raise InputError(
                f"a PythonForce with a {type(self.model).__name__} cannot be serialised: its ranks are processes of "
                "this machine; serialise the system with the model itself, and add the parallel one after reading"
            )
        if self._stored is None:
            self._stored = model_to_bytes(self.model)
        options = {
            "atoms": self.atoms,
            "periodic": self.periodic,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "skin": "auto" if self.neighbors.tuned else self.neighbors.skin,
            "kernels": self.kernels,
            "molecule": None if self.whole is None else self.whole.jumps[0].tolist(),
        }
        return _restore, (self._stored, self.numbers, options)

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Energy and forces of the state that OpenMM hands over.

        Raises:
            SimulationError: a position, the energy or a force is not finite; names atom and element.
        """
        try:
            from openmm import unit

            self.calls += 1
            positions = state.getPositions(asNumpy=True).value_in_unit(unit.nanometer)
            box = None
            if self.periodic or self.whole is not None:
                box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
            return self.compute(np.asarray(positions), box)
        except Exception as error:
            # OpenMM passes on the text alone; readable_errors() finds the error itself here
            self.last_error = error
            remember(error)
            raise with_traceback(error) from error

    def compute(self, positions: np.ndarray, box: np.ndarray | None) -> tuple[float, np.ndarray]:
        """Energy (kJ/mol) and forces (kJ/mol/nm) from positions (particles, 3) and box (3, 3), nm."""
        chosen = positions if self.atoms is None else positions[self.atoms]
        if len(chosen) != len(self.numbers):
            raise InputError(f"the potential was made for {len(self.numbers)} atoms, not {len(chosen)}")
        # a multiplication copies: OpenMM's array is its own
        x = torch.from_numpy(chosen * ANGSTROM_PER_NM).to(self.device, torch.float64)
        self._refuse_broken(x, "position", "Å")
        if self.whole is not None and box is not None:
            lattice = torch.from_numpy(np.asarray(box) * ANGSTROM_PER_NM)
            x, box = self.whole(x.cpu(), lattice).to(self.device), None
        cell = self._take_box(box)
        if isinstance(self.model, EvaluatesItself):
            result = self.model.evaluate_structure(x, self._species, cell, self._pbc)
        else:
            result = evaluate(self.model, self._graph(x, cell))
        energy, forces = float(result["energy"]), result["forces"].double()
        self._refuse_broken(forces, "force", "eV/Å")
        if not np.isfinite(energy):
            raise SimulationError(f"the potential energy is {energy} eV although every force is finite")
        found = forces.cpu().numpy() * (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM)
        if self.atoms is None:
            return energy * KJ_PER_MOL_PER_EV, found
        scattered = np.zeros(positions.shape)
        scattered[self.atoms] = found
        return energy * KJ_PER_MOL_PER_EV, scattered

    def forget(self) -> None:
        """Drop neighbour lists, so that the next answer depends on what is asked alone."""
        self.neighbors.reset()
        if isinstance(self.model, EvaluatesItself):
            self.model.forget()

    def _take_box(self, box: np.ndarray | None) -> Tensor:
        """(3, 3) float64, Å, on the device; the same tensor until the box (nm) changes."""
        given = np.zeros((3, 3)) if box is None else np.asarray(box) * ANGSTROM_PER_NM
        if not np.array_equal(given, self._box):
            self._box, self._cell = given, torch.from_numpy(given).to(self.device, torch.float64)
        return self._cell

    def _graph(self, x: Tensor, cell: Tensor) -> ParticleGraph:
        """The list is kept on continuous positions; the model gets them near the origin (float32)."""
        if self.periodic:
            home = whole_cells(x, cell)
            edge_index, steps = self.neighbors.update(x, cell, self._pbc, home)
            x = x - home @ cell
        else:
            edge_index, steps = self.neighbors.update(x, cell, self._pbc)
            x = x - far_origin(x)
        return ParticleGraph(
            positions=x.to(self.dtype),
            species=self._species,
            edge_index=edge_index,
            cell_shifts=steps,
            cell=cell.to(self.dtype)[None],
            pbc=self._pbc[None],
            batch=self._batch,
        )

    def _refuse_broken(self, values: Tensor, what: str, unit: str) -> None:
        # a sum that is finite has finite terms; a sum that is not may have run over
        if math.isfinite(float(values.sum())):
            return
        finite = torch.isfinite(values).all(dim=1)
        if bool(finite.all()):
            return
        place = int((~finite).nonzero()[0])
        atom = place if self.atoms is None else self.atoms[place]
        symbol = chemical_symbols[self.numbers[place]]
        raise SimulationError(
            f"the {what} of atom {atom} ({symbol}) is {values[place].tolist()} {unit} in evaluation "
            f"{self.calls} of the potential; atoms may have come too close: minimise first, shorten the "
            "timestep, or go back to the last good frame"
        )


class RefusedCallback:
    """In the place of a callback that could not be read: raises the reason whenever it is asked.

    An exception while OpenMM reads a pickle ends the process, so the reason has to wait.
    """

    def __init__(self, reason: Exception) -> None:
        self.reason = reason

    def __call__(self, state: openmm.State) -> tuple[float, np.ndarray]:
        """Raise the reason."""
        remember(self.reason)
        raise with_traceback(self.reason) from self.reason


def _restore(
    stored: dict[str, Any], numbers: list[int], options: dict[str, Any]
) -> PotentialCallback | RefusedCallback:
    try:
        return _read(stored, numbers, options)
    except Exception as error:  # whatever it is, load_system raises it, and else the first evaluation
        remember(error)
        return RefusedCallback(error)


def _read(stored: dict[str, Any], numbers: list[int], options: dict[str, Any]) -> PotentialCallback:
    model = model_from_bytes(stored, find_dtype(options["dtype"]))
    callback = PotentialCallback(model, numbers, **options)
    callback._stored = stored
    return callback
