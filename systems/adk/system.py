"""The protein as an OpenMM system: amber14 with GBn2 implicit solvent."""

from __future__ import annotations

import importlib
import importlib.util
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from egnn_md.errors import InputError, MissingDependencyError

INSTALL_OPENMM = "pip install 'egnn-md[openmm]'"
STARTS = ("closed", "open")
FORCE_FIELD = ("amber14-all.xml", "implicit/gbn2.xml")
PLATFORMS = ("CUDA", "HIP", "OpenCL", "CPU")  # auto takes the first that is there


def import_openmm() -> tuple[ModuleType, ModuleType, ModuleType]:
    """``openmm``, ``openmm.app`` and ``openmm.unit``. Raises MissingDependencyError with the pip command."""
    try:
        return tuple(importlib.import_module(name) for name in ("openmm", "openmm.app", "openmm.unit"))  # type: ignore[return-value]
    except ImportError as error:
        raise MissingDependencyError(f"molecular dynamics of a protein needs OpenMM ({error}): {INSTALL_OPENMM}") from (
            error
        )


def mdanalysis_tests_file(name: str) -> Path:
    """A file that MDAnalysisTests ships. Raises MissingDependencyError if the package is not installed."""
    spec = importlib.util.find_spec("MDAnalysisTests")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(f"{name} comes with MDAnalysisTests: pip install MDAnalysisTests")
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise MissingDependencyError(
            f"{path} is missing; install it again: pip install --force-reinstall MDAnalysisTests"
        )
    return path


def start_file(start: str) -> Path:
    """PDB file of ``closed`` (1AKE) or ``open`` (4AKE) adenylate kinase, or ``start`` itself as a path."""
    if start in STARTS:
        return mdanalysis_tests_file(f"adk_{start}.pdb")
    path = Path(start)
    if not path.is_file():
        raise InputError(f"--start {start}: neither {' nor '.join(STARTS)}, nor a file; give a PDB file")
    return path


def build_system(
    path: Path, *, cutoff: float, hydrogen_mass: float, platform: Any = None, seed: int = 0
) -> tuple[Any, Any, Any]:
    """Topology, positions and system of the protein in ``path``, its hydrogens replaced by the force field's own.

    Args:
        cutoff: nm, of Coulomb, Lennard-Jones and generalised Born terms; 0 for none.
        hydrogen_mass: amu; the heavy atom gives what the hydrogen gets.
        platform: where the new hydrogens are relaxed; OpenMM's choice if None.
        seed: of the first places of the hydrogens, which OpenMM draws at random before it relaxes them.

    Raises:
        InputError: the file cannot be read, or the force field lacks one of its residues.
    """
    openmm, app, unit = import_openmm()
    try:
        pdb = app.PDBFile(str(path))
    except Exception as error:  # the PDB reader raises whatever its parsing meets
        raise InputError(f"{path} cannot be read as PDB ({error})") from error
    force_field = app.ForceField(*FORCE_FIELD)
    modeller = app.Modeller(pdb.topology, pdb.positions)
    modeller.delete([a for a in modeller.topology.atoms() if a.element is None or a.element.symbol == "H"])
    if modeller.topology.getNumAtoms() == 0:
        raise InputError(f"{path} holds no heavy atom; give a PDB file of a protein")
    method: dict[str, Any] = {"nonbondedMethod": app.NoCutoff}
    if cutoff > 0:
        method = {"nonbondedMethod": app.CutoffNonPeriodic, "nonbondedCutoff": cutoff * unit.nanometer}
    try:
        with _seeded(seed):
            modeller.addHydrogens(force_field, platform=platform)
        system = force_field.createSystem(
            modeller.topology, constraints=app.HBonds, hydrogenMass=hydrogen_mass * unit.amu, **method
        )
    except Exception as error:
        raise InputError(
            f"{path} does not fit {' + '.join(FORCE_FIELD)} ({error}); remove ligands and waters, complete the residues"
        ) from error
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            # the solvent is the Born term's business; a reaction field would count it twice
            force.setReactionFieldDielectric(1.0)
        elif isinstance(force, openmm.CMMotionRemover):
            force.setFrequency(100)
    return modeller.topology, modeller.positions, system


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Python's own random numbers from ``seed`` inside the block; outside they go on as if nothing had happened."""
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        random.setstate(state)


def charges_of(system: Any) -> list[float]:
    """Partial charges (elementary charges) of every atom; zeros where the system has no Coulomb term."""
    openmm, _, unit = import_openmm()
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            particles = range(force.getNumParticles())
            return [force.getParticleParameters(i)[0].value_in_unit(unit.elementary_charge) for i in particles]
    return [0.0] * system.getNumParticles()


def choose_platform(name: str, threads: int | None) -> tuple[Any, dict[str, str]]:
    """OpenMM platform and its properties. ``auto``: the fastest that is there.

    Raises InputError naming the platforms that are there.
    """
    openmm, _, _ = import_openmm()
    known = [openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())]
    if name == "auto":
        name = next(candidate for candidate in (*PLATFORMS, "Reference") if candidate in known)
    if name not in known:
        raise InputError(f"--platform {name}: OpenMM has {', '.join(known)} here; choose one of them, or auto")
    properties: dict[str, str] = {}
    if name == "CPU" and threads is not None:
        properties["Threads"] = str(threads)
    elif name in ("CUDA", "HIP", "OpenCL"):
        properties["Precision"] = "mixed"
    return openmm.Platform.getPlatformByName(name), properties
