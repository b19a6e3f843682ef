"""How far a rollout can be trusted, in one sentence: while it is clearly nearer than the baselines and none fails."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from egnn_md.rollout.definitions import time_unit
from egnn_md.rollout.scores import Score

FAILED = "failed"


def trust(scores: Sequence[Score], baselines: Mapping[str, Sequence[Score]]) -> dict[str, Any]:
    """Strides up to which the MSE is clearly below that of every baseline and no start has failed.

    Clearly: the mean over the starts of the paired difference is more than its standard error (of one start: more
    than zero).

    Args:
        scores: of one model, one a start.
        baselines: name → the same starts.

    Returns:
        ``strides``, the last trusted one (0: none), ``of`` so many; ``ended_by`` the baseline that it is not
        clearly nearer than at the next stride, ``failed``, or None; ``failed`` starts by then; ``starts``;
        ``rival`` the best baseline at the stride that is described (the last trusted one, or the first), ``ratio``
        of the MSE to the rival's there, and ``better``, how many starts beat every baseline there.
    """
    errors = np.stack([score.series["mse"] for score in scores])
    others = {name: np.stack([score.series["mse"] for score in found]) for name, found in baselines.items()}
    means = {name: found.mean(axis=0) for name, found in others.items()}
    broken = [score.failures.broken for score in scores if score.failures is not None]
    total = errors.shape[1] - 1
    trusted, ended_by, failed = 0, None, 0
    for stride in range(1, total + 1):
        failed = sum(first is not None and first <= stride for first in broken)
        gains = {name: _gain(found[:, stride] - errors[:, stride]) for name, found in others.items()}
        if failed:
            ended_by = FAILED
        elif not min(gains.values()) > 0:
            ended_by = min(gains, key=lambda name: gains[name])
        if ended_by is not None:
            break
        trusted = stride
    at = max(trusted, 1)
    rival = min(means, key=lambda name: means[name][at])
    best = np.min([found[:, at] for found in others.values()], axis=0)
    ratio = float(errors[:, at].mean() / means[rival][at]) if means[rival][at] > 0 else float("inf")
    return {
        "strides": trusted,
        "of": total,
        "ended_by": ended_by,
        "failed": failed,
        "starts": len(scores),
        "rival": rival,
        "ratio": ratio,
        "better": int((errors[:, at] < best).sum()),
    }


def _gain(differences: NDArray) -> float:
    """Mean of paired differences (starts,) less its standard error."""
    error = float(np.std(differences, ddof=1)) / np.sqrt(len(differences)) if len(differences) > 1 else 0.0
    return float(differences.mean()) - error


def sentence(name: str, found: Mapping[str, Any], stride: float, units: dict[str, str]) -> str:
    """What :func:`trust` found, for people; with ``kinetic_energy_error``, relative and at the stride described.

    Models that were trained on squared errors damp what they cannot foresee: their positions stay near while their
    motion dies, which a position's error does not tell.
    """
    strides, total, starts = found["strides"], found["of"], found["starts"]
    end = found["ended_by"]
    lost = f"{found['failed']} of {starts} starts ha{'s' if found['failed'] == 1 else 've'} failed"
    over = f"{starts} starts" if starts > 1 else "one start only"
    unit = time_unit(units)
    if strides == 0:
        why = lost if end == FAILED else f"it is not clearly nearer to the reference than {end}"
        ratio = found["ratio"]
        text = "" if ratio is None or not np.isfinite(ratio) else f" (MSE {ratio:.3g} times that of {found['rival']})"
        return f"{name} cannot be trusted: after a single stride {why}{text}; {over}."
    span = f", {strides * stride:.4g} {unit}" if unit else ""
    if strides == total:
        how_far = f"at all {total} strides of the rollouts{span}" if total > 1 else f"at the only stride{span}"
    else:
        then = lost if end == FAILED else f"it is not clearly nearer than {end}"
        how_far = f"up to stride {strides} of {total}{span}; after the next {then}"
    beaten = f"{found['better']} of {over} beat both there" if starts > 1 else f"{over} was looked at"
    kinetic = float(found.get("kinetic_energy_error", np.nan))
    energy = f" and its kinetic energy is {100 * kinetic:.0f} % off" if np.isfinite(kinetic) else ""
    return (
        f"{name} is nearer to the reference than stay still and linear {how_far}. At stride {strides} its MSE is "
        f"{found['ratio']:.3g} of that of {found['rival']}{energy}; {beaten}."
    )
