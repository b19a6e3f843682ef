"""The shipped alanine dipeptide model: errors on held-out Amber structures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule

import egnn_md_systems.alanine_dipeptide
from egnn_md import load_model
from egnn_md.data.structures import graph_from_atoms, read_labelled
from egnn_md.errors import UnknownElementError
from egnn_md.graph import ParticleGraph
from egnn_md.models import evaluate
from egnn_md.testing import run_checks
from egnn_md.training.metrics import measure_errors

FOLDER = Path(egnn_md_systems.alanine_dipeptide.__file__).parent
FORCE_LIMIT = 40.0  # meV/Å, what the model was asked to reach on 400 structures at 300 and 500 K
BASIN_LIMIT = 0.5  # kcal/mol, between its free-energy difference and the reference method's


def test_errors_on_held_out_structures() -> None:
    """400 structures of plain ff14SB runs; no run of theirs is in the training set."""
    model = load_model("alanine-dipeptide")
    held_out = read_labelled([FOLDER / "data" / "test.extxyz.xz"], model.cutoff)
    temperatures = np.array([info["temperature"] for info in held_out.info])
    errors = measure_errors(model, held_out.graphs)
    assert errors["structures"] == 400
    assert errors["force_rms_reference"] > 1000, "the reference forces are those of a warm molecule off its minimum"
    assert errors["force_rmse"] < FORCE_LIMIT
    for temperature in (300.0, 500.0):
        part = [graph for graph, own in zip(held_out.graphs, temperatures, strict=True) if own == temperature]
        assert len(part) == 200
        assert measure_errors(model, part)["force_rmse"] < FORCE_LIMIT
    # the card says what is measured here
    assert model.card.measured["test_force_rmse"] == pytest.approx(errors["force_rmse"], rel=1e-3)


def test_both_hands_have_the_same_energy() -> None:
    """Trained on L alone: the mirror image's energy is right by symmetry, and its forces are mirrored."""
    model = load_model("alanine-dipeptide")
    graph = read_labelled([FOLDER / "data" / "test.extxyz.xz"], model.cutoff).graphs[7]
    mirror = torch.tensor([1.0, 1.0, -1.0])
    one, other = evaluate(model, graph), evaluate(model, _moved(graph, mirror))
    assert float(one["energy"]) == pytest.approx(float(other["energy"]), abs=1e-4)
    torch.testing.assert_close(one["forces"] * mirror, other["forces"], atol=2e-4, rtol=0)


def _moved(graph: ParticleGraph, factor: torch.Tensor) -> ParticleGraph:
    from dataclasses import replace

    return replace(graph, positions=graph.positions * factor)


def test_other_elements_are_refused() -> None:
    model = load_model("alanine-dipeptide")
    with pytest.raises(UnknownElementError, match="atom 0 is S"):
        evaluate(model, graph_from_atoms(molecule("SH2"), model.cutoff))


def test_every_validator_passes() -> None:
    failed = [
        f"{r.name}: {r.value} > {r.tolerance}" for r in run_checks(load_model("alanine-dipeptide")) if not r.passed
    ]
    assert not failed


def test_published_free_energies_are_within_the_limit() -> None:
    """What ``free_energy`` measured for the shipped weights, and that its error bars allow the statement."""
    figures = json.loads((FOLDER / "free_energy.json").read_text())
    for title in ("C7ax minus C7eq, kcal/mol", "phi in (0, 130) minus the rest, kcal/mol"):
        value, error = figures[title]["model minus reference"]
        assert abs(value) + 2 * error < BASIN_LIMIT
    assert figures["effective fraction of the snapshots, reference"] > 0.1
