"""Parts of the networks: basis, envelope, smooth norm, segment sums, exact constants."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from egnn_md.models import FastEGNNPotential, PotentialConfig
from egnn_md.nn.basis import BesselBasis, polynomial_envelope
from egnn_md.nn.segment import double_vector, segment_mean, segment_sum
from egnn_md.nn.smooth import NORM_SOFTENING, smooth_norm
from egnn_md.training.mmd import mmd_loss


def derivatives(function: Callable[[torch.Tensor], torch.Tensor], at: float, order: int) -> list[float]:
    x = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    value, out = function(x), []
    for _ in range(order + 1):
        out.append(float(value.detach()))
        (value,) = torch.autograd.grad(value, x, create_graph=True)
    return out


def test_envelope_ends_with_two_continuous_derivatives() -> None:
    inside = derivatives(lambda d: polynomial_envelope(d, 5.0), 5.0 - 1e-7, 2)
    assert all(abs(value) < 1e-5 for value in inside), inside
    third = derivatives(lambda d: polynomial_envelope(d, 5.0), 5.0 - 1e-7, 3)[3]
    assert abs(third) > 1e-2, "the third one jumps: the polynomial is not trivially flat"
    assert float(polynomial_envelope(torch.tensor(0.0), 5.0)) == 1.0
    assert float(polynomial_envelope(torch.tensor(7.0), 5.0)) == 0.0


def test_bessel_basis_is_orthonormal_on_the_sphere() -> None:
    """∫ b_m b_n d² dd over [0, cutoff] = δ_mn, which fixes the prefactor."""
    cutoff = 4.0
    d = torch.linspace(0, cutoff, 200_001, dtype=torch.float64)[1:]
    values = BesselBasis(6, cutoff)(d) * d[:, None]
    gram = values.T @ values * (d[1] - d[0])
    assert torch.allclose(gram, torch.eye(6, dtype=torch.float64), atol=1e-6)


def test_smooth_norm() -> None:
    zero = torch.zeros(1, 3, dtype=torch.float64, requires_grad=True)
    value = smooth_norm(zero, 1).sum()
    (first,) = torch.autograd.grad(value, zero, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), zero)
    assert float(value.detach()) == 0.0
    assert torch.isfinite(first).all()
    assert torch.isfinite(second).all()
    far = torch.tensor([[3.0, 4.0, 0.0]], dtype=torch.float64)
    assert float(smooth_norm(far, 1)) == pytest.approx(5.0, abs=2 * NORM_SOFTENING)


def test_segments() -> None:
    values, index = torch.tensor([[1.0], [2.0], [5.0]]), torch.tensor([0, 0, 2])
    assert segment_sum(values, index, 4)[:, 0].tolist() == [3, 0, 5, 0]
    assert segment_mean(values, index, 4)[:, 0].tolist() == [1.5, 0, 5, 0]


@torch.jit.script
def scripted_constants(values: list[float]) -> torch.Tensor:
    return double_vector(values, torch.device("cpu"))


def test_constants_are_exact_in_torchscript_too() -> None:
    values = [-9.81, 1 / 3, -4142.123456789012]
    assert scripted_constants(values).tolist() == values
    config = PotentialConfig(elements=(1, 8), atomic_energies=(-13.605693122994, -2043.123456789), hidden=4)
    model = FastEGNNPotential(config).double()
    lone = (
        torch.zeros(1, 3).double(),
        torch.tensor([8]),
        torch.zeros(2, 0, dtype=torch.long),
        torch.zeros(0, 3).double(),
        torch.zeros(1, dtype=torch.long),
        torch.zeros(1, dtype=torch.bool),
    )
    assert float(torch.jit.script(model)(*lone).detach()) == pytest.approx(
        float(model(*lone).detach()), abs=1e-11
    )


def test_mmd_by_hand() -> None:
    """Two virtual nodes, three targets, one graph: written out with Python numbers."""
    z = [(0.0, 0.0, 0.0), (1.0, 0.5, 0.0)]
    y = [(0.2, 0.0, 0.1), (2.0, 0.0, 0.0), (0.0, 1.0, 1.0)]
    for kernel, power in (("published", 1), ("gaussian", 2)):

        def k(a, b, power=power):
            return math.exp(-(math.dist(a, b) ** power) / (2 * 1.5**2))

        wanted = sum(k(a, b) for a in z for b in z) / 4 - 2 * sum(k(a, b) for a in y for b in z) / 6
        found = mmd_loss(
            torch.tensor(z, dtype=torch.float64).T[None],
            torch.tensor(y, dtype=torch.float64),
            torch.zeros(3, dtype=torch.long),
            sigma=1.5,
            kernel=kernel,
        )
        assert float(found) == pytest.approx(wanted, rel=1e-12)
