"""DistEGNN: one system over several devices, with one device's energies, forces and gradients (arXiv 2506.19482).

:class:`ParallelPotential` and :class:`ParallelPropagator` hide everything; :func:`serve` is for ``torchrun``. How it
works: :mod:`egnn_md.distributed.part` (who owns what, and what a network tells others), and docs/decisions/0010.
"""

from egnn_md.distributed.partition import METHODS, Partition, PartitionQuality, partition
from egnn_md.distributed.pool import DeviceLostWarning, RankLostWarning
from egnn_md.distributed.potential import ParallelPotential
from egnn_md.distributed.propagator import ParallelPropagator
from egnn_md.distributed.session import serve

__all__ = [
    "METHODS",
    "DeviceLostWarning",
    "ParallelPotential",
    "ParallelPropagator",
    "Partition",
    "PartitionQuality",
    "RankLostWarning",
    "partition",
    "serve",
]
