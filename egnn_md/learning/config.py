"""Everything that a learning loop can be told, section by section. Unknown keys are errors."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from egnn_md.errors import ConfigError
from egnn_md.training.build import START_FROM, check_model_section
from egnn_md.training.config import Files, Section, TrainConfig
from egnn_md.training.config_file import apply_overrides, read_yaml, unknown_key, validate

OWN_KEYS = ("task", "data", "output", "seed", "name")  # of a training: the loop says these itself
#: Keys that a loop which has begun may change: they do not touch what was learned so far.
FREE_KEYS = ("rounds", "output", "label.processes", "label.threads")


def _one_or_many(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


Temperatures = Annotated[
    list[Annotated[float, Field(gt=0, le=1e5)]], BeforeValidator(_one_or_many), Field(min_length=1)
]
Engines = Annotated[list[Literal["ase", "openmm"]], BeforeValidator(_one_or_many), Field(min_length=1)]


class SampleSection(Section):
    """Structures from molecular dynamics (Langevin) by the reference method itself."""

    structures: Files = Field(min_length=1, description="files of first structures")
    temperatures: Temperatures = Field(description="K")
    frames: int = Field(gt=0, description="of each first structure at each temperature")
    interval: int = Field(default=50, gt=0, description="steps between frames")
    equilibration: int = Field(default=200, ge=0, description="steps before the first frame")
    timestep: float = Field(default=1.0, gt=0, le=20, description="fs")
    friction: float = Field(default=10.0, gt=0, description="1/ps")
    seed: int = Field(default=0, ge=0)


class LabelledSection(Section):
    """A set of labelled structures: files that are there, or sampled and labelled by the loop."""

    labels: Files = Field(default=[], description="label files")
    sample: SampleSection | None = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.labels) == (self.sample is not None):
            raise ValueError("give either labels (files) or sample (how to make them), one of the two")
        return self


class CommitteeSection(Section):
    """Who learns."""

    members: int = Field(default=4, ge=2, le=64)
    start: Literal["fresh", "last"] = Field(
        default="fresh",
        description="weights of a round: new, or the last round's, which have seen some of what judges them now",
    )
    bootstrap: bool = Field(default=False, description="each member sees what it drew with replacement (63 %)")


class RunSection(Section):
    """Molecular dynamics with the committee, in every round."""

    structures: Files = Field(min_length=1, description="files of first structures")
    temperatures: Temperatures = Field(description="K; each structure runs at each")
    repeats: int = Field(default=1, gt=0, description="runs of each, with other velocities")
    engines: Engines = Field(default=["ase"], description="runs take turns")
    steps: int = Field(gt=0)
    timestep: float = Field(default=0.5, gt=0, le=20, description="fs")
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    friction: float = Field(default=10.0, gt=0, le=1e4, description="1/ps")
    pressure: float = Field(default=1.0, description="bar; npt only")
    frame_interval: int = Field(default=20, gt=0, description="steps between frames, which are the candidates")
    drive: Literal["mean", "first"] = "mean"
    stop_above: float | None = Field(default=None, gt=0, description="eV/Å; a spread that ends a run")
    uncertainty_interval: int | None = Field(default=None, gt=0, description="steps between looks at the spread")
    minimize: bool = False


class SelectSection(Section):
    """Which candidates are labelled."""

    count: int = Field(default=20, gt=0, description="at most so many in a round")
    by: Literal["spread", "random"] = Field(default="spread", description="random: a control that learns nothing of it")
    spacing: float = Field(default=10.0, ge=0, description="fs between two out of one run")
    min_rmsd: float = Field(default=0.05, ge=0, description="Å from every other one and every labelled structure")
    lowest: float = Field(default=0.0, ge=0, description="eV/Å; a smaller spread is known well enough")
    highest: float | None = Field(default=None, gt=0, description="eV/Å; a larger one is no structure any more")
    before_failure: int = Field(default=5, ge=0, description="last frames of a failed run that are candidates")

    @model_validator(mode="after")
    def _between(self) -> Self:
        if self.highest is not None and self.highest <= self.lowest:
            raise ValueError(f"select.highest = {self.highest} leaves nothing above select.lowest = {self.lowest}")
        return self


class LabelSection(Section):
    """The reference method; see ``egnn-md label``."""

    method: str = "gfn2-xtb"
    options: dict[str, Any] = Field(default={})
    processes: int = Field(default=1, ge=0)
    threads: int = Field(default=1, gt=0)
    #: thermal motion stays below half of it; a structure that blew up would decide the validation error by itself
    max_force: float | None = Field(
        default=50.0, gt=0, description="eV/Å; harder structures are neither learned from nor judged by; null: all are"
    )


class LearnConfig(Section):
    """A learning loop.

    ``train`` holds what ``egnn-md train`` takes, without data, output, seed and name, which the loop sets.
    """

    output: str = Field(min_length=1, description="directory; it is made")
    rounds: int = Field(default=3, ge=0)
    seed: int = Field(default=0, ge=0, lt=2**31)
    start: LabelledSection
    test: LabelledSection
    committee: CommitteeSection = CommitteeSection()
    run: RunSection
    select: SelectSection = SelectSection()
    label: LabelSection = LabelSection()
    train: dict[str, Any] = Field(default={})
    valid_fraction: float = Field(default=0.1, gt=0, lt=1, description="of the labels, by which each member is judged")


def train_config(section: dict[str, Any], source: str, **filled: Any) -> TrainConfig:
    """The configuration of one member's training.

    Args:
        section: ``train`` of the loop's configuration.
        source: for the error.
        filled: data, output, seed, name.

    Raises:
        ConfigError: names the key.
    """
    for key in section:
        if key in OWN_KEYS:
            raise ConfigError(f"{source}: train.{key} is set by the loop itself; leave it out")
        if key not in TrainConfig.model_fields:
            known = [name for name in TrainConfig.model_fields if name not in OWN_KEYS]
            raise ConfigError(f"{source}: {unknown_key(key, known, 'train')}")
    config = validate(TrainConfig, {**section, **filled}, f"{source}, section 'train'")
    check_model_section(config.model, f"{source}, section 'train'")
    return config


def load_learn_config(path: str | Path, overrides: Sequence[str] = ()) -> LearnConfig:
    """Read and check a YAML configuration of a learning loop.

    Raises:
        ConfigError: names the file and every offending key.
    """
    source = str(path)
    config = validate(LearnConfig, apply_overrides(read_yaml(path), overrides), source)
    check_learn_config(config, source)
    return config


def check_learn_config(config: LearnConfig, source: str = "configuration") -> None:
    """Refuse a ``train`` section that no member could be trained with. Raises ConfigError."""
    placeholder = {"train": ["labels.extxyz"], "valid_fraction": config.valid_fraction}
    train_config(config.train, source, data=placeholder, output="member", seed=0)
    if START_FROM in config.train.get("model", {}):
        raise ConfigError(
            f"{source}: train.model.{START_FROM} would begin every member alike, and equal members never disagree; "
            "leave it out (committee.start: last goes on from the round before)"
        )
