"""Whole data sets of liquids: scenes in parallel, resumable, with what failed kept for a look."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from egnn_md.data.trajectories import METADATA_NAME, PARTS, Trajectory, TrajectoryMetadata, TrajectoryWriter
from egnn_md.errors import ConfigError, InputError, SimulationError
from egnn_md_systems.liquid.presets import GRAVITY, REST_DENSITY, VISCOSITY, LiquidPreset
from egnn_md_systems.liquid.scene import random_scene, scene_name
from egnn_md_systems.liquid.splishsplash import Simulation, UnstableSimulationError, check_simulator

FLUID = 0  # LagrangeBench's particle type
HALVINGS = 3  # of the time step, for a scene that gains energy
KEPT_FILES = ("scene.json", "splishsplash.json", "tank.obj", "log.txt")


@dataclass
class Summary:
    """What a call did.

    Attributes:
        made: scenes simulated and written.
        skipped: scenes that were there already.
        failures: message of each failed scene by its name.
        shortened: scenes that needed a shorter time step.
    """

    made: int = 0
    skipped: int = 0
    failures: dict[str, str] = field(default_factory=dict)
    shortened: list[str] = field(default_factory=list)


# (frames done of all scenes that are not over, summary)
Progress = Callable[[int, Summary], None]


def liquid_metadata(preset: LiquidPreset, seed: int) -> TrajectoryMetadata:
    """What the data set says about itself; LagrangeBench's keys where it has one."""
    try:
        simulator = f"SPlisHSPlasH {version('pysplishsplash')}, DFSPH"
    except PackageNotFoundError:
        simulator = "SPlisHSPlasH, DFSPH"
    return TrajectoryMetadata.model_validate(
        {
            "system": "liquid",
            "units": {"length": "m", "time": "s"},
            "dt": preset.frame_interval,
            "write_every": 1,
            "dim": 3,
            "bounds": preset.bounds,
            "periodic_boundary_conditions": [False, False, False],
            "default_connectivity_radius": preset.cutoff,
            "gravity": list(GRAVITY),
            "type_names": {str(FLUID): "fluid"},
            "dx": preset.spacing,
            "sequence_length_train": preset.frames,
            "sequence_length_test": preset.frames,
            "num_particles_max": preset.particles[1],
            "solver": simulator,
            "preset": preset.name,
            "seed": seed,
            "particle_radius": preset.particle_radius,
            "tank": list(preset.tank),
            "rest_density": REST_DENSITY,
            "viscosity": VISCOSITY,
        }
    )


def generate(
    output: Path,
    preset: LiquidPreset,
    scenes: dict[str, int],
    *,
    seed: int = 0,
    jobs: int = 1,
    resume: bool = False,
    time_limit: float | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Simulate ``scenes[part]`` scenes of each part into the data set ``output``.

    Args:
        output: directory; one HDF5 file a part.
        preset: kind of scenes.
        scenes: number of scenes of ``train``, ``valid``, ``test``.
        seed: scene ``k`` of a part depends on it and on ``k`` only.
        jobs: simulations at the same time, one thread each.
        resume: go on with a data set that is there; complete scenes are kept.
        time_limit: seconds for one simulation, None for no limit.
        progress: called a few times a second.

    Raises:
        ConfigError: no scene asked for, or an unknown part.
        InputError: ``output`` holds a data set and ``resume`` is False, or that of other settings.
        MissingDependencyError: there is no simulator.
        SimulationError: scenes failed, named with their reasons; all others are written.
    """
    wrong = [part for part in scenes if part not in PARTS]
    if wrong or not any(scenes.values()) or min(scenes.values()) < 0 or jobs < 1:
        raise ConfigError(f"scenes {scenes}, {jobs} jobs: say how many scenes of {', '.join(PARTS)}, and jobs >= 1")
    if (output / METADATA_NAME).exists() and not resume:
        raise InputError(f"{output} holds a data set; give --resume to go on with it, or another directory")
    check_simulator()
    summary = Summary()
    with ExitStack() as stack:
        metadata = liquid_metadata(preset, seed)
        writers = {
            part: stack.enter_context(TrajectoryWriter(output / f"{part}.h5", metadata))
            for part, count in scenes.items()
            if count
        }
        asked = [(part, index) for part, count in scenes.items() for index in range(count)]
        wanted = [(part, index) for part, index in asked if f"{index:05d}" not in writers[part].names]
        summary.skipped = len(asked) - len(wanted)
        scratch = output / "running"
        shutil.rmtree(scratch, ignore_errors=True)  # of a killed run
        stack.callback(shutil.rmtree, scratch, ignore_errors=True)
        for runner in _run_all(wanted, preset, seed, scratch, jobs, time_limit, summary, progress):
            _take(runner, writers[runner.part], output / "failed", summary)
    if summary.failures:
        listed = "\n".join(f"  {message}" for message in summary.failures.values())
        raise SimulationError(
            f"{len(summary.failures)} of {len(asked)} liquid scenes failed; scene and log of each are kept in "
            f"{output / 'failed'}, all other scenes are written:\n{listed}"
        )
    return summary


class _Runner:
    """One scene on its way: simulated again with half the time step if it gains energy."""

    def __init__(self, part: str, index: int, preset: LiquidPreset, seed: int, scratch: Path, limit: float | None):
        self.part = part
        self.index = index
        self.name = scene_name(part, index)
        self.scene = random_scene(preset, seed, part, index)
        self.scratch = scratch
        self.limit = limit
        self.halvings = 0
        self.error: SimulationError | None = None
        self.frames: tuple[np.ndarray, np.ndarray] | None = None
        self._start()

    def _start(self) -> None:
        timestep = self.scene.preset.max_timestep / 2**self.halvings
        self.folder = self.scratch / f"{self.name}_{self.halvings}"
        self.simulation = Simulation(self.scene, self.folder, self.limit, timestep)

    def over(self) -> bool:
        """Whether the scene is done with; ``frames`` or ``error`` says how."""
        try:
            if not self.simulation.finished():
                return False
            self.frames = self.simulation.frames()
        except UnstableSimulationError as error:
            if self.halvings < HALVINGS:
                shutil.rmtree(self.folder)
                self.halvings += 1
                self._start()
                return False
            self.error = error
        except SimulationError as error:
            self.error = error
        return True


def _run_all(
    wanted: list[tuple[str, int]],
    preset: LiquidPreset,
    seed: int,
    scratch: Path,
    jobs: int,
    limit: float | None,
    summary: Summary,
    progress: Progress | None,
) -> Iterator[_Runner]:
    """Run the scenes, ``jobs`` at a time, and give each when it is over; on the way out the children are ended."""
    waiting = list(reversed(wanted))
    running: list[_Runner] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append(_Runner(*waiting.pop(), preset, seed, scratch, limit))
            for runner in [runner for runner in running if runner.over()]:
                running.remove(runner)
                yield runner
            if progress is not None:
                progress(sum(runner.simulation.frames_done() for runner in running), summary)
            time.sleep(0.05)
    finally:
        for runner in running:
            runner.simulation.stop()


def _take(runner: _Runner, writer: TrajectoryWriter, failed: Path, summary: Summary) -> None:
    """Write the frames of a scene that is over, or keep scene and log of one that failed."""
    kept = failed / runner.name
    shutil.rmtree(kept, ignore_errors=True)
    if runner.frames is None:
        kept.mkdir(parents=True)
        for name in KEPT_FILES:
            shutil.copy2(runner.folder / name, kept / name)
        summary.failures[runner.name] = str(runner.error)
    else:
        positions, velocities = runner.frames
        species = np.full(positions.shape[1], FLUID, dtype=np.int64)
        writer.add(Trajectory(positions, species, velocities, name=runner.name), name=f"{runner.index:05d}")
        summary.made += 1
        if runner.halvings:
            summary.shortened.append(runner.name)
    runner.frames = None
    shutil.rmtree(runner.folder)
