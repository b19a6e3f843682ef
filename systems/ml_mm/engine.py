"""``egnn-md md``'s loop around a mixed system: guards, checkpoints and files are the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from scipy.spatial.distance import pdist

from egnn_md.errors import InputError
from egnn_md.simulation.driver import DriveOptions, RunResult, drive
from egnn_md.simulation.engine import Engine
from egnn_md.simulation.models import open_model
from egnn_md.simulation.request import MDRequest
from egnn_md.simulation.rundir import RunDirectory
from egnn_md.simulation.structure import Structure
from egnn_md_openmm import create_mixed_system, force_field_system, select_atoms
from egnn_md_openmm.engine import OpenMMEngine, choose_platform, openmm_topology

from .solvate import CUTOFF, FORCE_FIELD, nonbonded

COMMAND = "python -m egnn_md_systems.ml_mm.run"


class MixedRequest(MDRequest):
    """A run of molecular dynamics in which a region is the model's and the rest a force field's."""

    noun: ClassVar[str] = "mixed run"

    region: tuple[str, ...] | None = Field(None, description="residue names; all but water and ions if left out")
    force_field: tuple[str, ...] = Field(FORCE_FIELD, description="OpenMM's files")
    cutoff: float = Field(CUTOFF, gt=0, description="Å, of the force field")

    def remedy(self) -> str:
        """How else to get what a resumed run cannot change."""
        return f"start a new run with {MixedRun(self.output).onward}"

    @field_validator("region", "force_field", mode="before")
    @classmethod
    def _split(cls, given: Any) -> Any:
        return tuple(name.strip() for name in given.split(",")) if isinstance(given, str) else given

    @model_validator(mode="after")
    def _of_both(self) -> Self:
        """Options of a run by a model alone that would have no effect here, or a wrong one."""
        if self.engine != "openmm":
            raise ValueError(f"--engine {self.engine} has no force field; a mixed run is OpenMM's")
        if self.constraints != "none":
            raise ValueError(
                f"--constraints {self.constraints} would fix bonds inside the ML region, which the model would work "
                "against; leave it out: the force field's water is rigid already"
            )
        for name in ("max_uncertainty", "uncertainty_interval"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{self.option(name)} does not go with a mixed run, which does not look at a committee's spread; "
                    "use egnn_md_openmm.UncertaintyReporter in a script of your own"
                )
        if self.drive != "mean":
            raise ValueError(f"--drive {self.drive} does not go with a mixed run; give one member as --model")
        return self


class MixedRun(RunDirectory):
    """A run directory whose run goes on with this system's command."""

    command = COMMAND

    @property
    def onward(self) -> str:
        """This command takes positions from a file and draws velocities."""
        return f"--structure and a PDB file of its last frame ({self.path / 'final.pdb'} if it finished)"

    def request(self) -> MixedRequest:
        """The request that is stored here, with this directory as its output."""
        return MixedRequest.parse({**self.read()["request"], "output": self.path})


class MixedEngine(OpenMMEngine):
    """OpenMM with a mixed system, whose water is rigid."""

    def __init__(self, structure: Structure, request: MDRequest, system: Any, callback: Any, region: int) -> None:
        self.own_constraints = system.getNumConstraints()
        self.region = region
        super().__init__(structure, request, system, callback)

    def describe(self) -> dict[str, Any]:
        """JSON values for the run record."""
        return {**super().describe(), "ml_atoms": self.region, "constraints": self.own_constraints}


def build(structure: Structure, request: MDRequest) -> tuple[Engine, dict[str, Any]]:
    """The engine of ``request`` (a :class:`MixedRequest`), and what the run's record says about the model.

    Raises:
        InputError: a structure without a box, and as :func:`egnn_md_openmm.create_mixed_system`.
    """
    assert isinstance(request, MixedRequest)
    if not structure.periodic:
        raise InputError("a mixed run needs a structure with a periodic box (CRYST1 in a PDB file)")
    choose_platform(request)
    potential, description = open_model(request)
    topology = openmm_topology(structure)
    region = select_atoms(topology, residues=request.region)
    _check_extent(structure, region)
    system = create_mixed_system(
        topology,
        force_field_system(topology, request.force_field, **nonbonded(request.cutoff)),
        region,
        potential,
        implementation=request.implementation,
        dtype=request.dtype,
        device=request.device,
    )
    # the driver decides about the momentum, as in every run
    for index in reversed(range(system.getNumForces())):
        if type(system.getForce(index)).__name__ == "CMMotionRemover":
            system.removeForce(index)
    callbacks = [getattr(force, "callback", None) for force in system.getForces()]
    callback = next((c for c in callbacks if c is not None), None)
    return MixedEngine(structure, request, system, callback, len(region)), description


def _check_extent(structure: Structure, region: list[int]) -> None:
    """The force field leaves out pairs at their nearest image, which in a molecule must be the one it is made of."""
    heights = abs(np.linalg.det(structure.cell)) / np.linalg.norm(np.cross(*_others(structure.cell)), axis=1)
    half = float(heights.min()) / 2.0
    molecules = structure.molecules.labels[region]
    for molecule in np.unique(molecules):
        furthest = float(pdist(structure.positions[region][molecules == molecule]).max(initial=0.0))
        if furthest > half:
            raise InputError(
                f"two atoms of a molecule of the ML region are {furthest:.1f} Å apart, more than half the box's "
                f"smallest height ({half:.1f} Å), and nearer to each other's images; take a larger box"
            )


def _others(cell: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rows of the cell that span the faces opposite to each of its vectors."""
    return cell[[1, 2, 0]], cell[[2, 0, 1]]


def run_mixed(
    request: MixedRequest, *, resume: bool = False, overwrite: bool = False, console: Any = None
) -> RunResult:
    """Run ``request``; see :func:`egnn_md.simulation.simulate` for what it raises."""
    options = DriveOptions(resume=resume, overwrite=overwrite, console=console)
    return drive(build, request, MixedRun(Path(request.output)), options)
