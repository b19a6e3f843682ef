"""What the parts of a split system tell each other in a layer; a system in one piece tells nothing.

A network is written once. Its rows are the particles that this part *owns*; ``halo`` appends the rows of particles
that others own and that send to it, ``total`` sums over all parts. :mod:`egnn_md.distributed` puts in an object
that does both over processes.
"""

from typing import List  # noqa: UP035 - TorchScript reads types from here

from torch import Tensor, nn


class Alone(nn.Module):
    """The whole system is here."""

    def rows(self, own: int) -> int:
        """Number of rows after ``halo`` of ``own`` rows."""
        return own

    def halo(self, values: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """Each of ``values`` (own, ...), one dtype, with the rows of the halo appended: (rows(own), ...)."""
        return values

    def total(self, sums: List[Tensor]) -> List[Tensor]:  # noqa: UP006
        """Each of ``sums``, one dtype, summed over all parts."""
        return sums
