"""TorchScript artefacts that describe themselves and are refused if they differ from the eager model."""

from egnn_md.export.artefact import ArtefactInfo, is_archive, read_artefact
from egnn_md.export.torchscript import export_torchscript, load_module

__all__ = ["ArtefactInfo", "export_torchscript", "is_archive", "load_module", "read_artefact"]
