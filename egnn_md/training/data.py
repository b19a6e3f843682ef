"""From the ``data`` section of a configuration to three disjoint labelled sets."""

from __future__ import annotations

import glob
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from egnn_md.data.splits import split_indices
from egnn_md.data.structures import LabelledSet, read_labelled
from egnn_md.errors import ConfigError
from egnn_md.training.config import DataSection


@dataclass(frozen=True)
class TrainingData:
    """Disjoint sets; ``test`` may be empty."""

    train: LabelledSet
    valid: LabelledSet
    test: LabelledSet


def expand_files(patterns: list[str], key: str) -> list[Path]:
    """Files behind names and glob patterns, each once.

    Raises:
        ConfigError: nothing matches; the message names the key and where it was looked for.
    """
    found: list[Path] = []
    for pattern in patterns:
        matches = [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]
        if not matches:
            raise ConfigError(f"{key}: no file matches {pattern!r} (looked in {Path.cwd()})")
        found += [path for path in matches if path not in found]
    return found


def load_data(section: DataSection, cutoff: float, dtype: torch.dtype) -> TrainingData:
    """Read, filter and split.

    Raises:
        ConfigError: a pattern without files, or a structure of the training set in another one.
        InputError: a file or a structure that cannot be used.
    """

    def read(patterns: list[str], key: str, max_force: float | None) -> LabelledSet:
        return read_labelled(expand_files(patterns, key), cutoff, dtype=dtype, max_force=max_force)

    train = read(section.train, "data.train", section.max_force)
    valid, test = LabelledSet(), LabelledSet()
    if section.valid_fraction is not None or section.test_fraction is not None:
        split = split_indices(
            train.info,
            valid=section.valid_fraction or 0.0,
            test=section.test_fraction or 0.0,
            group_by=section.group_by,
            seed=section.split_seed,
        )
        train, valid, test = train.take(split.train), train.take(split.valid), train.take(split.test)
    if section.valid:
        # validation and test keep their hard structures: what is left out there would only hide errors
        valid = read(section.valid, "data.valid", None)
    if section.test:
        test = read(section.test, "data.test", None)
    if section.max_train is not None and len(train) > section.max_train:
        order = np.random.default_rng(section.split_seed).permutation(len(train))[: section.max_train]
        train = train.take(sorted(int(i) for i in order))
    for name, other in (("valid", valid), ("test", test)):
        shared = set(train.digests) & set(other.digests)
        if shared:
            raise ConfigError(
                f"data.{name}: {len(shared)} of {len(other)} structures are in the training set too; "
                "their errors would mean nothing. Give other files or a fraction"
            )
    if not len(train):
        raise ConfigError(f"data.train: no structure is left (max_force = {section.max_force} eV/Å)")
    return TrainingData(train, valid, test)
