"""SPlisHSPlasH in a child process: scene file, start, watching, and what it leaves behind.

The wheel of ``pysplishsplash`` bundles a GL dispatch library that crashes beside the system's own when it is
imported; with the system's loaded first (``LD_PRELOAD``) it runs without a display. That cannot be done in a
process that runs already, and a simulation that hangs or crashes must not take the generator along: hence a child.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from egnn_md.errors import ConfigError, MissingDependencyError, SimulationError
from egnn_md_systems.liquid.child import UNSTABLE
from egnn_md_systems.liquid.presets import GRAVITY, REST_DENSITY, VISCOSITY
from egnn_md_systems.liquid.scene import Scene

CHILD = "egnn_md_systems.liquid.child"
DFSPH = 4  # divergence-free SPH (Bender and Koschier 2015), the simulator's default pressure solver
PARTICLE_BOUNDARY = 0  # Akinci et al. 2012: the walls are particles
CONSTANT_TIMESTEP = 0  # the child chooses each step
STANDARD_VISCOSITY = 1
MIN_PARTICLES = 53
ENERGY_GAIN = 0.02  # from one frame to the next, of the start value above the tank's floor


def gl_library() -> str | None:
    """File name of the system's GL dispatch library, None where the dynamic linker knows none."""
    return ctypes.util.find_library("GLdispatch")


def check_simulator() -> None:
    """Raise if the simulator cannot be started here.

    Raises:
        MissingDependencyError: names the package and how to install it.
    """
    if importlib.util.find_spec("pysplishsplash") is None:
        raise MissingDependencyError("liquids are made by SPlisHSPlasH: pip install pysplishsplash")
    if sys.platform.startswith("linux") and gl_library() is None:
        raise MissingDependencyError(
            "pysplishsplash needs the system's libGLdispatch.so.0 (it crashes with its own copy): "
            "apt-get install libglvnd0"
        )


def tank_obj(tank: tuple[float, float, float]) -> str:
    """The tank's surface as a Wavefront OBJ: 8 corners, 12 triangles that face outwards."""
    corners = [(x * tank[0], y * tank[1], z * tank[2]) for x in (0, 1) for y in (0, 1) for z in (0, 1)]
    quads = [(1, 2, 4, 3), (5, 7, 8, 6), (1, 5, 6, 2), (3, 4, 8, 7), (1, 3, 7, 5), (2, 6, 8, 4)]
    lines = [f"v {x} {y} {z}" for x, y, z in corners]
    for a, b, c, d in quads:
        lines += [f"f {a} {b} {c}", f"f {a} {c} {d}"]
    return "\n".join(lines) + "\n"


def reserving_blocks(count: int, spacing: float) -> list[dict[str, Any]]:
    """Fluid blocks that hold ``count`` particles together, as rows of 2 × 2 and 3 × 3 particles.

    The simulator fills a block of ``(n + 1) · spacing`` with n particles an axis, and leaves one with n = 1 empty.

    Raises:
        ConfigError: fewer than ``MIN_PARTICLES``.
    """
    if count < MIN_PARTICLES:
        raise ConfigError(f"a liquid scene needs at least {MIN_PARTICLES} particles, not {count}")
    thick = {0: 0, 1: 5, 2: 2, 3: 3}[count % 4]  # 9 · thick = count modulo 4
    blocks = []
    for width, length, offset in ((2, (count - 9 * thick) // 4, 0), (3, thick, 10)):
        if length:
            low = offset * spacing
            edges = [(n + 1) * spacing for n in (length, width, width)]
            end = [low + edge for edge in edges]
            blocks.append({"denseMode": 0, "start": [low, low, low], "end": end})
    return blocks


def simulator_scene(scene: Scene, count: int) -> dict[str, Any]:
    """The simulator's scene file (docs: "SPlisHSPlasH Scene Files").

    Its fluid only reserves the particles: the child puts them in their places, for the simulator's own blocks can
    neither be turned nor be round.
    """
    preset = scene.preset
    return {
        "Configuration": {
            "particleRadius": preset.particle_radius,
            "numberOfStepsPerRenderUpdate": 1,
            "stopAt": (preset.frames + 1) * preset.frame_interval,
            "simulationMethod": DFSPH,
            "boundaryHandlingMethod": PARTICLE_BOUNDARY,
            "gravitation": list(GRAVITY),
            "timeStepSize": preset.max_timestep,
            "cflMethod": CONSTANT_TIMESTEP,
            "DFSPH": {
                "minIterations": 2,
                "maxIterations": 100,
                "maxError": 0.01,  # percent of the rest density
                "maxIterationsV": 100,
                "maxErrorV": 0.1,
                "enableDivergenceSolver": True,
            },
        },
        "Materials": [
            {
                "id": "Fluid",
                "density0": REST_DENSITY,
                "viscosityMethod": STANDARD_VISCOSITY,
                "Standard viscosity": {"viscosity": VISCOSITY},
            }
        ],
        "RigidBodies": [
            {
                "geometryFile": "tank.obj",
                "translation": [0, 0, 0],
                "rotationAxis": [1, 0, 0],
                "rotationAngle": 0,
                "scale": [1, 1, 1],
                "isDynamic": False,
                "isWall": True,
            }
        ],
        "FluidBlocks": reserving_blocks(count, preset.spacing),
    }


class UnstableSimulationError(SimulationError):
    """A simulation gained energy out of nothing; a shorter time step is the remedy."""


class Simulation:
    """One scene that is being simulated in ``folder``.

    Args:
        scene: what to simulate.
        folder: made here; holds the scene, the log and the frames.
        time_limit: seconds after which it counts as hanging, None for no limit.
        max_timestep: longest step (s), the preset's if None.

    Raises:
        MissingDependencyError: there is no simulator.
    """

    def __init__(
        self, scene: Scene, folder: Path, time_limit: float | None = None, max_timestep: float | None = None
    ) -> None:
        check_simulator()
        self.scene = scene
        self.folder = folder.resolve()
        self.time_limit = time_limit
        folder.mkdir(parents=True)
        positions, velocities = scene.particles()
        self.count = len(positions)
        preset = scene.preset
        (folder / "scene.json").write_text(scene.model_dump_json(indent=1) + "\n")
        (folder / "splishsplash.json").write_text(json.dumps(simulator_scene(scene, self.count), indent=1) + "\n")
        (folder / "tank.obj").write_text(tank_obj(preset.tank))
        np.savez(
            folder / "start.npz",
            positions=positions,
            velocities=velocities,
            frame_interval=preset.frame_interval,
            frames=preset.frames,
            max_timestep=max_timestep or preset.max_timestep,
            spacing=preset.spacing,
            gravity=GRAVITY,
            energy_gain=ENERGY_GAIN,
        )
        environment = dict(os.environ)
        environment.setdefault("OMP_NUM_THREADS", "1")
        library = gl_library()
        if library is not None:
            before = environment.get("LD_PRELOAD")
            environment["LD_PRELOAD"] = f"{library}:{before}" if before else library
        self._log = (folder / "log.txt").open("wb")
        self.started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", CHILD, str(self.folder)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )

    def frames_done(self) -> int:
        """Frames written so far."""
        try:
            return int((self.folder / "progress").read_text() or 0)
        except (OSError, ValueError):  # not begun, or just being written
            return 0

    def finished(self) -> bool:
        """Whether it is over, well or not.

        Raises:
            SimulationError: it ran past the time limit and was stopped.
        """
        if self.process.poll() is not None:
            return True
        if self.time_limit is not None and time.monotonic() - self.started > self.time_limit:
            done = self.frames_done()
            self.stop()
            raise SimulationError(
                f"liquid scene {self.scene.name}: {done} of {self.scene.preset.frames} frames after the limit of "
                f"{self.time_limit:g} s; it hangs, or it needs a higher --time-limit"
            )
        return False

    def stop(self) -> None:
        """End the child, if it still runs."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    def frames(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions and velocities (T, N, 3) float32 of a simulation that is over, memory-mapped.

        Raises:
            UnstableSimulationError: it gained energy.
            SimulationError: it failed otherwise; the message ends with the last line of its log.
        """
        self.stop()
        if self.process.returncode != 0:
            lines = (self.folder / "log.txt").read_text(errors="replace").strip().splitlines()
            reason = lines[-1] if lines else "no output"
            kind = UnstableSimulationError if self.process.returncode == UNSTABLE else SimulationError
            raise kind(
                f"liquid scene {self.scene.name} failed after {self.frames_done()} of {self.scene.preset.frames} "
                f"frames (exit status {self.process.returncode}): {reason}"
            )
        positions = np.load(self.folder / "positions.npy", mmap_mode="r")
        velocities = np.load(self.folder / "velocities.npy", mmap_mode="r")
        return positions, velocities


def simulate(scene: Scene, folder: Path, time_limit: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Simulate one scene and wait for it.

    Returns:
        Positions and velocities, (T, N, 3) float32, memory-mapped from ``folder``.

    Raises:
        MissingDependencyError: there is no simulator.
        SimulationError: it failed or ran past the time limit.
    """
    simulation = Simulation(scene, folder, time_limit)
    try:
        while not simulation.finished():
            time.sleep(0.02)
        return simulation.frames()
    finally:
        simulation.stop()
