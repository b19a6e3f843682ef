"""Training the members of a round, one after the other, each resumable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from egnn_md.checkpoint import ModelCard, save_model
from egnn_md.data.labelling import ID_KEY
from egnn_md.data.structures import read_frames
from egnn_md.errors import InputError
from egnn_md.learning.config import LearnConfig, train_config
from egnn_md.models.committee import make_committee
from egnn_md.simulation.files import write_atomic
from egnn_md.simulation.interrupts import Interrupted
from egnn_md.training.train import train

COMMITTEE = "committee.safetensors"


def member_folder(folder: Path, index: int) -> Path:
    """Of a member's training inside a round's folder."""
    return folder / f"member-{index}"


def train_members(
    config: LearnConfig, folder: Path, round_number: int, labels: list[Path], before: Path | None, console: Console
) -> Path:
    """Train every member on ``labels`` and write the committee.

    Args:
        config: of the loop.
        folder: of the round.
        round_number: counts into the seeds.
        labels: label files.
        before: folder of the round whose weights are gone on with; None for fresh ones.
        console: where progress goes.

    Returns:
        The committee's file.

    Raises:
        Interrupted: a signal came; the training goes on from its checkpoint.
        TrainingError, InputError: see :func:`egnn_md.training.train.train`.
    """
    models = []
    for index in range(config.committee.members):
        seed = config.seed + 1000 * round_number + index
        output = member_folder(folder, index)
        files = labels
        if config.committee.bootstrap:
            files = [_bootstrap(labels, folder / f"bootstrap-{index}.extxyz", seed)]
        section: dict[str, Any] = dict(config.train)
        if before is not None:
            section["model"] = {"start_from": str(member_folder(before, index) / "model.safetensors")}
        settings = train_config(
            section,
            "configuration",
            data={
                "train": [str(path) for path in files],
                "valid_fraction": config.valid_fraction,
                "split_seed": seed,
                "max_force": config.label.max_force,
            },
            output=str(output),
            seed=seed,
            name=f"member {index}",
        )
        result = train(settings, resume=True)
        if not result.finished:
            raise Interrupted
        assert result.model is not None  # this process is alone
        models.append(result.model)
        for line in result.summary:
            console.print(f"  member {index}: {line}", highlight=False, soft_wrap=True)
    committee = make_committee(models, name=f"committee after round {round_number}")
    card: ModelCard = committee.card  # type: ignore[assignment]
    return save_model(committee, folder / COMMITTEE, card)


def _bootstrap(labels: list[Path], path: Path, seed: int) -> Path:
    """A label file of as many draws with replacement as there are labels, each kept once: 63 % of them.

    Copies are left out: a structure that counted twice could sit on both sides of the split.
    """
    if path.exists():
        return path
    blocks = [block for file in labels for block in frame_texts(file)]
    chosen = sorted(set(np.random.default_rng(seed).integers(0, len(blocks), len(blocks)).tolist()))
    write_atomic(path, b"".join(blocks[index] for index in chosen))
    return path


def frame_texts(path: Path) -> list[bytes]:
    """The frames of a label file as they stand there: no number is read and written again."""
    lines = path.read_bytes().splitlines(keepends=True)
    found, place = [], 0
    while place < len(lines):
        try:
            end = place + 2 + int(lines[place])
        except ValueError:
            raise InputError(f"{path}: line {place + 1} should be a number of atoms; it is no XYZ file") from None
        block = b"".join(lines[place:end])
        found.append(block if block.endswith(b"\n") else block + b"\n")
        place = end
    return found


def labelled_count(path: Path) -> int:
    """How many frames a label file holds; 0 where there is none."""
    if not path.exists() or not path.stat().st_size:
        return 0
    return sum(ID_KEY in atoms.info for atoms in read_frames(path))


def too_hard(path: Path, max_force: float | None) -> int:
    """How many labelled frames of a file feel more than ``max_force`` (eV/Å) somewhere and are not learned from."""
    if max_force is None or not path.exists() or not path.stat().st_size:
        return 0
    return sum(float(np.linalg.norm(atoms.get_forces(), axis=1).max()) > max_force for atoms in read_frames(path))
