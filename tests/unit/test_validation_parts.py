"""Parts of a validation whose answers are known without a run: divergences, ratios, angles, plans, options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from egnn_md.errors import ConfigError
from egnn_md.rollout.metrics_molecular import mean_squared_displacement
from egnn_md.simulation.readers import structure_from_atoms
from egnn_md.validation.distributions import (
    Distribution,
    angle_kinds,
    angles,
    bond_kinds,
    bond_lengths,
    compare,
    jensen_shannon,
)
from egnn_md.validation.part_density import settled
from egnn_md.validation.part_diffusion import coefficient, exponent
from egnn_md.validation.part_errors import root_mean_square
from egnn_md.validation.part_nve import scatter_ratio
from egnn_md.validation.part_size import larger_cells
from egnn_md.validation.report_part import PartReport, with_error
from egnn_md.validation.request import BUDGETS, PARTS, ValidateRequest, parse_copies
from egnn_md.validation.runs import MovingFrames


def still(positions: np.ndarray, cell: np.ndarray | None = None) -> MovingFrames:
    cells = None if cell is None else cell[None]
    return MovingFrames(np.zeros(1, dtype=int), positions[None], np.zeros_like(positions[None]), cells)


def drawn(rng: np.random.Generator, shift: float) -> Distribution:
    """Four blocks of 400 normal numbers about ``shift``."""
    edges = np.linspace(-5, 5, 51)
    counts = np.stack([np.histogram(rng.normal(shift, 1.0, 400), edges)[0] / 400.0 for _ in range(4)])
    return Distribution("x", "bond", 0.5 * (edges[1:] + edges[:-1]), counts, np.ones(50))


def test_divergence_of_known_distributions():
    p, q = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert jensen_shannon(p, p) == 0
    assert jensen_shannon(p, q) == pytest.approx(1.0)  # they share nothing: one bit
    # by hand: m = (3/4, 1/4); ½ log₂(4/3) + ½ (½ log₂(2/3) + ½ log₂ 2)
    expected = 0.5 * np.log2(4 / 3) + 0.25 * np.log2(2 / 3) + 0.25
    assert jensen_shannon(p, np.array([0.5, 0.5])) == pytest.approx(expected)


def test_equal_distributions_are_within_noise_and_their_noise_is_that_of_two_runs():
    rng = np.random.default_rng(0)
    found = [compare(drawn(rng, 0.0), drawn(rng, 0.0)) for _ in range(40)]
    # of 35 deals each is as likely: chances are spread evenly, so their mean is a half (standard error 0.05)
    assert np.mean([one.chance for one in found]) == pytest.approx(0.5, abs=0.15)
    # the estimate from blocks is the mean divergence itself, to the second order of the logarithm
    ratio = np.mean([one.divergence for one in found]) / np.mean([one.noise for one in found])
    assert ratio == pytest.approx(1.0, abs=0.15)


def test_a_shift_of_a_third_of_the_width_is_seen():
    rng = np.random.default_rng(1)
    found = compare(drawn(rng, 0.0), drawn(rng, 0.33))
    assert found.chance == pytest.approx(1 / 35)  # no other deal of the blocks comes near
    assert found.divergence > 3 * found.noise
    # overlap of two normal distributions d apart: 2 Φ(-d/2) = 0.869, less what the counting noise hides
    assert 0.8 < found.overlap < 0.88


def test_ratio_of_scatters_ignores_drift():
    rng = np.random.default_rng(2)
    noise, drift = rng.normal(size=(2, 2000)), 0.02 * np.arange(2000)
    found = scatter_ratio(4 * noise[0] + drift, noise[1])
    assert found.value == pytest.approx(4.0, rel=0.05)
    assert 0 < found.error < 0.3


def test_bonds_and_angles_of_water_also_across_a_face():
    atoms = molecule("H2O")
    cell = np.eye(3) * 9.0
    expected = atoms.get_angle(1, 0, 2)
    length = atoms.get_distance(0, 1)
    for shift in (0.0, 8.9):
        moved = atoms.copy()
        moved.set_cell(cell)
        moved.pbc = True
        moved.positions += shift
        moved.wrap()
        structure = structure_from_atoms(moved)
        frames = still(moved.positions, cell)
        kinds, triples = bond_kinds(structure), angle_kinds(structure)
        assert list(kinds) == ["O-H"]
        assert list(triples) == ["H-O-H"]
        assert bond_lengths(frames, kinds["O-H"]) == pytest.approx(length)
        assert angles(frames, triples["H-O-H"]) == pytest.approx(expected)


def test_einsteins_coefficient_and_exponents():
    rng = np.random.default_rng(3)
    step, interval = 0.1, 10.0  # Å a coordinate and frame, fs
    walk = np.cumsum(rng.normal(scale=step, size=(600, 60, 3)), axis=0)
    found = coefficient(walk, interval, np.ones(60))
    assert found is not None
    expected = step**2 / (2 * interval) * 1e4  # D = <dx²> / 2t, Å²/fs in 1e-5 cm²/s
    assert abs(found.value - expected) < 4 * found.error
    assert found.error < 0.3 * expected
    # half of the particles move as one: held by the centre of all, not by their own, which would leave nothing
    together = np.cumsum(rng.normal(scale=step, size=(600, 1, 3)), axis=0)
    chosen = np.arange(60) < 30
    moving = coefficient(np.where(chosen[:, None], together, 0.0), interval, np.ones(60), chosen)
    whole = mean_squared_displacement(0.5 * together)[:, 0]
    lags = np.arange(60, 240)
    slope = np.polyfit(lags * interval, whole[60:240], 1)[0] / 6 * 1e4
    assert moving is not None
    assert moving.value == pytest.approx(slope, rel=1e-6)
    times = np.arange(500.0)
    assert exponent(3 * times) == pytest.approx(1.0)
    assert exponent(3 * times**2) == pytest.approx(2.0)


def test_a_density_that_still_moves_is_not_settled():
    rng = np.random.default_rng(4)
    times, noise = np.linspace(0, 10, 1000), rng.normal(scale=0.01, size=1000)
    mean, change, error, still_moves = settled(times, 1.0 + noise)
    assert still_moves
    assert mean.value == pytest.approx(1.0, abs=4 * mean.error)
    mean, change, error, still_moves = settled(times, 1.0 + 0.01 * times + noise)
    assert not still_moves
    assert change == pytest.approx(0.05, abs=4 * error)


def test_bootstrap_of_a_root_mean_square():
    rng = np.random.default_rng(5)
    errors = rng.normal(scale=50.0, size=(40, 30))
    found = root_mean_square((errors**2).sum(axis=1), np.full(40, 30))
    assert found.value == pytest.approx(np.sqrt((errors**2).mean()))
    # of n independent normal numbers the error of the root mean square is σ / sqrt(2n)
    assert found.error == pytest.approx(50 / np.sqrt(2 * 1200), rel=0.35)


def test_larger_cells_shrink_to_the_smallest():
    assert larger_cells((2, 2, 2)) == [(2, 2, 2), (2, 2, 1), (2, 1, 1)]
    assert larger_cells((2, 1, 1)) == [(2, 1, 1)]
    assert parse_copies("2x1X3") == (2, 1, 3)


def test_numbers_carry_two_digits_of_their_error():
    assert with_error(1.23456, 0.0789, "eV") == "1.235 ± 0.079 eV"
    assert with_error(1234.5, 78.9) == "1234 ± 79"
    assert with_error(0.012345) == "0.01235"
    assert with_error(float("nan"), 1.0) == "–"


def test_a_part_survives_json():
    part = PartReport("nve")
    part.verdict("what", "1", "how", "good")
    part.number("drift", np.float64(0.5), "meV", error=float("nan"))
    again = PartReport.from_dict(part.as_dict())
    assert again == part
    assert again.numbers[0]["error"] is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "nothing to validate on: give --structure, --labels or both"),
        ({"structure": "a.pdb", "parts": ("nve", "speed")}, "--parts speed is unknown; there are: errors, nve,"),
        ({"labels": ("a.xyz",), "parts": ("nve",)}, "--parts nve runs molecular dynamics: give it a --structure"),
        ({"structure": "a.pdb", "temperatures": (300.0, -1.0)}, "--temperatures -1: a temperature is above 0"),
        ({"structure": "a.pdb", "temperatures": (300.0, 300.0)}, "--temperatures names one twice"),
        ({"structure": "a.pdb", "copies": (1, 1, 1)}, "--copies 1x1x1 is no larger cell; try 2x1x1"),
        ({"structure": "a.pdb", "against_options": {"a": 1}}, "--against-option belongs to --against METHOD"),
        ({"structure": "a.pdb", "budget": "huge"}, "--budget huge: "),
        ({"structure": "a.pdb", "timestep": 0.0}, "--timestep 0.0: "),
        ({"labels": ("a.xyz",), "teacher_structure": "b.pdb"}, "--teacher-structure is a smaller cell beside"),
        ({"structure": "a.pdb", "speed": 1}, "--speed is no option of a validation"),
    ],
)
def test_bad_options_name_themselves(values: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as error:
        ValidateRequest.parse({"output": Path("v"), **values})
    assert message in str(error.value)


def test_what_is_chosen_and_how_much():
    request = ValidateRequest.parse({"output": "v", "structure": "a.pdb", "budget": "short", "frames": 7})
    assert request.chosen == PARTS
    assert request.plan.frames == 7
    assert request.plan.length == BUDGETS["short"].length
    assert request.steps(1.0) == 2000
    only = ValidateRequest.parse({"output": "v", "against": "labels.extxyz"})
    assert only.chosen == ("errors",)
    assert only.method is None
    assert only.all_labels == ("labels.extxyz",)
    assert ValidateRequest.parse({"output": "v", "structure": "a.pdb", "against": "gfn2-xtb"}).method == "gfn2-xtb"
    with pytest.raises(ConfigError, match="three whole numbers as in 2x1x1, not '2x2'"):
        parse_copies("2x2")
