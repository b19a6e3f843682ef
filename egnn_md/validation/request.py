"""What a validation is asked to do, and how much of it; errors name the command's option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from egnn_md.errors import ConfigError
from egnn_md.simulation.options import OptionsModel

PARTS = ("errors", "nve", "structure", "diffusion", "density", "stability", "size", "holes")
#: How the reference method's time is divided among the parts that need it.
TEACHER_SHARES = {"errors": 0.3, "structure": 0.4, "size": 0.2, "holes": 0.1}
MIN_STEPS = 20  # of any run: fewer say nothing
LABEL_SUFFIXES = (".xyz", ".extxyz", ".xz", ".gz", ".bz2", ".traj", ".db", ".json")  # of files, not of methods' names
FS_PER_PS = 1000.0


@dataclass(frozen=True)
class Budget:
    """How much is run.

    Attributes:
        frames: labelled at each temperature, out of the model's own run there.
        equilibration, length: ps of NVT before, and of the runs that averages are taken from.
        nve: ps over which the energy's drift and scatter are compared at two time steps.
        density: ps of NPT; the first half is left out.
        stability_steps, seeds: of the long runs that are to survive.
        teacher_minutes: of the reference method, over all parts.
        copies: of the cell in the larger one, along its three vectors.
    """

    frames: int
    equilibration: float
    length: float
    nve: float
    density: float
    stability_steps: int
    seeds: int
    teacher_minutes: float
    copies: tuple[int, int, int]


BUDGETS = {
    "short": Budget(4, 0.25, 0.5, 0.1, 1.0, 1000, 2, 5.0, (2, 1, 1)),
    "standard": Budget(20, 2.0, 20.0, 2.0, 50.0, 20_000, 4, 60.0, (2, 2, 2)),
    "long": Budget(50, 5.0, 100.0, 5.0, 200.0, 100_000, 4, 480.0, (2, 2, 2)),
}


class ValidateRequest(OptionsModel):
    """One validation. Field ``teacher_minutes`` is the option ``--teacher-minutes``."""

    noun = "validation"
    positional = "model"
    changeable = frozenset({"parts", "output", "processes", "threads", "title", "teacher_minutes"})

    model: str = Field("water", description="registered name, or path of a model file")
    against: str | None = Field(None, description="reference method, or a file of labels")
    against_options: dict[str, bool | int | float | str] = Field(default_factory=dict)
    structure: str | None = Field(None, description="structure that the runs begin with")
    teacher_structure: str | None = Field(None, description="smaller one where the reference method runs")
    labels: tuple[str, ...] = Field((), description="files of labels that no training has seen")
    temperatures: tuple[float, ...] = Field((300.0,), min_length=1, description="K")
    budget: Literal["short", "standard", "long"] = "standard"
    parts: tuple[str, ...] | None = Field(None, description="None for all that the other options allow")
    output: Path = Field(description="directory of the page, the numbers and the runs")
    title: str | None = None
    engine: Literal["ase", "openmm"] = "ase"
    device: str = "cpu"
    dtype: Literal["float32", "float64"] = "float32"
    timestep: float = Field(0.5, gt=0, le=20, description="fs")
    friction: float = Field(1.0, gt=0, le=1e4, description="1/ps, of Langevin dynamics")
    pressure: float = Field(1.0, ge=-1e6, le=1e7, description="bar, of the density")
    charge: int = Field(0, ge=-100, le=100, description="e, of the structures, for the reference method")
    seed: int = Field(0, ge=0, lt=2**31)
    processes: int = Field(1, ge=0, le=256, description="labels made at a time")
    threads: int = Field(1, ge=1, le=256, description="of each of them")
    frames: int | None = Field(None, gt=0)
    equilibration: float | None = Field(None, gt=0, description="ps")
    length: float | None = Field(None, gt=0, description="ps")
    nve: float | None = Field(None, gt=0, description="ps")
    density: float | None = Field(None, gt=0, description="ps")
    stability_steps: int | None = Field(None, gt=0)
    seeds: int | None = Field(None, gt=0, le=100)
    teacher_minutes: float | None = Field(None, gt=0, le=1e6)
    copies: tuple[int, int, int] | None = None

    @model_validator(mode="after")
    def _together(self) -> Self:
        for kelvin in self.temperatures:
            if not 0 < kelvin <= 1e5:
                raise ValueError(f"--temperatures {kelvin:g}: a temperature is above 0 and at most 100,000 K")
        if len(set(self.temperatures)) < len(self.temperatures):
            raise ValueError("--temperatures names one twice")
        unknown = [part for part in self.parts or () if part not in PARTS]
        if unknown:
            raise ValueError(f"--parts {', '.join(unknown)} is unknown; there are: {', '.join(PARTS)}")
        if self.parts is not None and not self.parts:
            raise ValueError("--parts is empty; leave it out for all")
        if self.copies is not None and (min(self.copies) < 1 or self.copies == (1, 1, 1)):
            raise ValueError(f"--copies {'x'.join(map(str, self.copies))} is no larger cell; try 2x1x1")
        if self.against is None and self.against_options:
            raise ValueError("--against-option belongs to --against METHOD, which is missing")
        runs = [part for part in self.parts or () if part != "errors"]
        if self.structure is None and runs:
            raise ValueError(f"--parts {', '.join(runs)} runs molecular dynamics: give it a --structure")
        if self.structure is None and not self.all_labels:
            raise ValueError("nothing to validate on: give --structure, --labels or both")
        if self.structure is None and self.teacher_structure is not None:
            raise ValueError("--teacher-structure is a smaller cell beside --structure, which is missing")
        return self

    @property
    def method(self) -> str | None:
        """The reference method, unless ``against`` is a file of labels."""
        return None if self.against is None or self._is_file(self.against) else self.against

    @property
    def all_labels(self) -> tuple[str, ...]:
        """Label files, that of ``--against`` among them."""
        more = (self.against,) if self.against is not None and self._is_file(self.against) else ()
        return (*self.labels, *more)

    @staticmethod
    def _is_file(name: str) -> bool:
        path = Path(name)
        return path.suffix.lower() in LABEL_SUFFIXES or path.parent != Path() or path.is_file()

    @property
    def chosen(self) -> tuple[str, ...]:
        """Parts to do, in their order."""
        if self.parts is not None:
            return tuple(part for part in PARTS if part in self.parts)
        return PARTS if self.structure is not None else ("errors",)

    @property
    def plan(self) -> Budget:
        """The budget, with what was asked for by number instead."""
        base = BUDGETS[self.budget]
        given = {name: getattr(self, name) for name in Budget.__dataclass_fields__}
        return Budget(**{name: getattr(base, name) if value is None else value for name, value in given.items()})

    def steps(self, picoseconds: float) -> int:
        """Time steps of a run so long."""
        return max(round(picoseconds * FS_PER_PS / self.timestep), MIN_STEPS)

    def remedy(self) -> str:
        """How else to get what a validation that goes on cannot change."""
        return "give --overwrite, or another --output"


def parse_copies(text: str) -> tuple[int, int, int]:
    """``2x1x1`` as numbers. Raises ConfigError."""
    words = text.lower().split("x")
    if len(words) != 3 or not all(word.isdecimal() for word in words):
        raise ConfigError(f"--copies takes three whole numbers as in 2x1x1, not {text!r}")
    return int(words[0]), int(words[1]), int(words[2])
