"""Fast equivariant networks with virtual nodes (FastEGNN, arXiv 2506.19482) inside ASE and OpenMM."""

from egnn_md.checkpoint import ModelCard, import_authors_checkpoint, load_model, save_model
from egnn_md.export import export_torchscript
from egnn_md.graph import ParticleGraph
from egnn_md.models.potential import FastEGNNPotential, PotentialConfig
from egnn_md.neighbors import neighbor_list
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig

__all__ = [
    "FastEGNN",
    "FastEGNNConfig",
    "FastEGNNPotential",
    "ModelCard",
    "ParticleGraph",
    "PotentialConfig",
    "export_torchscript",
    "import_authors_checkpoint",
    "load_model",
    "neighbor_list",
    "save_model",
]
