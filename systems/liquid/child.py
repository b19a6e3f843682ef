"""The simulation itself: ``python -m egnn_md_systems.liquid.child FOLDER``, in a process of its own.

``FOLDER`` holds ``splishsplash.json`` (a scene of the simulator with as many particles as ours), ``start.npz``
(``positions``, ``velocities``, ``frame_interval``, ``frames``, ``max_timestep``, ``spacing``, ``gravity``,
``energy_gain``). Written are ``positions.npy`` and
``velocities.npy``, (T, N, 3) float32, and ``progress``, the number of frames so far. The exit status is 0 when every
frame is written, ``UNSTABLE`` if the liquid gained energy.

Nothing of egnn_md is imported here but this file: the process is there for the simulator alone.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

# the simulator counts time in float32
TIME_TOLERANCE = 1e-5
UNSTABLE = 4
CFL_NUMBER = 0.4  # of a particle's spacing may be passed in a step


class UnstableError(Exception):
    """The liquid gained energy out of nothing."""


def mechanical_energy(positions: Any, velocities: Any, gravity: Any) -> float:
    """Energy per mass (m²/s²) of one frame: ``mean_i (½ v_i² - g · x_i)`` of (N, 3) positions and velocities."""
    kinetic = 0.5 * (np.asarray(velocities, dtype=np.float64) ** 2).sum(axis=1).mean()
    return float(kinetic - np.asarray(positions, dtype=np.float64).mean(axis=0) @ np.asarray(gravity))


class Recorder:
    """Called by the simulator after each of its steps: takes frames, and steers the steps onto the frames' times."""

    def __init__(self, folder: Path, simulator: Any, module: Any) -> None:
        start = np.load(folder / "start.npz")
        self.folder = folder
        self.simulator = simulator
        self.sph = module
        self.interval = float(start["frame_interval"])
        self.frames = int(start["frames"])
        self.max_timestep = float(start["max_timestep"])
        self.spacing = float(start["spacing"])
        self.gravity = start["gravity"]
        self.energy = mechanical_energy(start["positions"], start["velocities"], self.gravity)
        self.energy_gain = float(start["energy_gain"]) * self.energy
        self.start_positions = start["positions"].astype(np.float32)
        self.start_velocities = start["velocities"].astype(np.float32)
        self.count = len(self.start_positions)
        shape = (self.frames, self.count, 3)
        self.positions = np.lib.format.open_memmap(folder / "positions.npy", "w+", np.float32, shape)
        self.velocities = np.lib.format.open_memmap(folder / "velocities.npy", "w+", np.float32, shape)
        self.done = 0
        self.parent = os.getppid()

    def begin(self) -> None:
        """Put the particles in place and take frame 0."""
        model = self.sph.Simulation.getCurrent().getFluidModel(0)
        if model.numActiveParticles() != self.count:
            raise RuntimeError(f"the simulator made {model.numActiveParticles()} particles, not {self.count}")
        for name, values in (
            ("position", self.start_positions),
            ("position0", self.start_positions),
            ("velocity", self.start_velocities),
        ):
            np.asarray(model.getFieldBuffer(name))[: self.count] = values
        self.take_frame(model)
        self.choose_timestep(0.0)

    def take_frame(self, model: Any) -> None:
        """Store positions and velocities in the order of the particles' ids.

        The simulator sorts its particles along a space-filling curve for speed, so their order in its buffers
        changes; the buffers are also longer than the number of particles.
        """
        if model.numActiveParticles() != self.count:
            raise RuntimeError(
                f"frame {self.done} has {model.numActiveParticles()} particles, the first one {self.count}"
            )
        order = np.asarray(model.getFieldBuffer("id")).reshape(-1)[: self.count].astype(np.int64)
        if not np.array_equal(np.sort(order), np.arange(self.count)):
            raise RuntimeError(f"frame {self.done}: the ids of the particles are not 0 to {self.count - 1}")
        for name, frames in (("position", self.positions), ("velocity", self.velocities)):
            values = np.asarray(model.getFieldBuffer(name))[: self.count]
            if not np.all(np.isfinite(values)):
                raise RuntimeError(f"frame {self.done}: a {name} is not finite")
            frames[self.done, order] = values
        if self.done:
            self.check_energy(self.positions[self.done], self.velocities[self.done])
        self.done += 1
        (self.folder / "progress").write_text(str(self.done))

    def check_energy(self, positions: Any, velocities: Any) -> None:
        """Nothing drives a splash: its energy may only fall. A jump says that the pressure solver lost itself."""
        before, self.energy = self.energy, mechanical_energy(positions, velocities, self.gravity)
        if self.energy - before > self.energy_gain:
            raise UnstableError(
                f"the energy jumps from {before:.4g} to {self.energy:.4g} m²/s² at frame {self.done}: "
                "the pressure solver lost itself"
            )

    def choose_timestep(self, time: float) -> None:
        """Length of the next step: within the CFL condition, and such that equal ones end on the next frame's time.

        The simulator's own adaptation is off: it changes the length in the middle of a step, between the pressure
        solver's and the positions' use of it, so a shorter step at an impact blew up splashes, and a limit on it
        comes a step too late to meet the frames' times.
        """
        model = self.sph.Simulation.getCurrent().getFluidModel(0)
        velocities = np.asarray(model.getFieldBuffer("velocity"))[: self.count]
        speed = float(np.sqrt((velocities.astype(np.float64) ** 2).sum(axis=1).max()))
        gained = float(np.linalg.norm(self.gravity)) * self.max_timestep
        limit = min(self.max_timestep, CFL_NUMBER * self.spacing / (speed + gained))
        remaining = self.done * self.interval - time
        steps = max(1, math.ceil(remaining / limit - 1e-3))
        self.sph.TimeManager.getCurrent().setTimeStepSize(remaining / steps)

    def after_step(self) -> None:
        """The simulator's callback; an error ends the process, for C++ code would not hand it on."""
        try:
            if os.getppid() != self.parent:
                os._exit(3)
            manager = self.sph.TimeManager.getCurrent()
            time = float(manager.getTime())
            if time > self.done * self.interval - TIME_TOLERANCE:
                self.take_frame(self.sph.Simulation.getCurrent().getFluidModel(0))
            if self.done == self.frames:
                self.positions.flush()
                self.velocities.flush()
                print(f"complete: {self.frames} frames of {self.count} particles", flush=True)
                os._exit(0)
            self.choose_timestep(time)
        except UnstableError as error:
            print(f"error: {error}", flush=True)
            os._exit(UNSTABLE)
        except Exception as error:
            print(f"error: {error}", flush=True)
            os._exit(2)


def main(folder: Path) -> None:
    """Simulate the scene in ``folder``; ends the process with 0 when every frame is written."""
    import pysplishsplash

    simulator = pysplishsplash.Exec.SimulatorBase()
    simulator.init(
        useGui=False,
        sceneFile=str(folder / "splishsplash.json"),
        outputDir=str(folder / "output"),
        initialPause=False,
        useCache=False,
    )
    simulator.initSimulation()
    recorder = Recorder(folder, simulator, pysplishsplash)
    recorder.begin()
    simulator.setTimeStepCB(recorder.after_step)
    simulator.runSimulation()
    print(f"error: the simulator stopped after {recorder.done} of {recorder.frames} frames", flush=True)
    sys.exit(2)


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
