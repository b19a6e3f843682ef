"""Labelling with quick reference methods: what is written, skipped, recorded and refused."""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.io import read

from egnn_md.data.calculators import available_calculators, make_calculator
from egnn_md.data.labelling import LabelSummary, describe_options, structure_id
from egnn_md.data.labelling import label as label_anywhere
from egnn_md.errors import InputError, LabellingError

OPTIONS = {"sigma": 3.4, "epsilon": 0.01, "rc": 6.0}


def label(*args: Any, **options: Any) -> LabelSummary:
    """In this process unless a test asks for others: starting them takes seconds."""
    return label_anywhere(*args, **{"processes": 0, **options})


def copper(count: int, seed: int = 0) -> list[Atoms]:
    rng = np.random.default_rng(seed)
    out = []
    for index in range(count):
        atoms = bulk("Cu", cubic=True)
        atoms.positions += rng.normal(scale=0.1, size=atoms.positions.shape)
        atoms.info["number"] = index
        out.append(atoms)
    return out


def unknown_to_emt() -> Atoms:
    return Atoms("U2", [[0, 0, 0], [0, 0, 2.5]])


def test_labels_are_the_calculators_and_a_second_run_skips_them(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    frames = [*copper(3), unknown_to_emt()]
    seen: list[int] = []
    summary = label(
        frames, output, "emt", processes=2, progress=lambda s: seen.append(s.labelled + s.failed + s.skipped)
    )
    assert (summary.labelled, summary.skipped, summary.failed) == (3, 0, 1)
    assert seen == [1, 2, 3, 4]
    assert "U" in summary.failures[0] or "NotImplementedError" in summary.failures[0]
    labelled = {atoms.info["number"]: atoms for atoms in read(output, ":")}
    assert sorted(labelled) == [0, 1, 2]
    for number, atoms in labelled.items():
        reference = frames[number].copy()
        reference.calc = EMT()
        assert atoms.get_potential_energy() == pytest.approx(reference.get_potential_energy(), abs=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), reference.get_forces(), atol=2e-8)
        np.testing.assert_allclose(atoms.get_stress(), reference.get_stress(), atol=1e-9)
        assert atoms.info["teacher"] == "emt"
    before = output.read_bytes()
    again = label(frames, output, "emt")
    assert (again.labelled, again.skipped, again.failed) == (0, 4, 0)
    assert output.read_bytes() == before
    retried = label(frames, output, "emt", retry_failed=True)
    assert (retried.labelled, retried.skipped, retried.failed) == (0, 3, 1)
    log = [json.loads(line) for line in Path(f"{output}.failures.jsonl").read_text().splitlines()]
    assert [entry["structure_id"] for entry in log] == [structure_id(unknown_to_emt())]


@pytest.mark.parametrize("cut", [1, 30, 200, "newline", "count", "comment"])
def test_a_torn_last_frame_is_made_again(tmp_path: Path, cut: int | str) -> None:
    output = tmp_path / "labels.extxyz"
    frames = copper(3)
    label(frames, output, "emt")
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    if cut == "newline":
        torn = whole[:-1]
    elif cut == "count":
        torn = b"".join(lines[:12]) + b"4"
    elif cut == "comment":
        torn = b"".join(lines[:13]) + lines[13][:25]
    else:
        torn = whole[: -int(cut)]
    output.write_bytes(torn)
    summary = label(frames, output, "emt")
    assert summary.failed == 0
    assert summary.labelled == (0 if cut in (1, "newline") else 1)
    # with a last line that is whole but for its newline nothing is lost, only the newline is put back
    assert output.read_bytes() == whole
    assert len(read(output, ":")) == 3


def test_more_frames_follow_a_file_without_a_final_newline(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    label(copper(2), output, "emt")
    output.write_bytes(output.read_bytes()[:-1])
    label(copper(4), output, "emt")
    assert [atoms.info["number"] for atoms in read(output, ":")] == [0, 1, 2, 3]


def test_ids_of_digits_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ASE would read such ids as numbers, and label the structures again."""
    ids = ["1234567890123456", "1234567890123e99", "0000000000000001"]

    def fake(atoms: Atoms) -> str:
        return ids[atoms.info["number"]]

    monkeypatch.setattr("egnn_md.data.labelling.structure_id", fake)
    output = tmp_path / "labels.extxyz"
    assert label(copper(3), output, "emt").labelled == 3
    assert label(copper(3), output, "emt").skipped == 3


def test_labels_of_another_method_or_other_options_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    label(copper(1), output, "lj", options=OPTIONS)
    content = output.read_bytes()
    with pytest.raises(LabellingError, match=r"frame 0 has teacher 'lj', but .* 'emt'.*another output"):
        label(copper(2), output, "emt")
    with pytest.raises(LabellingError, match=r"teacher_options '.*sigma:3\.4'.*sigma:3\.0"):
        label(copper(2), output, "lj", options={**OPTIONS, "sigma": 3.0})
    assert output.read_bytes() == content
    assert label(copper(2), output, "LJ", options=OPTIONS).skipped == 1


@pytest.mark.parametrize(
    "value",
    [
        {"a": "x y", "b": [1, "two"]},
        {"k": "it's"},
        {"k": {"n": 1}},
        {"k": True},
        {"path": "a=b\\c", "q": 'say "x"'},
    ],
)
def test_options_survive_the_comment_line(tmp_path: Path, value: dict[str, object]) -> None:
    from ase.io import write

    from egnn_md.data.frames import scan_frames

    atoms = copper(1)[0]
    atoms.info["teacher_options"] = describe_options(value)
    write(tmp_path / "x.extxyz", atoms)
    assert scan_frames(tmp_path / "x.extxyz").comments[0]["teacher_options"] == describe_options(value)


@pytest.mark.parametrize("content", ["hello\n", "2\ncomment\nCu 0 0 0\nCu 0 0 2\n", "-3\nx\n"])
def test_a_file_that_is_no_label_file_is_left_alone(tmp_path: Path, content: str) -> None:
    output = tmp_path / "labels.extxyz"
    output.write_text(content)
    with pytest.raises(LabellingError, match="another output"):
        label(copper(1), output, "emt")
    assert output.read_text() == content


def test_two_writers_are_refused(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    with output.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(LabellingError, match="another process is labelling"):
            label(copper(1), output, "emt")


def test_an_unknown_method_or_option_fails_before_anything_starts(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    with pytest.raises(InputError, match=r"'gfn9'; known here: .*emt.*gfn2-xtb.*openmm"):
        label(copper(1), output, "gfn9")
    with pytest.raises(InputError, match=r"lj has no option 'sgima'; it has: .*sigma"):
        label(copper(1), output, "lj", options={"sgima": 1})
    with pytest.raises(InputError, match="processes = -1"):
        label(copper(1), output, "emt", processes=-1)
    assert not output.exists()


def test_a_failure_log_with_a_torn_line_is_read(tmp_path: Path) -> None:
    output = tmp_path / "labels.extxyz"
    label([unknown_to_emt()], output, "emt")
    log = Path(f"{output}.failures.jsonl")
    log.write_text(log.read_text() + '{"structure_id": "ab')
    other = Atoms("Pu2", [[0, 0, 0], [0, 0, 2.5]])
    summary = label([unknown_to_emt(), other], output, "emt")
    assert (summary.skipped, summary.failed) == (1, 1)
    assert label([unknown_to_emt(), other], output, "emt").skipped == 2


def test_environment_is_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os
    import signal

    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    handler = signal.getsignal(signal.SIGINT)
    label([], tmp_path / "labels.extxyz", "emt", threads=3)
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.getsignal(signal.SIGINT) is handler


def test_registered_methods() -> None:
    assert {"emt", "gfn1-xtb", "gfn2-xtb", "lj", "openmm"} <= set(available_calculators())
    assert isinstance(make_calculator("EMT"), EMT)


def test_a_generator_is_not_drained_ahead(tmp_path: Path) -> None:
    drawn: list[int] = []

    def sampler() -> Iterator[Atoms]:
        for atoms in copper(4):
            drawn.append(atoms.info["number"])
            yield atoms

    behind: list[int] = []
    label(sampler(), tmp_path / "a.extxyz", "emt", progress=lambda s: behind.append(len(drawn) - s.labelled))
    assert behind == [0, 0, 0, 0]


def test_a_full_disk_is_reported_and_what_was_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    output = tmp_path / "labels.extxyz"
    label(copper(2), output, "emt")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LabellingError, match=r"No space left on device.*run the same command again"):
        label(copper(4), output, "emt")
    monkeypatch.undo()
    label(copper(4), output, "emt")
    assert [atoms.info["number"] for atoms in read(output, ":")] == [0, 1, 2, 3]
