"""Fast equivariant networks with virtual nodes (FastEGNN, arXiv 2506.19482) inside ASE and OpenMM.

Names are imported when they are first used, so that a labelling process or ``egnn-md --help`` does not load torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from egnn_md.checkpoint import ModelCard, import_authors_checkpoint, load_model, save_model
    from egnn_md.export import export_torchscript
    from egnn_md.graph import ParticleGraph
    from egnn_md.models.committee import CommitteePotential, evaluate_spread, make_committee
    from egnn_md.models.potential import FastEGNNPotential, PotentialConfig
    from egnn_md.models.propagator import FastEGNNPropagator, PropagatorConfig
    from egnn_md.neighbors import drop_edges, neighbor_list
    from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
    from egnn_md.rollout.core import rollout
    from egnn_md.training.mmd import mmd_loss

_HOMES = {
    "CommitteePotential": "egnn_md.models.committee",
    "FastEGNN": "egnn_md.nn.fast_egnn",
    "FastEGNNConfig": "egnn_md.nn.fast_egnn",
    "FastEGNNPotential": "egnn_md.models.potential",
    "FastEGNNPropagator": "egnn_md.models.propagator",
    "ModelCard": "egnn_md.checkpoint",
    "ParticleGraph": "egnn_md.graph",
    "PotentialConfig": "egnn_md.models.potential",
    "PropagatorConfig": "egnn_md.models.propagator",
    "drop_edges": "egnn_md.neighbors",
    "evaluate_spread": "egnn_md.models.committee",
    "export_torchscript": "egnn_md.export",
    "import_authors_checkpoint": "egnn_md.checkpoint",
    "load_model": "egnn_md.checkpoint",
    "make_committee": "egnn_md.models.committee",
    "mmd_loss": "egnn_md.training.mmd",
    "neighbor_list": "egnn_md.neighbors",
    "rollout": "egnn_md.rollout",
    "save_model": "egnn_md.checkpoint",
}

__all__ = [
    "CommitteePotential",
    "FastEGNN",
    "FastEGNNConfig",
    "FastEGNNPotential",
    "FastEGNNPropagator",
    "ModelCard",
    "ParticleGraph",
    "PotentialConfig",
    "PropagatorConfig",
    "drop_edges",
    "evaluate_spread",
    "export_torchscript",
    "import_authors_checkpoint",
    "load_model",
    "make_committee",
    "mmd_loss",
    "neighbor_list",
    "rollout",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        home = import_module(_HOMES[name])
        # once imported, the package egnn_md.rollout is what that name means; it can be called like its function
        return home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
