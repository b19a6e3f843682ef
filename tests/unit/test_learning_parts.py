"""The parts of a learning loop: configuration, distances, choice, bootstrap, measures, state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from rich.console import Console
from scipy.spatial.transform import Rotation

from egnn_md import evaluate_spread, make_committee
from egnn_md.data.labelling import structure_id
from egnn_md.data.structures import graph_from_atoms
from egnn_md.errors import ConfigError, InputError
from egnn_md.learning.config import LearnConfig, SelectSection, load_learn_config
from egnn_md.learning.explore import Candidate, Plan, candidates, outcomes, plan_runs
from egnn_md.learning.measure import compare, rank_correlation
from egnn_md.learning.members import _bootstrap, frame_texts, too_hard, train_members
from egnn_md.learning.report import ERRORS
from egnn_md.learning.selection import describe, measure_spreads, rmsd, select
from egnn_md.learning.state import LearnState
from egnn_md.models import LennardJones
from egnn_md.simulation.files import locked, write_json
from egnn_md.simulation.interrupts import Interrupted
from egnn_md.simulation.trajectory import ExtxyzFormat, Frame
from egnn_md.testing import random_potential, random_structure
from egnn_md.training.data import load_data

CONTENT: dict[str, Any] = {
    "output": "loop",
    "start": {"labels": "start.extxyz"},
    "test": {"sample": {"structures": "a.xyz", "temperatures": 300, "frames": 3}},
    "run": {"structures": "a.xyz", "temperatures": [300, 500], "repeats": 2, "engines": ["ase", "openmm"], "steps": 9},
    "train": {"max_steps": 5, "model": {"hidden": 8}},
}


def changed(**sections: Any) -> dict[str, Any]:
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in CONTENT.items()}
    for key, value in sections.items():
        content[key] = {**content.get(key, {}), **value} if isinstance(value, dict) else value
    return content


def load(folder: Path, content: dict[str, Any], *overrides: str) -> LearnConfig:
    path = folder / "learn.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_learn_config(path, overrides)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (changed(selekt={"count": 3}), "unknown key 'selekt' at the top level (did you mean 'select'?)"),
        (changed(select={"coumt": 3}), "unknown key 'coumt' in section 'select' (did you mean 'count'?)"),
        (changed(run={"temprature": 3}), "unknown key 'temprature' in section 'run'"),
        (changed(train={"max_stepps": 3}), "unknown key 'max_stepps' in section 'train' (did you mean 'max_steps'?)"),
        (changed(train={"model": {"hiden": 3}}), "unknown key 'hiden' in section 'model' (did you mean 'hidden'?)"),
        (changed(train={"seed": 3}), "train.seed is set by the loop itself"),
        (changed(train={"model": {"start_from": "m"}}), "would begin every member alike"),
        (changed(train={"optimizer": {"lr": -1}}), "optimizer.lr = -1"),
        (changed(train={"max_steps": None}), "the run needs an end"),
        (changed(start={"sample": {"structures": "a", "temperatures": 3, "frames": 1}}), "one of the two"),
        (changed(start={"labels": []}), "give either labels (files) or sample"),
        (changed(committee={"members": 1}), "committee.members = 1"),
        (changed(select={"lowest": 2.0, "highest": 1.0}), "leaves nothing above select.lowest = 2.0"),
        (changed(run={"engines": ["lammps"]}), "run.engines.0 = 'lammps'"),
        (changed(run={"temperatures": []}), "run.temperatures"),
        ({key: value for key, value in CONTENT.items() if key != "run"}, "the key run is missing"),
    ],
)
def test_a_mistake_in_the_configuration_is_named(tmp_path: Path, content: dict[str, Any], message: str):
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, content)
    assert message in str(caught.value)
    assert "learn.yaml" in str(caught.value)


def test_the_example_configuration_is_complete():
    example = Path(__file__).resolve().parents[2] / "examples" / "learn" / "ethanol.yaml"
    config = load_learn_config(example)
    assert config.rounds == 3
    assert (example.parents[2] / config.run.structures[0]).is_file()


def test_overrides_and_single_values(tmp_path: Path):
    config = load(tmp_path, CONTENT, "rounds=7", "select.count=3")
    assert (config.rounds, config.select.count) == (7, 3)
    assert config.start.labels == ["start.extxyz"]
    assert config.test.sample is not None
    assert config.test.sample.temperatures == [300.0]


def test_runs_are_planned_alike_every_time_and_differ_between_rounds(tmp_path: Path):
    config = load(tmp_path, CONTENT)
    plans = plan_runs(config, tmp_path, 1, 2)
    assert len(plans) == 2 * 2 * 2
    assert plans == plan_runs(config, tmp_path, 1, 2)
    assert [plan.engine for plan in plans[:3]] == ["ase", "openmm", "ase"]
    assert {(plan.start, plan.temperature) for plan in plans} == {(s, t) for s in (0, 1) for t in (300.0, 500.0)}
    assert len({plan.folder for plan in plans}) == len({plan.seed for plan in plans}) == 8
    assert {p.seed for p in plans}.isdisjoint(p.seed for p in plan_runs(config, tmp_path, 2, 2))


def test_rmsd_forgets_rotation_and_translation_but_not_handedness():
    atoms, rng = molecule("CH3CH2OH"), np.random.default_rng(0)
    moved = atoms.positions + rng.normal(scale=0.2, size=(9, 3))
    turned = Rotation.random(rng=rng).apply(moved) + np.array([5.0, -3.0, 1.0])
    a, b = atoms.positions - atoms.positions.mean(0), turned - turned.mean(0)
    _, expected = Rotation.align_vectors(a, b)
    found = rmsd(atoms, np.stack([turned, atoms.positions, Rotation.random(rng=rng).apply(atoms.positions)]))
    np.testing.assert_allclose(found, [expected / 3.0, 0.0, 0.0], atol=1e-6)
    chiral = Atoms("CHFClBr", [[0, 0, 0], [1, 1, 1], [1, -1.2, -1], [-1.4, 1, -1], [-1, -1, 1.6]])
    assert rmsd(chiral, (chiral.positions * [-1, 1, 1])[None])[0] > 0.3


def test_rmsd_in_a_cell_takes_nearest_images():
    atoms = bulk("Ar", "fcc", a=5.3, cubic=True)
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=0.1, size=(4, 3))
    noise -= noise.mean(0)
    images = rng.integers(-2, 3, size=(4, 3)) @ atoms.cell.array
    other = atoms.positions + noise + images + [0.4, 0.1, -0.3]
    np.testing.assert_allclose(rmsd(atoms, other[None]), np.sqrt((noise**2).sum(1).mean()), atol=1e-9)


def candidate(distance: float, run: str = "run-000", time: float = 0.0) -> Candidate:
    return Candidate(Atoms("Ar2", [[0, 0, 0], [distance, 0, 0]]), run, time, 300.0, "trajectory")


def choose(found: list[Candidate], spreads: list[float], labelled: list[Atoms] | None = None, **rules: Any):
    values = [(spread, spread / 2, 0) for spread in spreads]
    section = SelectSection(**{"count": 10, "spacing": 0.0, "min_rmsd": 0.0, **rules})
    return select(found, values, section, labelled or [], [0, 1])


def test_the_most_uncertain_come_first_and_alike_ones_are_left():
    found = [candidate(3.0 + 0.2 * k, time=10.0 * k) for k in range(6)]
    spreads = [0.1, 0.6, 0.5, 0.4, float("nan"), 0.05]

    def chosen(**rules: Any) -> list[float]:
        return [atoms.info["max_force_std"] for atoms in choose(found, spreads, **rules).chosen]

    assert chosen() == [0.6, 0.5, 0.4, 0.1, 0.05]
    assert chosen(count=2) == [0.6, 0.5]
    assert chosen(lowest=0.1, highest=0.55) == [0.5, 0.4, 0.1]
    assert chosen(spacing=15.0) == [0.6, 0.4, 0.05]  # 10, 30 and 50 fs
    # two atoms whose distance differs by 0.2 Å are 0.1 Å apart in the root mean square
    assert chosen(min_rmsd=0.15) == [0.6, 0.4, 0.05]
    known = [candidate(3.2).atoms]
    result = choose(found, spreads, known, min_rmsd=0.05)
    assert [atoms.info["max_force_std"] for atoms in result.chosen] == [0.5, 0.4, 0.1, 0.05]
    assert result.left == {"spread above the highest": 1, "too like another one": 1}
    first = result.chosen[0].info
    assert (first["run"], first["time_fs"], first["source"]) == ("run-000", 20.0, "trajectory")
    shuffled = [atoms.info["max_force_std"] for atoms in choose(found, spreads, by="random").chosen]
    assert sorted(shuffled) == [0.05, 0.1, 0.4, 0.5, 0.6]
    assert shuffled != [0.6, 0.5, 0.4, 0.1, 0.05]
    assert describe(result)["spread"]["maximum"] == 0.6


def test_time_counts_within_a_run_only():
    found = [candidate(3.0, "a", 0.0), candidate(3.5, "b", 1.0), candidate(4.0, "a", 2.0)]
    result = choose(found, [0.3, 0.2, 0.1], spacing=5.0)
    assert [atoms.info["run"] for atoms in result.chosen] == ["a", "b"]
    assert result.left == {"too near in time": 1}


def test_spreads_of_candidates_of_several_compositions():
    committee = make_committee([LennardJones(0.01, 3.4, 6.0), LennardJones(0.02, 3.4, 6.0)])
    three = Candidate(Atoms("Ar3", [[0, 0, 0], [3.5, 0, 0], [0, 3.3, 0]]), "r", 0.0, 1.0, "trajectory")
    values = measure_spreads(committee, [candidate(3.3), three])
    for (largest, mean, atom), one in zip(values, [candidate(3.3), three], strict=True):
        spread = evaluate_spread(committee, graph_from_atoms(one.atoms, 6.0))
        assert largest == pytest.approx(float(spread.force_std.max()), rel=1e-4)
        assert mean == pytest.approx(float(spread.force_std.pow(2).mean().sqrt()), rel=1e-4)
        assert atom == int(spread.force_std.argmax())


def test_candidates_come_from_all_files_of_a_run_once(tmp_path: Path):
    config = load(tmp_path, changed(select={"before_failure": 2}, run={"timestep": 0.5}))
    folder = tmp_path / "run-000"
    folder.mkdir()
    form = ExtxyzFormat(["Ar", "Ar"], np.zeros(3, dtype=bool))

    def text(*steps: int) -> bytes:
        positions = [np.array([[0.0, 0, 0], [3 + 0.01 * step, 0, 0]]) for step in steps]
        return b"".join(
            form.encode(Frame(s, s * 0.5, x, 0 * x, 0 * x, -1.0, np.zeros((3, 3))))
            for s, x in zip(steps, positions, strict=True)
        )

    (folder / "trajectory.extxyz").write_bytes(text(0, 10, 20))
    (folder / "uncertain.extxyz").write_bytes(text(15, 20))
    (folder / "failure.extxyz").write_bytes(text(20, 21, 22, 23, 24))
    record = {"status": "failed", "request": {}, "steps_done": 20, "failure": {"reason": "atom 1 (Ar) flew off"}}
    write_json(folder / "run.json", record)
    plan = Plan(folder, 0, 300.0, "ase", 1)
    start = Atoms("Ar2", info={"charge": 1})
    found = candidates(config, [plan], [start])
    assert [(c.time, c.why) for c in found] == [
        (5.0, "trajectory"), (10.0, "trajectory"), (7.5, "uncertain"), (11.5, "failure"), (12.0, "failure"),
    ]  # fmt: skip
    assert all(c.atoms.calc is None and c.atoms.info["charge"] == 1 for c in found)  # labels are to come
    ended = outcomes([plan])
    assert (ended["failed"], ended["steps"]) == (1, 20)
    assert ended["reasons"] == ["run-000: atom 1 (Ar) flew off"]


def test_a_bootstrap_sample_keeps_frames_as_they_are(tmp_path: Path):
    frames = []
    for index in range(200):
        atoms = Atoms("Ar", [[0, 0, index / 3]])
        atoms.calc = SinglePointCalculator(atoms, energy=float(index), forces=np.zeros((1, 3)))
        frames.append(atoms)
    files = [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    write(files[0], frames[:150])
    write(files[1], frames[150:])
    texts = [text for path in files for text in frame_texts(path)]
    assert len(texts) == 200
    drawn = frame_texts(_bootstrap(files, tmp_path / "0.extxyz", 0))
    assert len(set(drawn)) == len(drawn)
    assert set(drawn) < set(texts)
    # 1 - 1/e of the draws are different ones; the standard deviation is 0.3 sqrt(200) = 4.4
    assert abs(len(drawn) - 200 * (1 - np.exp(-1))) < 5 * 4.4
    assert drawn != frame_texts(_bootstrap(files, tmp_path / "1.extxyz", 1))
    assert [a.get_potential_energy() for a in read(tmp_path / "0.extxyz", ":")] == sorted(
        float(text.split(b"energy=")[1].split()[0]) for text in drawn
    )
    (tmp_path / "bad.extxyz").write_text("nothing\n")
    with pytest.raises(InputError, match="line 1 should be a number of atoms"):
        frame_texts(tmp_path / "bad.extxyz")


def test_rank_correlations_say_whether_the_spread_knows():
    assert rank_correlation(np.array([1.0, 2, 3, 4]), np.array([1.0, 20, 300, 4000])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([3.0, 2, 1])) == pytest.approx(-1.0)
    assert rank_correlation(np.ones(4), np.arange(4.0)) is None
    assert rank_correlation(np.arange(2.0), np.arange(2.0)) is None
    # labels that miss the mean by twice each atom's own spread: the order is the spread's
    committee = make_committee([random_potential(seed=seed, hidden=8) for seed in (0, 1)])
    graphs = []
    for seed in range(6):
        graph = graph_from_atoms(random_structure([1, 8], 4.0, count=5, seed=seed), 4.0, dtype=committee.dtype)
        spread = evaluate_spread(committee, graph)
        wrong = 2.0 * (spread.member_forces[0] - spread.forces)
        energy = spread.energy + 3.0 * spread.energy_std
        graphs.append(graph.__class__(**{**vars(graph), "labels": {"forces": spread.forces + wrong, "energy": energy}}))
    found = compare(committee, graphs)
    assert all(value == pytest.approx(1.0) for value in found["spearman"].values()), found["spearman"]
    lists = {name: np.array(values) for name, values in found["structures"].items()}
    np.testing.assert_allclose(lists["force_error"], 2 * lists["force_std"], rtol=1e-4)
    np.testing.assert_allclose(lists["max_force_error"], 2 * lists["max_force_std"], rtol=1e-4)
    np.testing.assert_allclose(lists["energy_error"], 3 * lists["energy_std"], rtol=1e-4)
    assert found["mean_force_error"] == pytest.approx(2 * found["mean_force_std"])
    # meV/Å, as the report's table says
    every = torch.cat([evaluate_spread(committee, graph).force_std for graph in graphs])
    assert found["mean_force_std"] == pytest.approx(1000 * float(every.pow(2).mean().sqrt()))
    assert [name for name, *_ in ERRORS if name.startswith("Mean force")] == [
        "Mean force spread / (meV/Å)", "Mean force error / (meV/Å)",
    ]  # fmt: skip


def test_a_loop_that_has_begun_keeps_its_settings(tmp_path: Path):
    config = load(tmp_path, CONTENT)
    state = LearnState.open(tmp_path, config)
    state.finish("0/train")
    assert LearnState.open(tmp_path, config).done == ["0/train"]
    LearnState.open(tmp_path, load(tmp_path, CONTENT, "rounds=9", "label.processes=2"))
    with pytest.raises(ConfigError, match=r"was begun with run.steps = 9, not 10; go on with the same value"):
        LearnState.open(tmp_path, load(tmp_path, CONTENT, "run.steps=10"))
    with pytest.raises(ConfigError, match=r"was begun with train.model.hidden = 8, not 9"):
        LearnState.open(tmp_path, load(tmp_path, CONTENT, "train.model.hidden=9"))
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read as the state of a learning loop"):
        LearnState.open(tmp_path, config)


def test_one_process_at_a_time(tmp_path: Path):
    path = tmp_path / "loop" / "learn.lock"
    with (
        locked(path, "learning"),
        pytest.raises(InputError, match=r"another process is learning in \S+loop; wait for it"),
        locked(path, "learning"),
    ):
        pass
    with locked(path, "learning"):
        pass


def test_an_exploded_structure_is_neither_learned_from_nor_judged_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A frame of a failed run may have forces that decide a validation error by themselves, and with it the model."""
    frames = []
    for index in range(12):
        atoms = Atoms("Cu2", [[0, 0, 0], [2.2 + 0.05 * index, 0, 0]])
        pull = 300.0 if index == 5 else 1.0 + index
        forces = np.array([[pull, 0, 0], [-pull, 0, 0]])
        atoms.calc = SinglePointCalculator(atoms, energy=-1.0, forces=forces)
        atoms.info["structure_id"] = structure_id(atoms)
        frames.append(atoms)
    labels = tmp_path / "labels.extxyz"
    write(labels, frames)
    asked = []

    class Stopped:
        finished = False

    def remember(settings: Any, **_: Any) -> Stopped:
        asked.append(settings)
        return Stopped()

    monkeypatch.setattr("egnn_md.learning.members.train", remember)
    for value, limit in ((None, 50.0), ("null", None), ("5", 5.0)):
        config = load(tmp_path, CONTENT, *([] if value is None else [f"label.max_force={value}"]))
        with pytest.raises(Interrupted):
            train_members(config, tmp_path / f"round-{value}", 0, [labels], None, Console(quiet=True))
        data = load_data(asked[-1].data, 4.0, torch.float32)
        found = [float(g.labels["forces"].abs().max()) for part in (data.train, data.valid) for g in part.graphs]
        expected = [f for f in (300.0 if i == 5 else 1.0 + i for i in range(12)) if limit is None or f <= limit]
        assert sorted(found) == pytest.approx(sorted(expected))
        assert len(data.valid)
        assert too_hard(labels, config.label.max_force) == 12 - len(expected)
