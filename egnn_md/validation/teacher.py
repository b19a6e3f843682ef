"""The reference method as a potential, so that the same engine, thermostat and guards run it as run the model."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np
import torch
from ase import Atoms
from torch import Tensor

from egnn_md.data.calculators import make_calculator, set_total_charge
from egnn_md.errors import EgnnMdError, LabellingError
from egnn_md.graph import ParticleGraph
from egnn_md.models.base import Potential
from egnn_md.models.evaluate import EvaluatesItself
from egnn_md.neighbors import VerletStatistics


class TeacherPotential(EvaluatesItself, Potential):
    """An ASE calculator behind the contract of a potential. Only engine ``ase`` can run it.

    Args:
        method: a name known to :func:`egnn_md.data.calculators.make_calculator`.
        options: of that calculator.
        charge: total charge of every structure, e.

    Raises:
        InputError: no such method, or one that knows no charge and is asked for one.
        MissingDependencyError: its package is not installed.
    """

    kind = "reference-method"

    def __init__(self, method: str, options: dict[str, Any] | None = None, charge: int = 0) -> None:
        super().__init__(1.0, [], long_range=True)  # the cutoff is the method's own affair: no list is made for it
        self.method, self.options = method.lower(), dict(options or {})
        self.calculator = make_calculator(method, **self.options)
        set_total_charge(self.calculator, method, charge or None)
        self.charge = charge
        self.evaluations = 0
        self.seconds = 0.0

    @property
    def digest(self) -> str:
        """Of the method's name, options and charge."""
        return hashlib.sha256(f"{self.method} {sorted(self.options.items())} {self.charge}".encode()).hexdigest()

    def results(self, atoms: Atoms, *, stress: bool = False) -> dict[str, Any]:
        """``energy`` (eV), ``forces`` (N, 3) eV/Å and, if asked for, ``stress`` (3, 3) eV/Å³.

        Raises:
            LabellingError: the method failed, or gave something that is no number.
        """
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell if atoms.pbc.any() else None, pbc=atoms.pbc)
        if self.charge:
            bare.info["charge"] = self.charge
        bare.calc = self.calculator
        begun = time.perf_counter()
        try:
            found: dict[str, Any] = {"energy": float(bare.get_potential_energy()), "forces": bare.get_forces()}
            if stress:
                found["stress"] = bare.get_stress(voigt=False)
        except EgnnMdError:
            raise
        except Exception as error:  # reference methods raise whatever they like
            raise LabellingError(f"{self.method} failed: {type(error).__name__}: {error}") from error
        self.seconds += time.perf_counter() - begun
        self.evaluations += 1
        if not np.isfinite(found["energy"]) or not np.isfinite(found["forces"]).all():
            raise LabellingError(f"{self.method} gave an energy or a force that is no number")
        return found

    def evaluate_structure(
        self,
        positions: Tensor,
        species: Tensor,
        cell: Tensor,
        pbc: Tensor,
        *,
        forces: bool = True,
        stress: bool = False,
    ) -> dict[str, Tensor]:
        """See the base class. ``energies`` are equal shares: the method has none of atoms."""
        atoms = Atoms(species.numpy(), positions.numpy(), cell=cell.numpy(), pbc=pbc.numpy())
        found = self.results(atoms, stress=stress)
        n = len(atoms)
        answer = {
            "energy": torch.tensor([found["energy"]], dtype=torch.float64),
            "energies": torch.full((n,), found["energy"] / n, dtype=torch.float64),
            "forces": torch.from_numpy(np.array(found["forces"], dtype=np.float64)),
        }
        if stress:
            answer["stress"] = torch.from_numpy(np.array(found["stress"], dtype=np.float64))[None]
        return answer

    def evaluate_graph(self, graph: ParticleGraph, *, forces: bool = True, stress: bool = False) -> dict[str, Tensor]:
        """The same of a batch of one structure."""
        if graph.num_graphs != 1:
            raise LabellingError(f"{self.method} takes one structure at a time, not {graph.num_graphs}")
        return self.evaluate_structure(
            graph.positions.double(), graph.species, graph.cell[0].double(), graph.pbc[0], forces=forces, stress=stress
        )

    @property
    def neighbor_statistics(self) -> VerletStatistics:
        """There is no list."""
        return VerletStatistics()

    def forget(self) -> None:
        """What was computed does not steer what comes."""
        self.calculator.reset()
