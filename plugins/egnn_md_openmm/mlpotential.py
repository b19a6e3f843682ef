"""The implementation behind OpenMM-ML's ``MLPotential("fastegnn", ...)``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from openmmml.mlpotential import MLPotentialImpl

from egnn_md.errors import InputError
from egnn_md_openmm.system import Source, add_potential, resolve_model

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
        """Add the force; ``args`` are ``createSystem``'s: implementation, dtype or precision, device, skin.

        Raises:
            As :func:`egnn_md_openmm.add_potential`; InputError for an unknown option.
        """
        options = {**self.options, **_checked(args)}
        precision = options.pop("precision", None)
        if precision is not None:
            if precision not in PRECISIONS:
                raise InputError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
            options["dtype"] = PRECISIONS[precision]
        add_potential(system, topology, self._source_model(), atoms=atoms, force_group=forceGroup, **options)

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Whether the model reaches beyond its cutoff times its layers: with virtual nodes it does."""
        source: Source = resolve_model(self._source_model())
        return source.long_range

    def _source_model(self) -> Any:
        if self.model is None:
            raise InputError(
                f'MLPotential("{self.name}") needs modelPath: the name of a shipped model ("water"), the '
                "path of a model file, or the path of an exported artefact"
            )
        return self.model


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for key in options:
        if key not in OPTIONS:
            raise InputError(f"unknown option {key!r} of the fastegnn potential; known: {', '.join(OPTIONS)}")
    if "dtype" in options and "precision" in options:
        raise InputError("give dtype or precision, not both")
    return options
