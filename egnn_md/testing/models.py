"""Models for tests: random weights that are strong enough for every part of a network to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from egnn_md.models.potential import FastEGNNPotential, PotentialConfig

#: Fresh weights give forces of some meV/Å, in which a wrong term would drown; this gives about 1 eV/Å.
_GAIN = 1.6


def random_potential(
    elements: Sequence[int] = (1, 8),
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    **sizes: Any,
) -> FastEGNNPotential:
    """A small FastEGNN potential with strong random weights: the same seed, the same model.

    Args:
        elements: atomic numbers, ascending.
        seed: of the weights; torch's global random state is left alone.
        dtype: of the weights.
        sizes: over the defaults cutoff 4 Å, hidden 16, 2 layers, C = 2, K = 4; see ``PotentialConfig``.
    """
    options: dict[str, Any] = {
        "cutoff": 4.0,
        "hidden": 16,
        "layers": 2,
        "virtual_nodes": 2,
        "vector_channels": 4,
        "mean_neighbors": 20.0,
        "scale": 3.0,
        "atomic_energies": tuple(-10.0 * number for number in elements),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FastEGNNPotential(PotentialConfig(elements=tuple(elements), **(options | sizes)))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # the maps that move virtual nodes start ten times smaller than the others
            weight.mul_(10.0 * _GAIN if ".position_map." in name else _GAIN)
            if name.endswith("radial_weight"):  # begins with one radial function only
                weight.add_(torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)))
    return model.to(dtype).eval()
