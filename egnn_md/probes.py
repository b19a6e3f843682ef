"""Small scripts that try one engine each, run in child processes by ``egnn-md doctor``.

They are text because this package never imports an engine: only the child does. Every engine takes two argon
atoms with the Lennard-Jones reference model one step forward; its energy must be that of the eager model.
A script calls ``stage(name)`` before what may end the process, and ``done(...)`` last.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

ENERGY_TOLERANCE = 1e-5  # relative; the engines run in float32
_MARK = "egnn-md-probe:"

_HEAD = f"""
import json, warnings
warnings.filterwarnings("ignore")
def _say(**values):
    print({_MARK!r} + json.dumps(values), flush=True)
def stage(name):
    _say(stage=name)
def done(**values):
    _say(done=True, **values)
"""

_ARGON = """
stage("import")
import ase
from egnn_md.models import LennardJones
atoms = ase.Atoms("Ar2", [[0.0, 0.0, 0.0], [0.0, 0.3, 3.8]])
model = LennardJones(epsilon=0.0104, sigma=3.4, cutoff=8.0)
"""

_OPENMM = (
    _ARGON
    + """
import openmm
from openmm import app, unit
from egnn_md.units import KJ_PER_MOL_PER_EV
topology = app.Topology()
chain = topology.addChain()
for _ in atoms:
    topology.addAtom("Ar", app.Element.getBySymbol("Ar"), topology.addResidue("AR", chain))
def step_and_serialise(system):
    stage("first step")
    integrator = openmm.VerletIntegrator(0.001)
    context = openmm.Context(system, integrator)
    context.setPositions(atoms.positions * 0.1)
    energy = context.getState(getEnergy=True).getPotentialEnergy()
    integrator.step(1)
    context.getState(getForces=True)
    stage("reading the system back with XmlSerializer")
    again = openmm.XmlSerializer.deserialize(openmm.XmlSerializer.serialize(system))
    openmm.Context(again, openmm.VerletIntegrator(0.001))
    done(energy=energy.value_in_unit(unit.kilojoule_per_mole) / KJ_PER_MOL_PER_EV,
         note="platform " + context.getPlatform().getName())
"""
)


@dataclass(frozen=True)
class Probe:
    """A script, the modules it needs, and the command that installs them."""

    name: str
    title: str
    script: str
    modules: tuple[str, ...] = ()
    install: str = ""
    core: bool = False
    same_energy: bool = False


@dataclass
class ProbeResult:
    """``status`` is works, missing or fails; ``detail`` says what, ``install`` how to get what is missing."""

    name: str
    title: str
    status: str
    detail: str
    install: str = ""
    core: bool = False
    values: dict[str, Any] = field(default_factory=dict)


PROBES = (
    Probe(
        "torch",
        "PyTorch",
        """
stage("import")
import torch
names, trouble = [], ""
try:
    for index in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(index)
        names.append(f"{card.name} ({card.total_memory / 2**30:.0f} GiB)")
        assert float(torch.ones(8, device=f"cuda:{index}").sum()) == 8.0
except Exception as error:  # a card that does not work leaves the processor, which does
    trouble = f"; a sum on GPU {index} failed: {error}".splitlines()[0]
done(cuda=torch.version.cuda, gpus=names, threads=torch.get_num_threads(),
     note=(", ".join(names) or "CPU only, no CUDA device") + trouble)
""",
        ("torch",),
        core=True,
    ),
    Probe(
        "kernels",
        "fused kernels (CPU)",
        """
stage("compiling")
import copy, torch
from pathlib import Path
from egnn_md.kernels import accelerate
from egnn_md.kernels.native.build import find_compiler, library
library()
stage("comparing with the plain path")
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
network = FastEGNN(FastEGNNConfig(node_features=1)).double()
edges = torch.tensor([[0, 0, 1, 2], [1, 2, 0, 0]])
inputs = torch.ones(3, 1).double(), torch.randn(3, 3).double(), torch.randn(3, 3).double(), edges, torch.zeros(3).long()
with torch.no_grad():
    plain, fused = network(*inputs)[0], accelerate(copy.deepcopy(network), "fused")(*inputs)[0]
assert float((plain - fused).abs().max()) < 1e-11, "the compiled kernels are wrong; use EGNN_MD_KERNELS=plain"
done(note="compiled by " + Path(find_compiler()).name)
""",
        ("torch",),
        install="a C++ compiler (on Debian: apt-get install g++)",
    ),
    Probe(
        "collectives",
        "several devices",
        """
stage("import")
import threading, torch
import torch.distributed as dist
from egnn_md.distributed.wire import Wire, open_group
stage("a sum over two ranks")
store, found = dist.HashStore(), []
def rank(number):
    wire = Wire(open_group(store, number, 2, limit=30, loopback=True), number, 2)
    found.append(float(wire.total(torch.tensor([1.0 + number]))))
    wire.group = None
ranks = [threading.Thread(target=rank, args=(number,)) for number in range(2)]
[thread.start() for thread in ranks]
[thread.join() for thread in ranks]
assert found == [3.0, 3.0], found
done(note="gloo" + (", NCCL" if dist.is_nccl_available() and torch.cuda.is_available() else ""))
""",
        ("torch",),
    ),
    Probe(
        "eager",
        "models in Python",
        _ARGON
        + """
from egnn_md.data.structures import graph_from_atoms
from egnn_md.models import evaluate
stage("energy and forces")
done(energy=float(evaluate(model, graph_from_atoms(atoms, model.cutoff))["energy"]))
""",
        core=True,
        same_energy=True,
    ),
    Probe(
        "ase",
        "ASE",
        _ARGON
        + """
from ase.md.verlet import VelocityVerlet
from egnn_md_ase import FastEGNNCalculator
stage("first step")
atoms.calc = FastEGNNCalculator(model)
energy = atoms.get_potential_energy()
VelocityVerlet(atoms, 0.1).run(1)
done(energy=float(energy))
""",
        core=True,
        same_energy=True,
    ),
    Probe(
        "openmm",
        "OpenMM itself",
        """
stage("import")
import openmm
stage("platforms")
count = openmm.Platform.getNumPlatforms()
names = [openmm.Platform.getPlatform(i).getName() for i in range(count)]
failures = [str(line) for line in openmm.Platform.getPluginLoadFailures()]
done(platforms=names, failures=failures, note="platforms " + ", ".join(names))
""",
        ("openmm",),
        "pip install 'egnn-md[openmm]'",
    ),
    Probe(
        "openmm-torch",
        "OpenMM, TorchForce",
        _OPENMM
        + """
from egnn_md_openmm import create_system
stage("export")
step_and_serialise(create_system(topology, model, implementation="torch", periodic=False))
""",
        ("openmm", "openmmtorch"),
        "pip install 'egnn-md[openmm]'",
        same_energy=True,
    ),
    Probe(
        "openmm-python",
        "OpenMM, PythonForce",
        _OPENMM
        + """
from egnn_md_openmm import create_system
step_and_serialise(create_system(topology, model, implementation="python", periodic=False))
""",
        ("openmm",),
        "pip install 'egnn-md[openmm]'",
        same_energy=True,
    ),
    Probe(
        "openmm-ml",
        "OpenMM-ML",
        """
stage("import")
from openmmml import MLPotential
stage("entry point")
MLPotential("fastegnn")
done()
""",
        ("openmm", "openmmml"),
        "pip install 'egnn-md[openmm]'",
    ),
    Probe(
        "vesin",
        "neighbours: vesin",
        """
stage("import")
from egnn_md.neighbors import neighbor_list
import numpy as np
pairs, _ = neighbor_list(np.array([[0.0, 0, 0], [0, 0, 1.0]]), np.eye(3) * 9, np.ones(3, bool), 2.0)
assert pairs.shape == (2, 2), pairs
done()
""",
        ("vesin_torch",),
        "pip install 'egnn-md'",
        core=True,
    ),
    Probe(
        "torch-cluster",
        "neighbours: torch-cluster",
        """
stage("import")
from egnn_md.neighbors import neighbor_list
import numpy as np
pairs, _ = neighbor_list(np.array([[0.0, 0, 0], [0, 0, 1.0]]), np.zeros((3, 3)), np.zeros(3, bool), 2.0,
                         backend="torch_cluster")
assert pairs.shape == (2, 2), pairs
done()
""",
        ("torch_cluster",),
        "pip install wheel 'setuptools<82' && pip install --no-build-isolation 'egnn-md[cluster]'",
    ),
    Probe(
        "xtb",
        "labels: GFN2-xTB",
        """
stage("import")
import ase
from tblite.ase import TBLite
stage("one water molecule")
water = ase.Atoms("OH2", [[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
water.calc = TBLite(method="GFN2-xTB", verbosity=0)
done(note=f"E(H2O) = {water.get_potential_energy():.4f} eV")
""",
        ("tblite",),
        "pip install 'egnn-md[label]'",
    ),
)


def _ending(code: int, stderr: str) -> str:
    """What ended a child: a signal by its name, else the last line it wrote to stderr."""
    if code < 0:
        return f"the process was killed by {signal.Signals(-code).name}"
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the process ended with exit code {code}"


def run_probe(probe: Probe, *, timeout: float = 120.0) -> ProbeResult:
    """Run one probe in a child process, in an empty folder, for at most ``timeout`` seconds."""
    result = ProbeResult(probe.name, probe.title, "fails", "", core=probe.core)
    missing = [module for module in probe.modules if find_spec(module) is None]
    if missing:
        result.status, result.install = "missing", probe.install
        result.detail = f"{', '.join(missing)} not installed"
        return result
    with tempfile.TemporaryDirectory() as folder:
        try:
            child = subprocess.run(
                [sys.executable, "-c", _HEAD + probe.script],
                capture_output=True,
                text=True,
                errors="replace",
                timeout=timeout,
                cwd=folder,
                stdin=subprocess.DEVNULL,
            )
        except subprocess.TimeoutExpired:
            result.detail = f"no answer within {timeout:g} s"
            return result
    said = [json.loads(line[len(_MARK) :]) for line in child.stdout.splitlines() if line.startswith(_MARK)]
    if child.returncode == 0 and said and said[-1].pop("done", False):
        result.status, result.values = "works", said[-1]
        result.detail = str(result.values.pop("note", ""))
    else:
        stages = [line["stage"] for line in said if "stage" in line]
        where = f"{stages[-1]}: " if stages else ""
        result.detail = where + _ending(child.returncode, child.stderr)
    return result


def run_probes(probes: Sequence[Probe], *, timeout: float = 120.0) -> list[ProbeResult]:
    """Run ``probes`` side by side, one a core, and compare the engines' energies with the eager model's."""
    with ThreadPoolExecutor(max_workers=min(4, os.cpu_count() or 1)) as pool:
        results = list(pool.map(lambda probe: run_probe(probe, timeout=timeout), probes))
    reference = next((r.values.get("energy") for r in results if r.name == "eager"), None)
    for probe, result in zip(probes, results, strict=True):
        if not probe.same_energy or result.status != "works" or reference is None:
            continue
        energy = result.values.get("energy")
        if energy is None or not abs(energy - reference) <= ENERGY_TOLERANCE * abs(reference):
            result.status = "fails"
            result.detail = f"energy {energy} eV, the model in Python gives {reference} eV"
    return results
