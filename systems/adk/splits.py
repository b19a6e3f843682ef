"""Train, valid and test as separate stretches of time."""

from __future__ import annotations

import itertools

from egnn_md.data.trajectories import PARTS
from egnn_md.errors import InputError

Stretch = tuple[int, int]  # first frame, frame after the last

PUBLISHED_STARTS = {"train": 2481, "valid": 827, "test": 863}
PUBLISHED_HORIZON = 15  # frames


def split_in_time(
    frames: int, fractions: tuple[float, float, float], *, gap: int, stride: int, repeats: int = 1, source: str = ""
) -> dict[str, list[Stretch]]:
    """Cut ``frames`` into stretches for train, valid and test with ``gap`` unused frames between any two of them.

    Args:
        frames: T.
        fractions: shares of the three parts; they are scaled to sum 1. A share of 0 leaves a part out.
        gap: frames; at least ``stride``, else a training target could be a test input.
        stride: frames that one step of the propagator covers; every stretch can hold one with a frame before it.
        repeats: the pattern train, valid, test comes so many times, for trajectories that drift.
        source: for messages.

    Raises:
        InputError: shares or gap that cannot be, or too few frames.
    """
    if len(fractions) != 3 or min(fractions) < 0 or sum(fractions) <= 0:
        raise InputError(f"--split {','.join(f'{f:g}' for f in fractions)}: give three shares, as 70,15,15")
    if stride < 1 or repeats < 1:
        raise InputError(f"stride of {stride} frames and {repeats} repeats: both must be at least 1")
    if gap < stride:
        raise InputError(
            f"--gap of {gap} frames is shorter than the stride of {stride}: a target of one part could be an input of "
            "another; make the gap at least the stride"
        )
    used = [(part, share / sum(fractions)) for part, share in zip(PARTS, fractions, strict=True) if share > 0]
    pieces = [(part, share / repeats) for _ in range(repeats) for part, share in used]
    free = frames - gap * (len(pieces) - 1)
    least = stride + 2  # one frame for a backward difference, a start, a target
    edges, total = [0], 0.0
    for _, share in pieces:
        total += share
        edges.append(round(total * free))
    if free < 1 or min(b - a for a, b in itertools.pairwise(edges)) < least:
        smallest = min(share for _, share in pieces)
        needed = int(least / smallest) + 1 + gap * (len(pieces) - 1)
        raise InputError(
            f"{source or 'the trajectory'} has {frames} frames, too few for {len(pieces)} parts with gaps of {gap} "
            f"and at least {least} frames each; about {needed} are needed: a shorter --gap or --stride, fewer "
            "--repeats, other shares, or more frames"
        )
    stretches: dict[str, list[Stretch]] = {part: [] for part, _ in used}
    for number, (part, _) in enumerate(pieces):
        stretches[part].append((edges[number] + number * gap, edges[number + 1] + number * gap))
    return stretches


def published_split(frames: int, source: str = "") -> dict[str, list[Stretch]]:
    """The benchmark's split of the equilibrium trajectory: 2,481, 827 and 863 starts in a row, 15 frames ahead.

    It has no gap: the stretches overlap by the horizon and one frame (for differences to a neighbour), so targets of
    one part are inputs of the next.

    Raises InputError for fewer than 4,187 frames.
    """
    beyond = PUBLISHED_HORIZON + 1
    needed = sum(PUBLISHED_STARTS.values()) + beyond
    if frames < needed:
        raise InputError(
            f"{source or 'the trajectory'} has {frames} frames, but the published split needs {needed}; "
            "use --split 70,15,15"
        )
    stretches, first = {}, 0
    for part, starts in PUBLISHED_STARTS.items():
        stretches[part] = [(first, first + starts + beyond)]
        first += starts
    return stretches
