"""SPH liquids: scenes, the simulator's physics, and how its frames are taken."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from liquid_cases import TINY, cubic_spline, one_body, simulator
from scipy.spatial import cKDTree

from egnn_md.errors import ConfigError
from egnn_md_systems.liquid import child, splishsplash
from egnn_md_systems.liquid.presets import GRAVITY, PRESETS, get_preset
from egnn_md_systems.liquid.scene import Body, Scene, random_scene
from egnn_md_systems.liquid.splishsplash import reserving_blocks, simulate

# scenes


@pytest.mark.parametrize("name", ["tiny", "small", "water3d"])
def test_bodies_keep_off_the_walls_and_each_other(name: str):
    preset = PRESETS[name]
    counts = set()
    for index in range(4):
        scene = random_scene(preset, 3, "train", index)
        positions, velocities = scene.particles()
        counts.add(len(scene.bodies))
        assert preset.particles[0] <= len(positions) <= preset.particles[1]
        assert positions.min() >= preset.spacing * (1 - 1e-9)
        assert np.all(positions.max(axis=0) <= np.array(preset.tank) - preset.spacing * (1 - 1e-9))
        # the kernel's sum, a density over the rest density: no body starts compressed by another
        pairs = cKDTree(positions).query_pairs(2 * preset.spacing, output_type="ndarray")
        weights = cubic_spline(
            np.linalg.norm(positions[pairs[:, 0]] - positions[pairs[:, 1]], axis=1), 2 * preset.spacing
        )
        density = np.bincount(pairs.ravel(), np.repeat(weights, 2), minlength=len(positions))
        density = (density + cubic_spline(np.zeros(1), 2 * preset.spacing)) * preset.spacing**3
        assert density.max() < 1.005
        assert np.abs(velocities[:, [0, 2]]).max() <= preset.max_horizontal_speed
        assert np.abs(velocities[:, 1]).max() <= preset.max_vertical_speed
        assert np.unique(velocities, axis=0).shape[0] == len(scene.bodies)
    assert len(counts) > 1


def test_a_scene_depends_on_seed_part_and_index_only():
    scene = random_scene(TINY, 5, "train", 2)
    assert random_scene(TINY, 5, "train", 2) == scene
    others = [random_scene(TINY, 6, "train", 2), random_scene(TINY, 5, "valid", 2), random_scene(TINY, 5, "train", 3)]
    assert all(other.bodies != scene.bodies for other in others)
    assert Scene.model_validate_json(scene.model_dump_json()) == scene


def test_a_body_has_the_volume_of_its_particles():
    ball = Body(shape="sphere", size=(0.6, 0.6, 0.6), centre=(0, 0, 0), rotation=(0.3, 1, 2), velocity=(0, 0, 0))
    points = ball.lattice(0.02)
    assert len(points) * 0.02**3 == pytest.approx(np.pi / 6 * 0.6**3, rel=0.02)
    assert np.linalg.norm(points, axis=1).max() <= 0.3 + 1e-12
    box = Body(shape="box", size=(0.4, 0.2, 0.3), centre=(0, 0, 0), rotation=(0, 0, np.pi / 2), velocity=(0, 0, 0))
    points = box.lattice(0.02)
    assert len(points) == 20 * 10 * 15
    # a quarter turn about z swaps the first two edges
    np.testing.assert_allclose(np.ptp(points, axis=0), [0.18, 0.38, 0.28], atol=1e-12)


def test_presets_have_the_paper_s_sizes():
    fluid = PRESETS["fluid113k"]
    assert (fluid.particle_radius, fluid.frame_interval, fluid.cutoff) == (0.025, 1 / 50, 0.075)
    assert np.mean(fluid.particles) == pytest.approx(113_140, rel=0.01)
    assert np.mean(PRESETS["water3d"].particles) == pytest.approx(7_806, rel=0.02)
    assert PRESETS["water3d"].cutoff == 0.035
    assert get_preset("tiny", frames=7, frame_interval=None).frames == 7


@pytest.mark.parametrize(
    ("name", "changes"),
    [("huge", {}), ("tiny", {"frames": 1}), ("tiny", {"frame_interval": 0.0}), ("tiny", {"particles": (900, 990)})],
)
def test_impossible_presets_are_refused(name: str, changes: dict):
    with pytest.raises(ConfigError, match=name):
        get_preset(name, **changes)


def test_no_room_is_said_and_not_searched_for_ever(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("egnn_md_systems.liquid.scene.SCENE_TRIES", 5)
    flat = get_preset("tiny", tank=(4.0, 0.2, 4.0), particles=(900, 1000))
    with pytest.raises(ConfigError, match=r"train_00000.*5 tries"):
        random_scene(flat, 0, "train", 0)


def test_reserving_blocks_hold_exactly_the_particles():
    # the rule of the simulator: n + 1 spacings hold n particles; a block one particle thick stays empty
    for count in range(splishsplash.MIN_PARTICLES, 200):
        held = 0
        for block in reserving_blocks(count, 0.1):
            edges = np.round((np.array(block["end"]) - np.array(block["start"])) / 0.1).astype(int) - 1
            assert edges.min() > 1
            held += int(edges.prod())
        assert held == count
    with pytest.raises(ConfigError, match="at least 53"):
        reserving_blocks(10, 0.1)


# the simulator


@simulator
def test_a_body_falls_freely_and_keeps_its_horizontal_momentum(tmp_path: Path):
    # walls act on particles within the kernel's support, 0.2 m: floor and ceiling are farther than that
    preset = get_preset("tiny", frames=11)
    scene = one_body(preset, (0.5, 0.55, 0.5), (0.4, 0.4, 0.4), velocity=(0.3, 0.2, -0.1))
    positions, velocities = simulate(scene, tmp_path / "run", 60)
    centre, speed = positions.mean(axis=1, dtype=np.float64), velocities.mean(axis=1, dtype=np.float64)
    time = preset.frame_interval * np.arange(preset.frames)[:, None]
    gravity = np.array(GRAVITY)
    assert positions[:, :, 1].min() > 0.2
    assert positions[:, :, 1].max() < 0.8
    np.testing.assert_allclose(speed, np.array([0.3, 0.2, -0.1]) + gravity * time, atol=2e-4)
    # first-order integrator: x is behind by at most ½ g t Δt, with Δt the longest step
    late = centre - (centre[0] + np.array([0.3, 0.2, -0.1]) * time + 0.5 * gravity * time**2)
    assert np.abs(late[:, [0, 2]]).max() < 2e-4
    assert np.all(np.abs(late[:, 1]) <= 0.5 * 9.81 * time[:, 0] * preset.max_timestep + 1e-4)


@simulator
def test_a_splash_stays_in_the_box_loses_energy_and_settles_at_its_rest_density(tmp_path: Path):
    # a narrow tank, so that few particles make many layers
    preset = get_preset("small", tank=(0.4, 0.8, 0.4), particles=(300, 400), frames=100)
    scene = one_body(preset, (0.2, 0.5, 0.2), (0.3, 0.4, 0.3), velocity=(1.0, 0.0, 0.5))
    positions, velocities = simulate(scene, tmp_path / "run", 60)
    start, initial = scene.particles()
    np.testing.assert_allclose(positions[0], start, atol=1e-6)
    np.testing.assert_allclose(velocities[0], initial, atol=1e-6)
    # walls are particles: hard hits dent them by less than half a particle radius
    low, high = np.array(preset.bounds).T
    slack = 0.5 * preset.particle_radius
    assert np.all(positions >= low - slack)
    assert np.all(positions <= high + slack)
    # ids: a particle moves in a frame by what its speed allows; a permuted order would jump across the tank
    moved = np.linalg.norm(np.diff(positions, axis=0), axis=2)
    fastest = np.maximum(np.linalg.norm(velocities[1:], axis=2), np.linalg.norm(velocities[:-1], axis=2))
    assert np.all(moved <= (fastest + 1.5) * preset.frame_interval)
    energy = [child.mechanical_energy(x, v, GRAVITY) for x, v in zip(positions, velocities, strict=True)]
    assert np.diff(energy).max() < 0.02 * energy[0]
    assert energy[-1] < 0.5 * energy[0]
    # density of what is surrounded by liquid on all sides, over the rest density
    support = 4 * preset.particle_radius
    top = np.array([0.4, positions[-10:, :, 1].mean() * 2, 0.4])
    densities = []
    for frame in positions[-10:]:
        inside = np.all((frame > support + 0.01) & (frame < top - support - 0.01), axis=1)
        tree = cKDTree(frame)
        for particle in np.flatnonzero(inside):
            near = frame[tree.query_ball_point(frame[particle], support)] - frame[particle]
            densities.append(preset.spacing**3 * cubic_spline(np.linalg.norm(near, axis=1), support).sum())
    assert len(densities) > 20
    assert np.mean(densities) == pytest.approx(1.0, abs=0.01)


@simulator
def test_frames_lie_on_their_times_whatever_the_interval(tmp_path: Path):
    """The velocity of a falling body tells the time of each frame."""
    preset = get_preset("tiny", frames=12, frame_interval=0.0137)
    scene = one_body(preset, (0.5, 0.7, 0.5), (0.4, 0.4, 0.4))
    _, velocities = simulate(scene, tmp_path / "run", 60)
    times = velocities[:, :, 1].mean(axis=1) / GRAVITY[1]
    np.testing.assert_allclose(times, 0.0137 * np.arange(12), atol=2e-5)


# what the child sees in the simulator's buffers


class FakeModel:
    """Buffers as the simulator keeps them: longer than the particles, in an order of its own."""

    def __init__(self, positions: np.ndarray, ids: list[int], active: int) -> None:
        self.fields = {
            "position": np.concatenate([positions, np.full((5, 3), 99.0, np.float32)]),
            "velocity": np.concatenate([-positions, np.full((5, 3), 99.0, np.float32)]),
            "id": np.array([*ids, 0, 0, 0, 0, 0], dtype=np.uint32),
        }
        self.active = active

    def numActiveParticles(self) -> int:  # noqa: N802
        return self.active

    def getFieldBuffer(self, name: str) -> np.ndarray:  # noqa: N802
        return self.fields[name]


def recorder(folder: Path) -> child.Recorder:
    start = np.arange(9.0).reshape(3, 3)
    np.savez(
        folder / "start.npz",
        positions=start,
        velocities=start,
        frame_interval=0.02,
        frames=2,
        max_timestep=0.002,
        spacing=0.1,
        gravity=GRAVITY,
        energy_gain=0.02,
    )
    made = child.Recorder(folder, None, None)
    made.energy = 1e6
    return made


def test_frames_are_in_the_order_of_the_ids(tmp_path: Path):
    positions = np.array([[2, 2, 2], [0, 0, 0], [1, 1, 1]], dtype=np.float32)
    made = recorder(tmp_path)
    made.take_frame(FakeModel(positions, [2, 0, 1], 3))
    np.testing.assert_array_equal(made.positions[0], [[0, 0, 0], [1, 1, 1], [2, 2, 2]])
    np.testing.assert_array_equal(made.velocities[0], -made.positions[0])


@pytest.mark.parametrize(
    ("ids", "active", "message"), [([0, 1, 2], 2, "2 particles, the first one 3"), ([0, 1, 1], 3, "ids")]
)
def test_lost_and_doubled_particles_are_errors(tmp_path: Path, ids: list[int], active: int, message: str):
    positions = np.zeros((3, 3), dtype=np.float32)
    with pytest.raises(RuntimeError, match=message):
        recorder(tmp_path).take_frame(FakeModel(positions, ids, active))


def test_a_gain_of_energy_is_an_error_and_a_loss_is_none(tmp_path: Path):
    """Three particles whose energy is set by one speed: ``½ v²`` at height 0."""
    made = recorder(tmp_path)
    still = np.zeros((3, 3))
    made.energy, made.energy_gain = 2.0, 0.1

    def at(energy: float) -> np.ndarray:
        return np.tile([np.sqrt(2 * energy), 0.0, 0.0], (3, 1))

    assert child.mechanical_energy(still, at(2.05), GRAVITY) == pytest.approx(2.05)
    assert child.mechanical_energy(still + np.array([0, 0.5, 0]), at(1.0), GRAVITY) == pytest.approx(1.0 + 9.81 * 0.5)
    made.check_energy(still, at(2.09))
    made.check_energy(still, at(1.0))
    made.check_energy(still, at(1.05))
    with pytest.raises(child.UnstableError, match=r"from 1\.05 to 1\.2"):
        made.check_energy(still, at(1.2))


class FakeClock:
    """The parts of the simulator's module that steering needs."""

    def __init__(self, velocities: np.ndarray) -> None:
        self.model = FakeModel(-velocities, list(range(len(velocities))), len(velocities))
        self.Simulation = self.TimeManager = self
        self.chosen = 0.0

    def getCurrent(self) -> FakeClock:  # noqa: N802
        return self

    def getFluidModel(self, index: int) -> FakeModel:  # noqa: N802
        return self.model

    def setTimeStepSize(self, size: float) -> None:  # noqa: N802
        self.chosen = size


@pytest.mark.parametrize("speed", [0.0, 5.0, 60.0])
def test_steps_keep_the_cfl_condition_and_meet_the_frames(tmp_path: Path, speed: float):
    made = recorder(tmp_path)
    made.sph = FakeClock(np.array([[speed, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=np.float32))
    made.done = 1
    time = 0.0131  # towards the frame at 0.02
    made.choose_timestep(time)
    chosen = made.sph.chosen
    assert chosen <= 0.002 * (1 + 1e-3)
    assert chosen * (speed + 9.81 * 0.002) <= child.CFL_NUMBER * 0.1 * (1 + 1e-3)
    steps = (0.02 - time) / chosen
    assert steps == pytest.approx(round(steps))
