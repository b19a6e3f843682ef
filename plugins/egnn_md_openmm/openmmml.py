"""OpenMM-ML's entry point: ``MLPotential("fastegnn", modelPath="water").createSystem(topology)``.

OpenMM-ML loads this module while it is itself being imported, so nothing of it is imported here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egnn_md_openmm.mlpotential import FastEGNNPotentialImpl


class FastEGNNPotentialImplFactory:
    """What the entry-point group ``openmmml.potentials`` asks for: makes the implementation on demand."""

    def createImpl(self, name: str, modelPath: Any = None, **args: Any) -> FastEGNNPotentialImpl:  # noqa: N802
        """The implementation behind ``MLPotential(name, modelPath=..., implementation=...)``.

        Args:
            name: as registered, ``fastegnn``.
            modelPath: a shipped model's name, the path of a model file or of an artefact, or a potential.
            args: ``implementation``, ``dtype`` (or ``precision``), ``device``, ``skin`` as defaults for
                ``createSystem``.
        """
        from egnn_md_openmm.mlpotential import FastEGNNPotentialImpl

        return FastEGNNPotentialImpl(name, modelPath, **args)
