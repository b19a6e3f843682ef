"""Where the time of a dynamics step goes: neighbour list, model, copies, integrator.

The calculator's and the callback's own parts run inside timers that are put round them for the length of the
measurement. A TorchForce runs in the engine without Python, so its parts are measured between windows of the run, on
positions of its first steps: the exported module, its potential alone on the same pairs, its list alone.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import cycle
from typing import Any
from unittest import mock

from egnn_md.devices import find_device, find_dtype
from egnn_md_benchmarks.paths import Unavailable, on_path
from egnn_md_benchmarks.timing import choose_clock, interleaved, wait

ENGINES = ("ase", "openmm-torch", "openmm-python")
PARTS = ("list", "model", "copies", "integrator")
FRAMES, ROUNDS = 24, 3  # positions beside a TorchForce's run, and how many of them between two windows


class Timers:
    """Seconds and calls, by name."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.seconds: dict[str, float] = {}

    def around(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """``call`` with its time added to ``name``; a card is waited for on both sides."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            wait(self.device)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                wait(self.device)
                self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

        return timed

    def take(self) -> dict[str, float]:
        """What was counted since the last time."""
        found, self.seconds = self.seconds, {}
        return found


def split(total: float, force: float, model: float, neighbours: float) -> dict[str, float]:
    """The four parts of ``total``, which they sum to: what the force takes beside list and model is copies (wrapping,
    checks, conversion), what the step takes beside the force is the integrator."""
    return {
        "list": neighbours,
        "model": model,
        "copies": force - model - neighbours,
        "integrator": total - force,
    }


class ASERun:
    """Velocity Verlet with ``FastEGNNCalculator``."""

    how = "timers round the calculator's call, its list and its model"

    def __init__(self, atoms: Any, model: Any, options: Any, timestep: float) -> None:
        from ase import units
        from ase.md.verlet import VelocityVerlet

        from egnn_md_ase import FastEGNNCalculator

        self.atoms, self.timers = atoms, Timers(options.device)
        self.calculator = FastEGNNCalculator(model, device=options.device, dtype=options.dtype)
        atoms.calc = self.calculator
        self.dynamics = VelocityVerlet(atoms, timestep * units.fs)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Timers are in place."""
        import egnn_md_ase.calculator as module

        neighbours = self.calculator._neighbors
        with ExitStack() as stack:
            put = mock.patch.object
            around = self.timers.around
            stack.enter_context(put(module, "evaluate", around("model", module.evaluate)))
            stack.enter_context(put(neighbours, "update", around("list", neighbours.update)))
            calculate = around("force", self.calculator.calculate)
            stack.enter_context(put(self.calculator, "calculate", calculate))
            yield

    def steps(self, count: int) -> None:
        """Advance."""
        for _ in range(count):
            self.dynamics.step()

    def between(self) -> None:
        """Nothing is measured between windows."""

    def parts(self, total: float, count: int) -> dict[str, float]:
        """Seconds a step of the last ``count`` steps that took ``total``."""
        found = self.timers.take()
        force, model, neighbours = (found.get(name, 0.0) / count for name in ("force", "model", "list"))
        return split(total / count, force, model, neighbours)

    def statistics(self) -> dict[str, Any]:
        """How often the list was made."""
        counted = self.calculator.neighbor_statistics
        return {"list_updates": counted.updates, "list_rebuilds": counted.rebuilds}


class OpenMMRun:
    """OpenMM with the plugin's velocity Verlet and a PythonForce or a TorchForce."""

    def __init__(self, atoms: Any, model: Any, options: Any, timestep: float, implementation: str) -> None:
        import openmm
        from ase import units
        from openmm import app, unit

        from egnn_md_openmm import add_potential
        from egnn_md_openmm.engine import velocity_verlet

        topology = app.Topology()
        chain = topology.addChain()
        for index, number in enumerate(atoms.numbers):
            if index % 3 == 0:
                residue = topology.addResidue("HOH", chain)
            topology.addAtom("OHH"[index % 3], app.Element.getByAtomicNumber(int(number)), residue)
        topology.setPeriodicBoxVectors([openmm.Vec3(*row) for row in (atoms.cell.array / 10)] * unit.nanometer)
        self.implementation, self.options, self.timers = implementation, options, Timers(options.device)
        system = openmm.System()
        for mass in atoms.get_masses():
            system.addParticle(mass)
        system.setDefaultPeriodicBoxVectors(*topology.getPeriodicBoxVectors())
        force = add_potential(
            system, topology, model, implementation=implementation, dtype=options.dtype, device=options.device
        )
        self.callback = getattr(force, "callback", None)
        name = "CUDA" if options.device.startswith("cuda") else "CPU"
        platform = openmm.Platform.getPlatformByName(name)
        self.context = openmm.Context(system, velocity_verlet(timestep / 1000), platform)
        self.context.setPositions(atoms.positions / 10)
        self.context.setVelocities(atoms.get_velocities() * units.fs * 100)  # Å/fs to nm/ps
        self.atoms = atoms
        self.how = (
            "timers round the callback, its list and its model"
            if implementation == "python"
            else "exported module, its potential and its list measured between the run's windows, on "
            "positions of its first steps; differences of such times may come out below zero on a busy machine"
        )
        self._wall = choose_clock("cpu", wall=True)
        self._beside: dict[str, list[float]] = {"force": [], "model": [], "list": []}
        self._calls: dict[str, Callable[[], Any]] = {}
        if implementation == "torch":
            self._calls = self._beside_calls(model)
            # TorchScript profiles and recompiles in its first calls
            interleaved(self._calls, 1, warmup=3, device=options.device, clock=self._wall)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Timers are in place (a TorchForce has none)."""
        if self.implementation != "python":
            yield
            return
        import egnn_md_openmm.python_force as module

        assert self.callback is not None
        kind, neighbours, around = module.PotentialCallback, self.callback.neighbors, self.timers.around
        with (
            mock.patch.object(module, "evaluate", around("model", module.evaluate)),
            mock.patch.object(neighbours, "update", around("list", neighbours.update)),
            mock.patch.object(kind, "__call__", _method(around("force", kind.__call__))),
        ):
            yield

    def steps(self, count: int) -> None:
        """Advance."""
        self.context.getIntegrator().step(count)

    def parts(self, total: float, count: int) -> dict[str, float]:
        """Seconds a step of the last ``count`` steps that took ``total``."""
        if self.implementation == "python":
            found = self.timers.take()
            force, model, neighbours = (found.get(name, 0.0) / count for name in ("force", "model", "list"))
            return split(total / count, force, model, neighbours)
        beside = {name: sum(values) / len(values) for name, values in self._beside.items()}
        return split(total / count, beside["force"], beside["model"], beside["list"])

    def between(self) -> None:
        """Some rounds of what is measured beside a TorchForce's run, which stands still meanwhile."""
        if self.implementation == "torch":
            found = interleaved(self._calls, ROUNDS, warmup=0, device=self.options.device, clock=self._wall)
            for name, values in found.items():
                self._beside[name] += values

    def _frames(self) -> list[Any]:
        """Positions (N, 3), nm, of successive steps."""
        import torch
        from openmm import unit

        frames = []
        for _ in range(FRAMES):
            self.steps(1)
            found = self.context.getState(positions=True).getPositions(asNumpy=True)
            frames.append(torch.tensor(found.value_in_unit(unit.nanometer)))
        return frames

    def _beside_calls(self, model: Any) -> dict[str, Callable[[], Any]]:
        """The exported module with forces, its potential alone on the same pairs, its list alone."""
        import tempfile
        from pathlib import Path

        import torch

        from egnn_md.export import export_torchscript, load_module
        from egnn_md.neighbors import neighbor_list

        device, dtype = torch.device(self.options.device), find_dtype(self.options.dtype)
        numbers = self.atoms.numbers.tolist()
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt"
            info = export_torchscript(model, path, numbers, periodic=True, dtype=self.options.dtype, kernels="auto")
            if info.kernels != os.environ.get("EGNN_MD_KERNELS"):
                raise Unavailable(f"the exported module is {info.kernels}")
            # each keeps a list of its own
            module, other = load_module(path).to(device), load_module(path).to(device)
        frames = [frame.to(device) for frame in self._frames()]  # nm, as the engine gives them
        box = torch.tensor(self.atoms.cell.array, device=device) / 10
        places, cell, home = (10 * frames[0]).to(dtype), 10 * box, torch.zeros_like(frames[0])
        pairs = neighbor_list(10 * frames[0].cpu(), cell.cpu(), self.atoms.pbc, model.cutoff)
        edges, shifts = pairs[0].to(device), pairs[1].to(device, dtype) @ cell.to(dtype)
        species = torch.tensor(numbers, device=device)
        batch, periodic = torch.zeros_like(species), torch.ones(1, dtype=torch.bool, device=device)
        # to and fro, so that every position is a step away from the one before
        walks = [cycle([*frames, *frames[-2:0:-1]]) for _ in range(2)]

        def whole() -> None:
            x = next(walks[0]).clone().requires_grad_(True)
            torch.autograd.grad(module(x, box), x)

        def alone() -> None:
            x = places.clone().requires_grad_(True)
            torch.autograd.grad(module.potential(x, species, edges, shifts, batch, periodic).sum(), x)

        def neighbours() -> None:
            other.neighbors(10 * next(walks[1]), cell, home, True)

        return {"force": whole, "model": alone, "list": neighbours}

    def statistics(self) -> dict[str, Any]:
        """How often the list was made: at every step of a TorchForce."""
        if self.callback is None:
            return {}
        counted = self.callback.neighbors.statistics
        return {"list_updates": counted.updates, "list_rebuilds": counted.rebuilds}


def _method(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *args: function(self, *args)


def make_run(engine: str, path: str, atoms: Any, options: Any, timestep: float) -> ASERun | OpenMMRun:
    """The engine's run of the model ``options.model`` on ``path``.

    Raises:
        MissingDependencyError: OpenMM or its plugin is not installed.
        Unavailable: the path is not to be had here.
    """
    from egnn_md.checkpoint import load_model

    model = load_model(options.model).to(device=find_device(options.device), dtype=find_dtype(options.dtype))
    model = on_path(model.eval().requires_grad_(False), path)
    # engines copy a model, export it and choose its layers by themselves: this is what they are told
    with mock.patch.dict(os.environ, {"EGNN_MD_KERNELS": path}):
        return _make(engine, model, atoms, options, timestep)


def _make(engine: str, model: Any, atoms: Any, options: Any, timestep: float) -> ASERun | OpenMMRun:
    if engine == "ase":
        return ASERun(atoms, model, options, timestep)
    from egnn_md_openmm.dependencies import import_openmm, import_openmmtorch

    import_openmm()
    implementation = engine.partition("-")[2]
    if implementation == "torch":
        import_openmmtorch()
    return OpenMMRun(atoms, model, options, timestep, implementation)

