"""Data sets of charged particles: contents, resuming after a kill, settings, the shipped one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

pytest.importorskip("numba")
from egnn_md.cli.main import app
from egnn_md.data.trajectories import PARTS, open_trajectories, read_metadata
from egnn_md.errors import InputError, MissingDependencyError, OutputError
from egnn_md_systems.nbody import data_path, dataset, physics
from egnn_md_systems.nbody.dataset import generate, make_settings

FEW = {"particles": 5, "frames": 4}


def contents(path: Path) -> dict[str, list[np.ndarray]]:
    """Everything that a data set holds, by part."""
    found: dict[str, list[np.ndarray]] = {"metadata": [np.array((path / "metadata.json").read_text())]}
    for part in PARTS:
        if (path / f"{part}.h5").exists():
            found[part] = [
                np.asarray(array)
                for one in open_trajectories(path, part)
                for array in (one.positions, one.velocities, one.species, one.features)
            ]
    return found


def same(first: Path, second: Path) -> bool:
    a, b = contents(first), contents(second)
    return a.keys() == b.keys() and all(
        len(a[key]) == len(b[key]) and all(map(np.array_equal, a[key], b[key])) for key in a
    )


def test_the_command_writes_what_the_physics_gives(tmp_path: Path):
    words = [
        "generate",
        "nbody",
        "--output",
        str(tmp_path),
        "--preset",
        "tiny",
        "--seed",
        "4",
        "--threads",
        "2",
        "--splits",
        "3,2,2",
    ]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    assert sorted(os.listdir(tmp_path)) == ["metadata.json", "test.h5", "train.h5", "valid.h5"]
    metadata = read_metadata(tmp_path)
    assert metadata.system == "nbody"
    assert metadata.units == {"length": "none", "time": "none"}
    assert metadata.frame_interval == pytest.approx(0.1)
    assert metadata.pbc == (False, False, False)
    assert metadata.walls is None
    for part, number, count in (("train", 0, 3), ("valid", 1, 2), ("test", 2, 2)):
        found = open_trajectories(tmp_path, part)
        assert len(found) == count
        start = physics.starting_states(20, [(number, i) for i in range(count)], 4)
        x, v = physics.simulate(*start, 42, warm_up=1)
        for i, one in enumerate(found):
            assert one.positions[0].dtype == np.float32
            assert np.array_equal(one.positions[:], x[i].astype(np.float32))
            assert np.array_equal(one.velocities[:], v[i].astype(np.float32))
            assert np.array_equal(one.features, start[2][i][:, None])
            assert one.species.tolist() == [0] * 20


def test_double_stores_every_bit_and_keep_stores_chosen_frames(tmp_path: Path):
    all_frames = generate(tmp_path / "all", make_settings("tiny", splits=(2, 1, 1), double=True, **FEW))
    pair = generate(tmp_path / "pair", make_settings("tiny", splits=(2, 1, 1), keep=(1, 3), **FEW))
    metadata = read_metadata(pair)
    assert metadata.frame_interval == pytest.approx(0.2)
    assert metadata.model_extra["first_frame"] == 1
    whole, kept = open_trajectories(all_frames, "train")[0], open_trajectories(pair, "train")[0]
    assert whole.positions[:].dtype == np.float64
    assert len(kept) == 2
    assert np.array_equal(kept.positions[:], whole.positions[:][[1, 3]].astype(np.float32))
    assert np.array_equal(kept.velocities[:], whole.velocities[:][[1, 3]].astype(np.float32))


def test_a_stopped_run_goes_on_without_computing_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "CHUNK", 2)
    settings = make_settings("tiny", splits=(5, 3, 0), **FEW)
    whole = generate(tmp_path / "whole", settings)

    class StoppedError(Exception):
        pass

    def stop(part: str, done: int) -> None:
        if (part, done) == ("train", 4):
            raise StoppedError

    output = tmp_path / "stopped"
    with pytest.raises(StoppedError):
        generate(output, settings, report=stop)
    assert sorted(os.listdir(output)) == [".train.chunks", "metadata.json"]
    # what a kill in the middle of writing leaves behind
    (output / ".train.chunks" / "000004.tmp").write_bytes(b"half")
    (output / ".train.chunks" / "whole.partial").write_bytes(b"half")
    (output / ".claim").write_bytes(b"half")
    (output / ".lock").touch()
    computed = []
    simulate = dataset.simulate
    monkeypatch.setattr(
        dataset, "simulate", lambda x, *rest, **more: (computed.append(len(x)), simulate(x, *rest, **more))[1]
    )
    generate(output, settings)
    assert computed == [1, 2, 1]  # the last of train, then valid
    assert same(whole, output)
    assert sorted(os.listdir(output)) == ["metadata.json", "train.h5", "valid.h5"]
    generate(output, settings)
    assert computed == [1, 2, 1]


def test_sigkill_loses_nothing_that_was_done(tmp_path: Path):
    words = ["--preset", "tiny", "--splits", "300,0,0", "--particles", "30", "--keep", "30,40", "--threads", "1"]
    output = tmp_path / "killed"
    start = "from egnn_md.cli.main import main; main()"
    command = [sys.executable, "-c", start, "generate", "nbody", "--output", str(output), *words]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    chunks = output / ".train.chunks"
    limit = time.monotonic() + 60
    while not (chunks / "000000.npz").exists():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < limit
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (output / "train.h5").exists()
    done = {path: path.stat().st_mtime_ns for path in chunks.glob("*.npz")}
    assert done
    settings = make_settings("tiny", splits=(300, 0, 0), particles=30, keep=(30, 40))
    seen = {}

    def look(part: str, count: int) -> None:
        seen.update({path: path.stat().st_mtime_ns for path in done if path.exists()})

    generate(output, settings, report=look)
    assert seen == done
    assert sorted(os.listdir(output)) == ["metadata.json", "train.h5"]
    found = open_trajectories(output, "train")
    assert len(found) == 300
    start = physics.starting_states(30, [(0, 0), (0, 101), (0, 299)], 0)
    x, _ = physics.simulate(*start, 41, warm_up=1)
    for row, i in enumerate((0, 101, 299)):
        assert np.array_equal(found[i].positions[:], x[row, [30, 40]].astype(np.float32))


def test_two_processes_do_not_write_into_one_directory(tmp_path: Path):
    settings = make_settings("tiny", splits=(1, 0, 0), **FEW)
    told = []

    def again(part: str, done: int) -> None:
        if not told:
            told.append(part)
            with pytest.raises(InputError, match="another process is writing to"):
                generate(tmp_path, settings)

    generate(tmp_path, settings, report=again)
    assert told == ["train"]
    assert sorted(os.listdir(tmp_path)) == ["metadata.json", "train.h5"]


def test_a_damaged_chunk_is_named(tmp_path: Path):
    (tmp_path / ".train.chunks").mkdir()
    chunk = tmp_path / ".train.chunks" / "000000.npz"
    for content in (b"", b"not a chunk", b"PK\x03\x04 cut off"):
        chunk.write_bytes(content)
        with pytest.raises(InputError, match=r"000000\.npz is damaged"):
            generate(tmp_path, make_settings("tiny", splits=(1, 0, 0), **FEW))


def test_another_data_set_in_the_directory_is_not_touched(tmp_path: Path):
    settings = make_settings("tiny", splits=(1, 0, 0), **FEW)
    generate(tmp_path, settings)
    before = contents(tmp_path)
    for change, told in (
        ({"seed": 1}, r"seed 0 \(asked for: 1\)"),
        ({"frames": 5}, r"frames 4 \(asked for: 5\)"),
        ({"particles": 6}, "particles 5"),
        ({"splits": (2, 0, 0)}, "systems"),
        ({"double": True}, "precision float32"),
    ):
        with pytest.raises(InputError, match=told):
            generate(tmp_path, settings.model_copy(update=change))
    assert all(map(np.array_equal, contents(tmp_path)["train"], before["train"]))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--preset", "huge"], "preset is 'huge'; choose one of full, small, tiny"),
        (["--splits", "3,x,1"], "--splits 3,x,1: whole numbers"),
        (["--splits", "3,1"], "splits"),
        (["--splits", "0,0,0"], "at least one above 0"),
        (["--splits", "-1,2,2"], "splits are"),
        (["--particles", "1"], "particles 1: "),
        (["--frames", "1"], "frames 1: "),
        (["--seed", "-1"], "seed -1: "),
        (["--keep", "40,30"], "equal gaps"),
        (["--keep", "30"], "equal gaps"),
        (["--keep", "10,30,40"], "equal gaps"),
        (["--keep", "32,42"], "raise frames to 43"),
        (["--threads", "0"], "threads is 0"),
    ],
)
def test_settings_that_cannot_be(tmp_path: Path, words: list[str], told: str):
    done = CliRunner().invoke(app, ["generate", "nbody", "--output", str(tmp_path / "out"), *words])
    assert isinstance(done.exception, InputError)
    assert told in str(done.exception)
    assert not (tmp_path / "out").exists()


def test_presets():
    full = make_settings("full")
    assert (full.splits, full.particles, full.stored[-1]) == ((5000, 2000, 2000), 100, 41)
    assert full.bytes < 2e9
    assert make_settings("small").splits == (500, 200, 200)
    assert make_settings("tiny", particles=7).particles == 7


def test_a_disk_that_refuses_is_told(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="the same command goes on"):
        generate(tmp_path / "file" / "inside", make_settings("tiny", **FEW))


def test_numba_missing_gives_the_command(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    monkeypatch.delitem(sys.modules, "egnn_md_systems.nbody.kernel", raising=False)
    with pytest.raises(MissingDependencyError, match=r"pip install 'egnn-md\[systems\]'"):
        physics.simulate(np.zeros((1, 3)), np.zeros((1, 3)), np.ones(1), 2)


def test_the_shipped_set_is_the_start_of_the_full_test_part():
    (point,) = [p for p in entry_points(group="egnn_md.systems") if p.name == "nbody"]
    assert point.load()() == data_path()
    shipped = open_trajectories(data_path())
    assert len(shipped) == 4
    assert (len(shipped[0]), shipped[0].num_particles) == (42, 100)
    assert sum(path.stat().st_size for path in data_path().iterdir()) < 2**19
    first = physics.starting_states(100, [(2, 0)], 0)
    x, _ = physics.simulate(*first, 42, warm_up=1)
    assert np.array_equal(shipped[0].positions[:], x[0].astype(np.float32))
