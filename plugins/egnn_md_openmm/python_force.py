"""The potential as a callback of ``openmm.PythonForce``: no plugin needed, picklable, any device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor

from egnn_md.errors import InputError, SimulationError
from egnn_md.export.module import far_origin, whole_cells
from egnn_md.export.torchscript import DTYPES, resolve_dtype
from egnn_md.graph import ParticleGraph
from egnn_md.models import Potential, evaluate
from egnn_md.neighbors import VerletList
from egnn_md.units import KJ_PER_MOL_PER_EV, length_in_angstrom
from egnn_md_openmm.failures import remember
from egnn_md_openmm.payload import model_from_bytes, model_to_bytes

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
        skin: of the Verlet list, Å.
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
        skin: float = 0.5,
    ) -> None:
        self.dtype = resolve_dtype(dtype)
        self.device = _usable(device)
        self.model = model.to(self.device)
        self.numbers = [int(z) for z in numbers]
        self.atoms = None if atoms is None else [int(i) for i in atoms]
        self.periodic = bool(periodic)
        self.neighbors = VerletList(model.cutoff, skin)
        self.calls = 0
        self.last_error: Exception | None = None
        self._stored: dict[str, Any] | None = None
        self._species = torch.tensor(self.numbers, device=self.device)
        self._pbc = torch.full((3,), self.periodic, device=self.device)
        self._batch = torch.zeros_like(self._species)

    def __reduce__(self) -> tuple[Callable[..., PotentialCallback], tuple[Any, ...]]:
        if self._stored is None:
            self._stored = model_to_bytes(self.model)
        options = {
            "atoms": self.atoms,
            "periodic": self.periodic,
            "device": str(self.device),
            "dtype": str(self.dtype).removeprefix("torch."),
            "skin": self.neighbors.skin,
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
            if self.periodic:
                box = state.getPeriodicBoxVectors(asNumpy=True).value_in_unit(unit.nanometer)
            return self.compute(np.asarray(positions), box)
        except Exception as error:
            # OpenMM passes on the text alone; readable_errors() finds the rest here
            self.last_error = error
            remember(error)
            raise

    def compute(self, positions: np.ndarray, box: np.ndarray | None) -> tuple[float, np.ndarray]:
        """Energy (kJ/mol) and forces (kJ/mol/nm) from positions (particles, 3) and box (3, 3), nm."""
        chosen = positions if self.atoms is None else positions[self.atoms]
        if len(chosen) != len(self.numbers):
            raise InputError(f"the potential was made for {len(self.numbers)} atoms, not {len(chosen)}")
        x = torch.tensor(chosen, dtype=torch.float64, device=self.device) * ANGSTROM_PER_NM
        self._refuse_broken(x, "position", "Å")
        cell = torch.zeros(3, 3, dtype=torch.float64, device=self.device)
        if box is not None:
            cell = torch.tensor(np.asarray(box), dtype=torch.float64, device=self.device) * ANGSTROM_PER_NM
        result = evaluate(self.model, self._graph(x, cell))
        energy, forces = float(result["energy"]), result["forces"].double()
        self._refuse_broken(forces, "force", "eV/Å")
        if not np.isfinite(energy):
            raise SimulationError(f"the potential energy is {energy} eV although every force is finite")
        scattered = np.zeros(positions.shape)
        found = forces.cpu().numpy() * (KJ_PER_MOL_PER_EV * ANGSTROM_PER_NM)
        scattered[slice(None) if self.atoms is None else self.atoms] = found
        return energy * KJ_PER_MOL_PER_EV, scattered

    def _graph(self, x: Tensor, cell: Tensor) -> ParticleGraph:
        """The list is kept on continuous positions; the model gets them near the origin (float32)."""
        edge_index, steps = self.neighbors.update(x, cell, self._pbc)
        if self.periodic:
            home = whole_cells(x, cell)
            x = x - home @ cell
            steps = steps + home[edge_index[0]] - home[edge_index[1]]
        else:
            x = x - far_origin(x)
        return ParticleGraph(
            positions=x.to(self.dtype),
            species=self._species,
            edge_index=edge_index,
            cell_shifts=steps.to(self.dtype),
            cell=cell.to(self.dtype)[None],
            pbc=self._pbc[None],
            batch=self._batch,
        )

    def _refuse_broken(self, values: Tensor, what: str, unit: str) -> None:
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


def _usable(device: str | torch.device) -> torch.device:
    """The device, or InputError where this machine has none of that kind."""
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"unknown device {device!r}: {error}") from error
    if found.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device {str(device)!r} was asked for, but this machine has no usable CUDA device")
    return found


def _restore(stored: dict[str, Any], numbers: list[int], options: dict[str, Any]) -> PotentialCallback:
    model = model_from_bytes(stored, DTYPES[options["dtype"]])
    callback = PotentialCallback(model, numbers, **options)
    callback._stored = stored
    return callback
