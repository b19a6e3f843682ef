"""A committee is the mean of its members, and its spread is what the formulas say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from egnn_md import FastEGNNPropagator, PropagatorConfig, evaluate_spread, load_model, make_committee, save_model
from egnn_md.checkpoint import HEADER_KEY, ModelCard, model_digest
from egnn_md.cli.main import app
from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import InputError, ModelFileError, UnknownElementError
from egnn_md.graph import ParticleGraph
from egnn_md.models import CommitteePotential, LennardJones, evaluate
from egnn_md.models.base import Potential
from egnn_md.simulation.spread import SpreadEvaluator
from egnn_md.testing import check_copies, check_forces, check_stress, random_potential, random_structure

SEEDS = (0, 1, 2)


def members(**sizes: Any) -> list[Potential]:
    return [random_potential(seed=seed, hidden=8, **sizes) for seed in SEEDS]


def structure(periodic: bool = True) -> Atoms:
    return random_structure([1, 8], 4.0, count=8, pbc=(periodic,) * 3, seed=3)


def graph(atoms: Atoms, cutoff: float = 4.0) -> ParticleGraph:
    return graph_from_atoms(atoms, cutoff, dtype=torch.float64)


@pytest.mark.parametrize("periodic", [False, True])
def test_energy_forces_and_stress_are_the_means(periodic: bool):
    parts = members()
    committee, here = make_committee(parts), graph(structure(periodic))
    found = evaluate(committee, here, stress=periodic)
    single = [evaluate(part, here, stress=periodic) for part in parts]
    for name in ("energy", "energies", "forces", *(["stress"] if periodic else [])):
        expected = np.mean([result[name].numpy() for result in single], axis=0)
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-12, atol=1e-12, err_msg=name)
    assert float(found["forces"].abs().max()) > 0.1


def test_forces_and_stress_are_derivatives_of_the_mean_energy():
    committee = make_committee(members())
    for rows in (check_forces(committee, structure(), seed=1), check_stress(committee, structure())):
        assert rows
        assert all(row.passed for row in rows), rows
    # by hand as well, along one direction, in double precision
    atoms, step = structure(False), 1e-4
    direction = np.random.default_rng(0).normal(size=(len(atoms), 3))
    energies = []
    for sign in (1, -1):
        moved = atoms.copy()
        moved.positions += sign * step * direction
        energies.append(np.mean([float(evaluate(part, graph(moved))["energy"]) for part in members()]))
    slope = (energies[0] - energies[1]) / (2 * step)
    forces = evaluate(committee, graph(atoms))["forces"].numpy()
    assert slope == pytest.approx(-(forces * direction).sum(), rel=1e-6)


def test_the_spread_follows_its_formulas():
    parts = members()
    joined = ParticleGraph.join([graph(structure(True)), graph(structure(False))])
    spread = evaluate_spread(make_committee(parts), joined, stress=True)
    single = [evaluate(part, joined, stress=True) for part in parts]
    energy = np.array([result["energy"].numpy() for result in single])
    forces = np.array([result["forces"].numpy() for result in single])
    # numpy's standard deviation divides by the number of values, ddof = 0
    np.testing.assert_allclose(spread.energy_std, energy.std(axis=0), rtol=1e-10)
    np.testing.assert_allclose(spread.energy_std_per_atom, energy.std(axis=0) / 8, rtol=1e-10)
    by_component = forces.std(axis=0)
    np.testing.assert_allclose(spread.force_std, np.sqrt((by_component**2).sum(axis=1)), rtol=1e-10)
    np.testing.assert_allclose(spread.member_forces, forces)
    np.testing.assert_allclose(spread.forces, forces.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(spread.stress, np.mean([r["stress"].numpy() for r in single], axis=0), atol=1e-12)
    atom, value = spread.worst()
    assert value == float(spread.force_std.max()) == float(spread.force_std[atom])
    assert float(spread.force_std.min()) > 1e-3


def test_the_spread_of_two_springs_is_known():
    """E = ½ k (r - r0)² with two stiffnesses: the spread is half the difference, of energy and of force."""

    class Spring(Potential):
        def __init__(self, stiffness: float) -> None:
            super().__init__(3.0, [])
            self.stiffness = stiffness

        def forward(self, positions, species, edge_index, shifts, batch, periodic):
            length = (positions[0] - positions[1]).norm()
            return 0.25 * self.stiffness * (length - 1.0).pow(2).double().expand(2)

    atoms = Atoms("H2", [[0, 0, 0], [1.5, 0, 0]])
    spread = evaluate_spread(CommitteePotential([Spring(2.0), Spring(3.0)]), graph(atoms, 3.0))
    assert float(spread.energy[0]) == pytest.approx(0.5 * 2.5 * 0.25)
    assert float(spread.energy_std[0]) == pytest.approx(0.5 * 0.5 * 0.25)
    assert spread.force_std.tolist() == pytest.approx([0.5 * 0.5, 0.5 * 0.5])


def test_a_value_that_is_no_number_is_the_worst():
    spread = evaluate_spread(make_committee(members()), graph(structure()))
    spread.force_std[5] = float("nan")
    atom, value = spread.worst()
    assert atom == 5
    assert np.isnan(value)


def test_the_spread_turns_with_nothing_and_copies_keep_it():
    committee, atoms = make_committee(members()), structure(False)
    spread = evaluate_spread(committee, graph(atoms))
    turned = atoms.copy()
    turned.rotate(50, (1, 2, 3))
    turned.positions[:, 0] *= -1
    turned.translate([3.0, -1.0, 20.0])
    order = np.random.default_rng(0).permutation(len(atoms))
    other = evaluate_spread(committee, graph(turned[order]))
    np.testing.assert_allclose(other.force_std, spread.force_std[torch.tensor(order)], atol=1e-9)
    np.testing.assert_allclose(other.energy_std, spread.energy_std, atol=1e-9)
    crystal = structure(True)
    one, eight = (evaluate_spread(committee, graph(a)) for a in (crystal, crystal.repeat(2)))
    np.testing.assert_allclose(eight.force_std, one.force_std.repeat(8), atol=1e-9)
    np.testing.assert_allclose(eight.energy_std_per_atom, one.energy_std_per_atom, atol=1e-9)
    assert all(row.passed for row in check_copies(committee, crystal, dtype=torch.float64))


def test_members_with_other_cutoffs_share_one_list():
    parts = [random_potential(seed=0, hidden=8, cutoff=3.0), random_potential(seed=1, hidden=8, cutoff=4.5)]
    committee = make_committee(parts)
    assert committee.cutoff == 4.5
    atoms = structure()
    found = evaluate(committee, graph(atoms, 4.5))
    single = [evaluate(part, graph(atoms, part.cutoff)) for part in parts]
    expected = np.mean([result["forces"].numpy() for result in single], axis=0)
    np.testing.assert_allclose(found["forces"], expected, atol=1e-10)


def test_fourier_members_see_the_cell():
    parts = members(fourier_width=1.0)
    committee = make_committee(parts)
    assert committee.needs_cell
    here = graph(structure())
    expected = np.mean([evaluate(part, here)["forces"].numpy() for part in parts], axis=0)
    np.testing.assert_allclose(evaluate(committee, here)["forces"], expected, atol=1e-10)
    np.testing.assert_allclose(evaluate_spread(committee, here).forces, expected, atol=1e-10)


def test_the_evaluator_of_a_system_knows_far_atoms_and_other_images():
    committee, atoms = make_committee(members()), structure()
    evaluate_here = SpreadEvaluator(committee, atoms.numbers, atoms.pbc, dtype="float64")
    expected = evaluate_spread(committee, graph(atoms))
    moved = atoms.positions + np.array([[2.0, 0, -5.0]] * 4 + [[0, 1.0, 0]] * 4) @ atoms.cell.array
    for positions in (atoms.positions, moved):
        found = evaluate_here(positions, atoms.cell.array)
        np.testing.assert_allclose(found.force_std, expected.force_std, atol=1e-9)
        np.testing.assert_allclose(found.energy, expected.energy, atol=1e-9)
    with pytest.raises(UnknownElementError, match="atom 0 is C"):
        SpreadEvaluator(committee, [6], [False] * 3)


SCRIPT = """
import sys, torch, ase.io
from egnn_md import load_model, evaluate_spread
from egnn_md.data.structures import graph_from_atoms
graph = graph_from_atoms(ase.io.read(sys.argv[2]), 4.0, dtype=torch.float64)
spread = evaluate_spread(load_model(sys.argv[1], kernels="plain"), graph)
print(spread.energy[0].item().hex(), spread.energy_std[0].item().hex(), spread.force_std.sum().item().hex())
"""


def test_one_file_holds_all_and_another_process_reads_it(tmp_path: Path):
    committee = make_committee(members(), name="three", description="for a test")
    path = save_model(committee, tmp_path / "committee.safetensors")
    atoms = structure()
    atoms.write(tmp_path / "atoms.traj")  # every bit of the positions
    spread = evaluate_spread(committee, graph(atoms))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), str(tmp_path / "atoms.traj")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = (spread.energy[0], spread.energy_std[0], spread.force_std.sum())
    assert done.stdout.split() == [value.item().hex() for value in expected]
    again = load_model(path)
    assert isinstance(again, CommitteePotential)
    assert model_digest(again) == model_digest(committee)
    assert again.card.name == "three"
    digests = [entry["digest"] for entry in again.card.training_data["members"]]
    assert digests == [model_digest(member) for member in members()]
    assert not any(parameter.requires_grad for parameter in again.parameters())


def test_a_file_that_was_changed_is_refused(tmp_path: Path):
    path = save_model(make_committee(members()), tmp_path / "committee.safetensors")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    name = next(key for key in tensors if key.startswith("members.2."))
    changed = tmp_path / "changed.safetensors"
    save_file({**tensors, name: tensors[name] * 1.001}, changed, metadata)
    with pytest.raises(ModelFileError, match="differ from the digest"):
        load_model(changed)
    header = json.loads(metadata[HEADER_KEY])
    header["config"]["members"][1]["elements"] = [1, 6]
    save_file(tensors, changed, {HEADER_KEY: json.dumps(header)})
    with pytest.raises(ModelFileError, match=r"member 1 knows elements \[1, 6\], not \[1, 8\]"):
        load_model(changed)
    header = json.loads(metadata[HEADER_KEY])
    del header["config"]["members"][2]
    save_file(tensors, changed, {HEADER_KEY: json.dumps(header)})
    with pytest.raises(ModelFileError, match="do not fit the configuration"):
        load_model(changed)


def carded(seed: int, **card: Any) -> Potential:
    model = random_potential(seed=seed, hidden=8)
    model.card = ModelCard(**card)
    return model


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [random_potential()], "at least 2 members, got 1; train the same configuration again"),
        (lambda: [random_potential(seed=1), random_potential(seed=1)], "member 1 and member 0 are the same model"),
        (
            lambda: [random_potential((1, 8)), random_potential((1, 6, 8), seed=1)],
            "member 0 knows H, O, but member 1 H, C, O: only one of them could say anything about C. Train all",
        ),
        (
            lambda: [carded(0, teacher="gfn2-xtb"), carded(1, teacher="gfn1-xtb")],
            "member 0 learned from gfn2-xtb, but member 1 from gfn1-xtb",
        ),
        (lambda: [carded(0), carded(1, units={"length": "nm", "energy": "kJ/mol"})], "but member 1 in {'length': 'nm'"),
        (lambda: [random_potential(), LennardJones()], "member 1 is a LennardJones, but member 0 a FastEGNNPotential"),
        (
            lambda: [random_potential(), random_potential(seed=1, dtype=torch.float32)],
            "holds torch.float64 weights, but member 1 torch.float32; load both with one dtype",
        ),
        (lambda: [make_committee(members()), random_potential()], "member 0 is a committee itself; give the files of"),
    ],
)
def test_members_that_do_not_go_together_are_refused(make, message: str):
    with pytest.raises(InputError) as caught:
        make_committee(make())
    assert message in str(caught.value)


def test_a_propagator_is_no_member_and_a_single_model_has_no_spread(tmp_path: Path):
    units = {"length": "angstrom", "time": "femtosecond"}
    config = PropagatorConfig(
        system="water", units=units, species=(1, 8), cutoff=4.0, frame_interval=1.0, stride=8.0, hidden=8, layers=2
    )
    path = save_model(FastEGNNPropagator(config), tmp_path / "stride.safetensors")
    with pytest.raises(InputError, match=r"stride.safetensors is a FastEGNNPropagator; members .* are potentials"):
        make_committee([path, random_potential()])
    with pytest.raises(InputError, match="has no spread: only a committee has one"):
        evaluate_spread(random_potential(), graph(structure()))
    with pytest.raises(InputError, match="this CommitteePotential has no file format"):
        save_model(make_committee([LennardJones(), LennardJones(0.02)]), tmp_path / "lj.safetensors")


def test_the_command_writes_a_committee_and_info_tells_of_it(tmp_path: Path):
    files = [str(save_model(carded(s, name=f"seed {s}", teacher="t"), tmp_path / f"{s}.safetensors")) for s in SEEDS]
    output = tmp_path / "committee.safetensors"
    runner = CliRunner()
    done = runner.invoke(app, ["committee", *files, "--output", str(output)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "3 members" in done.output
    assert load_model(output).card.teacher == "t"
    shown = runner.invoke(app, ["info", str(output)], catch_exceptions=False).output
    assert "committee-potential" in shown
    assert "seed 2" in shown
    with pytest.raises(InputError, match="exists; give another file, or --overwrite"):
        runner.invoke(app, ["committee", *files, "--output", str(output)], catch_exceptions=False)
    again = ["committee", files[0], files[0], "-o", str(tmp_path / "twice.safetensors")]
    with pytest.raises(InputError, match=r"0.safetensors and .*0.safetensors are the same model"):
        runner.invoke(app, again, catch_exceptions=False)
    assert not (tmp_path / "twice.safetensors").exists()


def test_argon_of_two_depths_disagrees_by_half_the_difference():
    """Lennard-Jones energies are proportional to ε, and so are their forces: the spread is known."""
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True).repeat(2)
    atoms.rattle(0.1, seed=1)
    committee = make_committee([LennardJones(0.010, 3.4, 5.0), LennardJones(0.012, 3.4, 5.0)])
    here = graph(atoms, 5.0)
    spread, mean = evaluate_spread(committee, here), evaluate(LennardJones(0.011, 3.4, 5.0), here)
    np.testing.assert_allclose(spread.energy, mean["energy"], rtol=1e-12)
    np.testing.assert_allclose(spread.energy_std, mean["energy"].abs() / 11, rtol=1e-9)
    np.testing.assert_allclose(spread.force_std, mean["forces"].norm(dim=1) / 11, rtol=1e-9)
