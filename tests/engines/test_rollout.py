"""The stepping loop in memory: against a loop by hand, many starts at once, guards, what is refused."""

from __future__ import annotations

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from rollout_cases import WORLDS, Breaking, model_config, propagator, world, write_world
from scipy.spatial import cKDTree

import egnn_md
from egnn_md.data.trajectories import open_trajectories
from egnn_md.data.windows import WindowSet
from egnn_md.errors import InputError
from egnn_md.graph import ParticleGraph
from egnn_md.models import LennardJones
from egnn_md.models.propagator import Prediction
from egnn_md.models.reference_propagators import Linear, StayStill
from egnn_md.neighbors import neighbor_list
from egnn_md.rollout import Guards, RolloutError, State, Stepper, rollout, state_at

EXACT = 1e-12  # float64 sums in another order


def by_hand(name: str, model: torch.nn.Module, start: State, steps: int) -> list[np.ndarray]:
    """Positions from fresh brute-force neighbour lists, nothing kept between strides."""
    positions, velocities = torch.as_tensor(start.positions), torch.as_tensor(start.velocities)
    cell = torch.zeros(3, 3) if start.cell is None else torch.as_tensor(start.cell)
    cell, pbc = cell.double(), torch.tensor(start.pbc)
    found = [start.positions]
    for _ in range(steps):
        cutoff = model.config.cutoff or 1e3
        edges, shifts = neighbor_list(positions, cell, pbc, cutoff, backend="brute")
        graph = ParticleGraph(
            positions=positions,
            species=torch.as_tensor(start.species),
            edge_index=edges,
            cell_shifts=shifts,
            cell=cell[None],
            pbc=pbc[None],
            batch=torch.zeros(len(start), dtype=torch.long),
            velocities=velocities,
            node_features=None if start.features is None else torch.as_tensor(start.features),
        )
        with torch.no_grad():
            positions, velocities, _ = model.predict(graph)
        found.append(positions.numpy())
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_a_rollout_is_the_model_applied_again_and_again(name: str):
    model, start = propagator(name), world(name)
    result = rollout(model, start, 12)
    expected = by_hand(name, model, start, 12)
    assert result.failure is None
    np.testing.assert_allclose(result.positions, expected, rtol=0, atol=EXACT)
    np.testing.assert_allclose(result.times, np.arange(13) * model.config.stride, rtol=1e-15)
    still = np.isin(start.species, model.config.static_species)
    assert (result.positions[:, still] == start.positions[still]).all()
    moved = np.abs(result.positions[-1] - result.positions[0]).max(axis=1)
    assert moved[~still].min() > 1e-3
    # the network does something: straight lines are elsewhere
    straight = rollout(Linear(model.config), start, 12)
    assert np.abs(straight.positions - result.positions).max() > 1e-4
    np.testing.assert_allclose(straight.positions[12], start.positions + 12 * model.config.stride * start.velocities)
    assert (rollout(StayStill(model.config), start, 3).positions == start.positions).all()


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_rollout_goes_on_exactly_from_its_last_state(name: str, dtype: torch.dtype):
    model, start = propagator(name, dtype), world(name)
    whole = rollout(model, start, 9)
    first = rollout(model, start, 4)
    second = rollout(model, first.final, 5)
    assert first.final.step == 4
    assert (second.positions == whole.positions[4:]).all()
    assert (second.velocities == whole.velocities[4:]).all()
    assert (second.times == whole.times[4:]).all()


@pytest.mark.parametrize("name", ["molecules", "splash"])
def test_the_skin_changes_speed_and_no_position(name: str):
    model, start = propagator(name, torch.float32), world(name)
    results = [rollout(model, start, 12, skin=skin) for skin in (0.0, 0.05, 1.5)]
    assert all((result.positions == results[0].positions).all() for result in results)
    rebuilds = [result.rebuilds for result in results]
    assert rebuilds[0] == 12
    assert rebuilds[2] <= 6
    stepper = Stepper(model, start.replace(velocities=20 * start.velocities), guards=False)
    for _ in range(7):
        stepper.step()
    assert stepper._lists[0].list.skin == pytest.approx(1e-3 * model.config.cutoff)  # given up: it was used up at once


def test_many_starts_at_once_are_what_each_is_alone():
    for name in WORLDS:
        model = propagator(name)
        starts = [world(name, particles) for particles in (30, 12, 21)]
        together = rollout(model, starts, 6)
        for one, start in zip(together, starts, strict=True):
            alone = rollout(model, start, 6)
            np.testing.assert_allclose(one.positions, alone.positions, rtol=0, atol=EXACT)
            np.testing.assert_allclose(one.velocities, alone.velocities, rtol=0, atol=1e-10)
    few = Stepper(propagator("charges"), [world("charges", n) for n in (30, 12, 21)], edges_at_once=300)
    few.step()
    joined = Stepper(propagator("charges"), [world("charges", n) for n in (30, 12, 21)])
    joined.step()
    for a, b in zip(few.states, joined.states, strict=True):
        np.testing.assert_allclose(a.positions, b.positions, rtol=0, atol=EXACT)


def test_one_of_many_that_fails_stops_alone():
    config = model_config("charges")
    starts = [world("charges"), world("charges").replace(positions=world("charges").positions - [5.0, 0, 0])]
    speed = np.zeros((30, 3))
    speed[:, 0] = 0.2
    starts = [start.replace(velocities=speed, name=f"start {i}") for i, start in enumerate(starts)]
    first = float(starts[0].positions[3, 0])
    model = Breaking(config, 3, first + 0.35)
    seen: list[int] = []
    failed, fine = rollout(model, starts, 10, callback=lambda step, states: seen.append(step))
    # 0.1 a stride: beyond reach after 4 strides, so the fifth is refused
    assert (failed.failure.step, failed.failure.particle, failed.failure.last_good_step) == (5, 3, 4)
    assert "the position of particle 3 (type 0) became (nan, nan, nan) at step 5" in str(failed.failure)
    assert "start 0" in str(failed.failure)
    assert failed.positions.shape == (5, 30, 3)
    assert np.isfinite(failed.positions).all()
    assert fine.failure is None
    assert fine.positions.shape == (11, 30, 3)
    assert (fine.positions == rollout(model, starts[1], 10).positions).all()
    assert seen == list(range(1, 11))
    with pytest.raises(RolloutError, match=r"particle 3 .* at step 5; last good frame: step 4"):
        rollout(model, starts, 10, strict=True)
    assert rollout(model, starts[0], 10).failure.step == 5


@pytest.mark.parametrize(
    ("name", "guards", "value", "words"),
    [
        ("charges", Guards(max_displacement=0.5), 0.6, "particle 3 .* was thrown 0.98.* in one stride \\(limit 0.5\\)"),
        ("molecules", True, 2.5, "was thrown .* in one stride \\(limit 3\\)"),
        ("splash", True, 0.9, "particle 3 .* outside the walls along [xyz] \\(limit 0.3\\)"),
    ],
)
def test_guards_name_particle_and_limit(name: str, guards: Guards | bool, value: float, words: str):
    config = model_config(name, static_species=())
    model = Breaking(config, 3, -1e9, value)
    with pytest.raises(RolloutError, match=words) as caught:
        rollout(model, world(name), 5, guards=guards, strict=True)
    assert caught.value.failure.particle == 3
    free = rollout(model, world(name), 5, guards=False)
    assert free.failure is None
    assert free.positions.shape[0] == 6


def test_the_least_distance_is_watched_across_the_boundary():
    config = model_config("molecules", species=(8,))
    start = State(
        positions=np.array([[0.5, 1.0, 1.0], [7.7, 1.0, 1.0]]),
        velocities=np.array([[-0.05, 0.0, 0.0], [0.05, 0.0, 0.0]]),
        species=np.array([8, 8]),
        cell=np.eye(3) * 8.5,
        pbc=(True, True, True),
    )
    # 1.3 apart through the boundary, 0.4 nearer a stride
    result = rollout(Linear(config), start, 5, guards=Guards(min_distance=0.6))
    assert result.failure.step == 2
    assert "came within 0.5 of each other (limit 0.6)" in result.failure.reason
    assert rollout(Linear(config), start, 2, guards=True).failure is None
    with pytest.raises(InputError, match="min_distance must be positive"):
        Guards(min_distance=-1.0)


class Shrinking(torch.nn.Module):
    """Every stride brings all particles nearer to the origin by a factor."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.config, self.factor = model_config("splash", static_species=(), walls=None), factor

    def predict(self, graph: ParticleGraph) -> Prediction:
        """See the class."""
        return Prediction(graph.positions * self.factor, graph.velocities, graph.positions[None, :, :0])


@pytest.mark.parametrize("stopped_after", [0, 2])
def test_a_liquid_that_collapses_is_stopped_with_the_number_of_neighbours(stopped_after: int):
    start = world("splash", 400)
    free = rollout(Shrinking(0.8), start, 6, guards=False)
    edges = [2 * len(cKDTree(frame).query_pairs(0.3)) for frame in free.positions]
    crowded = next(step for step, number in enumerate(edges) if number > 3 * edges[0] and number > 100 * 400)
    stepper = Stepper(Shrinking(0.8), start, guards=Guards(max_crowding=3.0))
    for _ in range(stopped_after):
        stepper.step()
    again = Stepper(Shrinking(0.8), stepper.states[0], guards=Guards(max_crowding=3.0))
    again.remember(0, stepper.memory(0))  # a resumed rollout still knows the start
    words = r"has collapsed: .* neighbours a particle, .* at the start \(limit 3 times"
    for _ in range(crowded - stopped_after):
        again.step()
    with pytest.raises(RolloutError, match=words) as caught:
        again.step()
    assert (caught.value.failure.step, caught.value.failure.last_good_step) == (crowded + 1, crowded)
    assert f"{edges[crowded] / 400:.4g} neighbours a particle, {edges[0] / 400:.4g} at" in str(caught.value)
    # neither are few neighbours too many, nor is a start that was dense from the beginning
    assert rollout(Shrinking(0.5), world("splash", 90), 6).failure is None
    assert rollout(Shrinking(0.99), start, 4, guards=Guards(max_crowding=3.0)).failure is None


def test_random_dropping_is_repeatable_and_differs_by_stride_and_seed():
    model = propagator("charges", drop="random", drop_fraction=0.5)
    start = world("charges")
    whole = rollout(model, start, 6)
    assert (rollout(model, start, 6).positions == whole.positions).all()
    first = rollout(model, start, 3)
    assert (rollout(model, first.final, 3).positions[-1] == whole.positions[-1]).all()
    assert (rollout(model, start, 6, seed=1).positions[1] != whole.positions[1]).any()
    # the same state one stride later draws other edges; a name or a time that only one engine knows changes nothing
    assert (rollout(model, start.replace(step=1), 1).positions[1] != whole.positions[1]).any()
    renamed = start.replace(name="the atoms", start_time=3.0)
    assert (rollout(model, renamed, 6).positions == whole.positions).all()
    state = torch.random.get_rng_state()
    rollout(model, start, 1)
    assert (torch.random.get_rng_state() == state).all()


def test_starts_from_a_data_set(tmp_path):
    data, _ = write_world(tmp_path, "molecules")
    test = open_trajectories(data)
    config = model_config("molecules")
    state = state_at(test, config, trajectory=1, frame=2)
    assert state.start_time == 4.0
    assert (state.positions == test[1].positions[2]).all()
    assert (state.velocities == test[1].velocities[2]).all()
    difference = state_at(test, model_config("molecules", velocity="backward"), frame=2)
    np.testing.assert_allclose(difference.velocities, (test[0].positions[2] - test[0].positions[1]) / 2.0, atol=1e-12)
    model = propagator("molecules", velocity="backward")
    windows = WindowSet(test, model.config, dtype=torch.float64)
    from_graph = rollout(model, windows[0], 2)
    from_frame = rollout(model, state_at(test, model.config, frame=windows.index[0][1]), 2)
    assert (from_graph.positions == from_frame.positions).all()
    with pytest.raises(InputError, match="needs frames -1 and 0; start at frame 1 or a later one"):
        state_at(test, model_config("molecules", velocity="backward"), frame=0)
    with pytest.raises(InputError, match=r"takes backward differences, and the first frame .* has no frame before it"):
        rollout(model, test[0], 1)
    true = propagator("molecules")
    assert (rollout(true, test[0], 2).positions == rollout(true, state_at(test, true.config), 2).positions).all()
    with pytest.raises(InputError, match="holds 'molecules', but the propagator is one of 'charges'"):
        state_at(test, model_config("charges"))
    with pytest.raises(InputError, match="has trajectories 0 to 1, not 2"):
        state_at(test, config, trajectory=2)
    with pytest.raises(InputError, match="has frames 0 to 3, not 9"):
        state_at(test, config, frame=9)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"velocities": None}, "has no velocities, but the propagator of 'charges' takes true ones"),
        ({"features": None}, "has no features, but the propagator of 'charges' needs 1 a particle"),
        ({"species": np.full(30, 4)}, "particle 0 of the start 'charges' has type 4, but .* knows \\[0\\]"),
        ({"positions": np.full((30, 3), np.nan)}, "positions of .*: row 0 is \\[nan, nan, nan\\], not finite"),
        ({"positions": np.zeros((29, 3))}, "are \\(29, 3\\), but \\(30, 3\\) is needed"),
        ({"pbc": (True, True, True), "cell": np.eye(3)}, "is periodic, but the propagator of 'charges' joins all"),
    ],
)
def test_starts_that_do_not_fit_are_refused(changes: dict, words: str):
    with pytest.raises(InputError, match=words):
        rollout(propagator("charges"), world("charges").replace(**changes), 1)


def test_models_that_cannot_roll_out_are_refused():
    with pytest.raises(InputError, match=r"forward differences .* known in a stored trajectory and never in a rollout"):
        rollout(propagator("charges", velocity="forward"), world("charges"), 1)
    with pytest.raises(InputError, match="a LennardJones is not a propagator"):
        rollout(LennardJones(0.01, 3.4, 5.0), world("charges"), 1)
    with pytest.raises(InputError, match="there is no start"):
        rollout(propagator("charges"), [], 1)
    with pytest.raises(InputError, match="a rollout starts from a State"):
        rollout(propagator("charges"), 5, 1)


def test_the_public_name_is_a_package_and_a_function():
    assert egnn_md.rollout is sys.modules["egnn_md.rollout"]
    assert isinstance(egnn_md.rollout, ModuleType)
    model, start = propagator("charges"), world("charges")
    result = egnn_md.rollout(model, start, 4, every=2)
    assert (result.positions == rollout(model, start, 4).positions[::2]).all()
    assert result.steps == 4
