"""Forces and whole systems for OpenMM from a trained potential."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from egnn_md.errors import ExportError, InputError
from egnn_md_openmm.dependencies import import_openmm, import_openmmtorch, python_force_class
from egnn_md_openmm.topology import (
    atomic_numbers,
    check_artefact,
    check_atoms,
    choose_atoms,
    molecule_tree,
    resolve_periodic,
)

if TYPE_CHECKING:
    import openmm
    import torch
    from openmm import app

    from egnn_md.export import ArtefactInfo

IMPLEMENTATIONS = ("torch", "python")
MOLECULES_FORCE = "Molecules"


@dataclass
class Source:
    """A model as the user named it: a potential, or an exported artefact with its description."""

    potential: torch.nn.Module | None = None
    path: Path | None = None
    info: ArtefactInfo | None = None

    @property
    def long_range(self) -> bool:
        """Whether an atom can feel another one beyond the reach of the layers (virtual nodes)."""
        if self.info is not None:
            return self.info.long_range
        return bool(self.potential.long_range)  # type: ignore[union-attr]


def resolve_model(model: Any) -> Source:
    """Find out what ``model`` is: a potential, the path of an artefact, the path or name of a model file.

    Raises:
        ModelFileError, UnsafeFileError: the file is missing, damaged, foreign, too new, or a pickle.
        InputError: an object that is none of these.
    """
    import torch

    from egnn_md.checkpoint import load_model
    from egnn_md.export import is_archive, read_artefact

    if isinstance(model, torch.nn.Module):
        missing = [name for name in ("cutoff", "elements", "long_range") if not hasattr(model, name)]
        if missing:
            raise InputError(
                f"{type(model).__name__} is no potential: it lacks {', '.join(missing)} "
                "(the contract is egnn_md.models.Potential)"
            )
        return Source(potential=model)
    if not isinstance(model, str | Path):
        raise InputError(f"a model is a potential, the name of a shipped model or a path, not {type(model).__name__}")
    path = Path(model)
    if is_archive(path) or path.suffix in (".pt", ".pth", ".ptc"):
        return Source(path=path, info=read_artefact(path))
    return Source(potential=load_model(model))


def add_potential(
    system: openmm.System,
    topology: app.Topology,
    model: Any,
    *,
    implementation: str = "torch",
    atoms: Iterable[int] | None = None,
    force_group: int = 0,
    periodic: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    skin: float | str = "auto",
    molecule: bool = False,
) -> openmm.Force:
    """Add a potential to an OpenMM system as one force.

    ``torch``: the model is exported (and checked, see ``egnn_md.export_torchscript``) and runs as a
    ``TorchForce`` on the platform's device. ``python``: it stays in Python behind an ``openmm.PythonForce``,
    which needs no plugin. Both survive ``XmlSerializer``; read such a file with :func:`load_system`. A
    PythonForce is stored as a pickle: read systems only from people you would run a program from.

    Args:
        system: particles must be those of the topology.
        topology: elements, and the box that decides whether the model is periodic.
        model: a potential, the name of a shipped model, the path of a model file or of an exported artefact.
        implementation: ``torch`` or ``python``.
        atoms: indices of the atoms that the potential acts on; the others get no force. None means all.
        force_group: 0 to 31.
        periodic: None follows the topology (or the system); False ignores a box.
        dtype: ``float32`` (default) or ``float64``; an artefact has its own.
        device: of the ``python`` implementation; a TorchForce computes where its platform does.
        skin: of the neighbour list, Å: it is made for the cutoff plus this, and again when motion has used it up.
            ``auto`` finds the cheapest while the system moves. Results do not depend on it. An artefact has its own.
        molecule: the atoms are one molecule, which the model sees as an open system although there is a box: made
            whole along the topology's bonds wherever it lies, and without images. Goes with ``periodic`` None or False.

    Returns:
        The added force, owned by the system. A PythonForce's callback is its attribute ``callback``.

    Raises:
        ExportError: an artefact made for other atoms, units or boundaries; scripted and eager disagree.
        UnknownElementError: an atom whose element the model was not trained on.
        InputError: an atom without an element, a virtual site, an impossible subset, a missing box; ``molecule`` for
            atoms that the topology's bonds do not connect.
        ModelFileError: the model cannot be read.
        MissingDependencyError: OpenMM or its plugin is not installed.
    """
    import_openmm()
    if implementation not in IMPLEMENTATIONS:
        raise InputError(f"implementation must be {' or '.join(IMPLEMENTATIONS)}, not {implementation!r}")
    if not 0 <= force_group <= 31:
        raise InputError(f"force_group must be 0 to 31, not {force_group}")
    chosen = choose_atoms(topology, atoms)
    check_atoms(system, topology, chosen)
    repeats = resolve_periodic(system, topology, periodic)
    source = resolve_model(model)
    boxed = repeats or resolve_periodic(system, topology, None)
    if molecule:
        if periodic:
            raise InputError("molecule=True means a molecule without images; leave periodic=True out")
        repeats = False
    if source.info is not None:
        check_artefact(source.info, source.path, topology, chosen, repeats)
        if dtype is not None and str(dtype).removeprefix("torch.") != source.info.dtype:
            raise ExportError(
                f"{source.path} was exported in {source.info.dtype}, not {dtype}; leave dtype out or export it again"
            )
    else:
        from egnn_md.export.torchscript import check_known

        numbers = atomic_numbers(topology)
        where = range(len(numbers)) if chosen is None else chosen
        check_known(source.potential, [numbers[i] for i in where], list(where))  # type: ignore[arg-type]
    tree = None
    if molecule and boxed:
        tree = molecule_tree(topology, chosen if source.info is None else source.info.atoms)
    build = _torch_force if implementation == "torch" else _python_force
    force = build(source, topology, chosen, repeats, dtype=dtype or "float32", device=device, skin=skin, tree=tree)
    force.setName("FastEGNN")
    force.setForceGroup(force_group)
    force.setUsesPeriodicBoundaryConditions(repeats or tree is not None)
    system.addForce(force)
    # what OpenMM hands out later is another Python object for the same force, without attributes
    added = [force.callback] if hasattr(force, "callback") else []
    system.callbacks = [*getattr(system, "callbacks", []), *added]
    return force


def _torch_force(
    source: Source,
    topology: app.Topology,
    atoms: list[int] | None,
    periodic: bool,
    *,
    dtype: str | torch.dtype,
    device: str,
    skin: float | str,
    tree: list[int] | None = None,
) -> openmm.Force:
    from egnn_md.models.evaluate import EvaluatesItself

    if isinstance(source.potential, EvaluatesItself):
        raise InputError(
            f"a {type(source.potential).__name__} cannot be exported to TorchScript; use implementation='python' "
            "(egnn-md md: --implementation python)"
        )
    openmmtorch = import_openmmtorch()
    from egnn_md.export import export_torchscript, load_module
    from egnn_md.export.torchscript import quiet_torchscript, script
    from egnn_md_openmm.whole import WholeArtefact

    def wrap(path: Path) -> openmm.Force:
        # the module, not the path: a system that is serialised must not depend on a file elsewhere
        module = load_module(path)
        if tree is not None:
            module = script(WholeArtefact(module, tree))
        # the plugin saves the module through Python, where a warning turned into an error ends the process
        with quiet_torchscript():
            return openmmtorch.TorchForce(module)

    if source.path is not None:
        return wrap(source.path)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "potential.pt"
        export_torchscript(
            source.potential,  # type: ignore[arg-type]
            path,
            atomic_numbers(topology),
            periodic=periodic,
            dtype=dtype,
            atoms=atoms,
            kernels="auto",
            skin=skin,
        )
        return wrap(path)


def _python_force(
    source: Source,
    topology: app.Topology,
    atoms: list[int] | None,
    periodic: bool,
    *,
    dtype: str | torch.dtype,
    device: str,
    skin: float | str,
    tree: list[int] | None = None,
) -> openmm.Force:
    force_class = python_force_class()
    from egnn_md.devices import find_dtype
    from egnn_md.export import load_module
    from egnn_md.export.torchscript import prepare
    from egnn_md.models.evaluate import EvaluatesItself
    from egnn_md_openmm.payload import ScriptedPotential
    from egnn_md_openmm.python_force import PotentialCallback

    model: Any
    if source.info is not None and source.path is not None:
        info = source.info
        inner = load_module(source.path).potential
        model = ScriptedPotential(
            inner, info.cutoff, [], long_range=info.long_range, needs_cell=getattr(inner, "needs_cell", False)
        )
        atoms, numbers, kind = info.atoms, info.numbers, find_dtype(info.dtype)
    else:
        everyone = atomic_numbers(topology)
        numbers = everyone if atoms is None else [everyone[i] for i in atoms]
        kind = find_dtype(dtype)
        model = source.potential
        if not isinstance(model, EvaluatesItself):
            model = prepare(model, kind)
    callback = PotentialCallback(
        model, numbers, atoms=atoms, periodic=periodic, device=device, dtype=kind, skin=skin, molecule=tree
    )
    force = force_class(callback)
    force.callback = callback
    return force


def create_system(
    topology: app.Topology,
    model: Any,
    *,
    implementation: str = "torch",
    periodic: bool | None = None,
    dtype: str | torch.dtype | None = None,
    device: str = "cpu",
    skin: float | str = "auto",
    force_group: int = 0,
    constraints: Iterable[tuple[int, int, Any]] = (),
    remove_cm_motion: bool = True,
    molecules: bool = True,
) -> openmm.System:
    """An OpenMM system whose whole energy is the potential's: masses, box and forces from the topology.

    Args:
        topology: every atom needs an element.
        model, implementation, periodic, dtype, device, skin, force_group: see :func:`add_potential`.
        constraints: (first, second, length) triples, lengths in nm or as quantities; none by default, since
            the potential knows its own bonds.
        remove_cm_motion: add a ``CMMotionRemover``.
        molecules: tell OpenMM the topology's bonds by a bond force of zero strength, so that trajectories are
            wrapped by whole molecules and a barostat moves molecules and not atoms. It adds no energy.

    Returns:
        The system; ``openmm.app.Simulation`` and any integrator or barostat take it from here.

    Raises:
        As :func:`add_potential`; InputError for missing hydrogens, or a total charge (of standard residues) that the
            model was not trained on.
    """
    from egnn_md_openmm.region import check_topology

    openmm = import_openmm()
    source = resolve_model(model)
    check_topology(topology, source.potential)
    system = openmm.System()
    for atom in topology.atoms():
        system.addParticle(0.0 if atom.element is None else atom.element.mass)
    box = topology.getPeriodicBoxVectors()
    if box is not None:
        system.setDefaultPeriodicBoxVectors(*box)
    for first, second, length in constraints:
        system.addConstraint(first, second, length)
    add_potential(
        system,
        topology,
        source.potential if source.path is None else source.path,
        implementation=implementation,
        force_group=force_group,
        periodic=periodic,
        dtype=dtype,
        device=device,
        skin=skin,
    )
    if molecules and topology.getNumBonds():
        bonds = openmm.HarmonicBondForce()
        bonds.setName(MOLECULES_FORCE)
        for bond in topology.bonds():
            bonds.addBond(bond.atom1.index, bond.atom2.index, 0.1, 0.0)
        system.addForce(bonds)
    if remove_cm_motion:
        system.addForce(openmm.CMMotionRemover())
    return system


def load_system(source: str | Path) -> openmm.System:
    """Read a system that ``openmm.XmlSerializer`` wrote, with everything our forces need made ready first.

    A TorchForce's module uses a neighbour list that must be registered with PyTorch before it can be read,
    which ``XmlSerializer.deserialize`` alone does not do in a fresh process.

    Args:
        source: path of the XML file, or the XML itself.

    Raises:
        InputError: not a file and not XML, or XML that is no system.
        ModelFileError: a model inside was changed after it was written.
        MissingDependencyError: the system holds a TorchForce and its plugin is not installed.
    """
    from egnn_md_openmm.failures import last_error, remember
    from egnn_md_openmm.payload import check_torch_forces

    openmm = import_openmm()
    text = str(source)
    if not text.lstrip().startswith("<"):
        path = Path(source)
        if not path.is_file():
            raise InputError(f"there is no system at {path}; XmlSerializer.serialize(system) gives its text")
        text = path.read_text()
    if 'type="TorchForce"' in text:
        import_openmmtorch()
        check_torch_forces(text)
    remember(None)
    try:
        system = openmm.XmlSerializer.deserialize(text)
    except (openmm.OpenMMException, ValueError) as error:
        raise InputError(f"this is not the XML of an OpenMM system: {error}") from error
    refused = last_error()
    if refused is not None:
        raise refused
    if not isinstance(system, openmm.System):
        raise InputError(f"the XML describes a {type(system).__name__}, not an openmm.System")
    return system
