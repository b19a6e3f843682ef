"""The validators themselves: sound models pass all of them, and each flaw is caught by the right one."""

import sys

import pytest
import torch
from torch import Tensor

from egnn_md.models import HarmonicTether, LennardJones, Potential
from egnn_md.neighbors import backends
from egnn_md.nn.segment import segment_counts, segment_mean, segment_sum
from egnn_md.testing import (
    check_backends,
    check_unknown_element,
    make_structures,
    random_potential,
    run_checks,
)
from egnn_md.testing.result import CheckResult, measured, worst_by_name

CUTOFF = 3.0


def failing(model: Potential, dtype: torch.dtype = torch.float64) -> set[str]:
    """Laws that a model breaks, without ``: energy`` and the like."""
    return {result.name.split(":")[0] for result in run_checks(model, dtype) if not result.passed}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    "model",
    [
        LennardJones(),
        LennardJones(epsilon=1.0, sigma=1.0, cutoff=2.5),
        HarmonicTether(),
        random_potential(virtual_nodes=3, vector_channels=4),
    ],
    ids=["argon", "reduced", "springs", "fastegnn"],
)
def test_sound_models_pass(model, dtype):
    results = run_checks(model, dtype)
    assert [result for result in results if not result.passed] == []
    assert len(results) > 40


def test_the_same_seed_gives_the_same_numbers_and_the_model_is_not_touched():
    springs = HarmonicTether()
    first, again, other = (
        run_checks(springs, seed=3),
        run_checks(springs, seed=3),
        run_checks(springs, seed=4),
    )
    assert first == again
    assert [r.value for r in first] != [r.value for r in other]
    model = random_potential(dtype=torch.float32).requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    run_checks(model)
    assert model.dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(weight.requires_grad for weight in model.parameters())


class Springs(Potential):
    """A sound model whose parts the broken ones below replace."""

    def __init__(self, elements=()):
        super().__init__(CUTOFF, list(elements))

    def fade(self, r: Tensor) -> Tensor:
        return (1 - (r / CUTOFF) ** 2).clamp(min=0) ** 3

    def vectors(self, positions, edge_index, shifts):
        return positions[edge_index[0]] - positions[edge_index[1]] + shifts

    def forward(self, positions, species, edge_index, shifts, batch, periodic):
        pair = self.vectors(positions, edge_index, shifts)
        r = pair.norm(dim=1)
        energy = 0.5 * (r - 1.2) ** 2 * self.fade(r)
        extra = self.extra(positions, pair, r, edge_index, batch, len(periodic))
        return (segment_sum(energy, edge_index[0], len(positions)) + extra).double()

    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return torch.zeros_like(positions[:, 0])


class NotConservative(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return segment_sum(self.fade(r) * self.fade(r).detach(), edge_index[0], len(positions))


class AxisBound(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return segment_sum(0.1 * pair[:, 0] ** 2 * self.fade(r), edge_index[0], len(positions))


class OneHanded(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        sums = [
            segment_sum(pair * self.fade(r)[:, None] ** k, edge_index[0], len(positions)) for k in (1, 2, 3)
        ]
        return (sums[0] * torch.linalg.cross(sums[1], sums[2])).sum(1)


class InAField(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return 1e-3 * positions[:, 2]


class OrderBound(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        strength = 1.0 + torch.arange(len(positions), dtype=positions.dtype)
        return 1e-3 * strength * segment_sum(self.fade(r), edge_index[0], len(positions))


class CentreOfMassEverywhere(Springs):
    """What virtual nodes at the centre of mass would do in a periodic cell."""

    def __init__(self):
        super().__init__()
        self.long_range = True

    def extra(self, positions, pair, r, edge_index, batch, graphs):
        arm = positions - segment_mean(positions, batch, graphs)[batch]
        return 1e-3 * (arm * arm).sum(1)


class SharpNorm(Springs):
    """An unsoftened norm from the centre of mass: no second derivative for an atom that sits there."""

    def __init__(self):
        super().__init__()
        self.long_range = True

    def forward(self, positions, species, edge_index, shifts, batch, periodic):
        energies = super().forward(positions, species, edge_index, shifts, batch, periodic)
        arm = positions - segment_mean(positions, batch, len(periodic))[batch]
        return energies + torch.where(periodic[batch], 0.0, arm.norm(dim=1) ** 3)


class NotExtensive(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        count = segment_counts(batch, graphs, positions)[batch]
        return segment_sum(self.fade(r), edge_index[0], len(positions)) / count


class MeanOverNeighbours(Springs):
    """The published aggregation: it jumps when a neighbour comes, and is undefined without any."""

    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return segment_mean(1 / r, edge_index[0], len(positions))


class EmptyMean(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        count = segment_counts(edge_index[0], len(positions), positions)
        return 0.0 * segment_sum(self.fade(r), edge_index[0], len(positions)) / count


class Truncated(Springs):
    """Nothing fades at the cutoff, where the energy is not zero."""

    def fade(self, r):
        return (r <= CUTOFF).to(r.dtype)


class NoEnvelope(Springs):
    """Relies on the neighbour list to end at the cutoff."""

    def fade(self, r):
        return torch.ones_like(r)


class Kink(Springs):
    """Continuous energy, discontinuous force."""

    def fade(self, r):
        return (1 - r / CUTOFF).clamp(min=0)


class MixesGraphs(Springs):
    """Forgets ``batch``: every atom sees how many others share the batch, not the graph."""

    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return segment_sum(self.fade(r), edge_index[0], len(positions)) * (1.0 if graphs == 1 else 1.01)


class StiffShifts(Springs):
    """The lattice takes no part in the strain."""

    def vectors(self, positions, edge_index, shifts):
        return super().vectors(positions, edge_index, shifts.detach())


class Cancelling(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return segment_sum((self.fade(r) + 1e4) - 1e4, edge_index[0], len(positions))


class NotANumber(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        return positions[:, 0] * torch.nan


class HiddenLongRange(Springs):
    """Feels the whole system but does not say so."""

    def forward(self, positions, species, edge_index, shifts, batch, periodic):
        energies = super().forward(positions, species, edge_index, shifts, batch, periodic)
        mean = segment_mean(energies, batch, len(periodic))[batch]
        count = segment_counts(batch, len(periodic), positions)[batch]
        return energies + mean**2 + torch.where(periodic[batch], 0.0, 1e-3 * count)


def test_the_unbroken_springs_pass():
    assert failing(Springs()) == set()


@pytest.mark.parametrize(
    ("model", "caught"),
    [
        (NotConservative, {"forces = -dE/dx", "stress = dE/dε/V", "second derivatives = -dF/dx"}),
        (AxisBound, {"rotation", "reflection", "net torque"}),
        (OneHanded, {"reflection"}),
        (InAField, {"rotation", "reflection", "translation", "net force", "lattice moves"}),
        (OrderBound, {"permutation"}),
        (CentreOfMassEverywhere, {"lattice moves", "no jump at the cell boundary", "2×2×2 copies"}),
        (SharpNorm, {"second derivatives finite"}),
        (NotExtensive, {"2×2×2 copies"}),
        (MeanOverNeighbours, {"no jump at the cutoff", "pairs beyond the cutoff"}),
        (EmptyMean, {"one atom", "no edges"}),
        (Truncated, {"no jump at the cutoff"}),
        (NoEnvelope, {"no jump at the cutoff", "pairs beyond the cutoff"}),
        (Kink, {"no jump at the cutoff"}),
        (MixesGraphs, {"joined graphs"}),
        (StiffShifts, {"stress = dE/dε/V"}),
        (Cancelling, {"float32 = float64"}),
        (NotANumber, {"rotation", "forces = -dE/dx", "one atom", "second derivatives finite"}),
        (HiddenLongRange, {"no edges"}),
    ],
)
def test_flaws_are_caught(model, caught):
    found = failing(model())
    assert caught <= found
    if model in (OneHanded, NotExtensive, MixesGraphs, Cancelling, HiddenLongRange):
        assert found == caught  # no other law is broken: the others stay silent


class Constant(Springs):
    def forward(self, positions, species, edge_index, shifts, batch, periodic):
        return torch.ones(len(positions), dtype=torch.float64)


def test_a_model_without_forces_proves_nothing():
    results = {result.name: result for result in run_checks(Constant())}
    assert not results["structures feel forces"].passed
    assert "cluster" in results["structures feel forces"].note


class Raises(Springs):
    def extra(self, positions, pair, r, edge_index, batch, graphs):
        if graphs > 1:
            raise RuntimeError("one graph only")
        return super().extra(positions, pair, r, edge_index, batch, graphs)


def test_an_error_is_a_failed_check_and_the_others_still_run():
    results = {result.name: result for result in run_checks(Raises())}
    assert not results["joined graphs"].passed
    assert "one graph only" in results["joined graphs"].note
    assert sum(not result.passed for result in results.values()) == 1


def test_a_guessed_element_is_caught(monkeypatch):
    model = random_potential((1, 8))
    assert check_unknown_element(model)[0].passed
    # egnn_md.models.evaluate names the function too, so the module is taken from where Python keeps it
    monkeypatch.setattr(sys.modules["egnn_md.models.evaluate"], "check_elements", lambda *_: None)
    assert not check_unknown_element(model)[0].passed


def test_a_lossy_neighbour_list_is_caught(monkeypatch):
    model = HarmonicTether()
    atoms = make_structures(model)["crystal"]
    assert all(result.passed for result in check_backends(model, atoms))

    def lossy(positions, cell, pbc, cutoff):
        edges, shifts = backends._vesin(positions, cell, pbc, cutoff)
        keep = (shifts.abs().sum(1) < 2) | (edges[0] == edges[1])
        return edges[:, keep], shifts[keep]

    monkeypatch.setitem(backends._BACKENDS, "vesin", lossy)
    assert not all(result.passed for result in check_backends(model, atoms))


def test_nan_never_passes_and_never_hides():
    assert not measured("x", float("nan"), 1.0, "eV").passed
    assert not measured("x", float("inf"), 1.0, "eV").passed
    good, bad = measured("x", 0.1, 1.0, "eV"), measured("x", float("nan"), 1.0, "eV")
    for order in ([("a", good), ("b", bad)], [("b", bad), ("a", good)]):
        (worst,) = worst_by_name(order)
        assert (worst.passed, worst.note) == (False, "b")


def test_the_worst_structure_is_reported():
    rows = [("a", measured("x", 0.2, 1.0, "eV")), ("b", measured("x", 0.3, 10.0, "eV"))]
    (worst,) = worst_by_name(rows)
    assert worst == CheckResult("x", True, 0.2, 1.0, "eV", "a")


def test_structures_are_what_their_names_say():
    model = LennardJones()
    made = make_structures(model)
    assert [list(atoms.pbc) for atoms in made.values()] == [[False] * 3] * 2 + [
        [True, True, False],
        [True] * 3,
    ]
    assert abs(made["centred"].positions.mean(0)).max() < 1e-12
    assert abs(made["centred"].positions[0]).max() == 0
    heights = 1 / (made["crystal"].cell.reciprocal().lengths())
    assert heights.max() < 2 * model.cutoff  # several images of one neighbour
    assert max(abs(made["crystal"].cell.angles() - 90)) > 5
