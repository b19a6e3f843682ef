"""``FastEGNNCalculator``: any potential of egnn_md as an ASE calculator."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from egnn_md.devices import find_device, find_dtype
from egnn_md.errors import InputError
from egnn_md.graph import COINCIDENT, ParticleGraph, check_structure
from egnn_md.kernels import accelerate
from egnn_md.models.base import Potential
from egnn_md.models.charges import check_charge_of
from egnn_md.models.committee import CommitteePotential, Spread, evaluate_spread, require_committee
from egnn_md.models.cuda_graphs import CudaGraphEvaluator
from egnn_md.models.evaluate import EvaluatesItself, check_elements, evaluate
from egnn_md.neighbors import VerletList, VerletStatistics, neighbor_list
from egnn_md.neighbors.frame import Frame
from egnn_md.neighbors.verlet import check_skin
from egnn_md_ase.inputs import own_potential, plain, refuse_nan

DRIVES = ("mean", "first")
SPREADS = ("energy_std", "energy_std_per_atom", "force_std")
SPREAD_INTERVAL = 20  # evaluations
_FURTHEST = 1e8  # Å; so far from the origin even float64 knows positions to 1e-8 Å only


class FastEGNNCalculator(Calculator):
    """Energies, forces and stress of a potential for ``ase.md``, optimisers, cell filters and phonons.

    Units are ASE's: eV, Å, eV/Å, eV/Å³ (stress positive under tension, in Voigt order). ``free_energy``
    equals ``energy``; ``energies`` are the model's shares of the atoms. Stress exists in cells that are
    periodic in all three directions.

    Energy and forces come from one pass, and what was asked for once is computed from then on together with
    the rest, so that a barostat or a cell filter pays for one pass a step, not for two.

    Of a committee ``results`` also hold ``energy_std`` (eV), ``energy_std_per_atom`` (eV) and ``force_std`` (N,), eV/Å:
    how far its members are apart (:mod:`egnn_md.models.committee`). Where they are not there,
    ``calc.get_property("force_std", atoms)`` computes them for the structure at hand and leaves its forces as they are.

    Args:
        model: name of an installed model, path of a model file, or a potential (copied: later changes of
            yours, such as more training, do not reach the calculator). A
            :class:`egnn_md.distributed.ParallelPotential` is used as it is, with its own devices, dtype, skin,
            neighbour lists and kernels.
        device: ``cpu``, ``cuda``, ``cuda:1``...
        dtype: ``float32`` (fast) or ``float64`` (phonons, tight relaxation). Positions are wrapped in float64
            before they are rounded, so atoms that diffused far keep their precision.
        skin: Å; the neighbour list is made for the cutoff plus this, and again when motion has used it up. ``auto``
            finds the cheapest while the atoms move (``neighbor_statistics.skin``). Results do not depend on it.
        backend, kernels: see :func:`egnn_md.neighbors.neighbor_list` and :func:`egnn_md.kernels.accelerate`.
        cuda_graphs: replay energy and forces from a captured CUDA graph. Where none can be captured a CudaGraphWarning
            says why, once, and evaluation goes on without. Off unless asked for: it has not run on a GPU yet.
        drive: of a committee, whose energy and forces are given: ``mean``, or ``first``: one member's, at its cost.
        uncertainty_interval: of a committee, evaluations from one with the spread to the next; 0 for only when asked.
            None: with the mean's forces always, because they come from the same passes; with one member's every 20th.

    Raises:
        InputError: a device that is not there, an unknown dtype or backend, a negative skin, a network that is not a
            potential; on evaluation: positions that are not finite, coincident atoms, a flat cell, an unknown charge.
        UnknownElementError: on evaluation, an element that the model was not trained on.
        ModelFileError: the model file is missing or broken.
        SimulationError: the model's answer is not a number; the atom is named.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012
    # magnetic moments and charges of the atoms do not enter
    ignored_changes = {"initial_magmoms", "initial_charges"}  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | Potential,
        *,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float32",
        skin: float | str = "auto",
        backend: str = "vesin",
        kernels: str = "auto",
        cuda_graphs: bool = False,
        drive: str = "mean",
        uncertainty_interval: int | None = None,
    ) -> None:
        super().__init__()
        self.dtype = find_dtype(dtype)
        self.device = find_device(device)
        check_skin(skin)
        # an unknown or missing backend speaks up now, not at the first step
        neighbor_list(np.zeros((1, 3)), np.zeros((3, 3)), np.zeros(3, dtype=bool), 1.0, backend=backend)
        self.model: Any
        if isinstance(model, EvaluatesItself) and isinstance(model, Potential):
            self.model = model  # it holds processes, of which there is no copy, and its options are its own
            self.dtype = model.dtype
        else:
            self.model = accelerate(own_potential(model, self.device, self.dtype), kernels)
        self._committee = self._take_committee(drive, uncertainty_interval)
        self._graphs = CudaGraphEvaluator(self.model) if cuda_graphs else None
        name = str(model) if isinstance(model, (str, Path)) else type(model).__name__
        self.parameters.update(
            model=name, device=str(self.device), dtype=str(self.dtype).removeprefix("torch."),
            skin=skin if skin == "auto" else float(skin), backend=backend, kernels=kernels,
            cuda_graphs=bool(cuda_graphs), drive=drive, uncertainty_interval=uncertainty_interval,
        )  # fmt: skip
        # members may differ in cutoff, and the spread asks all of them with one list
        reach = self.model.cutoff if self._committee is None else self._committee.cutoff
        self._neighbors = VerletList(reach, skin, backend, dtype=self.dtype)
        self._frame = Frame()
        self._numbers = np.zeros(0, dtype=int)
        self._species = self._batch = torch.zeros(0, dtype=torch.long, device=self.device)
        self._wanted: set[str] = set()
        self._evaluations = 0

    def _take_committee(self, drive: str, interval: int | None) -> CommitteePotential | None:
        """The committee if the model is one; from then on ``model`` is what drives."""
        if drive not in DRIVES:
            raise InputError(f"drive must be one of {', '.join(DRIVES)}, not {drive!r}")
        if interval is not None and interval < 0:
            raise InputError(f"uncertainty_interval must not be negative (0: only when asked), not {interval}")
        self._mean = drive == "mean"
        self._interval = interval if interval is not None else 1 if self._mean else SPREAD_INTERVAL
        if not isinstance(self.model, CommitteePotential):
            if not self._mean or interval:
                require_committee(self.model)
            return None
        committee = self.model
        self.implemented_properties = [*type(self).implemented_properties, *SPREADS]
        if not self._mean:
            self.model = committee.members[0]
            self.model.card = getattr(committee, "card", None)
        return committee

    @property
    def neighbor_statistics(self) -> VerletStatistics:
        """How often the neighbour list was used and how often it had to be made, since this object exists."""
        if isinstance(self.model, EvaluatesItself):
            return self.model.neighbor_statistics
        return self._neighbors.statistics

    def forget(self) -> None:
        """Drop results and neighbour list, so that the next call depends on the atoms alone.

        The order of a list's pairs decides how sums are rounded; a run that is to be repeated bit by bit from a
        checkpoint starts from a list made there.
        """
        self.reset()
        self._neighbors.reset()
        if isinstance(self.model, EvaluatesItself):
            self.model.forget()

    @property
    def card(self) -> Any:
        """The model's card (units, teacher, limits, measured errors); None for a model without one."""
        return getattr(self.model, "card", None)

    def _get_name(self) -> str:
        return "fastegnn"

    def set(self, **kwargs: Any) -> dict[str, Any]:
        """Options are fixed at construction. Raises InputError for any change."""
        if kwargs:
            raise InputError(
                f"options of a FastEGNNCalculator are fixed when it is made (got {', '.join(kwargs)}); "
                "make another calculator"
            )
        return {}

    def __repr__(self) -> str:
        options = dict(self.parameters)
        model = options.pop("model", "?")
        return f"FastEGNNCalculator({model!r}, {', '.join(f'{k}={v!r}' for k, v in options.items())})"

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] | None = None,
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Fill ``results``; ASE calls this when what it needs is not there.

        Args:
            atoms: structure; None means the last one.
            properties: names among ``implemented_properties``; None means energy.
            system_changes: what changed since the last call, as ASE counts it.

        Raises:
            See the class; also PropertyNotImplementedError for stress without three periodic directions.
        """
        atoms = self.atoms if atoms is None else atoms
        if atoms is None:
            raise InputError("there are no atoms to calculate; pass them or attach the calculator to them")
        properties = ["energy"] if properties is None else list(properties)
        unknown = set(properties) - set(self.implemented_properties)
        if unknown:
            raise PropertyNotImplementedError(f"{', '.join(sorted(unknown))} not implemented by {self!r}")
        full = bool(atoms.pbc.all())
        if "stress" in properties and not full:
            raise PropertyNotImplementedError(
                f"stress needs a cell that is periodic in three directions, not pbc = {atoms.pbc.tolist()}"
            )
        asked = bool(set(properties) & set(SPREADS))
        if asked and not system_changes and "energy" in self.results and set(properties) <= {*self.results, *SPREADS}:
            self.results.update(self._spread(atoms))  # energy and forces stay as they are, to the last bit
            return
        # Results of another structure must not survive, whatever goes wrong below.
        self.results = {}
        super().calculate(atoms, properties, list(system_changes))
        self._wanted |= set(properties) & {"forces", "stress"}
        stress = full and "stress" in self._wanted
        check_charge_of(atoms, self.model)
        if len(atoms) == 0:
            self.results = self._empty(full, spread=self._committee is not None)
            return
        due = self._interval > 0 and self._evaluations % self._interval == 0
        self._evaluations += 1
        if self._committee is not None and (asked or due):
            self.results = self._evaluate_members(atoms, stress)
        else:
            self.results = self._evaluate(atoms, stress)

    def _evaluate(self, atoms: Atoms, stress: bool) -> dict[str, Any]:
        forces = bool(self._wanted)  # a Monte Carlo run that never asks for forces pays for none
        if isinstance(self.model, EvaluatesItself):
            self._set_species(atoms.numbers)
            answer = self.model.evaluate_structure(
                torch.from_numpy(np.array(atoms.positions, dtype=np.float64)), self._species,
                torch.from_numpy(np.array(atoms.cell.array)), torch.from_numpy(np.array(atoms.pbc)),
                forces=forces, stress=stress,
            )  # fmt: skip
        elif self._graphs is not None and forces and not stress:
            answer = self._graphs(self._graph(atoms))
        else:
            answer = evaluate(self.model, self._graph(atoms), forces=forces, stress=stress)
        energy = float(answer["energy"][0])
        results: dict[str, Any] = {
            "energy": energy,
            "free_energy": energy,
            "energies": plain(answer["energies"]),
        }
        refuse_nan(results["energies"], "energy", "eV", atoms)
        if forces:
            results["forces"] = plain(answer["forces"])
            refuse_nan(results["forces"], "force", "eV/Å", atoms)
        if stress:
            results["stress"] = full_3x3_to_voigt_6_stress(plain(answer["stress"])[0])
        return results

    def _evaluate_members(self, atoms: Atoms, stress: bool) -> dict[str, Any]:
        """Results with the spread. The mean's energy and forces come out of the members' own."""
        if not self._mean:
            return {**self._evaluate(atoms, stress), **self._spread(atoms)}
        spread = self._ask_members(atoms, stress)
        energy = float(spread.energy[0])
        results = {
            "energy": energy,
            "free_energy": energy,
            "energies": plain(spread.energies),
            "forces": plain(spread.forces),
            **self._deviations(spread),
        }
        refuse_nan(results["energies"], "energy", "eV", atoms)
        refuse_nan(results["forces"], "force", "eV/Å", atoms)
        if spread.stress is not None:
            results["stress"] = full_3x3_to_voigt_6_stress(plain(spread.stress)[0])
        return results

    def _spread(self, atoms: Atoms) -> dict[str, Any]:
        return self._deviations(self._ask_members(atoms, False))

    def _ask_members(self, atoms: Atoms, stress: bool) -> Spread:
        return evaluate_spread(require_committee(self._committee), self._graph(atoms), stress=stress)

    @staticmethod
    def _deviations(spread: Spread) -> dict[str, Any]:
        return {
            "energy_std": float(spread.energy_std[0]),
            "energy_std_per_atom": float(spread.energy_std_per_atom[0]),
            "force_std": plain(spread.force_std),
        }

    @staticmethod
    def _empty(full: bool, spread: bool = False) -> dict[str, Any]:
        results: dict[str, Any] = {"energy": 0.0, "free_energy": 0.0}
        results |= {"energies": np.zeros(0), "forces": np.zeros((0, 3))}
        if spread:
            results |= {"energy_std": 0.0, "energy_std_per_atom": 0.0, "force_std": np.zeros(0)}
        return results | ({"stress": np.zeros(6)} if full else {})

    def _graph(self, atoms: Atoms) -> ParticleGraph:
        """The structure and its pairs, checked, on the device; float64 until the very end."""
        # np.array copies: ASE moves its arrays in place. The list lives on the CPU, where every backend
        # knows every cell; it is made again every few dozen steps only.
        positions = torch.from_numpy(np.array(atoms.positions, dtype=np.float64))
        self._set_species(atoms.numbers)
        furthest = float(positions.abs().max())
        if not furthest <= _FURTHEST:
            check_structure(positions, torch.zeros(3, 3), torch.zeros(3, dtype=torch.bool))
            raise InputError(f"an atom is {furthest:.1e} Å from the origin; something went wrong before this")
        frame = self._frame
        frame.take(atoms.cell.array, atoms.pbc)
        home = frame.home(positions)
        try:
            edge_index, cell_shifts = self._neighbors.update(positions, frame.cell, frame.pbc, home)
            if self._neighbors.nearest() < COINCIDENT:
                places = positions if home is None else positions - home @ frame.cell
                pairs = places[edge_index[0]] - places[edge_index[1]] + cell_shifts.double() @ frame.cell
                check_structure(positions, frame.cell, frame.pbc, edge_index, pairs)
        except InputError:
            self._neighbors.reset()
            raise
        if home is not None:
            positions = positions - home @ frame.cell
        device, dtype = self.device, self.dtype
        return ParticleGraph(
            positions=(positions - positions.mean(dim=0)).to(device, dtype),
            species=self._species,
            edge_index=edge_index.to(device),
            cell_shifts=cell_shifts.to(device),
            cell=frame.cell[None].to(device, dtype),
            pbc=frame.pbc[None].to(device),
            batch=self._batch,
        )

    def _set_species(self, numbers: np.ndarray) -> None:
        """The atomic numbers on the device, checked; the same tensor as long as they stay the same."""
        if np.array_equal(numbers, self._numbers) and len(self._species) == len(numbers):
            return
        self._numbers = np.zeros(0, dtype=int)  # an unknown element is refused at every call
        species = torch.from_numpy(np.array(numbers, dtype=np.int64))
        check_elements(self.model, species)
        self._species = species.to(self.device)
        self._batch = torch.zeros_like(self._species)
        self._numbers = np.array(numbers)
