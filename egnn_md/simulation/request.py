"""What a run is asked to do, validated; errors name the command's option."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from egnn_md.errors import ConfigError
from egnn_md.simulation.options import OptionsModel


class MDRequest(OptionsModel):
    """One run of molecular dynamics. Field ``frame_interval`` is the option ``--frame-interval``."""

    noun = "run"
    positional = "structure"
    changeable = frozenset(
        {"steps", "output", "devices", "implementation", "max_uncertainty", "on_uncertainty"}
    )

    structure: str | None = Field(None, description="structure file; not needed with --continue-from")
    topology: str | None = Field(None, description="file whose residues and bonds replace those of the structure")
    model: str = Field("water", description="registered name, or path of a model file")
    without_prior: bool = Field(False, description="run a model without the energy terms that its card says it needs")
    engine: Literal["openmm", "ase"] = "openmm"
    ensemble: Literal["nve", "nvt", "npt"] = "nvt"
    steps: int = Field(gt=0, description="number of time steps in all")
    timestep: float = Field(0.5, gt=0, le=20, description="fs")
    temperature: float = Field(300.0, ge=0, le=1e5, description="K; first velocities and thermostat")
    pressure: float = Field(1.0, ge=-1e6, le=1e7, description="bar; npt only")
    thermostat: Literal["langevin", "nose-hoover"] = Field("langevin", description="nvt and npt")
    friction: float = Field(1.0, gt=0, le=1e4, description="1/ps; langevin")
    thermostat_time: float = Field(100.0, gt=0, le=1e6, description="fs; nose-hoover, of the chain's motion")
    constraints: Literal["none", "h-bonds"] = Field("none", description="bonds that keep their length")
    hydrogen_mass: float | None = Field(None, ge=1, le=10, description="u; bonded heavier atoms give it")
    seed: int = Field(0, ge=0, lt=2**31, description="of velocities, thermostat and barostat")
    platform: str | None = Field(None, description="OpenMM platform: Reference, CPU, CUDA, OpenCL, HIP")
    device: str = Field("cpu", description="torch device of the model: cpu, cuda, cuda:1")
    dtype: Literal["float32", "float64"] = "float32"
    devices: int = Field(1, ge=1, le=1024, description="the model is split over so many")
    partition: Literal["bisection", "random", "k-means", "metis", "spectral"] = "bisection"
    mode: Literal["exact", "paper"] = Field("exact", description="paper drops edges between devices")
    implementation: Literal["torch", "python"] = Field("torch", description="OpenMM: TorchForce or PythonForce")
    minimize: bool = True
    minimize_steps: int = Field(200, gt=0, description="most iterations of the minimiser")
    minimize_force: float = Field(0.05, gt=0, description="eV/Å; the minimiser stops when forces are below")
    output: Path = Field(description="run directory")
    trajectory: Literal["dcd", "xtc", "extxyz"] = "dcd"
    frame_interval: int = Field(100, gt=0, description="steps between frames")
    log_interval: int = Field(20, gt=0, description="steps between rows of the log")
    checkpoint_interval: int = Field(1000, gt=0, description="steps between checkpoints")
    check_interval: int = Field(10, gt=0, description="steps between looks of the guards")
    max_temperature: float | None = Field(None, gt=0, description="K; above it the run stops as exploded")
    max_force: float = Field(100.0, gt=0, description="eV/Å; above it the run stops")
    min_distance: float = Field(0.5, ge=0, le=10, description="Å; atoms closer stop the run; 0 never")
    drive: Literal["mean", "first"] = Field("mean", description="of a committee: the mean's forces, or one member's")
    max_uncertainty: float | None = Field(None, ge=0, allow_inf_nan=False, description="eV/Å of a committee's spread")
    on_uncertainty: Literal["stop", "record"] = Field("stop", description="what a spread above that does")
    uncertainty_interval: int | None = Field(None, gt=0, description="steps between looks at a committee's spread")
    continue_from: Path | None = Field(None, description="run whose last state is the start of this one")

    @model_validator(mode="before")
    @classmethod
    def _of_devices(cls, given: Any) -> Any:
        """Over several devices a potential runs behind a PythonForce; nobody has to say so."""
        if isinstance(given, dict) and given.get("devices", 1) != 1 and given.get("engine", "openmm") == "openmm":
            return {"implementation": "python", **given}
        return given

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.structure is None and self.continue_from is None:
            raise ValueError("STRUCTURE is missing: give a structure file, or --continue-from RUN_DIR")
        if self.continue_from is not None and self.minimize:
            raise ValueError(
                "--minimize does not go with --continue-from: minimised positions would not belong to the "
                "velocities that are kept; give --no-minimize"
            )
        if self.topology is not None and self.structure is None:
            raise ValueError("--topology needs STRUCTURE, whose positions it describes")
        if self.engine == "ase" and self.platform is not None:
            raise ValueError("--platform belongs to --engine openmm; with --engine ase use --device")
        if self.engine == "ase" and self.implementation == "python":
            raise ValueError("--implementation belongs to --engine openmm; leave it out with --engine ase")
        if self.devices > 1 and self.engine == "openmm" and self.implementation == "torch":
            raise ValueError("--implementation torch runs on one device; with --devices use --implementation python")
        if self.ensemble == "nve" and self.thermostat != "langevin":
            raise ValueError(f"--thermostat {self.thermostat} does not go with --ensemble nve, which has no thermostat")
        if self.timestep * 10 > self.thermostat_time and self.thermostat == "nose-hoover" and self.ensemble != "nve":
            raise ValueError(
                f"--thermostat-time {self.thermostat_time:g} is shorter than ten time steps ({self.timestep:g} fs each)"
            )
        # of ASE's integrators only VelocityVerlet and Langevin know RATTLE
        rattled = self.ensemble == "nve" or (self.ensemble == "nvt" and self.thermostat == "langevin")
        if self.engine == "ase" and self.constraints != "none" and not rattled:
            raise ValueError(
                "--constraints with --engine ase goes with nve, or nvt with --thermostat langevin, not with "
                f"{self.ensemble} and {self.thermostat}; use --engine openmm"
            )
        if self.ensemble != "nve" and self.temperature == 0:
            raise ValueError(f"--temperature 0 has no meaning with --ensemble {self.ensemble}; use --ensemble nve")
        return self

    def check_given(self, given: Iterable[str]) -> None:
        """Refuse options that a user gave and that would have no effect beside the others.

        Args:
            given: names of fields that were given, as opposed to left at their defaults.

        Raises:
            ConfigError: names the option and what it goes with.
        """
        nose_hoover = self.ensemble != "nve" and self.thermostat == "nose-hoover"
        langevin = self.ensemble != "nve" and self.thermostat == "langevin"
        needs = {
            "pressure": (self.ensemble == "npt", "--ensemble npt"),
            "friction": (langevin, "--ensemble nvt or npt with --thermostat langevin"),
            "thermostat_time": (nose_hoover, "--ensemble nvt or npt with --thermostat nose-hoover"),
            "minimize_steps": (self.minimize, "--minimize"),
            "minimize_force": (self.minimize, "--minimize"),
            "on_uncertainty": (self.max_uncertainty is not None, "--max-uncertainty"),
        }
        for name, (used, other) in needs.items():
            if name in given and not used:
                raise ConfigError(
                    f"{self.option(name)} {getattr(self, name)} has no effect here: it goes with {other}; give that, "
                    "or leave it out"
                )

    def remedy(self) -> str:
        """How else to get what a resumed run cannot change."""
        return f"start a new run with --continue-from {self.output}"
