"""The side of the one who drives an engine, with ranks that are threads of this process."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from parallel_cases import TOLERANCE, agrees, argon, as_graph, potential, structure
from ranks import Loses, threads

from egnn_md.checkpoint import model_digest
from egnn_md.distributed import ParallelPotential
from egnn_md.distributed.clock import Clock
from egnn_md.distributed.coordinator import Coordinator
from egnn_md.distributed.protocol import REPORT, Report, Step, from_bytes, to_bytes
from egnn_md.distributed.rank import pack_model
from egnn_md.errors import DeviceError, InputError
from egnn_md.models import evaluate
from egnn_md.simulation.models import _describe

Moves = list[tuple[torch.Tensor, ...]]


def over(channel: Any, monkeypatch: pytest.MonkeyPatch, **options: Any) -> ParallelPotential:
    monkeypatch.setattr("egnn_md.distributed.parallel.Pool", lambda *_, **__: channel)
    return ParallelPotential(potential(), channel.size, **{"dtype": "float64", **options})


def walk(steps: int, *, step: float = 0.04) -> Moves:
    atoms, rng = argon(), np.random.default_rng(4)
    found = []
    for _ in range(steps):
        atoms.positions += rng.normal(0, step, atoms.positions.shape)
        found.append(structure(atoms))
    return found


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def test_lost_evaluations_change_neither_bits_nor_the_lists_to_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation that is repeated counts once: the skin is tuned, and lists are made, as without the loss."""
    moves = walk(60)
    answers, statistics, owners = [], [], []
    for at in ((), (0, 1, 9, 20, 21, 40)):
        with threads(2) as channel:
            channel.at = at
            split = over(channel, monkeypatch)
            answers.append([split.evaluate_structure(*move) for move in moves])
            assert channel.lost == len(at)
            statistics.append(vars(split.neighbor_statistics))
            owners.append((split.coordinator.partitions, split.coordinator.owner))
    assert all(same(one, other) for one, other in zip(*answers, strict=True))
    assert statistics[0] == statistics[1]
    assert owners[0][0] == owners[1][0]
    assert torch.equal(owners[0][1], owners[1][1])
    assert statistics[0]["rebuilds"] > 5


def test_memory_goes_on_bit_by_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a skin that was tuned below the first one, which is how far the lists reach."""
    moves = walk(60, step=0.08)
    _, species, _, pbc = moves[0]
    with threads(2) as channel:
        split = over(channel, monkeypatch)
        for move in moves[:39]:
            split.evaluate_structure(*move)
        memory = split.coordinator.memory()
        clock = split.coordinator._clock
        assert clock.skin != Clock(5.0, "auto").skin, "the test needs a skin that was changed"
        reach = clock._made_for
        whole = [split.evaluate_structure(*move) for move in moves[39:]]
        statistics = vars(split.neighbor_statistics)
    with threads(2) as channel:
        split = over(channel, monkeypatch)
        split.coordinator.remember(memory, species, pbc)
        assert split.coordinator._clock._made_for == reach
        again = split.coordinator.memory()
        assert memory.keys() == again.keys()
        assert all(np.array_equal(memory[name], again[name]) for name in memory)
        resumed = [split.evaluate_structure(*move) for move in moves[39:]]
        assert vars(split.neighbor_statistics) == statistics
    assert all(same(one, other) for one, other in zip(whole, resumed, strict=True))
    with threads(3) as channel:  # of another number of ranks, and of one process: nothing to go on from
        split = over(channel, monkeypatch)
        for other in (memory, {"reference": np.zeros((48, 3)), "skin": 0.1}, {}):
            split.coordinator.remember(other, species, pbc)
            assert split.coordinator.memory() == {}
        agrees(split.evaluate_structure(*moves[39]), whole[0], TOLERANCE["float64"])


def test_failed_evaluation_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted between making lists and using them: the ranks have old ones, and must be told so."""
    near, far = argon(), argon()
    far.positions[::2, 0] += 2.0
    with threads(2) as channel:
        split = over(channel, monkeypatch, skin=0.5)
        split.evaluate_structure(*structure(near))
        for place in ("_prepare", "_divide", "_learn"):
            original: Callable[..., Any] = getattr(Coordinator, place)

            def interrupted(self: Coordinator, *args: Any, _original: Any = original) -> Any:
                _original(self, *args)
                raise KeyboardInterrupt

            monkeypatch.setattr(Coordinator, place, interrupted)
            split.coordinator._even = 0.1 if place == "_divide" else 0.0  # a new list is a new partition there
            with pytest.raises(KeyboardInterrupt):
                split.evaluate_structure(*structure(far))
            monkeypatch.setattr(Coordinator, place, original)
            far.positions += 0.01
            found = split.evaluate_structure(*structure(far))
            agrees(found, evaluate(potential().double(), as_graph(far)), TOLERANCE["float64"])
            split.evaluate_structure(*structure(near))


def test_two_potentials_take_turns_with_the_same_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun: each is answered by its own model, whatever the ranks were told last."""
    atoms = argon()
    with threads(2) as channel:
        one = over(channel, monkeypatch)
        torch.manual_seed(99)
        other_model = type(potential())(potential().config)
        handle = Loses(channel._rank, channel)
        monkeypatch.setattr("egnn_md.distributed.parallel.Pool", lambda *_, **__: handle)
        other = ParallelPotential(other_model, 2, dtype="float64")
        wanted = [evaluate(model.double(), as_graph(atoms)) for model in (potential(), other_model)]
        assert float(wanted[0]["energy"]) != float(wanted[1]["energy"])
        for _ in range(2):
            for split, answer in zip((one, other), wanted, strict=True):
                agrees(split.evaluate_structure(*structure(atoms)), answer, TOLERANCE["float64"])


def test_ranks_that_are_out_of_step_are_not_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(1) as channel:
        split = over(channel, monkeypatch)
        monkeypatch.setattr(channel._rank, "step", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            split.evaluate_structure(*structure(argon()))
        monkeypatch.undo()
        with pytest.raises(DeviceError, match="no longer in step"):
            split.evaluate_structure(*structure(argon()))


def test_answers_of_threads_are_not_mixed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    structures = [argon(), argon((2, 2, 2)), argon((2, 2, 1))]
    with threads(2) as channel:
        split = over(channel, monkeypatch)
        found: list[Any] = [None] * len(structures)

        def ask(index: int) -> None:
            found[index] = [split.evaluate_structure(*structure(structures[index])) for _ in range(6)]

        asking = [threading.Thread(target=ask, args=(index,)) for index in range(len(structures))]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
    for atoms, answers in zip(structures, found, strict=True):
        wanted = evaluate(potential().double(), as_graph(atoms))
        for answer in answers:
            agrees(answer, wanted, TOLERANCE["float64"])


def test_what_changes_between_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Directions, species, cell and number of atoms, in any order; rows that do not fit are refused."""
    cases = [
        argon(), argon(pbc=(True, False, True)), argon(skew=1.5), argon((2, 2, 2)), argon(pbc=False), argon((1, 1, 1))
    ]
    with threads(3) as channel:
        split = over(channel, monkeypatch)
        for atoms in [*cases, *cases[::-1]]:
            found = split.evaluate_structure(*structure(atoms))
            agrees(found, evaluate(potential().double(), as_graph(atoms)), TOLERANCE["float64"])
        positions, species, cell, pbc = structure(argon())
        with pytest.raises(InputError, match=r"\(47, 3\) values do not fit 48 particles"):
            split.evaluate_structure(positions[1:], species, cell, pbc)


@pytest.mark.parametrize("pbc", [False, (True, True, False), True])
def test_far_from_the_origin_in_single_precision(pbc: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions are brought home in double before they are rounded, by the same steps on every rank."""
    atoms = argon(pbc=pbc)
    wanted = evaluate(potential().double(), as_graph(atoms))
    atoms.positions += 700 * atoms.cell.array.sum(0)
    atoms.positions[::5] += (1 - 2 * np.array(atoms.pbc)) * np.array(atoms.pbc) @ atoms.cell.array
    with threads(2) as channel:
        split = over(channel, monkeypatch, dtype="float32")
        found = split.evaluate_structure(*structure(atoms))
    agrees(found, wanted, 1e-4)


def test_features_that_change_in_place_are_told_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    species, pbc, features = torch.full((4,), 18), torch.zeros(3, dtype=torch.bool), torch.zeros(4, 2)
    with threads(1) as channel:
        coordinator = over(channel, monkeypatch).coordinator
        for change, kept in ((0.0, False), (0.0, True), (1.0, False)):
            features += change
            coordinator._take_system(species, pbc, features)
            assert (coordinator.owner is not None) == kept
            coordinator._owner = torch.zeros(4, dtype=torch.int64)


def test_weights_of_a_device_that_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(2) as channel:
        split = over(channel, monkeypatch, weights=(3.0, 1.0))
        split.evaluate_structure(*structure(argon()))
        assert split.reports[0].particles == 36
        split.coordinator.weights = torch.tensor([3.0, 1.0, 1.0], dtype=torch.float64)  # as if a third were gone
        split.coordinator._size, channel.lost = 3, 1
        split.evaluate_structure(*structure(argon()))
        assert split.reports[0].particles == 24


def test_partition_anew_where_the_load_has_drifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """By more than a tenth, and not by less."""
    with threads(2) as channel:
        split = over(channel, monkeypatch, skin=0.0)
        atoms = argon()
        for drift, divided in ((1.05, 0), (1.15, 1), (1.15, 1)):
            split.evaluate_structure(*structure(atoms))
            before = split.coordinator.partitions
            split.coordinator._even = split.coordinator._imbalance / drift
            atoms.positions += np.random.default_rng(0).normal(0, 0.01, atoms.positions.shape)
            split.evaluate_structure(*structure(atoms))
            assert split.coordinator.partitions - before == divided
            if divided:
                assert split.coordinator._even == split.coordinator._imbalance
        assert split.coordinator.partitions == 3


def test_clock_takes_over() -> None:
    """One that goes on decides as the one before it, also about the skin."""
    rng, cell, pbc = np.random.default_rng(0), 10 * torch.eye(3, dtype=torch.float64), torch.ones(3).bool()
    positions = torch.tensor(rng.random((20, 3)) * 10)
    clock, taken = Clock(5.0, "auto"), Clock(5.0, "auto")
    for step in range(300):
        if step == 150:
            assert clock.reference is not None
            assert clock.skin < taken.skin
            taken.take(clock.state(), clock.reference)
        due = clock.due(positions, cell, pbc)
        clock.learn(int(400 * (1 + clock.skin / 5) ** 20))  # long skins are dear
        if step >= 150:
            assert taken.due(positions, cell, pbc) == due
            assert taken._made_for == clock._made_for
            taken.learn(int(400 * (1 + taken.skin / 5) ** 20))
            assert taken.state() == clock.state()
        positions = positions + torch.tensor(rng.normal(0, 0.05, (20, 3)))
        cell = cell * 1.0005


def test_lists_are_restored_where_they_were_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lost far from there: lists of that moment would be used up on the way back, and nobody would notice."""
    atoms = argon()
    start, sign = atoms.positions.copy(), np.where(np.arange(len(atoms)) % 2, 1.0, -1.0)
    with threads(2) as channel:
        channel.at = (1,)
        split = over(channel, monkeypatch, skin=1.0)
        for along in (0.0, 0.49, -0.49):
            atoms.positions[:, 0] = start[:, 0] + along * sign
            found = split.evaluate_structure(*structure(atoms))
            agrees(found, evaluate(potential().double(), as_graph(atoms)), TOLERANCE["float64"])
        assert channel.lost == 1
        assert split.neighbor_statistics.rebuilds == 1


def test_runs_know_the_model_of_an_object_over_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Resumed in another process, where the object has another address."""
    with threads(1) as channel:
        split = over(channel, monkeypatch)
        assert _describe(split, "Python object")["digest"] == model_digest(potential())


def test_copies_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with threads(1) as channel:
        split = over(channel, monkeypatch)
        for act in (copy.deepcopy, copy.copy, pickle.dumps):
            with pytest.raises(InputError, match="neither copied nor pickled"):
                act(split)  # type: ignore[operator]


@pytest.mark.parametrize("velocities", [False, True])
@pytest.mark.parametrize("flags", [(True, False, False), (False, True, True), (True, True, False)])
def test_steps_and_reports_survive_the_way(velocities: bool, flags: tuple[bool, bool, bool]) -> None:
    torch.manual_seed(0)
    forces, stress, remake = flags
    rows = torch.rand(5, 3, dtype=torch.float64)
    cell, offset = torch.rand(3, 3, dtype=torch.float64), torch.rand(3, dtype=torch.float64)
    step = Step(rows, cell, offset, rows + 1 if velocities else None, forces, stress, remake, 0.25)
    found = Step.unpack(step.pack())
    for name, value in vars(step).items():
        other = getattr(found, name)
        assert torch.equal(other, value) if isinstance(value, torch.Tensor) else other == value, name
    report = Report(3, 2, 7, 9, 0.5, 1.25, 4, 1)
    assert report.pack().shape == (REPORT,)
    assert Report.unpack(report.pack()) == report
    content = {"kind": "system", "owner": torch.arange(3, dtype=torch.int32), "features": None, "skin": 0.5}
    back = from_bytes(to_bytes(content))
    assert back.keys() == content.keys()
    assert torch.equal(back["owner"], content["owner"])  # type: ignore[arg-type]


def test_models_travel_whole() -> None:
    content = pack_model(potential())
    assert content.dtype == torch.uint8
    assert content.numel() > 1000
