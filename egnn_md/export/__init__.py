"""TorchScript artefacts that describe themselves and are refused if they differ from the eager model."""

from egnn_md.export.artefact import ArtefactInfo, is_archive, read_artefact
from egnn_md.export.propagator import PropagatorArtefact, export_propagator, load_propagator
from egnn_md.export.torchscript import export_torchscript, load_module

__all__ = [
    "ArtefactInfo",
    "PropagatorArtefact",
    "export_propagator",
    "export_torchscript",
    "is_archive",
    "load_module",
    "load_propagator",
    "read_artefact",
]
