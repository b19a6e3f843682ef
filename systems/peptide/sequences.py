"""Which sequences are trained on and which are never: seeded, and the same on every machine."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np

from .builder import LETTERS, OTHER_STATES, states_of

CHIGNOLIN = "GYDPETGTWG"
#: The tripeptides inside chignolin: tested on, never trained on.
WINDOWS = tuple(CHIGNOLIN[i : i + 3] for i in range(len(CHIGNOLIN) - 2))
SEED = 20261124  # the first of these days that leaves every residue in a tested sequence
TRAINING_DIPEPTIDES = 160
TRAINING_TRIPEPTIDES = 160
TEST_DIPEPTIDES = 14
TEST_TRIPEPTIDES = 14


@cache
def split() -> dict[str, tuple[str, ...]]:
    """Sequences by name: ``train2``, ``train3``, ``test2``, ``test3`` (with the windows of chignolin).

    At most one arginine each. Every residue is in at least one tested sequence.
    """
    rng = np.random.default_rng(SEED)
    pairs = ["".join(letters) for letters in product(LETTERS, repeat=2) if letters.count("R") <= 1]
    pairs = [pairs[int(k)] for k in rng.permutation(len(pairs))]
    test2 = pairs[:TEST_DIPEPTIDES]
    train2 = pairs[TEST_DIPEPTIDES : TEST_DIPEPTIDES + TRAINING_DIPEPTIDES]
    triples: list[str] = []
    while len(triples) < TRAINING_TRIPEPTIDES + TEST_TRIPEPTIDES:
        word = "".join(LETTERS[int(k)] for k in rng.integers(len(LETTERS), size=3))
        if word.count("R") <= 1 and word not in WINDOWS and word not in triples:
            triples.append(word)
    test3 = triples[:TEST_TRIPEPTIDES]
    missing = sorted(set(LETTERS) - set("".join([*test2, *test3, *WINDOWS])))
    assert not missing, f"residues {missing} are in no tested sequence"
    return {
        "train2": tuple(train2),
        "train3": tuple(triples[TEST_TRIPEPTIDES:]),
        "test2": tuple(test2),
        "test3": (*test3, *WINDOWS),
    }


def random_states(sequence: str, rng: np.random.Generator, share_charged: float = 0.3) -> dict[int, str]:
    """States other than the default ones: half of the histidines HID, now and then one charged residue."""
    states = {i: "HID" for i, letter in enumerate(sequence) if letter == "H" and rng.random() < 0.5}
    charged = {"D": "ASP", "E": "GLU", "K": "LYS", "H": "HIP"}
    places = [i for i, letter in enumerate(sequence) if letter in charged]
    if places and "R" not in sequence and rng.random() < share_charged:
        place = places[int(rng.integers(len(places)))]
        states[place] = charged[sequence[place]]
    states_of(sequence, states)
    return states


def all_single_states() -> list[tuple[str, dict[int, str]]]:
    """Every residue in each of its states."""
    return [
        (letter, states)
        for letter in LETTERS
        for states in ({}, *({0: state} for state in OTHER_STATES.get(letter, ())))
    ]
