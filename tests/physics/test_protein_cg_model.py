"""The shipped coarse-grained chignolin: its labels as mean forces, its forces in OpenMM, its folded state."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from egnn_md import load_model
from egnn_md.data.structures import graph_from_atoms, read_frames
from egnn_md.errors import EgnnMdError
from egnn_md.models import evaluate
from egnn_md.units import KJ_PER_MOL_PER_EV
from egnn_md_systems.protein_cg import decoys, dynamics, shapes, validate
from egnn_md_systems.protein_cg.chain import NUMBERS, bead_atoms

DATA = validate.HERE / "data"
BOTH = [DATA / "train.extxyz.xz", DATA / "test.extxyz.xz"]


@cache
def mapped() -> tuple[tuple[str, ...], NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Residues, positions (Å), mapped forces (eV/Å) and the block of time of every shipped frame."""
    frames = [atoms for path in BOTH for atoms in read_frames(path)]
    positions = np.array([atoms.positions for atoms in frames])
    rest = np.array([atoms.get_forces() for atoms in frames])
    names = {number: name for name, number in NUMBERS.items()}
    residues = tuple(names[number] for number in frames[0].numbers)
    return residues, positions, rest + dynamics.shipped_prior().forces(positions), [a.info["block"] for a in frames]


def test_labels_are_forces_of_a_free_energy() -> None:
    """⟨F_i · (R_i - R_j)⟩ = -3 kT for every pair of beads, by integrating exp(-F/kT) by parts.

    No parameter of the map or the prior enters. One pair alone is known to a few kT; their mean over j is not, and a
    map that is not valid, or forces of another temperature or sign, move it.
    """
    _, x, f, blocks = mapped()
    kt = dynamics.shipped_prior().kt
    beads = x.shape[1]
    # Σ_j F_i · (R_i - R_j) / (beads - 1), of each frame and bead
    product = (f * (x - x.mean(axis=1, keepdims=True))).sum(-1) * beads / (beads - 1)
    names = [name for name in sorted(set(blocks)) if blocks.count(name) >= 50]
    of_block = np.array([product[np.array(blocks) == name].mean(axis=0) for name in names]) / (-3 * kt)
    error = of_block.std(axis=0, ddof=1) / np.sqrt(len(names))
    assert (np.abs(of_block.mean(axis=0) - 1) < 4 * error).all(), (of_block.mean(axis=0), error)
    together = of_block.mean(axis=1)
    assert together.mean() == pytest.approx(1.0, abs=4 * together.std(ddof=1) / np.sqrt(len(names)))
    assert together.std(ddof=1) / np.sqrt(len(names)) < 0.25, "otherwise this shows nothing"


def test_the_network_explains_forces_of_a_run_it_has_not_seen() -> None:
    model = load_model("chignolin-cg")
    errors = validate.force_errors(model, BOTH[1:])
    assert errors["explained"] > 0.0
    assert errors["prior and network"] == pytest.approx(model.card.measured["test_force_rmse"] / 1e3, rel=1e-3)


def test_forces_are_gradients() -> None:
    model = load_model("chignolin-cg", dtype=torch.float64)
    residues, x, _, _ = mapped()
    atoms = bead_atoms(residues, x[7])

    def energy(bead: int, axis: int, step: float) -> float:
        moved = atoms.copy()
        moved.positions[bead, axis] += step
        return float(evaluate(model, graph_from_atoms(moved, model.cutoff, dtype=torch.float64))["energy"])

    forces = evaluate(model, graph_from_atoms(atoms, model.cutoff, dtype=torch.float64))["forces"].detach().numpy()
    for bead, axis in ((0, 0), (4, 1), (9, 2)):
        central = -(energy(bead, axis, 1e-4) - energy(bead, axis, -1e-4)) / 2e-4
        assert forces[bead, axis] == pytest.approx(central, rel=1e-5, abs=1e-7)


def test_prior_and_network_add_up_in_openmm() -> None:
    openmm = pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    model = load_model("chignolin-cg")
    residues, x, _, _ = mapped()
    system = dynamics.bead_system(residues, dynamics.shipped_prior(), model)
    platform = openmm.Platform.getPlatformByName("Reference")
    context = openmm.Context(system, openmm.VerletIntegrator(0.001), platform)
    context.setPositions(0.1 * x[3])
    theirs = context.getState(forces=True).getForces(asNumpy=True)._value / (10 * KJ_PER_MOL_PER_EV)
    network = evaluate(model, graph_from_atoms(bead_atoms(residues, x[3]), model.cutoff))["forces"].detach().numpy()
    np.testing.assert_allclose(theirs, dynamics.shipped_prior().forces(x[3:4])[0] + network, atol=2e-5)
    assert np.abs(network).max() > 1e-3


def test_real_atoms_are_refused() -> None:
    from ase import Atoms

    from egnn_md_ase import FastEGNNCalculator

    with pytest.raises(EgnnMdError, match="element"):
        Atoms("CO", [[0, 0, 0], [0, 0, 1.2]], calculator=FastEGNNCalculator("chignolin-cg")).get_potential_energy()


def test_the_card_says_what_it_needs() -> None:
    card = load_model("chignolin-cg").card
    assert "prior" in card.limits
    assert "300 K" in card.limits


def test_the_folded_chain_holds_for_a_moment() -> None:
    pytest.importorskip("openmmtorch", reason="the plugin is not installed: pip install 'egnn-md[openmm]'")
    residues, x, _, _ = mapped()
    folded = shapes.mean_structure(x)
    system = dynamics.bead_system(residues, dynamics.shipped_prior(), load_model("chignolin-cg"))
    run = dynamics.simulate(system, x[0], 200, seed=1)
    assert shapes.superposed_rmsd(run.positions[0], folded).max() < 3.0


@pytest.mark.slow
def test_no_chain_leaves_the_folded_state() -> None:
    """Sixteen chains of 20 ps each. A network trained without decoys was at 2 Å and more by then in half of them."""
    pytest.importorskip("openmmtorch", reason="the plugin is not installed: pip install 'egnn-md[openmm]'")
    residues, x, _, _ = mapped()
    system = dynamics.bead_system(residues, dynamics.shipped_prior(), load_model("chignolin-cg"), copies=16)
    chains = dynamics.simulate(system, x[0], 2000, seed=5).positions
    late = chains[:, chains.shape[1] // 2 :].reshape(-1, *chains.shape[-2:])
    rmsd = shapes.superposed_rmsd(late, shapes.mean_structure(x))
    assert rmsd.mean() < 1.0  # 0.67 Å in the all-atom runs
    assert np.quantile(rmsd, 0.95) < 1.8


def test_decoys_are_far_and_ask_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openmm", reason="OpenMM is not installed: pip install 'egnn-md[openmm]'")
    monkeypatch.setattr(decoys, "STEPS", 500)
    monkeypatch.setattr(decoys, "ROUNDS", 1)
    decoys.main(tmp_path / "decoys.extxyz", count=20)
    residues, x, _, _ = mapped()
    frames = read_frames(tmp_path / "decoys.extxyz")
    assert 10 < len(frames) <= 20
    rmsd = shapes.superposed_rmsd(np.array([a.positions for a in frames]), shapes.mean_structure(x))
    assert rmsd.min() > 1.4
    for atoms in frames:
        assert np.abs(atoms.get_forces()).max() == 0.0
        assert tuple(atoms.numbers) == tuple(NUMBERS[name] for name in residues)
    assert len({a.info["block"] for a in frames}) == len(frames)
