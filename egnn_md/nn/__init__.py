"""The networks and their parts: scriptable, engine-free, no global state."""

from egnn_md.nn.basis import BesselBasis, polynomial_envelope
from egnn_md.nn.fast_egnn import FastEGNN, FastEGNNConfig
from egnn_md.nn.smooth import SmoothConfig, SmoothFastEGNN
from egnn_md.nn.virtual_nodes import VirtualNodes

__all__ = [
    "BesselBasis",
    "FastEGNN",
    "FastEGNNConfig",
    "SmoothConfig",
    "SmoothFastEGNN",
    "VirtualNodes",
    "polynomial_envelope",
]
