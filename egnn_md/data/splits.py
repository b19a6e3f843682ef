"""Seeded splits in which relatives stay together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from egnn_md.errors import InputError


@dataclass(frozen=True)
class Split:
    """Indices of each part, ascending."""

    train: list[int]
    valid: list[int]
    test: list[int]


def split_indices(
    info: Sequence[dict[str, Any]],
    *,
    valid: float,
    test: float = 0.0,
    group_by: str | None = None,
    seed: int = 0,
) -> Split:
    """Divide structures at random, whole groups at a time.

    Snapshots of one run resemble each other; with some of them in training and some in validation the
    validation error would flatter the model. ``group_by`` names the key of the structures' info (such as
    the ``seed`` of the run) whose equal values stay in one part. A structure without the key is a group of
    its own.

    Args:
        info: one mapping a structure.
        valid: fraction of the structures for validation; whole groups are taken until it is reached.
        test: the same for the test set.
        group_by: key, or None for single structures.
        seed: of the shuffle; the split depends on it, on the groups and on nothing else.

    Raises:
        InputError: no structure has the key, or a part that should hold structures would hold none.
    """
    if group_by is not None and not any(group_by in entry for entry in info):
        known = sorted({key for entry in info for key in entry})
        raise InputError(f"no structure has the key {group_by!r} to split by; they have {', '.join(known)}")
    groups: dict[str, list[int]] = {}
    for index, entry in enumerate(info):
        name = f"={entry[group_by]}" if group_by is not None and group_by in entry else f"#{index}"
        groups.setdefault(name, []).append(index)
    names = list(groups)
    order = np.random.default_rng(seed).permutation(len(names))
    parts: dict[str, list[int]] = {"test": [], "valid": [], "train": []}
    wanted = {"test": test * len(info), "valid": valid * len(info)}
    for position in order:
        members = groups[names[position]]
        part = next((p for p in ("test", "valid") if len(parts[p]) < wanted[p]), "train")
        parts[part].extend(members)
    for part, fraction in (("train", 1.0), ("valid", valid), ("test", test)):
        if fraction > 0 and not parts[part]:
            raise InputError(
                f"the {part} part of the split is empty: {len(info)} structures in {len(names)} groups "
                f"cannot give fractions valid={valid}, test={test}; add data or give explicit files"
            )
    return Split(sorted(parts["train"]), sorted(parts["valid"]), sorted(parts["test"]))
