"""The implementation behind OpenMM-ML's ``MLPotential("fastegnn", ...)``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from openmmml.mlpotential import MLPotentialImpl

from egnn_md.errors import InputError
from egnn_md_openmm.mixed import near_images
from egnn_md_openmm.region import check_region
from egnn_md_openmm.system import MOLECULES_FORCE, Source, add_potential, resolve_model
from egnn_md_openmm.topology import choose_atoms
from egnn_md_openmm.whole import bond_tree

if TYPE_CHECKING:
    import openmm
    from openmm import app

OPTIONS = ("implementation", "dtype", "precision", "device", "skin", "periodic")
PRECISIONS = {"single": "float32", "double": "float64"}


class FastEGNNPotentialImpl(MLPotentialImpl):
    """Adds a FastEGNN potential (or any other of this package) to OpenMM-ML's systems.

    Args:
        name: the name it is registered under.
        model: a shipped model's name, a path, or a potential.
        options: defaults for :meth:`addForces`.

    Raises:
        InputError: an option that does not exist.
    """

    def __init__(self, name: str, model: Any = None, **options: Any) -> None:
        self.name = name
        self.model = model
        self.options = _checked(options)

    def addForces(  # noqa: N802
        self,
        topology: app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,
        **args: Any,
    ) -> None:
        """Add the force; ``args`` are ``createSystem``'s: implementation, dtype or precision, device, skin, periodic.

        With ``atoms`` it is a mixed system. Then the region is checked as far as OpenMM-ML shows the system (it does
        not where it interpolates; :func:`egnn_md_openmm.create_mixed_system` checks all); a single molecule in a box
        is given to the model whole and open unless ``periodic`` says otherwise; and OpenMM is told which atoms of the
        region form molecules, since a barostat would otherwise move and wrap each of them by itself.

        Raises:
            As :func:`egnn_md_openmm.add_potential` and :func:`egnn_md_openmm.region.check_region`; InputError for an
            unknown option, or a region whose images would be counted twice or torn apart.
        """
        options = {**self.options, **_checked(args)}
        precision = options.pop("precision", None)
        if precision is not None:
            if precision not in PRECISIONS:
                raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
            options["dtype"] = PRECISIONS[precision]
        region = choose_atoms(topology, atoms)
        if region is None:
            add_potential(system, topology, self._source_model(), force_group=forceGroup, **options)
            return
        source = resolve_model(self._source_model())
        check_region(topology, system, region, model=source.potential)
        near_images(system)
        options["molecule"] = _is_open_molecule(source, topology, region, options.get("periodic"))
        model = source.potential if source.path is None else source.path
        add_potential(system, topology, model, atoms=region, force_group=forceGroup, **options)
        _tell_molecules(system, topology, region)

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Whether the model has the region's electrostatics with the region's own periodic images: it never has.

        OpenMM-ML 1.8 asks this to know who computes the interactions of the region with its images; 1.7 leaves them to
        the force field's PME. That is right here. A molecule is evaluated open. Several molecules are evaluated in the
        box, where virtual nodes carry features without distances, which no image changes; models with Fourier modes,
        whose energy does hold images, are refused there. That virtual nodes connect all atoms *inside* the region is
        another matter (``model.long_range``).
        """
        self._source_model()
        return False

    def _source_model(self) -> Any:
        if self.model is None:
            raise InputError(
                f'MLPotential("{self.name}") needs modelPath: the name of a shipped model ("water"), the '
                "path of a model file, or the path of an exported artefact"
            )
        return self.model


def _is_open_molecule(source: Source, topology: app.Topology, region: list[int], periodic: bool | None) -> bool:
    """Whether the model gets the region as a whole molecule without images.

    Raises:
        InputError: no answer would be right; see :meth:`FastEGNNPotentialImpl.addForces`.
    """
    if topology.getPeriodicBoxVectors() is None:
        return False
    if periodic is None and source.info is not None and source.info.periodic:
        periodic = True
    connected = bond_tree(region, ((bond.atom1.index, bond.atom2.index) for bond in topology.bonds())) is not None
    if connected and not periodic:
        return True
    if periodic is False:
        raise InputError(
            f"periodic=False, but the topology's bonds do not make the {len(region)} atoms of the ML region one "
            "molecule, and parts of it would be torn apart when they cross the boundary; leave periodic out"
        )
    if getattr(source.potential, "needs_cell", False):
        raise InputError(
            "this model has Fourier modes of the whole cell, which hold the interactions of the ML region with its own "
            "images; the force field has them, too. Take a single molecule as region (and leave periodic out), or a "
            "model without Fourier modes"
        )
    return False


def _tell_molecules(system: openmm.System, topology: app.Topology, region: list[int]) -> None:
    """Bonds of zero strength: with the force field's own bonds OpenMM-ML removes what OpenMM knows molecules by."""
    import openmm

    inside = set(region)
    bonds = openmm.HarmonicBondForce()
    bonds.setName(MOLECULES_FORCE)
    for bond in topology.bonds():
        if bond.atom1.index in inside and bond.atom2.index in inside:
            bonds.addBond(bond.atom1.index, bond.atom2.index, 0.1, 0.0)
    if bonds.getNumBonds():
        system.addForce(bonds)


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in OPTIONS:
            raise InputError(f"unknown option {key!r} of the fastegnn potential; known: {', '.join(OPTIONS)}")
    if "dtype" in options and "precision" in options:
        raise InputError("give dtype or precision, not both")
    return options
