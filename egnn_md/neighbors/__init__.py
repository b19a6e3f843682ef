"""Neighbour lists: one contract, several backends, and a Verlet skin on top."""

from egnn_md.neighbors.backends import available_backends, neighbor_list
from egnn_md.neighbors.drop import drop_edges
from egnn_md.neighbors.verlet import VerletList, VerletStatistics

__all__ = ["VerletList", "VerletStatistics", "available_backends", "drop_edges", "neighbor_list"]
